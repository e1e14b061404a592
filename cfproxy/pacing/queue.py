"""Fair, bounded, cancellable waiting for the pace.

Owns: who waits, in which order they are let go, and who is refused instead.
Must not know: what a flow is made of (whoever calls chooses the key), HTTP, sockets.
Invariants:
1. Inside a flow nobody is overtaken. Flows stand in a ring and have one turn each in a round. One that
   comes from elsewhere may jump it, the latest first, but every second turn stays the ring's: a lone
   caller beside bulk jobs gets the next slot or the one after it, and nobody waits for more than
   twice as many turns as there are flows before him in the ring.
2. At most `queue` callers wait. When all places are taken, one of a shorter flow takes the place of
   the longest flow's newest, which waited least and would wait longest: so a bulk job locks nobody
   out, and no place is kept empty for that.
3. Nobody leaves later than `max_wait_s` after asking. Who cannot make it is refused as soon as that is
   certain: on asking, when a pause begins, or when the last slot in time went to another.
4. A slot granted to a caller that is gone goes to the next one. Picking costs the same however many
   wait. While nobody waits there is no task and no timer.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Reversible
from dataclasses import dataclass
from typing import Protocol

from cfproxy.clock import Clock
from cfproxy.errors import QueueFull, QueueRefusal, QueueTimeout
from cfproxy.pacing.rate import RateLimit
from cfproxy.pacing.shared import SharedRate


class Pacer(Protocol):
    """When a request may leave."""

    def take(self) -> bool:
        """Take a departure if one is free now and nobody waits for it; return whether there was one."""

    async def slot(self, flow: Hashable, waited_s: float = 0.0) -> float:
        """Wait for the next free departure and take it; return the seconds waited.

        Args:
            flow: whoever shares one turn: flows are served in rotation, each in its own order.
            waited_s: seconds that this request has waited before, when an earlier slot was in vain.

        Raises:
            QueueFull, QueueTimeout
        """

    def back_off(self, pause_s: float, *, slower: bool) -> None:
        """Let nobody leave for `pause_s` seconds; `slower`: and fewer for a while after that."""


RETRY_AFTER_MIN_S = 1.0
# Who comes back later than this does not live from answer to answer, like a job's connections do.
NEWCOMER_AFTER_S = 0.5
MOMENT_S = 1e-6  # so much after an instant it has passed for certain
FULL = "as many requests wait for their turn as may; send fewer at once or raise pacing.queue"
TOO_LONG = "the turn of this request comes too late; send fewer at once or raise pacing.max_wait"

# Resolves to the instant of departure or a refusal, which nobody need retrieve, unlike an exception.
_Waiter = asyncio.Future[float | QueueRefusal]


class _Flow(OrderedDict[_Waiter, None]):
    served_at = -math.inf


@dataclass(frozen=True, slots=True)
class QueueState:
    """What can be seen of a shaper at one instant."""

    waiting: int
    departures: int
    refusals: int  # of the upstream: 429s
    rate: float | None  # departures per window in use now; None when pacing is off
    paused_until: float | None  # monotonic instant; None when not paused
    oldest_wait_s: float  # 0 when nobody waits
    capacity: int  # how many may wait
    per_s: float  # the period that `rate` counts
    replicas: int | None = None  # how many share the pace, this one counted; None: nobody else does
    alone: bool = False  # whether it keeps to its part of the rate, since the lender is away


class FairQueue:
    """The queue of everybody who shares one limit.

    Args:
        pace: the limit, of this process or of several; nobody else may take from it.
        clock: its monotonic side is used.
        queue: how many may wait; 0 refuses whoever cannot leave at once.
        max_wait_s: seconds that anybody waits at most.
    """

    def __init__(self, pace: RateLimit | SharedRate, clock: Clock, queue: int, max_wait_s: float) -> None:
        self._pace = pace
        self._clock = clock
        self._queue = queue
        self._max_wait_s = max_wait_s
        self._line = _Line()
        self._returned: dict[_Waiter, float] = {}  # since when they wait in all; a few at the most
        self._timer: asyncio.Task[None] | None = None
        self._refusals = 0
        # Called with the pause, seconds, and whether the rate was stepped down.
        self.on_back_off: Callable[[float, bool], None] = lambda pause_s, slower: None  # noqa: ARG005 - named for readers

    def take(self) -> bool:
        """Take a departure if one is free now and nobody waits for it; return whether there was one."""
        return not self._line and self._pace.take(self._clock.monotonic())

    async def slot(self, flow: Hashable, waited_s: float = 0.0) -> float:
        """Wait for this caller's turn and return the seconds that it took; then send at once.

        A caller that is cancelled loses its place at once and spends no slot.

        Args:
            flow: whoever shares one turn.
            waited_s: seconds that this request has waited already, for a slot that did not serve it:
                it stands first in its flow, where it was, and has so much less time left.

        Raises:
            QueueFull: no place to wait.
            QueueTimeout: the turn cannot come within `max_wait_s`.
        """
        now = self._clock.monotonic()
        if not self._line and self._pace.take(now):
            return 0.0
        self._admit(flow, now, waited_s)
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._line.push(flow, waiter, now)
        if waited_s:
            self._returned[waiter] = now - waited_s
            self._line.put_first(flow, self._returned)
        if self._timer is None:
            self._timer = asyncio.create_task(self._run())
        self._pace.want(len(self._line))
        try:
            outcome = await waiter
        except asyncio.CancelledError:
            self._abandon(waiter)
            raise
        finally:
            self._returned.pop(waiter, None)
        if isinstance(outcome, QueueRefusal):
            raise outcome
        return outcome - now

    def retune(self, rate: float | None, per_s: float, queue: int, max_wait_s: float) -> None:
        """Keep another pace and other bounds from now on; who waits already keeps the place."""
        self._pace.retune(rate, per_s)
        self._queue, self._max_wait_s = queue, max_wait_s
        self.wake()
        self._refuse_late(self._clock.monotonic())
        self._rest()

    def wake(self) -> None:
        """Look again when the next departure is: the pace has changed."""
        if self._timer is not None:  # it sleeps until an instant of the old pace
            self._timer.cancel()
            self._timer = asyncio.create_task(self._run())
        self._pace.want(len(self._line))

    def pause(self, until: float) -> None:
        """Let nobody leave before the monotonic instant `until`; see `RateLimit.pause`."""
        now = self._clock.monotonic()
        self._pace.pause(until, now)
        self._refuse_late(now)
        self._rest()

    def back_off(self, pause_s: float, *, slower: bool) -> None:
        """Do what an upstream asks for that answers 429 (`slower`) or 503 with Retry-After."""
        stepped = slower and self.slow_down()
        self._refusals += slower
        self.pause(self._clock.monotonic() + pause_s)
        self.on_back_off(pause_s, stepped)

    def slow_down(self) -> bool:
        """Step the rate down after a 429; see `RateLimit.slow_down`."""
        return self._pace.slow_down(self._clock.monotonic())

    def state(self) -> QueueState:
        """Return what can be seen now."""
        now, oldest, pace = self._clock.monotonic(), self._line.oldest(), self._pace
        until = pace.paused_until if pace.paused_until > now else None
        oldest_wait_s = 0.0 if oldest is None else now - oldest[1]
        return QueueState(
            len(self._line),
            pace.departures,
            self._refusals,
            pace.rate(now),
            until,
            oldest_wait_s,
            self._queue,
            pace.per_s,
            *((pace.replicas, pace.alone) if isinstance(pace, SharedRate) else (None, False)),
        )

    async def _run(self) -> None:
        while self._line:
            until = min(self._pace.ready_at, self._hopeless_at())
            await self._clock.sleep(max(0.0, until - self._clock.monotonic()))
            self._release(self._clock.monotonic())
            self._pace.want(len(self._line))
        self._timer = None

    def _release(self, now: float) -> None:
        """Let go everybody whose turn has come."""
        self._refuse_late(now)
        while self._line and self._pace.ready_at <= now:
            waiter = self._line.pick(now)
            # One that was cancelled a moment ago is still in line until its task has run.
            if not waiter.done():
                self._pace.take(now)
                waiter.set_result(now)
        self._refuse_late(now)

    def _admit(self, flow: Hashable, now: float, waited_s: float) -> None:
        """Make sure that there is a place for one more of `flow`, or raise."""
        eta, latest_at = self._pace.eta, now + self._max_wait_s - waited_s
        # The first estimate needs no sum; it decides nearly always.
        if eta(len(self._line), now) > latest_at:
            ahead = 0 if waited_s else self._line.ahead(flow)
            if eta(ahead, now) > latest_at:
                raise self._refusal(QueueTimeout, TOO_LONG, now)
        if len(self._line) < self._queue:
            return
        victim = self._line.evict_for(flow)
        if victim is None:
            raise self._refusal(QueueFull, FULL, now)
        if not victim.done():
            victim.set_result(self._refusal(QueueFull, FULL, now))

    def _refuse_late(self, now: float) -> None:
        """Refuse whoever's time is up before the next departure can be."""
        earliest_at = self._pace.eta(0, now)
        while (oldest := self._line.oldest()) is not None and oldest[1] + self._max_wait_s < earliest_at:
            self._refuse(oldest[0], now)
        for waiter, since in list(self._returned.items()):
            if since + self._max_wait_s < earliest_at:
                self._refuse(waiter, now)

    def _hopeless_at(self) -> float:
        """Return the instant just after somebody's time is up, whatever the pace has to say until then."""
        oldest = self._line.oldest()
        since = min(math.inf if oldest is None else oldest[1], *self._returned.values(), math.inf)
        return since + self._max_wait_s + MOMENT_S

    def _refuse(self, waiter: _Waiter, now: float) -> None:
        self._line.discard(waiter)
        if not waiter.done():
            waiter.set_result(self._refusal(QueueTimeout, TOO_LONG, now))

    def _abandon(self, waiter: _Waiter) -> None:
        """Clear up after a caller that was cancelled, in line or just as its turn came."""
        self._line.discard(waiter)
        outcome = None if waiter.cancelled() else waiter.result()
        if isinstance(outcome, float) and self._pace.give_back(outcome):
            self._release(self._clock.monotonic())
        self._rest()

    def _rest(self) -> None:
        if self._timer is not None and not self._line:
            self._timer.cancel()
            self._timer = None

    def _refusal(self, kind: type[QueueRefusal], text: str, now: float) -> QueueRefusal:
        # Until all who wait now can have left: coming back earlier only fills the queue again.
        return kind(text, max(RETRY_AFTER_MIN_S, self._pace.eta(len(self._line), now) - now))


