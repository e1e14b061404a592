"""A fair, bounded queue of requests that wait for a rate limit.

1. Requests of one flow are served in order. Flows take turns, one request each per round. A new flow may
   jump the round, the latest first, but every second slot stays with the round: a single caller beside
   bulk jobs gets the next slot or the one after it, and no request waits for more than twice as many
   slots as there are flows before it in the round.
2. At most `queue` requests wait. In a full queue, a request of a shorter flow evicts the newest request
   of the longest flow, which has waited least and would wait longest: a bulk job shuts no one out, and
   no place is reserved for that.
3. No request is sent later than `max_wait_s` after it arrived. It is refused as soon as that is certain:
   on arrival, when a pause starts, or when another request takes the last slot in time.
4. The slot of a cancelled request goes to the next one. The cost of a slot does not depend on the number
   of waiting requests. While none waits there is no task and no timer.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Reversible
from dataclasses import dataclass

from cfproxy.clock import Clock
from cfproxy.errors import QueueFull, QueueRefusal, QueueTimeout
from cfproxy.pacing.rate import Limiter

RETRY_AFTER_MIN_S = 1.0
# A flow that returns later than this after its last slot does not send its next request after each
# response, as a job's connections do.
NEW_FLOW_AFTER_S = 0.5
MOMENT_S = 1e-6  # this long after an instant it has certainly passed
FULL = "the queue is full; send fewer requests at once or raise pacing.queue"
TOO_LONG = "the request would wait longer than pacing.max_wait; send fewer at once or raise it"

# Resolves to when the slot was granted, or to a refusal: unlike an exception, a result need not be retrieved.
_Waiter = asyncio.Future[float | QueueRefusal]


class _Flow(OrderedDict[_Waiter, None]):
    served_at = -math.inf


@dataclass(frozen=True, slots=True)
class QueueState:
    """A snapshot of a queue and its rate limit."""

    waiting: int
    departures: int  # requests sent
    refusals: int  # 429s from the upstream
    rate: float | None  # requests per `per_s` in use; None when pacing is off
    paused_until: float | None  # monotonic instant; None when not paused
    oldest_wait_s: float  # 0 when none waits
    capacity: int  # how many may wait
    per_s: float  # the period of `rate`
    replicas: int | None = None  # how many share the rate, including this one; None: it is not shared
    alone: bool = False  # whether this replica keeps to its part because the backend is unavailable


class FairQueue:
    """The queue of all requests that share one rate limit.

    Args:
        limiter: the rate limit; it must have no other user.
        clock: only its monotonic side is used.
        queue: how many requests may wait; 0 refuses every request that can't be sent at once.
        max_wait_s: the longest that a request may wait, in seconds.
    """

    def __init__(self, limiter: Limiter, clock: Clock, queue: int, max_wait_s: float) -> None:
        self._limiter = limiter
        self._clock = clock
        self._capacity = queue
        self._max_wait_s = max_wait_s
        self._waiters = _RoundRobin()
        self._returned: dict[_Waiter, float] = {}  # since when each has waited in all; a few at most
        self._timer: asyncio.Task[None] | None = None
        self._refusals = 0
        # Called with the pause in seconds, and whether the rate was stepped down.
        self.on_throttle: Callable[[float, bool], None] = lambda pause_s, stepped: None  # noqa: ARG005 - named for readers

    def start(self) -> None:
        """Start the limiter."""
        self._limiter.start(self._reschedule)

    async def aclose(self) -> None:
        """Release what the limiter shares with other replicas."""
        await self._limiter.aclose()

    def try_acquire(self) -> bool:
        """Take a slot if one is free and no request waits for it; return whether it was taken."""
        return not self._waiters and self._limiter.try_acquire(self._clock.monotonic())

    async def acquire(self, flow: Hashable, waited_s: float = 0.0) -> float:
        """Wait for a slot and return the seconds waited; the caller must then send at once.

        A cancelled caller leaves the queue and uses no slot.

        Args:
            flow: flows take turns; each is served in its own order.
            waited_s: seconds that this request has already waited for a slot that it could not use. It goes
                to the front of its flow, where it was, and has that much less time left.

        Raises:
            QueueFull: the queue is full.
            QueueTimeout: no slot is free within `max_wait_s`.
        """
        now = self._clock.monotonic()
        if not self._waiters and self._limiter.try_acquire(now):
            return 0.0
        self._admit(flow, now, waited_s)
        waiter: _Waiter = asyncio.get_running_loop().create_future()
        self._waiters.push(flow, waiter, now)
        if waited_s:
            self._returned[waiter] = now - waited_s
            self._waiters.move_to_front(flow, self._returned)
        if self._timer is None:
            self._timer = asyncio.create_task(self._run())
        self._limiter.prefetch(len(self._waiters))
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

    def reconfigure(self, rate: float | None, per_s: float, queue: int, max_wait_s: float) -> None:
        """Use another rate and other bounds from now on; waiting requests keep their places."""
        self._limiter.reconfigure(rate, per_s)
        self._capacity, self._max_wait_s = queue, max_wait_s
        self._reschedule()
        self._refuse_late(self._clock.monotonic())
        self._stop_if_empty()

    def pause(self, until: float) -> None:
        """Send nothing before the monotonic instant `until`; see `Limiter.pause`."""
        now = self._clock.monotonic()
        self._limiter.pause(until, now)
        self._refuse_late(now)
        self._stop_if_empty()

    def throttle(self, pause_s: float, *, step_down: bool) -> None:
        """Pause after a 429 or a 503 with Retry-After; `step_down` (after a 429) also reduces the rate."""
        now = self._clock.monotonic()
        stepped = step_down and self._limiter.step_down(now)
        self._refusals += step_down
        self.pause(now + pause_s)
        self.on_throttle(pause_s, stepped)

    def state(self) -> QueueState:
        """Return a snapshot."""
        now, oldest, limiter = self._clock.monotonic(), self._waiters.oldest(), self._limiter
        return QueueState(
            waiting=len(self._waiters),
            departures=limiter.departures,
            refusals=self._refusals,
            rate=limiter.rate(now),
            paused_until=limiter.paused_until if limiter.paused_until > now else None,
            oldest_wait_s=0.0 if oldest is None else now - oldest[1],
            capacity=self._capacity,
            per_s=limiter.per_s,
            replicas=limiter.replicas,
            alone=limiter.alone,
        )

    async def _run(self) -> None:
        while self._waiters:
            until = min(self._limiter.ready_at, self._next_timeout_at())
            await self._clock.sleep(max(0.0, until - self._clock.monotonic()))
            self._grant(self._clock.monotonic())
            self._limiter.prefetch(len(self._waiters))
        self._timer = None

    def _reschedule(self) -> None:
        """Restart the timer, whose due time has changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = asyncio.create_task(self._run())
        self._limiter.prefetch(len(self._waiters))

    def _grant(self, now: float) -> None:
        """Grant every slot that is free at `now`."""
        self._refuse_late(now)
        while self._waiters and self._limiter.ready_at <= now:
            waiter = self._waiters.pop(now)
            # One that was cancelled a moment ago stays in the queue until its task has run.
            if not waiter.done():
                self._limiter.try_acquire(now)
                waiter.set_result(now)
        self._refuse_late(now)

    def _admit(self, flow: Hashable, now: float, waited_s: float) -> None:
        """Make room for one more request of `flow`, or raise."""
        eta, latest_at = self._limiter.eta, now + self._max_wait_s - waited_s
        # The first estimate needs no sum, and usually decides.
        if eta(len(self._waiters), now) > latest_at:
            ahead = 0 if waited_s else self._waiters.count_ahead(flow)
            if eta(ahead, now) > latest_at:
                raise self._refusal(QueueTimeout, TOO_LONG, now)
        if len(self._waiters) < self._capacity:
            return
        victim = self._waiters.evict_for(flow)
        if victim is None:
            raise self._refusal(QueueFull, FULL, now)
        if not victim.done():
            victim.set_result(self._refusal(QueueFull, FULL, now))

    def _refuse_late(self, now: float) -> None:
        """Refuse every request whose time is up before the next slot."""
        earliest_at = self._limiter.eta(0, now)
        while (oldest := self._waiters.oldest()) is not None and oldest[1] + self._max_wait_s < earliest_at:
            self._refuse(oldest[0], now)
        for waiter, since in list(self._returned.items()):
            if since + self._max_wait_s < earliest_at:
                self._refuse(waiter, now)

    def _next_timeout_at(self) -> float:
        """Return the instant just after the next request's time is up, whenever the next slot may be."""
        oldest = self._waiters.oldest()
        since = min(math.inf if oldest is None else oldest[1], *self._returned.values(), math.inf)
        return since + self._max_wait_s + MOMENT_S

    def _refuse(self, waiter: _Waiter, now: float) -> None:
        self._waiters.remove(waiter)
        if not waiter.done():
            waiter.set_result(self._refusal(QueueTimeout, TOO_LONG, now))

    def _abandon(self, waiter: _Waiter) -> None:
        """Clean up after a cancelled request, which may have been granted a slot just before."""
        self._waiters.remove(waiter)
        outcome = None if waiter.cancelled() else waiter.result()
        if isinstance(outcome, float) and self._limiter.cancel(outcome):
            self._grant(self._clock.monotonic())
        self._stop_if_empty()

    def _stop_if_empty(self) -> None:
        if self._timer is not None and not self._waiters:
            self._timer.cancel()
            self._timer = None

    def _refusal(self, kind: type[QueueRefusal], text: str, now: float) -> QueueRefusal:
        # Until every request that waits now can have been sent: retrying earlier only fills the queue again.
        return kind(text, max(RETRY_AFTER_MIN_S, self._limiter.eta(len(self._waiters), now) - now))


