"""Pauses after failures, as arithmetic on monotonic instants that the caller passes in."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

from cfproxy.errors import CfproxyError, StoreUnavailable, TokenEndpointUnavailable, without_traceback

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 30.0
BACKOFF_STORE_MAX_S = 4.0  # the store is our own, so frequent retries disturb no one else
HOLD_FIRST_S = 1.0
HOLD_MAX_S = 60.0
HOLDS_MAX = 256
# All requests for which a refresh did not help share these: so many at once, then one in each period.
FORCED_BURST = 6
FORCED_EVERY_S = 5.0


class Backoff:
    """The last failure and the pause after it: 1, 2, 4, … 30 s times a jitter; 4 s at most for the store.

    Args:
        jitter: returns a factor near 1 for each pause, so that replicas don't retry in step.

    Attributes:
        error: the last failure, None after a success.
        failures: how many there were in a row.
        retry_at: monotonic instant of the next attempt.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self.error: CfproxyError | None = None
        self.failures = 0
        self.retry_at = -math.inf

    def fail(self, error: CfproxyError, now: float) -> None:
        """Count a failure at `now`; the pause is at least the `retry_after_s` of the error."""
        # The exponent is bounded, or a long outage would overflow it.
        longest_s = BACKOFF_STORE_MAX_S if isinstance(error, StoreUnavailable) else BACKOFF_MAX_S
        step_s = min(longest_s, BACKOFF_FIRST_S * 2.0 ** min(self.failures, 10)) * self._jitter()
        requested_s = error.retry_after_s if isinstance(error, TokenEndpointUnavailable) else 0.0
        self.error = error
        self.failures += 1
        self.retry_at = now + max(step_s, requested_s)

    def retry_by(self, at: float) -> None:
        """Make the next attempt at `at` or earlier."""
        self.retry_at = min(self.retry_at, at)

    def resume(self) -> None:
        """Allow the next attempt now, because the obstacle is gone; the count of failures stays."""
        self.stop(None)

    def stop(self, error: CfproxyError | None, retry_at: float = -math.inf) -> None:
        """Remember `error` without counting it as a failure; nothing is refused from `retry_at` on."""
        self.error = error
        self.retry_at = retry_at

    def clear(self) -> None:
        """Forget all failures."""
        self.stop(None)
        self.failures = 0

    def left_s(self, now: float) -> float:
        """Return the seconds until the next attempt, 0 for now."""
        return max(0.0, self.retry_at - now)

    def refusal(self, now: float) -> CfproxyError | None:
        """Return the error for a caller during the pause: a copy of its own, with the time left in it."""
        left_s = self.left_s(now)
        if self.error is None or left_s == 0:
            return None
        error = without_traceback(self.error)
        if isinstance(error, TokenEndpointUnavailable | StoreUnavailable):
            error.retry_after_s = left_s
        return error


class Holds:
    """Which requests may have a rejected token replaced, and when.

    A request that is rejected whatever the token is, for lack of a permission, is held on its own, so that it
    neither causes a refresh each time nor delays the recovery of others after a revocation. Many such
    requests use up a common allowance, whose period bounds how long others wait.
    """

    def __init__(self) -> None:
        self._holds: dict[Hashable, Hold] = {}  # the one that started last is at the end
        self._paid_until = -math.inf  # of the allowance (GCRA)

    def active(self, request: Hashable, now: float) -> bool:
        """Return whether `request` may not force a refresh at `now`."""
        hold = self._holds.get(request)
        used_up = self._paid_until - now > FORCED_EVERY_S * (FORCED_BURST - 1)
        return used_up or (hold is not None and hold.active(now))

    def start(self, request: Hashable, now: float) -> float:
        """Hold `request` from `now` (see `Hold.start`); a hold that begins is paid from the allowance."""
        hold = self._holds.pop(request, None) or Hold()
        self._holds[request] = hold
        if len(self._holds) > HOLDS_MAX:
            del self._holds[next(iter(self._holds))]
        if (hold_s := hold.start(now)) > 0:
            self._paid_until = max(self._paid_until, now) + FORCED_EVERY_S
        return hold_s

    def clear(self) -> None:
        """End all holds; the next ones are short again."""
        self._holds.clear()
        self._paid_until = -math.inf


class Hold:
    """The time for which a request is held: 1, 2, 4, … 60 s while replacing its token doesn't help."""

    def __init__(self) -> None:
        self._step_s = 0.0
        self._until = -math.inf

    def active(self, now: float) -> bool:
        """Return whether forced refreshes are held back at `now`."""
        return now < self._until

    def start(self, now: float) -> float:
        """Hold from `now`, for twice the last time unless that ended more than a minute ago.

        Returns:
            seconds of the hold; 0 if one is active already, which stays as it is.
        """
        if self.active(now):
            return 0.0
        if now > self._until + HOLD_MAX_S:
            self._step_s = 0.0
        self._step_s = min(HOLD_MAX_S, max(HOLD_FIRST_S, 2 * self._step_s))
        self._until = now + self._step_s
        return self._step_s
