"""Waiting for a turn: fair, bounded, cancellable, and exact on a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfproxy.errors import QueueFull, QueueRefusal, QueueTimeout
from cfproxy.pacing.queue import FairQueue, _RoundRobin
from cfproxy.pacing.rate import RateLimit
from tests.support.clock import FakeClock
from tests.support.examples import examples
from tests.unit.pacing.test_rate import most_in_window


@dataclass(eq=False)
class Caller:
    """One request that wants a slot, and what became of it."""

    flow: Hashable
    asked_at: float
    departures_before: int
    task: asyncio.Task[None] = field(init=False)
    left_at: float | None = None
    waited_s: float | None = None
    refusal: QueueRefusal | None = None
    refused_at: float | None = None


class Scene:
    """A shaper on a fake clock, its callers, and the order in which they left."""

    def __init__(
        self, rate: float | None = 20.0, per_s: float = 1.0, queue: int = 1000, max_wait_s: float = 60.0
    ) -> None:
        self.clock = FakeClock()
        self.pace = RateLimit(rate, per_s)
        self.fair_queue = FairQueue(self.pace, self.clock, queue, max_wait_s)
        self.callers: list[Caller] = []
        self.left: list[Caller] = []

    def ask(self, flow: Hashable, count: int = 1) -> list[Caller]:
        fresh = [Caller(flow, self.clock.monotonic(), len(self.left)) for _ in range(count)]
        for caller in fresh:
            caller.task = asyncio.create_task(self._call(caller))
        self.callers += fresh
        return fresh

    async def _call(self, caller: Caller) -> None:
        try:
            caller.waited_s = await self.fair_queue.acquire(caller.flow)
        except QueueRefusal as refusal:
            caller.refusal, caller.refused_at = refusal, self.clock.monotonic()
            return
        caller.left_at = self.clock.monotonic()
        self.left.append(caller)

    @property
    def left_at(self) -> list[float]:
        return [caller.left_at for caller in self.left if caller.left_at is not None]

    async def aclose(self) -> None:
        for caller in self.callers:
            caller.task.cancel()
        await asyncio.gather(*(caller.task for caller in self.callers), return_exceptions=True)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    yield scene
    await scene.aclose()


async def fill(scene: Scene, flow: Hashable, waiting: int) -> list[Caller]:
    """Spend the burst, then let `waiting` callers of `flow` queue up."""
    scene.ask("earlier", 10)
    await scene.clock.settle()
    callers = scene.ask(flow, waiting)
    await scene.clock.settle()
    assert scene.fair_queue.state().waiting == waiting
    return callers


# --- for any story -----------------------------------------------------------------------

FLOWS = "abcd"
STORIES = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.tuples(st.sampled_from(FLOWS), st.integers(1, 12))),
        st.tuples(st.just("cancel"), st.integers(0, 200)),
        st.tuples(st.just("advance"), st.floats(0.001, 2.0)),
        st.tuples(st.just("pause"), st.floats(0.0, 2.0)),
        st.tuples(st.just("step_down"), st.none()),
    ),
    max_size=25,
)


async def play(scene: Scene, move: str, what: Any) -> None:
    if move == "ask":
        scene.ask(*what)
    elif move == "cancel" and scene.callers:
        scene.callers[what % len(scene.callers)].task.cancel()
    elif move == "advance":
        await scene.clock.advance(what)
    elif move == "pause":
        scene.fair_queue.pause(scene.clock.monotonic() + what)
    elif move == "step_down":
        scene.fair_queue.step_down()
    await scene.clock.settle()


@settings(max_examples=examples(60))
@given(
    rate=st.sampled_from([1.0, 2.5, 5.0, 20.0]),
    queue=st.integers(0, 30),
    max_wait_s=st.floats(0.0, 6.0),
    story=STORIES,
)
async def test_for_any_story_the_promises_hold(
    rate: float, queue: int, max_wait_s: float, story: list[tuple[str, Any]]
) -> None:
    """Never too many in a window, no slot lost, nobody overtaken, starved, forgotten or kept too long."""
    scene = Scene(rate, 1.0, queue, max_wait_s)
    for move, what in story:
        await play(scene, move, what)
        state = scene.fair_queue.state()
        assert state.waiting <= queue
        assert state.departures == len(scene.left), "a slot went to nobody"
        assert not state.waiting or scene.pace.ready_at > scene.clock.monotonic(), "a slot was not used"
        assert scene.clock.sleeping == (1 if state.waiting else 0), "a timer without need, or none"
    await scene.clock.advance(max_wait_s + 0.001)
    assert all(caller.task.done() for caller in scene.callers)
    if scene.left:
        assert most_in_window(scene.left_at, scene.pace.window_s - 1e-9) <= max(1, int(rate))
    assert_kept_in_time(scene, max_wait_s)
    assert_fair(scene)


def assert_kept_in_time(scene: Scene, max_wait_s: float) -> None:
    for caller in scene.callers:
        if caller.left_at is not None:
            assert caller.waited_s == caller.left_at - caller.asked_at
            assert caller.waited_s <= max_wait_s + 1e-9
        if caller.refused_at is not None:
            assert caller.refused_at <= caller.asked_at + max_wait_s + 1e-9
        if caller.refusal is not None:
            assert caller.refusal.retry_after_s >= 1.0


def assert_fair(scene: Scene) -> None:
    """Check that each flow's own order was kept and no turn let more than two rounds pass."""
    turns = dict.fromkeys(FLOWS, 0)
    for position, caller in enumerate(scene.left):
        flow = str(caller.flow)
        assert position - max(turns[flow], caller.departures_before) <= 2 * len(FLOWS)
        turns[flow] = position + 1
    for flow in FLOWS:
        order = [scene.callers.index(caller) for caller in scene.left if caller.flow == flow]
        assert order == sorted(order)


