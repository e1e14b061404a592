"""When the next request may leave where several replicas share one rate.

Owns: the departures that were borrowed and not used yet; what is done while the lender is away.
Must not know: who waits, how a lender keeps the pace.
Invariants:
1. Nothing leaves before a departure that was borrowed for it, and not later than `LATE_S` after it.
2. Nothing is borrowed while nobody waits; under load one question brings `AT_ONCE` departures, fewer where
   there are many replicas.
3. While the lender is away this replica keeps to its part of the rate: the rate over the number of
   replicas that were there before. It goes back to borrowing when the lender has been there for
   `RETURN_S`, so that the others have noticed as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from cfproxy.clock import Clock
from cfproxy.errors import CfproxyError
from cfproxy.pacing.rate import RateLimit


@dataclass(frozen=True, slots=True)
class Slots:
    """Departures that were lent.

    Args:
        instants: monotonic instants, in order; each is good for one request, at or just after it.
        replicas: how many borrow from this lender, this one included.
        share: of the rate that is in use, 0 to 1.
    """

    instants: list[float]
    replicas: int
    share: float


class SharedRateBackend(Protocol):
    """Keeps one pace for several replicas. Every method raises `StoreUnavailable` or `StoreUnusable`."""

    async def lend(self, rate: float, per_s: float, count: int, *, fresh: bool = False) -> Slots:
        """Return the next departures that are free.

        Args:
            rate: departures in a window.
            per_s: the window's length, seconds.
            count: how many are wanted; 0 only counts this replica.
            fresh: this replica let requests leave by itself until now: nothing leaves for one window.
        """

    async def back_off(self, rate: float, per_s: float, pause_s: float, *, slower: bool) -> None:
        """Lend nothing that leaves within `pause_s` seconds; `slower`: and less for a while after that."""

    async def aclose(self) -> None:
        """Borrow no more."""


AT_ONCE = 5
# What all have borrowed lies before a newcomer: together not more than this many seconds of the rate.
AHEAD_S = 2.5
# The guard of the shared pace covers 41 ms in all; the rest is for the way.
LATE_S = 0.025
TRY_AGAIN_S = 1.0
RETURN_S = 3.0
COUNT_EVERY_S = 30.0


class SharedRate:
    """A pace for `fair_queue.FairQueue` whose departures come from a lender.

    Args:
        rate, per_s: as for `RateLimit`; the rate of all replicas together.
        lender: who keeps it.
        clock: the monotonic side is used.
        log: where it goes that the lender is away, or back.
    """

    def __init__(
        self, rate: float, per_s: float, backend: SharedRateBackend, clock: Clock, log: FilteringBoundLogger
    ) -> None:
        self._rate, self._per_s = rate, per_s
        self._backend = backend
        self._clock = clock
        self._log = log
        self._slots: deque[float] = deque()
        self._alone: RateLimit | None = None  # while the lender is away
        self._fresh = False  # whether it has let requests leave by itself
        self._replicas = 1
        self._told = 0  # how many replicas the log was told of
        self._share = 1.0
        self._paused_until = self._slowed_at = -math.inf
        self._departures = 0
        self._asking: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Called when departures came in, or the lender went away.
        self.on_change: Callable[[], None] = lambda: None

    @property
    def ready_at(self) -> float:
        """Instant from which the next request may leave; infinity until one was borrowed."""
        return self._ready_at(self._clock.monotonic())

    def _ready_at(self, now: float) -> float:
        if self._alone is not None:
            return self._alone.ready_at
        latest = max(now - LATE_S, self._paused_until)
        while self._slots and self._slots[0] < latest:
            self._slots.popleft()
        return self._slots[0] if self._slots else math.inf

    @property
    def paused_until(self) -> float:
        """End of the latest pause; minus infinity when there was none."""
        return self._paused_until

    @property
    def departures(self) -> int:
        """How many have left from here so far."""
        return self._departures

    @property
    def replicas(self) -> int:
        """How many keep the rate together, this one counted; while it is alone: as of before that."""
        return self._replicas

    @property
    def alone(self) -> bool:
        """Whether the lender is away, and this replica keeps to its part of the rate."""
        return self._alone is not None

    @property
    def per_s(self) -> float:
        """The window that the rate counts, seconds."""
        return self._per_s

    def rate(self, now: float) -> float | None:
        """Return the rate in use at `now`: of all replicas together, or this one's part of it."""
        return self._rate * self._share if self._alone is None else self._alone.rate(now)

    def take(self, now: float) -> bool:
        """Use a departure at `now` and return True, or False when there is none."""
        # At the instant of whoever has looked: what was in time then must not be missing now.
        if now < self._ready_at(now):
            return False
        if self._alone is not None:
            self._alone.take(now)
        else:
            self._slots.popleft()
        self._departures += 1
        return True

    def give_back(self, at: float) -> bool:
        """Undo the departure at `at`, which did not happen."""
        if self._alone is not None:
            if not self._alone.give_back(at):
                return False
        else:
            self._slots.appendleft(at)
        self._departures -= 1
        return True

    def want(self, waiting: int) -> None:
        """Borrow for that many who wait, if there is need and nothing was asked for yet."""
        held = 0 if self.ready_at == math.inf else len(self._slots)
        at_once = self._at_once()
        # The next ones are asked for while the last one has not left yet: no departure passes unused. Where
        # loans are single ones others use it, and two of each would lie before a newcomer.
        if self._alone is None and self._asking is None and held <= min(1, at_once - 1) and held < waiting:
            self._asking = self._begin(self._borrow(min(waiting - held, at_once)))

    def _at_once(self) -> int:
        each = self._rate * AHEAD_S / self._per_s / self._replicas
        return max(1, min(AT_ONCE, math.floor(each)))

    def eta(self, ahead: int, now: float) -> float:
        """Return the earliest instant at which a request with `ahead` before it can leave: a lower bound."""
        if self._alone is not None:
            return self._alone.eta(ahead, now)
        start_at = max(now, self._paused_until, self._slots[0] if self._slots else now)
        return start_at + ahead * self._per_s / self._rate

    def pause(self, until: float, now: float) -> None:
        """Let nothing leave before `until`, here and, as soon as they borrow again, elsewhere."""
        self._paused_until = max(self._paused_until, until)
        if self._alone is not None:
            self._alone.pause(until, now)
        self._begin(self._tell(until - now, slower=False))

    def slow_down(self, now: float) -> bool:
        """Step the rate of all replicas down after a refusal (429); see `RateLimit.slow_down`."""
        if self._alone is not None:
            return self._alone.slow_down(now)
        if now < self._slowed_at + self._per_s:
            return False
        self._slowed_at = now
        self._begin(self._tell(0.0, slower=True))
        return True

    def retune(self, rate: float | None, per_s: float) -> None:
        """Keep another rate from now on; it must be the same on all replicas."""
        if rate is not None:  # without a rate there is nothing to share: that takes a new start
            self._rate, self._per_s = rate, per_s

    def begin(self) -> None:
        """Be counted as a replica from now on."""
        self._begin(self._stay_counted())

    async def aclose(self) -> None:
        """Borrow no more."""
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            # Again, if need be: a lender's client may lose a cancellation.
            await asyncio.wait(self._tasks, timeout=0.1)
            for task in self._tasks:
                task.cancel()
        with contextlib.suppress(CfproxyError):
            await self._backend.aclose()

    # --- the lender -----------------------------------------------------------------------

    async def _borrow(self, count: int) -> None:
        try:
            loan = await self._backend.lend(self._rate, self._per_s, count, fresh=self._fresh)
        except CfproxyError as error:
            self._go_alone(error)
        else:
            self._fresh = False
            self._note(loan)
            if self._alone is None:
                self._slots.extend(loan.instants)
        finally:
            if count:
                self._asking = None
        if count:
            self.on_change()

    def _go_alone(self, error: CfproxyError) -> None:
        if self._alone is not None:
            return
        part = self._rate / self._replicas
        self._log.warning("pacing.alone", reason=error.message, rate=round(part, 2), replicas=self._replicas)
        now = self._clock.monotonic()
        self._alone = RateLimit(part, self._per_s)
        # What was borrowed may have left just now, here and elsewhere.
        self._alone.pause(max(now, self._paused_until, *self._slots) + self._per_s, now)
        self._slots.clear()
        self._begin(self._come_back())

    async def _come_back(self) -> None:
        there_since = math.inf
        while self._clock.monotonic() - there_since < RETURN_S:
            await self._clock.sleep(TRY_AGAIN_S)
            try:
                loan = await self._backend.lend(self._rate, self._per_s, 0)
            except CfproxyError:
                there_since = math.inf
            else:
                there_since = min(there_since, self._clock.monotonic())
        self._alone, self._fresh, self._told = None, True, 0
        self._note(loan)
        self.on_change()

    def _note(self, loan: Slots) -> None:
        self._replicas, self._share = max(1, loan.replicas), loan.share
        if self._alone is None and self._replicas != self._told:
            self._told = self._replicas
            self._log.info("pacing.shared", replicas=self._replicas)

    async def _stay_counted(self) -> None:
        while True:
            if self._alone is None:
                await self._borrow(0)
            await self._clock.sleep(COUNT_EVERY_S)

    async def _tell(self, pause_s: float, *, slower: bool) -> None:
        with contextlib.suppress(CfproxyError):  # whoever borrows next finds out that it is away
            await self._backend.back_off(self._rate, self._per_s, max(0.0, pause_s), slower=slower)

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
