"""The fair queue: order, limits, cancellation and timing, on a manual clock."""

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
    """One request for a slot, and its outcome."""

    flow: Hashable
    asked_at: float
    departures_before: int
    task: asyncio.Task[None] = field(init=False)
    left_at: float | None = None
    waited_s: float | None = None
    refusal: QueueRefusal | None = None
    refused_at: float | None = None


class Scene:
    """A queue on a fake clock, its callers, and the order in which they were served."""

    def __init__(
        self, rate: float | None = 20.0, per_s: float = 1.0, queue: int = 1000, max_wait_s: float = 60.0
    ) -> None:
        self.clock = FakeClock()
        self.limit = RateLimit(rate, per_s)
        self.fair_queue = FairQueue(self.limit, self.clock, queue, max_wait_s)
        self.callers: list[Caller] = []
        self.left: list[Caller] = []

    def ask(self, flow: Hashable, count: int = 1) -> list[Caller]:
        callers = [Caller(flow, self.clock.monotonic(), len(self.left)) for _ in range(count)]
        for caller in callers:
            caller.task = asyncio.create_task(self._call(caller))
        self.callers += callers
        return callers

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
    """Use up the burst, then queue `waiting` requests of `flow`."""
    scene.ask("earlier", 10)
    await scene.clock.settle()
    callers = scene.ask(flow, waiting)
    await scene.clock.settle()
    assert scene.fair_queue.state().waiting == waiting
    return callers


# --- any sequence ------------------------------------------------------------------------