# --- flows -------------------------------------------------------------------------------


async def test_ten_requests_from_idle_do_not_wait(scene: Scene) -> None:
    """A short burst from idle leaves at once, without a task or a timer of the shaper's."""
    tasks = len(asyncio.all_tasks())
    assert [await scene.fair_queue.acquire("a") for _ in range(10)] == [0.0] * 10
    assert len(asyncio.all_tasks()) == tasks
    assert scene.clock.sleeping == 0


async def test_a_thousand_at_once_all_leave_in_the_shortest_time(scene: Scene) -> None:
    """1,000 requests from 50 connections all get their slot, within 3 % of 50 s."""
    for connection in range(50):
        scene.ask(connection, 20)
    began_at = scene.clock.monotonic()
    await scene.clock.advance(51.5)
    assert len(scene.left) == 1000
    assert scene.left_at[-1] - began_at >= 48.5
    assert most_in_window(scene.left_at, scene.pace.window_s - 1e-9) == 20


async def test_a_lone_caller_beside_a_bulk_job_hardly_waits(scene: Scene) -> None:
    """While 1,000 requests of one flow drain, a caller who asks now and then waits 150 ms at most."""
    scene.ask("bulk", 1000)
    for _ in range(25):
        await scene.clock.advance(0.97)
        scene.ask("person")
    await scene.clock.advance(1.0)
    waits = [caller.waited_s for caller in scene.callers if caller.flow == "person"]
    assert len([wait for wait in waits if wait is not None and wait <= 0.15]) == 25


async def test_flows_share_the_rate_evenly(scene: Scene) -> None:
    """A flow with 500 waiting and one with 50 leave in turn, one of each."""
    await fill(scene, "large", 500)
    scene.ask("small", 50)
    await scene.clock.advance(5.2)
    shares = [caller.flow for caller in scene.left[10:]]
    assert abs(shares.count("large") - shares.count("small")) <= 1


async def test_a_lone_caller_hardly_waits_in_a_crowd_of_connections_either(scene: Scene) -> None:
    """Beside 50 connections that ask again after each answer one waits for two slots at most."""

    async def returning(connection: int) -> None:
        while True:
            await scene.fair_queue.acquire(connection)

    crowd = [asyncio.create_task(returning(connection)) for connection in range(50)]
    for _ in range(10):
        await scene.clock.advance(0.97)
        scene.ask("person")
    await scene.clock.advance(1.0)
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    assert len(scene.left) == 10
    assert all(caller.waited_s is not None and caller.waited_s <= 0.19 for caller in scene.left)


