"""The API's limit of calls per time and IP address.

Owns: which call is admitted, and how long a refused caller should wait.
Must not know: HTTP; the clock (each call brings its instant).
Invariant: with `sliding`, no span of `limit_per_s` holds more than `limit_rate` admitted calls.
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
    """Counts calls as `behaviour` says, per caller."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._callers: dict[str, _Caller] = {}

    def admit(self, address: str, now: float) -> float | None:
        """Return None for an admitted call, else the seconds after which the next one may come.

        Args:
            address: whose budget it is.
            now: the instant of the call, in seconds.
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
        # A window in the future means that the clock was set back.
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
        # The next call finds room once only rate - 1 of the counted ones are younger than per_s.
        return counted[len(counted) - rate] + per_s - now
