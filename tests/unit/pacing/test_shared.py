"""Replicas that share a rate: never more than the limit together, and each its part without the backend."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
import structlog
from structlog.testing import LogCapture

from cfproxy.errors import QueueRefusal, StoreUnavailable
from cfproxy.pacing.queue import FairQueue
from cfproxy.pacing.rate import SHARED_GUARD, RateLimit
from cfproxy.pacing.shared import BATCH, LATE_S, SharedRate, Slots
from tests.support.clock import FakeClock
from tests.unit.pacing.test_rate import most_in_window


class FakeBackend:
    """Does what Redis does, on the fake clock; `members` counts the replicas."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._limit = RateLimit(20, 1.0, SHARED_GUARD)
        self.members = 1
        self.is_away = False
        self.is_silent = False
        self.calls = 0
        self.throttled: list[tuple[float, bool]] = []

    async def reserve(self, rate: float, per_s: float, count: int, *, rejoining: bool = False) -> Slots:
        await asyncio.sleep(0)
        if self.is_silent:
            await asyncio.get_running_loop().create_future()
        if self.is_away:
            raise StoreUnavailable("the store is out of reach")
        self.calls += count > 0
        now = self._clock.monotonic()
        if rejoining and self._limit.departures:
            self._limit.pause(now + self._limit.window_s, now)
        instants = []
        for _ in range(count):
            at = max(now, self._limit.ready_at)
            self._limit.try_acquire(at)
            instants.append(at)
        return Slots(instants, self.members, 1.0)

    async def throttle(self, rate: float, per_s: float, pause_s: float, *, step_down: bool) -> None:
        if self.is_away:
            raise StoreUnavailable("the store is out of reach")
        self.throttled.append((pause_s, step_down))

    async def aclose(self) -> None:
        pass