async def test_newcomers_do_not_starve_a_bulk_job(scene: Scene) -> None:
    """While a new caller comes for every slot, a bulk job still gets its turns."""
    bulk = await fill(scene, "bulk", 3)
    for number in range(60):
        scene.ask(f"newcomer {number}")
        await scene.clock.advance(0.0515)
    assert [caller.left_at is not None for caller in bulk] == [True] * 3


async def test_a_caller_who_returns_at_once_is_no_newcomer(scene: Scene) -> None:
    """One who asks again right after each answer gets one turn in a round, not every second one."""
    for bulk in "xyz":
        scene.ask(bulk, 200)
    await scene.clock.settle()

    async def returning() -> None:
        while True:
            await scene.fair_queue.acquire("returning")
            scene.left.append(Caller("returning", 0.0, 0))

    task = asyncio.create_task(returning())
    await scene.clock.advance(5.2)
    task.cancel()
    shares = [caller.flow for caller in scene.left[20:]]
    assert abs(shares.count("returning") - len(shares) / 4) <= 2


class Seat(asyncio.Future[Any]):
    """A place in line, told apart by its flow."""

    def __init__(self, key: str) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self.key = key


@given(keys=st.text(FLOWS, max_size=60), served=st.integers(0, 30), key=st.sampled_from(FLOWS))
async def test_the_estimated_place_is_never_behind_the_true_one(keys: str, served: int, key: str) -> None:
    """Who asks is told at most as many before him as there are, and short of it by three rounds at most."""
    line = _RoundRobin()
    for each in keys:
        line.push(each, Seat(each), 0.0)
    for _ in range(min(served, len(line))):
        line.pop(0.0)
    estimate, mine = line.count_ahead(key), Seat(key)
    line.push(key, mine, 0.0)
    truth = 0
    while line.pop(0.0) is not mine:
        truth += 1
    assert estimate <= truth <= estimate + 3 * len(FLOWS)


# --- refusals ----------------------------------------------------------------------------


async def test_a_wait_known_to_be_too_long_is_refused_at_once() -> None:
    """Who would wait longer than `max_wait` hears so on asking, with the time the backlog takes."""
    scene = Scene(max_wait_s=5.0)
    callers = scene.ask("bulk", 300)
    await scene.clock.settle()
    refused = [caller for caller in callers if isinstance(caller.refusal, QueueTimeout)]
    assert 180 <= len(refused) <= 195
    assert refused[0].refusal is not None
    assert refused[0].refusal.retry_after_s == pytest.approx(5.0, abs=0.5)
    await scene.aclose()


async def test_a_long_queue_of_others_is_no_reason_to_refuse() -> None:
    """The wait is judged by the caller's own flow: a newcomer beside a long bulk flow may stay."""
    scene = Scene(max_wait_s=5.0)
    scene.ask("bulk", 300)
    await scene.clock.settle()
    person = scene.ask("person")[0]
    await scene.clock.advance(0.2)
    assert person.left_at is not None
    await scene.aclose()


async def test_nobody_is_refused_who_would_have_been_in_time() -> None:
    """Of a bulk job as many get through as the rate allows within `max_wait`."""
    scene = Scene(max_wait_s=5.0)
    scene.ask("bulk", 300)
    await scene.clock.advance(10.0)
    patient = Scene(max_wait_s=60.0)
    patient.ask("bulk", 300)
    await patient.clock.advance(5.0)
    assert len(scene.left) == len(patient.left)
    await patient.aclose()


