"""Replicas that share one rate: never more together than the limit, and each its part without the lender."""

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


class FakeLender:
    """What Redis does, on the fake clock; `members` are those that borrowed."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._pace = RateLimit(20, 1.0, SHARED_GUARD)
        self.members = 1
        self.away = False
        self.silent = False
        self.questions = 0
        self.told: list[tuple[float, bool]] = []

    async def reserve(self, rate: float, per_s: float, count: int, *, rejoining: bool = False) -> Slots:
        await asyncio.sleep(0)
        if self.silent:
            await asyncio.get_running_loop().create_future()
        if self.away:
            raise StoreUnavailable("the store is out of reach")
        self.questions += count > 0
        now = self._clock.monotonic()
        if rejoining and self._pace.departures:
            self._pace.pause(now + self._pace.window_s, now)
        instants = []
        for _ in range(count):
            at = max(now, self._pace.ready_at)
            self._pace.try_acquire(at)
            instants.append(at)
        return Slots(instants, self.members, 1.0)

    async def throttle(self, rate: float, per_s: float, pause_s: float, *, step_down: bool) -> None:
        if self.away:
            raise StoreUnavailable("the store is out of reach")
        self.told.append((pause_s, step_down))

    async def aclose(self) -> None:
        pass


class Scene:
    """Replicas that borrow from one lender, their callers, and when these left."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.backend = FakeLender(self.clock)
        self.events = LogCapture()
        self.paces: list[SharedRate] = []
        self.left_at: list[float] = []
        self.refused = 0
        self._calls: list[asyncio.Task[None]] = []

    def open_replica(self, queue: int = 1000, max_wait_s: float = 600.0) -> FairQueue:
        log = structlog.wrap_logger(structlog.PrintLogger(), processors=[self.events])
        pace = SharedRate(20, 1.0, self.backend, self.clock, log)
        fair_queue = FairQueue(pace, self.clock, queue, max_wait_s)
        fair_queue.start()
        self.paces.append(pace)
        self.backend.members = len(self.paces)
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

    def named(self, event: str) -> list[dict[str, object]]:
        return [dict(entry) for entry in self.events.entries if entry["event"] == event]

    async def aclose(self) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        for pace in self.paces:
            await pace.aclose()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    yield scene
    await scene.aclose()


async def test_replicas_together_use_the_rate_and_never_exceed_it(scene: Scene) -> None:
    """Eight replicas with 50 callers each: no second holds more than 20, and 95 % of the rate is used."""
    shapers = [scene.open_replica() for _ in range(8)]
    for fair_queue in shapers:
        scene.ask(fair_queue, 50)
    await scene.run(22)
    assert len(scene.left_at) == 400
    assert most_in_window(scene.left_at, 1.0) <= 20
    assert scene.left_at[-1] - scene.left_at[0] <= 400 / 20 / 0.95
    assert scene.backend.questions / 400 <= 0.25


async def test_an_idle_replica_asks_for_nothing(scene: Scene) -> None:
    """Being counted aside, nobody waits and nothing is borrowed; a lone caller costs one question."""
    fair_queue = scene.open_replica()
    await scene.run(5)
    assert scene.backend.questions == 0
    scene.ask(fair_queue)
    await scene.run(0.01)
    assert (len(scene.left_at), scene.backend.questions) == (1, 1)
    await scene.run(5)
    assert scene.backend.questions == 1


async def test_a_burst_from_idle_leaves_at_once(scene: Scene) -> None:
    """Ten callers after an idle time leave in the same instant, as they do with a pace of one's own."""
    fair_queue = scene.open_replica()
    await scene.run(1)
    scene.ask(fair_queue, 10)
    await scene.run(0.02)
    assert len(scene.left_at) == 10


async def test_a_departure_that_was_missed_is_not_used_late(scene: Scene) -> None:
    """A process that stood still lets what it missed pass: used together it would be too much."""
    fair_queue = scene.open_replica()
    (pace,) = scene.paces
    scene.ask(fair_queue, 30)
    await scene.run(0.7)
    left = len(scene.left_at)
    scene.clock._now += 10 * LATE_S  # nobody wakes in time
    assert pace.ready_at >= scene.clock.monotonic() - LATE_S
    await scene.run(20)
    assert len(scene.left_at) == 30
    assert left < 30
    assert all(later > earlier for earlier, later in itertools.pairwise(scene.left_at[left:]))


async def test_a_departure_that_was_seen_in_time_is_taken(scene: Scene) -> None:
    """A process that stands still between looking and taking lets nobody leave without a departure."""
    scene.open_replica()
    (pace,) = scene.paces
    now = scene.clock.monotonic()
    pace._slots.append(now - LATE_S + 0.001)
    assert pace.ready_at <= now
    scene.clock._now += 0.002
    assert pace.try_acquire(now)
    assert (pace.departures, len(pace._slots)) == (1, 0)


async def test_callers_that_leave_cost_no_more_than_what_was_borrowed_for_them(scene: Scene) -> None:
    """Of a queue that hangs up at most one loan is lost."""
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


