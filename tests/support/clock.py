"""A clock that tests advance by hand.

Time moves only in `advance` and `jump_wall`, so a test's outcome does not depend on the machine's speed. Work
in threads or on real sockets is not waited for.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools

# Iterations of the event loop in which woken tasks run until they wait again.
SETTLE_TURNS = 20


class FakeClock:
    """A `cfproxy.clock.Clock` that stands still until it is advanced.

    Args:
        wall_at: the initial value of `time()`, seconds since the epoch.
        monotonic_at: the initial value of `monotonic()`, seconds.
    """

    def __init__(self, wall_at: float = 1_700_000_000.0, monotonic_at: float = 1000.0) -> None:
        self._ahead_s = wall_at - monotonic_at
        self._now = monotonic_at
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._serial = itertools.count()

    def time(self) -> float:
        return self._now + self._ahead_s

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, delay_s: float) -> None:
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        waker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + delay_s, next(self._serial), waker))
        await waker

    @property
    def sleeping(self) -> int:
        """The number of sleepers that were not cancelled."""
        return sum(not waker.done() for _, _, waker in self._sleepers)

    def jump_wall(self, by_s: float) -> None:
        """Set the wall clock forward or back; the monotonic clock stays, and no sleeper wakes."""
        self._ahead_s += by_s

    async def settle(self) -> None:
        """Let every task run until it sleeps or waits."""
        for _ in range(SETTLE_TURNS):
            await asyncio.sleep(0)

    async def advance(self, by_s: float) -> None:
        """Move both clocks by `by_s` seconds, stopping when each sleeper is due to let it run."""
        end_at = self._now + by_s
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= end_at:
            wake_at, _, waker = heapq.heappop(self._sleepers)
            if waker.done():
                continue
            self._now = max(self._now, wake_at)
            waker.set_result(None)
            await self.settle()
        self._now = end_at
        await self.settle()