async def test_who_is_overtaken_by_newcomers_hears_by_max_wait() -> None:
    """A caller whose turn does come too late after all is refused no later than `max_wait`."""
    scene = Scene(rate=2.0, max_wait_s=5.0)
    bulk = scene.ask("bulk", 10)
    await scene.clock.settle()
    for _ in range(5):
        await scene.clock.advance(1.0)
        scene.ask(object(), 1)
    await scene.clock.advance(2.0)
    refused = [caller for caller in bulk if isinstance(caller.refusal, QueueTimeout)]
    assert refused
    assert refused == bulk[-len(refused) :]
    assert all(0.0 < (caller.refused_at or 0.0) - caller.asked_at <= 5.0 for caller in refused)


async def test_nobody_leaves_too_late_since_the_process_stood_still() -> None:
    """A timer that rings late finds callers whose time is up, and sends none of them out."""
    scene = Scene(rate=1.0, max_wait_s=2.0)
    first, second = scene.ask("a", 2)
    await scene.clock.settle()
    assert scene.clock.sleeping == 1
    scene.clock._now += 5.0
    await scene.clock.advance(0.1)
    assert first.left_at is not None
    assert isinstance(second.refusal, QueueTimeout)
    await scene.aclose()


async def test_a_full_queue_refuses_and_says_when_to_return() -> None:
    """With all places taken by his own flow a caller is refused; Retry-After is the backlog's time."""
    scene = Scene(queue=100)
    await fill(scene, "bulk", 100)
    refused = scene.ask("bulk")[0]
    await scene.clock.settle()
    assert isinstance(refused.refusal, QueueFull)
    assert refused.refusal.retry_after_s == pytest.approx(5.1, abs=0.3)
    await scene.aclose()


async def test_a_bulk_job_cannot_lock_others_out_of_a_full_queue() -> None:
    """A caller of a shorter flow takes the place of the longest flow's newest."""
    scene = Scene(queue=100)
    bulk = await fill(scene, "bulk", 100)
    person = scene.ask("person")[0]
    await scene.clock.settle()
    assert isinstance(bulk[-1].refusal, QueueFull)
    assert not bulk[-2].task.done()
    assert scene.fair_queue.state().waiting == 100
    await scene.clock.advance(0.2)
    assert person.left_at is not None
    await scene.aclose()


async def test_places_are_not_traded_among_equals() -> None:
    """When every flow holds one place, a full queue refuses the newcomer and puts nobody out."""
    scene = Scene(queue=3)
    scene.ask("earlier", 10)
    await scene.clock.settle()
    waiting = [scene.ask(flow)[0] for flow in "abc"]
    late = scene.ask("d")[0]
    await scene.clock.settle()
    assert isinstance(late.refusal, QueueFull)
    assert not any(caller.task.done() for caller in waiting)
    await scene.aclose()


async def test_a_queue_of_none_lets_only_those_pass_who_need_not_wait() -> None:
    """With `queue: 0` the burst passes and the rest is refused."""
    scene = Scene(queue=0)
    callers = scene.ask("a", 12)
    await scene.clock.settle()
    assert [isinstance(caller.refusal, QueueFull) for caller in callers] == [False] * 10 + [True] * 2


# --- leaving -----------------------------------------------------------------------------


async def test_a_cancelled_caller_leaves_the_queue_at_once(scene: Scene) -> None:
    """Who hangs up gives his place to those behind him, and the last to go takes the timer along."""
    first, second = await fill(scene, "a", 2)
    first.task.cancel()
    await scene.clock.settle()
    assert scene.fair_queue.state().waiting == 1
    second.task.cancel()
    await scene.clock.settle()
    assert scene.fair_queue.state().waiting == 0
    assert scene.clock.sleeping == 0


async def test_flows_that_are_gone_leave_nothing_behind(scene: Scene) -> None:
    """However many flows come and hang up or are served, only those that wait are remembered."""
    await fill(scene, "patient", 3)
    for caller in [caller for number in range(50) for caller in scene.ask(number)]:
        await scene.clock.settle()
        caller.task.cancel()
    await scene.clock.settle()
    assert list(scene.fair_queue._waiters._round) == ["patient"]
    await scene.clock.advance(1.0)
    assert len(scene.left) == 13
    assert not scene.fair_queue._waiters._round