async def test_without_the_lender_each_keeps_to_its_part(scene: Scene) -> None:
    """Four replicas that lose the lender go on with 5 a second each, and say so once."""
    shapers = [scene.open_replica() for _ in range(4)]
    for fair_queue in shapers:
        scene.ask(fair_queue, 100)
    await scene.run(3)
    scene.backend.away = True
    await scene.run(3)
    before = len(scene.left_at)
    await scene.run(10)
    assert 4 * 5 * 10 * 0.9 <= len(scene.left_at) - before <= 4 * 5 * 10 * 1.03
    assert most_in_window(scene.left_at, 1.0) <= 20
    assert [entry["rate"] for entry in scene.named("pacing.alone")] == [5.0] * 4


async def test_a_lender_that_comes_back_is_used_again(scene: Scene) -> None:
    """After a few seconds, so that all have noticed; across the change no window is overfull."""
    shapers = [scene.open_replica() for _ in range(4)]
    for fair_queue in shapers:
        scene.ask(fair_queue, 250)
    await scene.run(3)
    scene.backend.away = True
    await scene.run(8)
    scene.backend.away = False
    await scene.run(20)
    told = [entry["event"] for entry in scene.events.entries]
    assert told[-8:] == ["pacing.alone"] * 4 + ["pacing.shared"] * 4
    assert most_in_window(scene.left_at, 1.0) <= 20
    before = len(scene.left_at)
    await scene.run(10)
    assert len(scene.left_at) - before >= 10 * 20 * 0.95


async def test_a_replica_that_starts_stops_nobody(scene: Scene) -> None:
    """A roll-out starts many: each has let nothing leave by itself, so the others go on without a gap."""
    scene.ask(scene.open_replica(), 150)
    await scene.run(2)
    for _ in range(3):
        scene.open_replica()
        await scene.run(0.5)
    gaps = [later - earlier for earlier, later in itertools.pairwise(scene.left_at)]
    assert max(gaps) < 0.3


async def test_how_many_replicas_there_are_can_be_seen(scene: Scene) -> None:
    """In the state and, when it changes, in the log; a replica that is alone tells that."""
    shapers = [scene.open_replica() for _ in range(2)]
    scene.ask(shapers[0])
    await scene.run(0.1)
    assert (shapers[0].state().replicas, shapers[0].state().alone) == (2, False)
    assert scene.named("pacing.shared")[-1]["replicas"] == 2
    scene.backend.away = True
    scene.ask(shapers[0], 30)
    await scene.run(5)
    assert (shapers[0].state().replicas, shapers[0].state().alone) == (2, True)


async def test_many_replicas_borrow_less_at_once(scene: Scene) -> None:
    """What others have borrowed lies before a newcomer: with forty replicas it is one departure each."""
    shapers = [scene.open_replica() for _ in range(40)]
    await scene.run(31)  # until each has heard how many there are
    for fair_queue in shapers[1:]:
        scene.ask(fair_queue, 10)
    await scene.run(0.5)
    began_at = scene.clock.monotonic()
    (call,) = scene.ask(shapers[0])
    while not call.done():
        await scene.run(0.05)
    assert scene.clock.monotonic() - began_at <= 1.5 * 40 / 20
    before = len(scene.left_at)
    await scene.run(5)
    assert len(scene.left_at) - before >= 5 * 20 * 0.95


async def test_a_429_slows_all_replicas_down(scene: Scene) -> None:
    """The pause holds here at once, and the lender is told of it and of the step."""
    fair_queue = scene.open_replica()
    scene.ask(fair_queue, 100)
    await scene.run(2)
    left = len(scene.left_at)
    fair_queue.throttle(2.0, step_down=True)
    fair_queue.throttle(2.0, step_down=True)  # the same piece of news
    await scene.run(1.9)
    assert len(scene.left_at) == left
    assert [slower for _, slower in scene.backend.told].count(True) == 1
    assert sorted(round(pause_s, 3) for pause_s, slower in scene.backend.told if not slower) == [2.0, 2.0]


async def test_who_waits_too_long_is_refused_without_the_lender_as_well(scene: Scene) -> None:
    """`max_wait` holds whether departures come in or not."""
    fair_queue = scene.open_replica(max_wait_s=5.0)
    scene.backend.away = True
    scene.ask(fair_queue, 200)
    await scene.run(7)
    assert scene.refused + len(scene.left_at) == 200
    assert scene.refused > 50


async def test_who_waits_too_long_is_refused_while_the_lender_says_nothing(scene: Scene) -> None:
    """A question that is not answered yet is no reason to let anybody wait beyond `max_wait`."""
    fair_queue = scene.open_replica(max_wait_s=2.0)
    await scene.run(0.1)
    scene.backend.silent = True
    scene.ask(fair_queue, 3)
    await scene.run(1.0)
    scene.ask(fair_queue, 2)
    await scene.run(0.9)
    assert scene.refused == 0
    await scene.run(0.2)
    assert scene.refused == 3
    await scene.run(1.0)
    assert (scene.refused, fair_queue.state().waiting) == (5, 0)
