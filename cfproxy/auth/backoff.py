"""When something that failed may be tried again, as pure arithmetic on a given monotonic clock.

Owns: the growing pause after failures, and the hold on refreshes that did not help.
Must not know: clocks, tokens, what is tried.
Invariant: instants are monotonic seconds, handed in by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cfproxy.errors import CfproxyError, StoreUnavailable, TokenEndpointUnavailable, without_traceback

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 30.0
BACKOFF_STORE_MAX_S = 4.0  # it is ours: asking often costs nobody else anything
HOLD_FIRST_S = 1.0
HOLD_MAX_S = 60.0


class Backoff:
    """The last failure, and the pause after failures in a row: 1, 2, 4, … 30 s, each times a jitter.

    After one of the store it is 4 s at most.

    Args:
        jitter: returns a factor near 1 for each pause, so that replicas don't retry in step.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self.error: CfproxyError | None = None
        self.failures = 0
        self.retry_at = -math.inf

    def fail(self, error: CfproxyError, now: float) -> None:
        """Count a failure at `now`; the pause is at least what the other side asked for."""
        # The exponent is bounded, or a long outage would overflow it.
        longest_s = BACKOFF_STORE_MAX_S if isinstance(error, StoreUnavailable) else BACKOFF_MAX_S
        step_s = min(longest_s, BACKOFF_FIRST_S * 2.0 ** min(self.failures, 10)) * self._jitter()
        asked_s = error.retry_after_s if isinstance(error, TokenEndpointUnavailable) else 0.0
        self.error = error
        self.failures += 1
        self.retry_at = now + max(step_s, asked_s)

    def retry_by(self, at: float) -> None:
        """Let the next try be at `at` if it were later."""
        self.retry_at = min(self.retry_at, at)

    def resume(self) -> None:
        """Let the next try be at once, because its obstacle is gone; the count of failures stays."""
        self.error = None
        self.retry_at = -math.inf

    def stop(self, error: CfproxyError, retry_at: float = -math.inf) -> None:
        """Remember `error` without counting a failure; nothing is refused from `retry_at` on."""
        self.error = error
        self.retry_at = retry_at

    def clear(self) -> None:
        """Forget all failures."""
        self.error = None
        self.failures = 0
        self.retry_at = -math.inf

    def left_s(self, now: float) -> float:
        """Return the seconds until the next try, 0 for at once."""
        return max(0.0, self.retry_at - now)

    def refusal(self, now: float) -> CfproxyError | None:
        """Return what to tell who asks during the pause: an error of their own, with the time left in it."""
        left_s = self.left_s(now)
        if self.error is None or left_s == 0:
            return None
        error = without_traceback(self.error)
        if isinstance(error, TokenEndpointUnavailable | StoreUnavailable):
            error.retry_after_s = left_s
        return error


class Hold:
    """The time for which a rejected token is not replaced: 1, 2, 4, … 60 s, as long as that doesn't help."""

    def __init__(self) -> None:
        self._step_s = 0.0
        self._until = -math.inf

    def active(self, now: float) -> bool:
        """Return whether a refresh is held back at `now`."""
        return now < self._until

    def begin(self, now: float) -> float:
        """Hold from `now`, twice as long as the last time unless that is a quiet minute ago.

        Returns:
            the hold's length in seconds; 0 while one is active, which goes on unchanged.
        """
        if self.active(now):
            return 0.0
        if now > self._until + HOLD_MAX_S:
            self._step_s = 0.0
        self._step_s = min(HOLD_MAX_S, max(HOLD_FIRST_S, 2 * self._step_s))
        self._until = now + self._step_s
        return self._step_s

    def clear(self) -> None:
        """End the hold; the next one is short again."""
        self._step_s = 0.0
        self._until = -math.inf