class _RoundRobin:
    """The waiting requests: in order within a flow, in turns between flows (round robin, quantum of one)."""

    def __init__(self) -> None:
        self._entries: OrderedDict[_Waiter, tuple[Hashable, _Flow, float]] = OrderedDict()
        # A flow that was served until it was empty keeps its place for one round, or returning would pay.
        self._round: OrderedDict[Hashable, _Flow] = OrderedDict()
        self._new_flows: OrderedDict[Hashable, _Flow] = OrderedDict()  # those of the round that may jump it
        self._jump_next = True
        self._levels: list[dict[Hashable, _Flow]] = []  # [n]: the flows with more than n waiters

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, key: Hashable, waiter: _Waiter, since: float) -> None:
        flow = self._round.get(key)
        if flow is None:
            flow = self._round[key] = _Flow()
        if not flow and since - flow.served_at >= NEW_FLOW_AFTER_S:
            self._new_flows[key] = flow
        if len(flow) == len(self._levels):
            self._levels.append({})
        self._levels[len(flow)][key] = flow
        flow[waiter] = None
        self._entries[waiter] = (key, flow, since)

    def move_to_front(self, key: Hashable, waiters: Reversible[_Waiter]) -> None:
        """Move those of `waiters` that are in this flow to its front, in their order."""
        flow = self._round[key]
        for waiter in reversed(waiters):
            if waiter in flow:
                flow.move_to_end(waiter, last=False)

    def pop(self, now: float) -> _Waiter:
        """Remove and return the next one; there must be one."""
        if self._jump_next and self._new_flows:
            # The latest first, in favour of a single caller: a crowd before it has its places in the round.
            key, flow = self._new_flows.popitem()
            self._jump_next = False
        else:
            key, flow = self._round.popitem(last=False)
            while not flow:
                key, flow = self._round.popitem(last=False)
            self._new_flows.pop(key, None)
            self._jump_next = True
        self._round[key] = flow  # a jump uses up the flow's turn in the round
        self._round.move_to_end(key)
        flow.served_at = now
        waiter = next(iter(flow))
        self.remove(waiter)
        return waiter

    def remove(self, waiter: _Waiter) -> None:
        """Remove this one if it is here."""
        entry = self._entries.pop(waiter, None)
        if entry is None:
            return
        key, flow, _ = entry
        del flow[waiter]
        del self._levels[len(flow)][key]
        if not self._levels[-1]:
            self._levels.pop()
        if not flow and self._new_flows.pop(key, None) is not None:
            del self._round[key]
        if not self._entries:
            self._round.clear()

    def evict_for(self, key: Hashable) -> _Waiter | None:
        """Remove the newest of the longest flow, unless that makes it shorter than flow `key` becomes."""
        if len(self._levels) <= len(self._round.get(key, ())) + 1:
            return None
        self.remove(newest := next(reversed(next(reversed(self._levels[-1].values())))))
        return newest

    def oldest(self) -> tuple[_Waiter, float] | None:
        """Return the one that has waited longest, and since when."""
        return next(((waiter, entry[2]) for waiter, entry in self._entries.items()), None)

    def count_ahead(self, key: Hashable) -> int:
        """Return a lower bound for how many are served before one more of flow `key`."""
        # Its own, and as many of each other flow; but its first may jump, and its second come up at once.
        own = len(self._round.get(key, ()))
        return min(own, 1) + sum(map(len, self._levels[: max(0, own - 1)]))
