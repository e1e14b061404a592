"""The API's rate limit for each IP address.

With `sliding`, no span of `limit_per_s` contains more than `limit_rate` admitted calls.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from cfproxy.sandbox.behaviour import Behaviour


@dataclass
class _Caller:
    window_from: float = float("-inf")
    in_window: int = 0
    counted_at: deque[float] = field(default_factory=deque)


class Limiter:
    """Counts calls per address, as configured in `behaviour`."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._callers: dict[str, _Caller] = {}

    def admit(self, address: str, now: float) -> float | None:
        """Return None for an admitted call, else the seconds until the next one may be admitted.

        Args:
            address: the caller's IP address.
            now: when the call arrived, in seconds.
        """
        caller = self._callers.setdefault(address, _Caller())
        match self._behaviour.limiter:
            case "fixed":
                return self._fixed(caller, now)
            case "sliding":
                return self._sliding(caller, now)
            case "off":
                return None

    def reset(self) -> None:
        """Forget all calls."""
        self._callers.clear()

    def _fixed(self, caller: _Caller, now: float) -> float | None:
        per_s = self._behaviour.limit_per_s
        # A window that starts in the future means that the clock was set back.
        if not caller.window_from <= now < caller.window_from + per_s:
            caller.window_from, caller.in_window = now, 0
        caller.in_window += 1
        if caller.in_window <= self._behaviour.limit_rate:
            return None
        return caller.window_from + per_s - now

    def _sliding(self, caller: _Caller, now: float) -> float | None:
        per_s, rate = self._behaviour.limit_per_s, self._behaviour.limit_rate
        counted = caller.counted_at
        while counted and not counted[0] <= now < counted[0] + per_s:
            counted.popleft()
        admitted = len(counted) < rate
        if admitted or self._behaviour.blocked_calls_count:
            counted.append(now)
        if admitted:
            return None
        # The next call is admitted once only rate - 1 of the counted ones are younger than per_s.
        return counted[len(counted) - rate] + per_s - now