@pytest.mark.parametrize("turns", range(60))
@pytest.mark.parametrize("others", [0, 1])
async def test_a_slot_is_not_lost_whenever_its_caller_is_cancelled(turns: int, others: int) -> None:
    """At whatever moment round its turn a caller hangs up, the slot serves the next one instead."""
    scene = Scene()
    caller, *rest = await fill(scene, "a", 1 + others)
    due_at = scene.pace.ready_at
    moving = asyncio.create_task(scene.clock.advance(due_at - scene.clock.monotonic()))
    for _ in range(turns):
        await asyncio.sleep(0)
    caller.task.cancel()
    await moving
    await scene.clock.settle()
    assert scene.fair_queue.state().departures == len(scene.left)
    if caller.left_at is None:
        rest += scene.ask("later", 1 - others)
        await scene.clock.settle()
        assert rest[0].left_at == due_at
    await scene.aclose()


async def test_a_pause_holds_all_and_ends_without_a_burst(scene: Scene) -> None:
    """Nobody leaves before the pause ends, those from idle neither; then the flow is steady."""
    until = scene.clock.monotonic() + 3.0
    scene.fair_queue.pause(until)
    scene.ask("a", 30)
    await scene.clock.advance(5.0)
    assert scene.left_at[0] == until
    assert min(after - before for before, after in pairwise(scene.left_at)) >= 0.045


async def test_a_pause_refuses_at_once_who_cannot_outwait_it() -> None:
    """When the upstream asks for more time than a caller has, he hears so when the pause begins."""
    scene = Scene(max_wait_s=5.0)
    waiting = await fill(scene, "a", 3)
    scene.fair_queue.pause(scene.clock.monotonic() + 20.0)
    await scene.clock.settle()
    assert all(isinstance(caller.refusal, QueueTimeout) for caller in waiting)
    assert scene.clock.sleeping == 0
    late = scene.ask("a")[0]
    await scene.clock.settle()
    assert late.refusal is not None
    assert late.refusal.retry_after_s == pytest.approx(20.0)


async def test_without_a_rate_nobody_waits() -> None:
    """With `rate: off` every caller leaves at once."""
    scene = Scene(rate=None)
    scene.ask("a", 500)
    await scene.clock.settle()
    assert len(scene.left) == 500
    assert scene.fair_queue.state().rate is None


# --- what it shows and costs -------------------------------------------------------------


async def test_who_asks_without_waiting_overtakes_nobody(scene: Scene) -> None:
    """A departure that is free at this instant belongs to who waits for it, woken or not."""
    await fill(scene, "bulk", 1)
    scene.clock._now += 10.0  # nobody has noticed yet
    assert scene.pace.ready_at < scene.clock.monotonic()
    before = scene.fair_queue.state().departures
    assert not scene.fair_queue.try_acquire()
    assert scene.fair_queue.state().departures == before
    await scene.clock.advance(0.0)
    assert len(scene.left) == 11
    await scene.clock.advance(1.0)
    assert scene.fair_queue.try_acquire()
    assert scene.fair_queue.state().departures == before + 2


async def test_its_state_can_be_read(scene: Scene) -> None:
    """Waiting callers, departures, rate, pause and the longest wait can be shown at any moment."""
    await fill(scene, "a", 30)
    until = scene.clock.monotonic() + 2.0
    scene.fair_queue.pause(until)
    assert scene.fair_queue.step_down()
    await scene.clock.advance(1.0)
    state = scene.fair_queue.state()
    assert (state.waiting, state.departures, state.paused_until) == (30, 10, until)
    assert state.rate == pytest.approx(16.0)
    assert state.oldest_wait_s == pytest.approx(1.0)
    await scene.clock.advance(2.0)
    state = scene.fair_queue.state()
    assert state.paused_until is None
    assert state.departures == len(scene.left) > 10


