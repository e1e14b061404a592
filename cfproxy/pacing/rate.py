"""When the next request may leave, on a clock that the caller reads.

Owns: the log of past departures, the beat, pauses, and the share of the rate that is in use.
Must not know: who waits, asyncio, HTTP.
Invariants:
1. No half-open window of `per_s` + guard holds more than `rate` departures, whatever is asked when.
   A limiter that counts in fixed windows of `per_s`, wherever these begin, sees no more either.
2. What is not used is not saved up beyond a short burst: half a window's worth may leave at once
   after an idle time. Time spent waiting, for room or for a pause to end, earns nothing.
3. `ready_at` changes only in `take`, `give_back`, `pause` and `slow_down`; reading it costs nothing.

Steady flow. Departures are a beat apart, a little closer together than `per_s / rate`; the window's
bound then adds one longer gap a window, in which the lateness of timers disappears. A burst is an
advance: what its window still holds is spread evenly until the burst falls out of it, and the flow
that follows is steady: the burst is not repeated a window later.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

# Requests that leave a window apart reach a limiter closer together when the first one travels longer.
# 30 ms of a second covers the jitter of an ordinary line, nearly one more the grain of timers on both
# sides. There is no room for a larger guard: 97 % of the rate is to be used, and 1 / 1.0309 is just that.
GUARD = 0.0309
# Departures that several processes share are late for more reasons: each has its own timers and its own
# reading of the server's clock. There 95 % is to be used; this is 96 %, and the rest is for what gets lost.
SHARED_GUARD = 0.0415
BEAT = 0.90  # of per_s / rate, between two departures of a steady flow
BURST = 0.5  # of the rate, at once after an idle time
TAIL = 2  # gaps left free at the end of a window that a burst began, so that the next one can keep ahead
STEP_DOWN = 0.8
SHARE_MIN = 0.1
RECOVERY_PER_S = 0.01


@dataclass(frozen=True, slots=True)
class _Shape:
    """What one rate means: at most `limit` in `window_s`, `beat_s` apart, `credit_s` saved up at most."""

    limit: int
    window_s: float
    beat_s: float
    credit_s: float


def _shape(rate: float, per_s: float, guard: float) -> _Shape:
    limit = max(1, math.floor(rate))
    span_s = per_s * max(1.0, 1.0 / rate)
    beat_s = BEAT * span_s / limit
    burst = max(1, math.floor(limit * BURST))
    # Half a beat beyond the burst, so that rounding never holds back its last request.
    return _Shape(limit, span_s * (1.0 + guard), beat_s, (burst - 0.5) * beat_s)


class RateLimit:
    """The earliest instant of the next departure, and the record of the past ones.

    All instants are seconds on one monotonic clock and must not decrease from call to call.

    Args:
        rate: departures in a window; None lets everything leave at once, pauses excepted. A window
            holds whole requests: 2.5 in 1 s means 2, so say 5 in 2 s; below 1 the window is
            lengthened to hold one.
        per_s: the window's length, seconds.
        guard: how much longer a window is held to the rate, as a part of `per_s`.

    Raises:
        ValueError: a rate or a length that is not a positive number.
    """

    def __init__(self, rate: float | None, per_s: float, guard: float = GUARD) -> None:
        for number in (per_s, 1.0 if rate is None else rate):
            if not 0.0 < number < math.inf:
                raise ValueError("rate and per_s must be positive numbers")
        self._rate = rate
        self._per_s = per_s
        self._guard = guard
        self._full = _shape(rate or 1.0, per_s, guard)
        self._log: deque[float] = deque()  # of one window
        self._ready_at = self._paused_until = self._slowed_at = self._recovers_at = -math.inf
        self._share = 1.0
        self._departures = 0

    @property
    def ready_at(self) -> float:
        """Instant from which the next request may leave."""
        return self._ready_at

    @property
    def paused_until(self) -> float:
        """End of the latest pause; minus infinity when there was none."""
        return self._paused_until

    @property
    def departures(self) -> int:
        """How many have left so far."""
        return self._departures

    @property
    def per_s(self) -> float:
        """The period that the rate counts, as configured."""
        return self._per_s

    @property
    def window_s(self) -> float:
        """Length of the window that holds `rate` departures at most: `per_s` and the guard, seconds."""
        return self._full.window_s

    def rate(self, now: float) -> float | None:
        """Return the rate in use at `now`, departures in `per_s`; None when pacing is off."""
        return None if self._rate is None else self._rate * self._share_at(now)

    def take(self, now: float) -> bool:
        """Record a departure at `now` and return True, or False when it is too early for one."""
        if now < self._ready_at:
            return False
        self._departures += 1
        if self._rate is None:
            return True
        shape, log = self._shape_at(now), self._log
        while log and log[0] + shape.window_s <= now:
            log.popleft()
        log.append(now)
        room = shape.limit - len(log)
        # Counted from when it might have left: a late timer does not slow the flow down.
        due_at = max(self._ready_at, now - shape.credit_s)
        gap_s = shape.beat_s
        if room > 0 and due_at + gap_s > now:
            gap_s = max(gap_s, (log[0] + shape.window_s - due_at) / (room + TAIL))
        self._ready_at = max(due_at + gap_s, self._room_at(shape))
        return True

    def want(self, waiting: int) -> None:
        """Do nothing: departures come without asking."""

    def give_back(self, at: float) -> bool:
        """Undo the departure at `at`, which did not happen; False when none of that instant is remembered."""
        if at not in self._log:
            return False
        self._log.remove(at)
        self._departures -= 1
        self._ready_at = max(at, self._paused_until, self._room_at(self._shape_at(at)))
        return True

    def retune(self, rate: float | None, per_s: float) -> None:
        """Keep another rate from now on; departures so far count, as far back as the old window reached.

        Raises:
            ValueError: as the constructor.
        """
        if (rate, per_s) == (self._rate, self._per_s):
            return
        fresh = RateLimit(rate, per_s, self._guard)
        self._rate, self._per_s, self._full = rate, per_s, fresh._full
        if rate is None:
            self._log.clear()
        due_at = self._log[-1] + self._full.beat_s if self._log else -math.inf
        self._ready_at = max(self._paused_until, due_at, self._room_at(self._full))

    def pause(self, until: float, now: float) -> None:
        """Let nothing leave before `until`; never shortens a pause.

        Afterwards the flow begins with single beats, and the share recovers from then on.
        """
        self._share = self._share_at(now)
        self._paused_until = max(self._paused_until, until)
        self._recovers_at = max(now, self._paused_until)
        self._ready_at = max(self._ready_at, until)

    def slow_down(self, now: float) -> bool:
        """Step the rate down after a refusal (429), and return whether it was.

        The share of the rate in use is multiplied by 0.8, down to a tenth, and grows back by a
        hundredth of the full rate a second: others behind the same address, whom we cannot see,
        get room at once and we find the limit again slowly. One step a window: the refusals of
        requests that were under way together are one piece of news.
        """
        share = self._share_at(now)
        if self._rate is None or now < self._slowed_at + self._shape_at(now).window_s:
            return False
        self._share = max(SHARE_MIN, share * STEP_DOWN)
        self._slowed_at = now
        self._recovers_at = max(now, self._paused_until)
        self._ready_at = max(self._ready_at, self._room_at(self._shape_at(now)))
        return True

    def eta(self, ahead: int, now: float) -> float:
        """Return the earliest instant at which a request with `ahead` before it can leave.

        A lower bound: it takes for granted the share that recovery can reach meanwhile.
        """
        start_at = max(now, self._ready_at)
        if self._rate is None:
            return start_at
        latest_at = start_at + _span_s(ahead, self._shape_at(now))
        return start_at + _span_s(ahead, self._shape_at(latest_at))

    def _share_at(self, now: float) -> float:
        if self._share == 1.0:
            return 1.0
        return min(1.0, self._share + RECOVERY_PER_S * max(0.0, now - self._recovers_at))

    def _shape_at(self, now: float) -> _Shape:
        share = self._share_at(now)
        if share == 1.0 or self._rate is None:
            return self._full
        return _shape(self._rate * share, self._per_s, self._guard)

    def _room_at(self, shape: _Shape) -> float:
        """Return the instant from which the window holds one less than its limit."""
        if len(self._log) < shape.limit:
            return -math.inf
        return self._log[-shape.limit] + shape.window_s


def _span_s(ahead: int, shape: _Shape) -> float:
    windows, rest = divmod(ahead, shape.limit)
    return windows * shape.window_s + rest * shape.beat_s
