"""What the suites about logging in share."""

from __future__ import annotations


class SteadyClock:
    """A clock that stands until it is set."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, delay_s: float) -> None:
        self.now += delay_s