FLOWS = "abcd"
SEQUENCES = st.lists(
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
        scene.limit.step_down(scene.clock.monotonic())
    await scene.clock.settle()


@settings(max_examples=examples(60))
@given(
    rate=st.sampled_from([1.0, 2.5, 5.0, 20.0]),
    queue=st.integers(0, 30),
    max_wait_s=st.floats(0.0, 6.0),
    sequence=SEQUENCES,
)
async def test_the_invariants_hold_in_any_sequence(
    rate: float, queue: int, max_wait_s: float, sequence: list[tuple[str, Any]]
) -> None:
    """No window too full, no slot lost, no request overtaken, starved, forgotten or kept too long."""
    scene = Scene(rate, 1.0, queue, max_wait_s)
    for move, what in sequence:
        await play(scene, move, what)
        state = scene.fair_queue.state()
        assert state.waiting <= queue
        assert state.departures == len(scene.left), "a slot was lost"
        assert not state.waiting or scene.limit.ready_at > scene.clock.monotonic(), "a slot was not used"
        assert scene.clock.sleeping == (1 if state.waiting else 0), "an unneeded timer, or none"
    await scene.clock.advance(max_wait_s + 0.001)
    assert all(caller.task.done() for caller in scene.callers)
    if scene.left:
        assert most_in_window(scene.left_at, scene.limit.window_s - 1e-9) <= max(1, int(rate))
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
    """Check that each flow's order was kept, and that no turn took more than two rounds."""
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
    """A short burst after an idle time is sent at once, without a task or a timer."""
    tasks = len(asyncio.all_tasks())
    assert [await scene.fair_queue.acquire("a") for _ in range(10)] == [0.0] * 10
    assert len(asyncio.all_tasks()) == tasks
    assert scene.clock.sleeping == 0


async def test_a_thousand_at_once_are_sent_in_the_shortest_time(scene: Scene) -> None:
    """1,000 requests from 50 connections all get their slot, within 3 % of 50 s."""
    for connection in range(50):
        scene.ask(connection, 20)
    began_at = scene.clock.monotonic()
    await scene.clock.advance(51.5)
    assert len(scene.left) == 1000
    assert scene.left_at[-1] - began_at >= 48.5
    assert most_in_window(scene.left_at, scene.limit.window_s - 1e-9) == 20


async def test_a_single_caller_beside_a_bulk_job_hardly_waits(scene: Scene) -> None:
    """While 1,000 requests of one flow drain, an occasional caller waits 150 ms at most."""
    scene.ask("bulk", 1000)
    for _ in range(25):
        await scene.clock.advance(0.97)
        scene.ask("single")
    await scene.clock.advance(1.0)
    waits = [caller.waited_s for caller in scene.callers if caller.flow == "single"]
    assert len([wait for wait in waits if wait is not None and wait <= 0.15]) == 25


async def test_flows_share_the_rate_evenly(scene: Scene) -> None:
    """A flow with 500 waiting requests and one with 50 take turns, one request each."""
    await fill(scene, "large", 500)
    scene.ask("small", 50)
    await scene.clock.advance(5.2)
    shares = [caller.flow for caller in scene.left[10:]]
    assert abs(shares.count("large") - shares.count("small")) <= 1


async def test_a_single_caller_hardly_waits_beside_many_connections(scene: Scene) -> None:
    """Beside 50 connections that send again after each response it waits for two slots at most."""

    async def returning(connection: int) -> None:
        while True:
            await scene.fair_queue.acquire(connection)

    crowd = [asyncio.create_task(returning(connection)) for connection in range(50)]
    for _ in range(10):
        await scene.clock.advance(0.97)
        scene.ask("single")
    await scene.clock.advance(1.0)
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    assert len(scene.left) == 10
    assert all(caller.waited_s is not None and caller.waited_s <= 0.19 for caller in scene.left)


async def test_new_flows_do_not_starve_a_bulk_job(scene: Scene) -> None:
    """While a new caller arrives for every slot, a bulk job still gets its turns."""
    bulk = await fill(scene, "bulk", 3)
    for number in range(60):
        scene.ask(f"new {number}")
        await scene.clock.advance(0.0515)
    assert [caller.left_at is not None for caller in bulk] == [True] * 3


async def test_a_flow_that_returns_at_once_is_not_new(scene: Scene) -> None:
    """A flow that asks again right after each slot gets one turn a round, not every second slot."""
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


class Waiter(asyncio.Future[Any]):
    """A waiter that is identified by its flow."""

    def __init__(self, key: str) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self.key = key


@given(keys=st.text(FLOWS, max_size=60), served=st.integers(0, 30), key=st.sampled_from(FLOWS))
async def test_the_estimated_position_is_never_behind_the_true_one(keys: str, served: int, key: str) -> None:
    """The estimate is a lower bound, and short by three rounds at most."""
    waiters = _RoundRobin()
    for each in keys:
        waiters.push(each, Waiter(each), 0.0)
    for _ in range(min(served, len(waiters))):
        waiters.pop(0.0)
    estimate, mine = waiters.count_ahead(key), Waiter(key)
    waiters.push(key, mine, 0.0)
    truth = 0
    while waiters.pop(0.0) is not mine:
        truth += 1
    assert estimate <= truth <= estimate + 3 * len(FLOWS)


# --- refusals ----------------------------------------------------------------------------


async def test_a_wait_known_to_be_too_long_is_refused_at_once() -> None:
    """A request that would wait longer than `max_wait` is refused at once, with the backlog's time."""
    scene = Scene(max_wait_s=5.0)
    callers = scene.ask("bulk", 300)
    await scene.clock.settle()
    refused = [caller for caller in callers if isinstance(caller.refusal, QueueTimeout)]
    assert 180 <= len(refused) <= 195
    assert refused[0].refusal is not None
    assert refused[0].refusal.retry_after_s == pytest.approx(5.0, abs=0.5)
    await scene.aclose()


async def test_a_long_queue_of_another_flow_refuses_no_request() -> None:
    """The estimate depends on the request's own flow: a new one beside a long bulk flow is admitted."""
    scene = Scene(max_wait_s=5.0)
    scene.ask("bulk", 300)
    await scene.clock.settle()
    single = scene.ask("single")[0]
    await scene.clock.advance(0.2)
    assert single.left_at is not None
    await scene.aclose()


async def test_no_request_is_refused_that_would_have_been_in_time() -> None:
    """As many requests of a bulk job succeed as the rate allows within `max_wait`."""
    scene = Scene(max_wait_s=5.0)
    scene.ask("bulk", 300)
    await scene.clock.advance(10.0)
    patient = Scene(max_wait_s=60.0)
    patient.ask("bulk", 300)
    await patient.clock.advance(5.0)
    assert len(scene.left) == len(patient.left)
    await patient.aclose()


async def test_an_overtaken_request_is_refused_by_max_wait() -> None:
    """A request whose slot would be too late after all is refused no later than `max_wait`."""
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


async def test_no_request_is_sent_late_after_the_process_was_suspended() -> None:
    """A late timer finds requests whose time is up, and sends none of them."""
    scene = Scene(rate=1.0, max_wait_s=2.0)
    first, second = scene.ask("a", 2)
    await scene.clock.settle()
    assert scene.clock.sleeping == 1
    scene.clock._now += 5.0
    await scene.clock.advance(0.1)
    assert first.left_at is not None
    assert isinstance(second.refusal, QueueTimeout)
    await scene.aclose()


async def test_a_full_queue_refuses_with_retry_after() -> None:
    """With all places taken by its own flow a request is refused; Retry-After is the backlog's time."""
    scene = Scene(queue=100)
    await fill(scene, "bulk", 100)
    refused = scene.ask("bulk")[0]
    await scene.clock.settle()
    assert isinstance(refused.refusal, QueueFull)
    assert refused.refusal.retry_after_s == pytest.approx(5.1, abs=0.3)
    await scene.aclose()


async def test_a_bulk_job_cannot_lock_others_out_of_a_full_queue() -> None:
    """A request of a shorter flow evicts the newest of the longest flow."""
    scene = Scene(queue=100)
    bulk = await fill(scene, "bulk", 100)
    single = scene.ask("single")[0]
    await scene.clock.settle()
    assert isinstance(bulk[-1].refusal, QueueFull)
    assert not bulk[-2].task.done()
    assert scene.fair_queue.state().waiting == 100
    await scene.clock.advance(0.2)
    assert single.left_at is not None
    await scene.aclose()


async def test_flows_of_equal_length_do_not_evict_each_other() -> None:
    """If every flow has one place, a full queue refuses the new request and evicts none."""
    scene = Scene(queue=3)
    scene.ask("earlier", 10)
    await scene.clock.settle()
    waiting = [scene.ask(flow)[0] for flow in "abc"]
    late = scene.ask("d")[0]
    await scene.clock.settle()
    assert isinstance(late.refusal, QueueFull)
    assert not any(caller.task.done() for caller in waiting)
    await scene.aclose()


async def test_a_queue_of_zero_admits_only_requests_that_need_not_wait() -> None:
    """With `queue: 0` the burst is sent and the rest is refused."""
    scene = Scene(queue=0)
    callers = scene.ask("a", 12)
    await scene.clock.settle()
    assert [isinstance(caller.refusal, QueueFull) for caller in callers] == [False] * 10 + [True] * 2


# --- cancellation and pauses -------------------------------------------------------------


async def test_a_cancelled_caller_leaves_the_queue_at_once(scene: Scene) -> None:
    """The requests behind it move up, and the last one to leave stops the timer."""
    first, second = await fill(scene, "a", 2)
    first.task.cancel()
    await scene.clock.settle()
    assert scene.fair_queue.state().waiting == 1
    second.task.cancel()
    await scene.clock.settle()
    assert scene.fair_queue.state().waiting == 0
    assert scene.clock.sleeping == 0


async def test_flows_that_are_gone_leave_nothing_behind(scene: Scene) -> None:
    """However many flows are cancelled or served, only waiting ones are remembered."""
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
    """At whatever moment around its turn a caller is cancelled, the slot goes to the next one."""
    scene = Scene()
    caller, *rest = await fill(scene, "a", 1 + others)
    due_at = scene.limit.ready_at
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


async def test_a_pause_holds_every_request_and_ends_without_a_burst(scene: Scene) -> None:
    """Nothing is sent before the pause ends, not even after an idle time; then the flow is steady."""
    until = scene.clock.monotonic() + 3.0
    scene.fair_queue.pause(until)
    scene.ask("a", 30)
    await scene.clock.advance(5.0)
    assert scene.left_at[0] == until
    assert min(after - before for before, after in pairwise(scene.left_at)) >= 0.045


async def test_a_pause_refuses_requests_that_cannot_outlast_it() -> None:
    """If the upstream asks for more time than a request has, it is refused when the pause starts."""
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


async def test_without_a_rate_no_request_waits() -> None:
    """With `rate: off` every request is sent at once."""
    scene = Scene(rate=None)
    scene.ask("a", 500)
    await scene.clock.settle()
    assert len(scene.left) == 500
    assert scene.fair_queue.state().rate is None


# --- state and cost ----------------------------------------------------------------------


async def test_try_acquire_overtakes_no_waiting_request(scene: Scene) -> None:
    """A slot that is free now belongs to the request that waits for it, even before that is woken."""
    await fill(scene, "bulk", 1)
    scene.clock._now += 10.0  # no timer has fired yet
    assert scene.limit.ready_at < scene.clock.monotonic()
    before = scene.fair_queue.state().departures
    assert not scene.fair_queue.try_acquire()
    assert scene.fair_queue.state().departures == before
    await scene.clock.advance(0.0)
    assert len(scene.left) == 11
    await scene.clock.advance(1.0)
    assert scene.fair_queue.try_acquire()
    assert scene.fair_queue.state().departures == before + 2


async def test_its_state_can_be_read(scene: Scene) -> None:
    """Waiting requests, slots used, rate, pause and the longest wait can be read at any moment."""
    await fill(scene, "a", 30)
    until = scene.clock.monotonic() + 2.0
    scene.fair_queue.pause(until)
    assert scene.limit.step_down(scene.clock.monotonic())
    await scene.clock.advance(1.0)
    state = scene.fair_queue.state()
    assert (state.waiting, state.departures, state.paused_until) == (30, 10, until)
    assert state.rate == pytest.approx(16.0)
    assert state.oldest_wait_s == pytest.approx(1.0)
    await scene.clock.advance(2.0)
    state = scene.fair_queue.state()
    assert state.paused_until is None
    assert state.departures == len(scene.left) > 10


async def test_ten_thousand_waiting_requests_are_cheap() -> None:
    """With their tasks they take less than 100 MiB, and leave nothing behind."""
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


async def test_joining_a_long_queue_needs_no_count(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the whole queue fits in `max_wait`, a request's own position is not computed."""
    counted: list[Hashable] = []
    monkeypatch.setattr(_RoundRobin, "count_ahead", lambda _, key: counted.append(key))
    scene.ask("bulk", 900)
    await scene.clock.settle()
    assert scene.fair_queue.state().waiting == 890
    assert counted == []


# --- returning requests ------------------------------------------------------------------


async def test_a_returning_request_is_first_in_its_flow(scene: Scene) -> None:
    """A request that the upstream rejected does not queue behind later ones."""
    await fill(scene, "bulk", 20)
    slot = asyncio.create_task(scene.fair_queue.acquire("bulk", 0.001))
    await scene.clock.advance(0.2)
    assert slot.done()
    assert len([caller for caller in scene.left if caller.flow == "bulk"]) < 5


async def test_returning_requests_keep_their_order(scene: Scene) -> None:
    """Rejected requests overtake the others of their flow, but not each other."""
    await fill(scene, "bulk", 20)
    order: list[int] = []

    async def return_later(number: int) -> None:
        await scene.fair_queue.acquire("bulk", 0.001)
        order.append(number)

    returning = [asyncio.create_task(return_later(number)) for number in range(5)]
    await scene.clock.advance(1.0)
    assert all(task.done() for task in returning)
    assert order == [0, 1, 2, 3, 4]


async def test_a_returning_request_does_not_overtake_other_flows(scene: Scene) -> None:
    """Returning does not bypass the turns of other flows."""
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


async def test_a_returning_request_has_only_the_rest_of_its_time() -> None:
    """`max_wait` limits a request's total wait, and it is refused as soon as that is certain."""
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


async def test_a_429_pauses_every_request_and_reduces_the_rate(scene: Scene) -> None:
    """A 503 with Retry-After only pauses them."""
    scene.fair_queue.throttle(1.0, step_down=False)
    assert scene.fair_queue.state().rate == 20.0
    assert scene.fair_queue.state().paused_until == scene.clock.monotonic() + 1.0
    scene.fair_queue.throttle(2.0, step_down=True)
    assert scene.fair_queue.state().rate == 16.0
    assert scene.fair_queue.state().paused_until == scene.clock.monotonic() + 2.0