class _Line:
    """Who waits: FIFO inside a flow, turns between flows (deficit round robin with a quantum of one)."""

    def __init__(self) -> None:
        self._seats: OrderedDict[_Waiter, tuple[Hashable, _Flow, float]] = OrderedDict()
        # A flow that its turn emptied keeps its place until that comes up: returning gains nothing.
        self._ring: OrderedDict[Hashable, _Flow] = OrderedDict()
        self._newcomers: OrderedDict[Hashable, _Flow] = OrderedDict()  # those of the ring that may jump it
        self._jump_next = True
        self._levels: list[dict[Hashable, _Flow]] = []  # [n]: the flows with more than n waiters

    def __len__(self) -> int:
        return len(self._seats)

    def push(self, key: Hashable, waiter: _Waiter, since: float) -> None:
        flow = self._ring.get(key)
        if flow is None:
            flow = self._ring[key] = _Flow()
        if not flow and since - flow.served_at >= NEWCOMER_AFTER_S:
            self._newcomers[key] = flow
        if len(flow) == len(self._levels):
            self._levels.append({})
        self._levels[len(flow)][key] = flow
        flow[waiter] = None
        self._seats[waiter] = (key, flow, since)

    def put_first(self, key: Hashable, waiters: Reversible[_Waiter]) -> None:
        """Move those of them that stand in this flow before all others of it, in their order."""
        flow = self._ring[key]
        for waiter in reversed(waiters):
            if waiter in flow:
                flow.move_to_end(waiter, last=False)

    def pick(self, now: float) -> _Waiter:
        """Take out whose turn it is; somebody must be in line."""
        if self._jump_next and self._newcomers:
            # The latest first, for a lone caller's sake: the crowd before him has its places in the ring.
            key, flow = self._newcomers.popitem()
            self._jump_next = False
        else:
            key, flow = self._ring.popitem(last=False)
            while not flow:
                key, flow = self._ring.popitem(last=False)
            self._newcomers.pop(key, None)
            self._jump_next = True
        self._ring[key] = flow  # a jump uses up the turn in the ring
        self._ring.move_to_end(key)
        flow.served_at = now
        waiter = next(iter(flow))
        self.discard(waiter)
        return waiter

    def discard(self, waiter: _Waiter) -> None:
        """Take out this one, wherever it stands; nothing happens when it is not in line."""
        seat = self._seats.pop(waiter, None)
        if seat is None:
            return
        key, flow, _ = seat
        del flow[waiter]
        del self._levels[len(flow)][key]
        if not self._levels[-1]:
            self._levels.pop()
        if not flow and self._newcomers.pop(key, None) is not None:
            del self._ring[key]
        if not self._seats:
            self._ring.clear()

    def evict_for(self, key: Hashable) -> _Waiter | None:
        """Take out the newest of the longest flow, if that one stays no shorter than `key`'s becomes."""
        if len(self._levels) <= len(self._ring.get(key, ())) + 1:
            return None
        self.discard(newest := next(reversed(next(reversed(self._levels[-1].values())))))
        return newest

    def oldest(self) -> tuple[_Waiter, float] | None:
        """Return who waits longest, and since when."""
        return next(((waiter, seat[2]) for waiter, seat in self._seats.items()), None)

    def ahead(self, key: Hashable) -> int:
        """Return how many leave before one more of `key`, at least."""
        # Its own, and as many of each other flow; but its first may jump, and its second come up at once.
        own = len(self._ring.get(key, ()))
        return min(own, 1) + sum(map(len, self._levels[: max(0, own - 1)]))
