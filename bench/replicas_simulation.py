"""What 1 to 1,000 replicas do together, more than a machine holds as processes: on a clock of its own.

The real engine (`TokenSource`, `SharedRate`, `FairQueue`) runs against a store, a rate backend and a token endpoint in
memory that take as long as a network does: 0.5 ms for each question to the store, 200 ms for a refresh. The
lock is asked for as `stores/redis/locks.py` does. Everything is counted, nothing is timed: the figures do not
depend on the machine. `python bench/replicas_simulation.py [--json]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import structlog

from cfproxy.pacing.shared import SharedRate
from cfproxy.auth.token_source import TokenSource
from cfproxy.pacing.rate import SHARED_GUARD
from cfproxy.pacing.rate import RateLimit
from cfproxy.auth.interfaces import Lease
from cfproxy.pacing.shared import Slots
from cfproxy.pacing.queue import FairQueue
from cfproxy.stores.memory import MemoryStore
from cfproxy.stores.redis.lock import FIRST_PAUSE_S
from cfproxy.stores.redis.lock import LONGEST_PAUSE_S
from cfproxy.auth.models import Login
from tests.support.clock import FakeClock
from tests.support.fakes import APP, FakeEndpoint, World

STORE_S, REFRESH_S = 0.0005, 0.2
COUNTS = (1, 10, 100, 1000)
LOG = structlog.wrap_logger(None, processors=[lambda *_: (_ for _ in ()).throw(structlog.DropEvent)])


class Server:
    """What all replicas' stores ask."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.records = MemoryStore()
        self.holder: object = None
        self.trips = self.lock_trips = self.waiting = self.most_waiting = 0

    async def trip(self) -> None:
        self.trips += 1
        await self.clock.sleep(STORE_S)


class SharedStore(MemoryStore):
    """One replica's store (see `cfproxy.auth.interfaces.TokenStore`)."""

    def __init__(self, server: Server, chance: random.Random) -> None:
        super().__init__()
        self._server, self._chance = server, chance

    @property
    def shared(self) -> bool:
        return True

    @asynccontextmanager
    async def lock(self, account: str, timeout_s: float) -> AsyncIterator[Lease]:
        server, pause_s = self._server, FIRST_PAUSE_S
        server.waiting += 1
        server.most_waiting = max(server.most_waiting, server.waiting)
        while True:
            server.lock_trips += 1
            await server.trip()
            if server.holder is None:
                server.holder = self
                break
            await server.clock.sleep(pause_s * self._chance.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        server.waiting -= 1
        try:
            yield Lease()
        finally:
            await server.trip()
            server.holder = None

    async def load(self, account: str) -> Login | None:
        await self._server.trip()
        return await self._server.records.load(account)

    async def save(self, login: Login) -> None:
        await self._server.trip()
        await self._server.records.save(login)

    def stamp(self, account: str) -> Hashable:
        return self._server.records.stamp(account)


class SlowEndpoint(FakeEndpoint):
    async def refresh(self, refresh_token, may_send=None):
        await self._clock.sleep(REFRESH_S)
        return await super().refresh(refresh_token, may_send)


async def refreshes(count: int, *, spread: bool, lifetimes: int = 5) -> dict[str, object]:
    """Idle replicas over some token lifetimes of an hour."""
    chance = random.Random(count)
    clock = FakeClock()
    server, endpoint = Server(clock), SlowEndpoint(clock)
    world = World()
    world.clock = clock
    await server.records.save(world.login())
    token_sources = []
    for _ in range(count):
        store = SharedStore(server, chance)
        token_sources.append(
            TokenSource(APP, store, endpoint, clock, LOG, chance=chance.random if spread else lambda: 0.0)
        )
        starting = asyncio.create_task(token_sources[-1].start())
        await clock.advance(0.002)
        await starting
    server.trips = server.lock_trips = server.most_waiting = 0
    await clock.advance(3600.0 * lifetimes)
    done = len(endpoint.calls)
    assert endpoint.failed == []
    for token_source in token_sources:
        closing = asyncio.create_task(token_source.aclose())
        await clock.advance(0.01)
        await closing
    return {
        "replicas": count,
        "refreshes": done,
        "lock round trips per refresh": round(server.lock_trips / done, 1),
        "all round trips per refresh": round(server.trips / done, 1),
        "most at the lock": server.most_waiting,
    }


class MemoryBackend:
    """One rate for all replicas (see `cfproxy.pacing.shared.SharedRateBackend`)."""

    def __init__(self, clock: FakeClock, count: int) -> None:
        self._clock, self._count = clock, count
        self._pace = RateLimit(20, 1.0, SHARED_GUARD)
        self.trips = self.reserved = 0

    async def reserve(self, rate: float, per_s: float, count: int, *, rejoining: bool = False) -> Slots:
        self.trips += count > 0
        await self._clock.sleep(STORE_S)
        instants = []
        for _ in range(count):
            at = max(self._clock.monotonic(), self._pace.ready_at)
            self._pace.try_acquire(at)
            instants.append(at)
        self.reserved += count
        return Slots(instants, self._count, 1.0)

    async def throttle(self, rate: float, per_s: float, pause_s: float, *, step_down: bool) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def paces(count: int, seconds: float = 60.0) -> dict[str, object]:
    """All replicas but one have more to send than may leave; a lone caller comes to that one each 7 s."""
    clock = FakeClock()
    backend = MemoryBackend(clock, count + 1)
    paces = [SharedRate(20, 1.0, backend, clock, LOG) for _ in range(count + 1)]
    queues = []
    for pace in paces:
        queues.append(FairQueue(pace, clock, 10_000, 100_000.0))
        pace._on_change = queues[-1]._reschedule
        pace.replicas = count + 1
    left: list[float] = []
    waited: list[float] = []

    async def work(fair_queue: FairQueue) -> None:
        while True:
            await fair_queue.acquire("job")
            left.append(clock.monotonic())

    async def lone() -> None:
        while True:
            await clock.sleep(7)
            waited.append(await queues[-1].acquire("lone"))
            left.append(clock.monotonic())

    tasks = [asyncio.create_task(work(fair_queue)) for fair_queue in queues[:-1] for _ in range(6)]
    tasks.append(asyncio.create_task(lone()))
    await clock.advance(10)
    began_at, trips = clock.monotonic(), backend.trips
    left.clear()
    waited.clear()
    step_s = 0.01
    for _ in range(round((seconds if count < 1000 else 200) / step_s)):
        await clock.advance(step_s)
    took_s = clock.monotonic() - began_at
    worst = max(sum(at <= other < at + 1.0 for other in left[i : i + 40]) for i, at in enumerate(left))
    figures = {
        "busy replicas": count,
        "of the rate": round(len(left) / took_s / 20, 3),
        "most in 1.0 s": worst,
        "round trips per request": round((backend.trips - trips) / len(left), 2),
        "lone caller waits s, median": round(statistics.median(waited), 2) if waited else "over 200",
        "most": round(max(waited), 2) if waited else "over 200",
    }
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for pace in paces:
        await pace.aclose()
    return figures


def table(rows: list[dict[str, object]]) -> str:
    head = "| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0])
    return "\n".join([head, *("| " + " | ".join(map(str, row.values())) + " |" for row in rows)])


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    results = {
        "refreshes, all due in the same instant": [await refreshes(count, spread=False) for count in COUNTS],
        "refreshes, spread": [await refreshes(count, spread=True) for count in COUNTS],
        "pacing": [await paces(count) for count in COUNTS],
    }
    for name, rows in results.items():
        print(json.dumps({name: rows}) if asked.json else f"{name}\n\n{table(rows)}\n", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
