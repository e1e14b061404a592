"""The rate limit of one process, on a clock that the caller reads.

1. No half-open window of `per_s` plus the guard holds more than `rate` requests, in any sequence of
   calls. A limiter that counts in fixed windows of `per_s`, wherever they start, sees no more either.
2. Unused capacity is not saved up beyond a short burst: after an idle time half a window's worth may be
   sent at once. Time spent waiting, for capacity or for a pause to end, earns nothing.
3. `ready_at` changes only in `try_acquire`, `cancel`, `pause`, `step_down` and `reconfigure`.

In a steady flow, requests are one interval apart, a little less than `per_s / rate`. The window's bound
then adds one longer gap a window, which absorbs late timers. A burst borrows from its window: the rest of
that window is spread evenly until the burst falls out of it, and the flow that follows is steady, so the
burst is not repeated a window later.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

# Requests that leave one window apart arrive closer together if the first one travels longer. 30 ms in a
# second covers the jitter of an ordinary connection, nearly one more the timer resolution of both sides.
# A larger guard would cost the promised 97 % of the rate: 1 / 1.0309 is just that.
GUARD = 0.0309
# With a shared rate, requests are late for more reasons: each process has its own timers and its own
# reading of the server's clock. There 95 % is promised; this guard leaves 96 %, the rest is for lost slots.
SHARED_GUARD = 0.0415
INTERVAL = 0.90  # between two requests of a steady flow, as a fraction of per_s / rate
BURST = 0.5  # of the rate, at once after an idle time
TAIL = 2  # intervals left free at the end of a window that started with a burst, to keep the next one ahead
STEP_DOWN = 0.8
SHARE_MIN = 0.1
RECOVERY_PER_S = 0.01


class Limiter(Protocol):
    """Decides when the next request may be sent: for one process (`RateLimit`) or all (`SharedRate`).

    All instants are seconds on one monotonic clock, and `now` must not decrease from call to call.
    """

    @property
    def ready_at(self) -> float:
        """When the next request may be sent; infinity while that is unknown."""

    @property
    def paused_until(self) -> float:
        """The end of the latest pause; minus infinity if there was none."""

    @property
    def departures(self) -> int:
        """The number of requests sent so far."""

    @property
    def per_s(self) -> float:
        """The configured period of the rate, in seconds."""

    @property
    def replicas(self) -> int | None:
        """How many replicas share the rate, including this one; None if the rate is not shared."""

    @property
    def alone(self) -> bool:
        """Whether this replica keeps to its own part of the rate because the backend is unavailable."""

    def start(self, on_change: Callable[[], None]) -> None:
        """Start; `on_change` is called whenever `ready_at` has changed outside a call."""

    async def aclose(self) -> None:
        """Stop, and release what is shared with other replicas."""

    def rate(self, now: float) -> float | None:
        """Return the rate in use, in requests per `per_s`; None if pacing is off."""

    def try_acquire(self, now: float) -> bool:
        """Record a request at `now` and return True, or return False if it is too early."""

    def cancel(self, at: float) -> bool:
        """Undo the request at `at`, which was not sent; return False if it is not on record."""

    def prefetch(self, waiting: int) -> None:
        """Prepare slots for this many waiting requests."""

    def eta(self, ahead: int, now: float) -> float:
        """Return a lower bound for when a request with `ahead` others before it can be sent."""

    def pause(self, until: float, now: float) -> None:
        """Send nothing before `until`; never shortens a pause."""

    def step_down(self, now: float) -> bool:
        """Reduce the rate after a 429, at most once a window; return whether it was reduced."""

    def reconfigure(self, rate: float | None, per_s: float) -> None:
        """Use another rate from now on.

        Raises:
            ValueError: a rate or period that is not a positive number.
        """


@dataclass(frozen=True, slots=True)
class _Window:
    """The bounds that follow from a rate: `limit` requests in `length_s`, `interval_s` apart.

    Unused capacity is worth `credit_s` at most.
    """

    limit: int
    length_s: float
    interval_s: float
    credit_s: float


def _window(rate: float, per_s: float, guard: float) -> _Window:
    if not (0.0 < rate < math.inf and 0.0 < per_s < math.inf):
        raise ValueError("rate and per_s must be positive numbers")
    limit = max(1, math.floor(rate))
    span_s = per_s * max(1.0, 1.0 / rate)
    interval_s = INTERVAL * span_s / limit
    burst = max(1, math.floor(limit * BURST))
    # Half an interval beyond the burst, so that rounding never holds back its last request.
    return _Window(limit, span_s * (1.0 + guard), interval_s, (burst - 0.5) * interval_s)


class RateLimit:
    """A `Limiter` for one process.

    Args:
        rate: requests per window; None sends everything at once, except during pauses. A window holds
            whole requests: 2.5 in 1 s allows 2, so configure 5 in 2 s; below 1 the window is
            lengthened to hold one.
        per_s: the window's length, in seconds.
        guard: how much longer the window is that keeps to the rate, as a fraction of `per_s`.

    Raises:
        ValueError: a rate or period that is not a positive number.
    """

    replicas = None
    alone = False

    def __init__(self, rate: float | None, per_s: float, guard: float = GUARD) -> None:
        self._rate = rate
        self.per_s = per_s
        self._guard = guard
        self._full = _window(1.0 if rate is None else rate, per_s, guard)
        self._sent: deque[float] = deque()  # within one window
        self.ready_at = self.paused_until = self._stepped_at = self._recovers_at = -math.inf
        self._share = 1.0
        self.departures = 0

    @property
    def window_s(self) -> float:
        """The length of the window that holds at most `rate` requests: `per_s` plus the guard, in seconds."""
        return self._full.length_s

    def start(self, on_change: Callable[[], None]) -> None:
        """Do nothing: `ready_at` changes in calls only."""

    async def aclose(self) -> None:
        """Do nothing: nothing is shared."""

    def rate(self, now: float) -> float | None:
        """Return the rate in use; see `Limiter.rate`."""
        return None if self._rate is None else self._rate * self._share_at(now)

    def try_acquire(self, now: float) -> bool:
        """Record a request at `now`; see `Limiter.try_acquire`."""
        if now < self.ready_at:
            return False
        self.departures += 1
        if self._rate is None:
            return True
        window, sent = self._window_at(now), self._sent
        while sent and sent[0] + window.length_s <= now:
            sent.popleft()
        sent.append(now)
        remaining = window.limit - len(sent)
        # Counted from when it might have been sent: a late timer does not slow the flow down.
        due_at = max(self.ready_at, now - window.credit_s)
        gap_s = window.interval_s
        if remaining > 0 and due_at + gap_s > now:
            gap_s = max(gap_s, (sent[0] + window.length_s - due_at) / (remaining + TAIL))
        self.ready_at = max(due_at + gap_s, self._free_at(window))
        return True

    def prefetch(self, waiting: int) -> None:
        """Do nothing: slots need no preparation."""

    def cancel(self, at: float) -> bool:
        """Undo the request at `at`; see `Limiter.cancel`."""
        if at not in self._sent:
            return False
        self._sent.remove(at)
        self.departures -= 1
        self.ready_at = max(at, self.paused_until, self._free_at(self._window_at(at)))
        return True

    def reconfigure(self, rate: float | None, per_s: float) -> None:
        """Use another rate; requests sent so far count, as far back as the old window reached."""
        if (rate, per_s) == (self._rate, self.per_s):
            return
        self._full = _window(1.0 if rate is None else rate, per_s, self._guard)
        self._rate, self.per_s = rate, per_s
        if rate is None:
            self._sent.clear()
        due_at = self._sent[-1] + self._full.interval_s if self._sent else -math.inf
        self.ready_at = max(self.paused_until, due_at, self._free_at(self._full))

    def pause(self, until: float, now: float) -> None:
        """Send nothing before `until`; never shortens a pause.

        After it the flow starts with single intervals, and the share recovers from then on.
        """
        self._share = self._share_at(now)
        self.paused_until = max(self.paused_until, until)
        self._recovers_at = max(now, self.paused_until)
        self.ready_at = max(self.ready_at, until)

    def step_down(self, now: float) -> bool:
        """Reduce the rate after a 429; return whether it was reduced.

        The share of the rate in use is multiplied by 0.8, down to a tenth, and grows back by a hundredth of
        the full rate a second: other clients behind the same address, which we cannot see, get capacity at
        once, and we approach the limit again slowly. One step a window: 429s for requests that were in
        flight together are one event.
        """
        share = self._share_at(now)
        if self._rate is None or now < self._stepped_at + self._window_at(now).length_s:
            return False
        self._share = max(SHARE_MIN, share * STEP_DOWN)
        self._stepped_at = now
        self._recovers_at = max(now, self.paused_until)
        self.ready_at = max(self.ready_at, self._free_at(self._window_at(now)))
        return True

    def eta(self, ahead: int, now: float) -> float:
        """Return a lower bound for when a request with `ahead` others before it can be sent.

        It assumes the share that recovery can reach by then.
        """
        start_at = max(now, self.ready_at)
        if self._rate is None:
            return start_at
        latest_at = start_at + _span_s(ahead, self._window_at(now))
        return start_at + _span_s(ahead, self._window_at(latest_at))

    def _share_at(self, now: float) -> float:
        if self._share == 1.0:
            return 1.0
        return min(1.0, self._share + RECOVERY_PER_S * max(0.0, now - self._recovers_at))

    def _window_at(self, now: float) -> _Window:
        share = self._share_at(now)
        if share == 1.0 or self._rate is None:
            return self._full
        return _window(self._rate * share, self.per_s, self._guard)

    def _free_at(self, window: _Window) -> float:
        """Return when the window holds one request less than its limit."""
        if len(self._sent) < window.limit:
            return -math.inf
        return self._sent[-window.limit] + window.length_s


def _span_s(ahead: int, window: _Window) -> float:
    windows, rest = divmod(ahead, window.limit)
    return windows * window.length_s + rest * window.interval_s