class Scene:
    """Replicas with one backend, their requests, and when these were sent."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.backend = FakeBackend(self.clock)
        self.events = LogCapture()
        self.limits: list[SharedRate] = []
        self.left_at: list[float] = []
        self.refused = 0
        self._calls: list[asyncio.Task[None]] = []

    def open_replica(self, queue: int = 1000, max_wait_s: float = 600.0) -> FairQueue:
        log = structlog.wrap_logger(structlog.PrintLogger(), processors=[self.events])
        limit = SharedRate(20, 1.0, self.backend, self.clock, log)
        fair_queue = FairQueue(limit, self.clock, queue, max_wait_s)
        fair_queue.start()
        self.limits.append(limit)
        self.backend.members = len(self.limits)
        return fair_queue

    def ask(self, fair_queue: FairQueue, count: int = 1) -> list[asyncio.Task[None]]:
        calls = [asyncio.create_task(self._call(fair_queue)) for _ in range(count)]
        self._calls += calls
        return calls

    async def _call(self, fair_queue: FairQueue) -> None:
        try:
            await fair_queue.acquire("job")
        except QueueRefusal:
            self.refused += 1
        else:
            self.left_at.append(self.clock.monotonic())

    async def run(self, seconds: float, step_s: float = 0.005) -> None:
        for _ in range(round(seconds / step_s)):
            await self.clock.advance(step_s)

    def events_named(self, event: str) -> list[dict[str, object]]:
        return [dict(entry) for entry in self.events.entries if entry["event"] == event]

    async def aclose(self) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        for limit in self.limits:
            await limit.aclose()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    yield scene
    await scene.aclose()


async def test_replicas_together_use_the_rate_and_never_exceed_it(scene: Scene) -> None:
    """Eight replicas with 50 requests each: no second has more than 20, and 95 % of the rate is used."""
    queues = [scene.open_replica() for _ in range(8)]
    for fair_queue in queues:
        scene.ask(fair_queue, 50)
    await scene.run(22)
    assert len(scene.left_at) == 400
    assert most_in_window(scene.left_at, 1.0) <= 20
    assert scene.left_at[-1] - scene.left_at[0] <= 400 / 20 / 0.95
    assert scene.backend.calls / 400 <= 0.25


async def test_an_idle_replica_reserves_nothing(scene: Scene) -> None:
    """Apart from registering it makes no calls; a single request costs one."""
    fair_queue = scene.open_replica()
    await scene.run(5)
    assert scene.backend.calls == 0
    scene.ask(fair_queue)
    await scene.run(0.01)
    assert (len(scene.left_at), scene.backend.calls) == (1, 1)
    await scene.run(5)
    assert scene.backend.calls == 1


async def test_a_burst_from_idle_is_sent_at_once(scene: Scene) -> None:
    """Ten requests after an idle time are sent at the same instant, as with a rate limit of one process."""
    fair_queue = scene.open_replica()
    await scene.run(1)
    scene.ask(fair_queue, 10)
    await scene.run(0.02)
    assert len(scene.left_at) == 10


async def test_a_missed_slot_is_not_used_late(scene: Scene) -> None:
    """A process that was suspended drops missed slots: used together they would exceed the limit."""
    fair_queue = scene.open_replica()
    (limit,) = scene.limits
    scene.ask(fair_queue, 30)
    await scene.run(0.7)
    left = len(scene.left_at)
    scene.clock._now += 10 * LATE_S  # no timer fires in time
    assert limit.ready_at >= scene.clock.monotonic() - LATE_S
    await scene.run(20)
    assert len(scene.left_at) == 30
    assert left < 30
    assert all(later > earlier for earlier, later in itertools.pairwise(scene.left_at[left:]))


async def test_a_slot_that_was_seen_in_time_is_used(scene: Scene) -> None:
    """A process suspended between check and use sends nothing without a slot."""
    scene.open_replica()
    (limit,) = scene.limits
    now = scene.clock.monotonic()
    limit._slots.append(now - LATE_S + 0.001)
    assert limit.ready_at <= now
    scene.clock._now += 0.002
    assert limit.try_acquire(now)
    assert (limit.departures, len(limit._slots)) == (1, 0)


async def test_cancelled_requests_cost_at_most_one_reservation(scene: Scene) -> None:
    """If a whole queue is cancelled, at most one batch of slots is lost."""
    fair_queue = scene.open_replica()
    doomed = scene.ask(fair_queue, 100)
    await scene.run(1)
    for call in doomed:
        call.cancel()
    left = len(scene.left_at)
    began_at = scene.clock.monotonic()
    scene.ask(fair_queue)
    await scene.run(1)
    assert len(scene.left_at) == left + 1
    assert scene.left_at[-1] - began_at <= (BATCH + 2) * 0.0516


async def test_without_the_backend_each_replica_keeps_to_its_part(scene: Scene) -> None:
    """Four replicas that lose the backend continue with 5 a second each, and log it once."""
    queues = [scene.open_replica() for _ in range(4)]
    for fair_queue in queues:
        scene.ask(fair_queue, 100)
    await scene.run(3)
    scene.backend.is_away = True
    await scene.run(3)
    before = len(scene.left_at)
    await scene.run(10)
    assert 4 * 5 * 10 * 0.9 <= len(scene.left_at) - before <= 4 * 5 * 10 * 1.03
    assert most_in_window(scene.left_at, 1.0) <= 20
    assert [entry["rate"] for entry in scene.events_named("pacing.alone")] == [5.0] * 4


async def test_a_backend_that_recovers_is_used_again(scene: Scene) -> None:
    """A few seconds later, so that all replicas have noticed; no window is overfull meanwhile."""
    queues = [scene.open_replica() for _ in range(4)]
    for fair_queue in queues:
        scene.ask(fair_queue, 250)
    await scene.run(3)
    scene.backend.is_away = True
    await scene.run(8)
    scene.backend.is_away = False
    await scene.run(20)
    told = [entry["event"] for entry in scene.events.entries]
    assert told[-8:] == ["pacing.alone"] * 4 + ["pacing.shared"] * 4
    assert most_in_window(scene.left_at, 1.0) <= 20
    before = len(scene.left_at)
    await scene.run(10)
    assert len(scene.left_at) - before >= 10 * 20 * 0.95


async def test_a_starting_replica_delays_no_other(scene: Scene) -> None:
    """A new replica has sent nothing without the backend, so the others continue without a gap."""
    scene.ask(scene.open_replica(), 150)
    await scene.run(2)
    for _ in range(3):
        scene.open_replica()
        await scene.run(0.5)
    gaps = [later - earlier for earlier, later in itertools.pairwise(scene.left_at)]
    assert max(gaps) < 0.3


async def test_the_number_of_replicas_is_shown(scene: Scene) -> None:
    """In the state and, when it changes, in the log; also if a replica is on its own."""
    queues = [scene.open_replica() for _ in range(2)]
    scene.ask(queues[0])
    await scene.run(0.1)
    assert (queues[0].state().replicas, queues[0].state().alone) == (2, False)
    assert scene.events_named("pacing.shared")[-1]["replicas"] == 2
    scene.backend.is_away = True
    scene.ask(queues[0], 30)
    await scene.run(5)
    assert (queues[0].state().replicas, queues[0].state().alone) == (2, True)


async def test_many_replicas_reserve_fewer_slots_at_once(scene: Scene) -> None:
    """Others' reservations delay a newcomer: forty replicas reserve one slot each."""
    queues = [scene.open_replica() for _ in range(40)]
    await scene.run(31)  # until each knows how many there are
    for fair_queue in queues[1:]:
        scene.ask(fair_queue, 10)
    await scene.run(0.5)
    began_at = scene.clock.monotonic()
    (call,) = scene.ask(queues[0])
    while not call.done():
        await scene.run(0.05)
    assert scene.clock.monotonic() - began_at <= 1.5 * 40 / 20
    before = len(scene.left_at)
    await scene.run(5)
    assert len(scene.left_at) - before >= 5 * 20 * 0.95