async def test_ten_thousand_waiting_callers_are_cheap() -> None:
    """10,000 waiting callers, their tasks included, take less than 100 MiB and go without a trace."""
    scene = Scene(queue=10_000, max_wait_s=3600.0)
    scene.ask("earlier", 10)
    await scene.clock.settle()
    tracemalloc.start()
    try:
        tasks = [asyncio.create_task(scene.fair_queue.acquire(number % 100)) for number in range(10_000)]
        await scene.clock.settle()
        assert scene.fair_queue.state().waiting == 10_000
        assert tracemalloc.get_traced_memory()[0] < 100 * 2**20
    finally:
        tracemalloc.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert scene.fair_queue.state().waiting == 0


async def test_joining_a_long_queue_counts_nobody(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the whole queue would leave in time, a caller's own place in it need not be worked out."""
    counted: list[Hashable] = []
    monkeypatch.setattr(_RoundRobin, "count_ahead", lambda _, key: counted.append(key))
    scene.ask("bulk", 900)
    await scene.clock.settle()
    assert scene.fair_queue.state().waiting == 890
    assert counted == []


# --- who comes back from a slot that was in vain ------------------------------------------


async def test_who_returns_stands_first_in_its_flow(scene: Scene) -> None:
    """A request that the upstream sent away does not queue up behind those that came after it."""
    await fill(scene, "bulk", 20)
    slot = asyncio.create_task(scene.fair_queue.acquire("bulk", 0.001))
    await scene.clock.advance(0.2)
    assert slot.done()
    assert len([caller for caller in scene.left if caller.flow == "bulk"]) < 5


async def test_who_return_leave_in_the_order_in_which_they_came_back(scene: Scene) -> None:
    """Those that were sent away together overtake the others of their flow, not each other."""
    await fill(scene, "bulk", 20)
    order: list[int] = []

    async def come_back(number: int) -> None:
        await scene.fair_queue.acquire("bulk", 0.001)
        order.append(number)

    back = [asyncio.create_task(come_back(number)) for number in range(5)]
    await scene.clock.advance(1.0)
    assert all(task.done() for task in back)
    assert order == [0, 1, 2, 3, 4]


async def test_who_returns_does_not_stand_before_other_flows(scene: Scene) -> None:
    """Coming back is no way round the turns of the others."""
    scene.ask("earlier", 10)
    await scene.clock.settle()
    others = scene.ask("a") + scene.ask("b") + scene.ask("c")
    await scene.clock.advance(1.0)
    assert all(caller.left_at is not None for caller in others)
    slots = [asyncio.create_task(scene.fair_queue.acquire("late", 0.001)) for _ in range(30)]
    more = scene.ask("a") + scene.ask("b")
    await scene.clock.advance(0.5)
    assert all(caller.left_at is not None for caller in more)
    assert not all(slot.done() for slot in slots)
    for slot in slots:
        slot.cancel()


async def test_who_returns_has_only_the_rest_of_its_time() -> None:
    """`max_wait` bounds all of a request's waiting, and it is told as soon as that is certain."""
    scene = Scene(max_wait_s=10.0)
    scene.ask("earlier", 10)
    await scene.clock.settle()
    scene.fair_queue.pause(scene.clock.monotonic() + 4.0)
    with pytest.raises(QueueTimeout):
        await scene.fair_queue.acquire("a", 7.0)
    patient = asyncio.create_task(scene.fair_queue.acquire("a", 5.0))
    await scene.clock.settle()
    scene.fair_queue.pause(scene.clock.monotonic() + 6.0)
    await scene.clock.settle()
    assert isinstance(patient.exception(), QueueTimeout)
    assert scene.fair_queue.state().waiting == 0
    await scene.aclose()


async def test_a_busy_upstream_slows_everybody_down_and_pauses_them(scene: Scene) -> None:
    """`back_off` is what a 429 asks for; a 503 with Retry-After asks for the pause alone."""
    scene.fair_queue.throttle(1.0, step_down=False)
    assert scene.fair_queue.state().rate == 20.0
    assert scene.fair_queue.state().paused_until == scene.clock.monotonic() + 1.0
    scene.fair_queue.throttle(2.0, step_down=True)
    assert scene.fair_queue.state().rate == 16.0
    assert scene.fair_queue.state().paused_until == scene.clock.monotonic() + 2.0
