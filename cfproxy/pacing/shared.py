"""A rate limit that several replicas share: slots are reserved from a backend, a few at a time.

1. Nothing is sent before the slot reserved for it, nor later than `LATE_S` after it.
2. Nothing is reserved while no request waits. Under load one call reserves `BATCH` slots, fewer if there
   are many replicas.
3. While the backend is unavailable, this replica keeps to its part of the rate: the rate divided by the
   last known number of replicas. It uses the backend again once that has been available for `RETURN_S`,
   so that the other replicas have noticed as well.
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
    """Reserved slots.

    Args:
        instants: monotonic instants, in order; each is for one request, at or just after it.
        replicas: how many replicas use this backend, including this one.
        share: the share of the rate in use, 0 to 1.
    """

    instants: list[float]
    replicas: int
    share: float


class SharedRateBackend(Protocol):
    """Stores one rate for several replicas. Every method raises `StoreUnavailable` or `StoreUnusable`."""

    async def reserve(self, rate: float, per_s: float, count: int, *, rejoining: bool = False) -> Slots:
        """Reserve the next free slots.

        Args:
            rate: requests per window.
            per_s: the window's length, in seconds.
            count: the number of slots; 0 only registers this replica.
            rejoining: this replica has sent requests without the backend: no slot within one window.
        """

    async def throttle(self, rate: float, per_s: float, pause_s: float, *, step_down: bool) -> None:
        """Reserve no slot within `pause_s` seconds; `step_down` also reduces the rate for a while."""

    async def aclose(self) -> None:
        """Unregister this replica and close the connection."""


BATCH = 5
# The reservations of all replicas delay a newcomer: together by at most this many seconds of the rate.
AHEAD_S = 2.5
# The guard of the shared rate covers 41 ms in all; the rest is for the network.
LATE_S = 0.025
RETRY_EVERY_S = 1.0
RETURN_S = 3.0
REGISTER_EVERY_S = 30.0


class SharedRate:
    """A `Limiter` whose slots come from a backend.

    Args:
        rate, per_s: as for `RateLimit`; the rate of all replicas together.
        backend: stores the rate.
        clock: only its monotonic side is used.
        log: for the backend's failure and recovery.
    """

    def __init__(
        self, rate: float, per_s: float, backend: SharedRateBackend, clock: Clock, log: FilteringBoundLogger
    ) -> None:
        self._rate, self.per_s = rate, per_s
        self._backend = backend
        self._clock = clock
        self._log = log
        self._slots: deque[float] = deque()
        self._fallback: RateLimit | None = None  # while the backend is unavailable
        self._rejoining = False  # whether requests were sent without the backend
        self.replicas = 1
        self._logged_replicas = 0
        self._share = 1.0
        self.paused_until = self._stepped_at = -math.inf
        self.departures = 0
        self._reserving = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_change: Callable[[], None] = lambda: None

    def start(self, on_change: Callable[[], None]) -> None:
        """Register this replica; `on_change` is called when slots arrive or the backend fails."""
        self._on_change = on_change
        self._spawn(self._stay_registered())

    async def aclose(self) -> None:
        """Reserve no more, unregister and close the backend."""
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            # Cancel again if needed: the backend's client may lose a cancellation.
            await asyncio.wait(self._tasks, timeout=0.1)
            for task in self._tasks:
                task.cancel()
        with contextlib.suppress(CfproxyError):
            await self._backend.aclose()

    @property
    def ready_at(self) -> float:
        """When the next request may be sent; infinity until a slot is reserved."""
        return self._ready_at(self._clock.monotonic())

    @property
    def alone(self) -> bool:
        """Whether the backend is unavailable, and this replica keeps to its part of the rate."""
        return self._fallback is not None

    def rate(self, now: float) -> float | None:
        """Return the rate in use: of all replicas together, or this one's part of it."""
        return self._rate * self._share if self._fallback is None else self._fallback.rate(now)

    def try_acquire(self, now: float) -> bool:
        """Use a slot at `now`; see `Limiter.try_acquire`."""
        # As of the caller's `now`: a slot that the caller saw in time must not be dropped as late here.
        if now < self._ready_at(now):
            return False
        if self._fallback is not None:
            self._fallback.try_acquire(now)
        else:
            self._slots.popleft()
        self.departures += 1
        return True

    def cancel(self, at: float) -> bool:
        """Undo the request at `at`; see `Limiter.cancel`."""
        if self._fallback is not None:
            if not self._fallback.cancel(at):
                return False
        else:
            self._slots.appendleft(at)
        self.departures -= 1
        return True

    def prefetch(self, waiting: int) -> None:
        """Reserve slots for this many waiting requests, unless a reservation is pending."""
        slots = 0 if self.ready_at == math.inf else len(self._slots)
        batch = max(1, min(BATCH, math.floor(self._rate * AHEAD_S / self.per_s / self.replicas)))
        # The next batch is reserved before the last slot is used, so that no slot passes unused. Batches of
        # one do without: other replicas use the slot, and two of each replica would delay a newcomer.
        if self._fallback is None and not self._reserving and slots <= min(1, batch - 1) and slots < waiting:
            self._reserving = True
            self._spawn(self._reserve(min(waiting - slots, batch)))

    def eta(self, ahead: int, now: float) -> float:
        """Return a lower bound for when a request with `ahead` others before it can be sent."""
        if self._fallback is not None:
            return self._fallback.eta(ahead, now)
        start_at = max(now, self.paused_until, self._slots[0] if self._slots else now)
        return start_at + ahead * self.per_s / self._rate

    def pause(self, until: float, now: float) -> None:
        """Send nothing before `until`, here and, from their next reservation on, in other replicas."""
        self.paused_until = max(self.paused_until, until)
        if self._fallback is not None:
            self._fallback.pause(until, now)
        self._spawn(self._throttle(until - now, step_down=False))

    def step_down(self, now: float) -> bool:
        """Reduce the rate of all replicas after a 429; see `RateLimit.step_down`."""
        if self._fallback is not None:
            return self._fallback.step_down(now)
        if now < self._stepped_at + self.per_s:
            return False
        self._stepped_at = now
        self._spawn(self._throttle(0.0, step_down=True))
        return True

    def reconfigure(self, rate: float | None, per_s: float) -> None:
        """Use another rate from now on; it must be the same for all replicas."""
        if rate is not None:  # switching sharing on or off takes a restart
            self._rate, self.per_s = rate, per_s

    def _ready_at(self, now: float) -> float:
        if self._fallback is not None:
            return self._fallback.ready_at
        earliest = max(now - LATE_S, self.paused_until)
        while self._slots and self._slots[0] < earliest:
            self._slots.popleft()
        return self._slots[0] if self._slots else math.inf

    async def _reserve(self, count: int) -> None:
        try:
            slots = await self._backend.reserve(self._rate, self.per_s, count, rejoining=self._rejoining)
        except CfproxyError as error:
            self._fall_back(error)
        else:
            self._rejoining = False
            self._update(slots)
            if self._fallback is None:
                self._slots.extend(slots.instants)
        finally:
            if count:
                self._reserving = False
        if count:
            self._on_change()

    def _fall_back(self, error: CfproxyError) -> None:
        if self._fallback is not None:
            return
        part = self._rate / self.replicas
        self._log.warning("pacing.alone", reason=error.message, rate=round(part, 2), replicas=self.replicas)
        now = self._clock.monotonic()
        self._fallback = RateLimit(part, self.per_s)
        # Requests in reserved slots may have been sent just now, here and in other replicas.
        self._fallback.pause(max(now, self.paused_until, *self._slots) + self.per_s, now)
        self._slots.clear()
        self._spawn(self._recover())

    async def _recover(self) -> None:
        available_since = math.inf
        while self._clock.monotonic() - available_since < RETURN_S:
            await self._clock.sleep(RETRY_EVERY_S)
            try:
                slots = await self._backend.reserve(self._rate, self.per_s, 0)
            except CfproxyError:
                available_since = math.inf
            else:
                available_since = min(available_since, self._clock.monotonic())
        self._fallback, self._rejoining, self._logged_replicas = None, True, 0
        self._update(slots)
        self._on_change()

    def _update(self, slots: Slots) -> None:
        self.replicas, self._share = max(1, slots.replicas), slots.share
        if self._fallback is None and self.replicas != self._logged_replicas:
            self._logged_replicas = self.replicas
            self._log.info("pacing.shared", replicas=self.replicas)

    async def _stay_registered(self) -> None:
        while True:
            if self._fallback is None:
                await self._reserve(0)
            await self._clock.sleep(REGISTER_EVERY_S)

    async def _throttle(self, pause_s: float, *, step_down: bool) -> None:
        with contextlib.suppress(CfproxyError):  # the next reservation finds out that it is unavailable
            await self._backend.throttle(self._rate, self.per_s, max(0.0, pause_s), step_down=step_down)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