async def test_a_429_reduces_the_rate_of_all_replicas(scene: Scene) -> None:
    """The pause applies here at once, and the backend is told of it and of the reduced rate."""
    fair_queue = scene.open_replica()
    scene.ask(fair_queue, 100)
    await scene.run(2)
    left = len(scene.left_at)
    fair_queue.throttle(2.0, step_down=True)
    fair_queue.throttle(2.0, step_down=True)  # the same event
    await scene.run(1.9)
    assert len(scene.left_at) == left
    assert [slower for _, slower in scene.backend.throttled].count(True) == 1
    assert sorted(round(pause_s, 3) for pause_s, slower in scene.backend.throttled if not slower) == [
        2.0,
        2.0,
    ]


async def test_max_wait_applies_without_the_backend(scene: Scene) -> None:
    """`max_wait` applies whether slots arrive or not."""
    fair_queue = scene.open_replica(max_wait_s=5.0)
    scene.backend.is_away = True
    scene.ask(fair_queue, 200)
    await scene.run(7)
    assert scene.refused + len(scene.left_at) == 200
    assert scene.refused > 50


async def test_max_wait_applies_while_the_backend_does_not_respond(scene: Scene) -> None:
    """A pending reservation lets no request wait beyond `max_wait`."""
    fair_queue = scene.open_replica(max_wait_s=2.0)
    await scene.run(0.1)
    scene.backend.is_silent = True
    scene.ask(fair_queue, 3)
    await scene.run(1.0)
    scene.ask(fair_queue, 2)
    await scene.run(0.9)
    assert scene.refused == 0
    await scene.run(0.2)
    assert scene.refused == 3
    await scene.run(1.0)
    assert (scene.refused, fair_queue.state().waiting) == (5, 0)
