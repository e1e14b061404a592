"""What waiting costs: memory of cfproxy with a long queue, and time to join it and to pick the next one.

Owns: both measurements. Memory is VmHWM of /proc, so Linux only.
Must not know: bounds, tables.
"""

from __future__ import annotations

import asyncio
import resource  # noqa: PLC0415 - not on Windows
import time
from dataclasses import dataclass

from memory import peak_bytes, reset_peak
from pacing_world import World, count_waiting, open_world

from cfproxy.pacing.rate import RateLimit
from cfproxy.pacing.queue import FairQueue

FILES = 12_000  # a connection each, on both sides; cfproxy wants room for those to the API, too
OPEN_AT_ONCE = 100
STEPS = 500
ROUNDS = 5
LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class WaitingCost:
    """What cfproxy grew by, bytes: for the idle connections, and then for a waiting request on each."""

    connections_bytes: int
    requests_bytes: int


@dataclass(frozen=True)
class LineCost:
    """Microseconds a caller: to join the queue, and from one departure to the next.

    All that happens then counts: the pace, the line, making or waking the caller's task, the loop's turns.
    """

    join_us: float
    leave_us: float


async def measure_memory(waiting: int, body_bytes: int) -> WaitingCost:
    """Let requests wait, each on its own connection and with a User-Agent of its own.

    Args:
        waiting: how many, in hundreds.
        body_bytes: what each request announces and sends as its body.
    """
    allow_files()
    settings = {
        # The first request leaves; then nothing does for as long as this takes.
        "CFPROXY_PACING__RATE": "1",
        "CFPROXY_PACING__PER": "1h",
        "CFPROXY_PACING__QUEUE": str(waiting),
        # Those of all are open before the first one asks.
        "CFPROXY_LIMITS__CONNECTIONS": str(waiting + OPEN_AT_ONCE),
        "CFPROXY_LIMITS__UNFINISHED": str(waiting + OPEN_AT_ONCE),
        "CFPROXY_PACING__MAX_WAIT": "20000h",
        "CFPROXY_TIMEOUTS__DRAIN": "1ms",
    }
    async with open_world("off", proxy=True, admin=True, settings=settings) as world:
        probe = await _Client.open(world)
        probe.ask("first")
        await probe.answered.wait()
        await count_waiting(world)  # what that takes is not the queue's
        before_bytes = _peak(world)
        clients: list[_Client] = []
        while len(clients) < waiting:
            clients += await asyncio.gather(*(_Client.open(world) for _ in range(OPEN_AT_ONCE)))
        connected_bytes = peak_bytes(world.proxy_pid)
        for number, client in enumerate(clients):
            client.ask(f"client {number}", body_bytes)
            await asyncio.sleep(0)
        while await count_waiting(world) < waiting:
            await asyncio.sleep(LOOK_EVERY_S)
        full_bytes = peak_bytes(world.proxy_pid)
        assert not any(client.received for client in clients)
        for client in clients:
            client.transport.abort()
    return WaitingCost(connected_bytes - before_bytes, full_bytes - connected_bytes)


def allow_files() -> None:
    """Raise this process's limit of open files, which its children inherit.

    Raises:
        ValueError: the system's own limit is lower.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))


def _peak(world: World) -> int:
    reset_peak(world.proxy_pid)
    return peak_bytes(world.proxy_pid)


class _Client(asyncio.Protocol):
    """One connection with at most one request on it."""

    def __init__(self) -> None:
        self.received = b""
        self.answered = asyncio.Event()
        self.transport: asyncio.Transport

    @classmethod
    async def open(cls, world: World) -> _Client:
        host, _, port = world.proxy.removeprefix("http://").rpartition(":")
        _, client = await asyncio.get_running_loop().create_connection(cls, host, int(port))
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.answered.set()

    def ask(self, name: str, body_bytes: int = 0) -> None:
        host, port = self.transport.get_extra_info("peername")
        head = (
            f"POST /v1/_echo HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: {name}\r\nAccept: application/json\r\n"
            f"Accept-Encoding: gzip, deflate, br\r\nContent-Type: application/json\r\n"
            f"X-Request-Id: 0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0\r\nContent-Length: {body_bytes}\r\n\r\n"
        )
        self.transport.write(head.encode() + b" " * body_bytes)


class _StepClock:
    """A clock that is always where the queue waits until: no time passes but what picking costs."""

    def __init__(self) -> None:
        self._now = 0.0
        self.open = asyncio.Event()

    def time(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, delay_s: float) -> None:
        await self.open.wait()
        self._now += delay_s
        await asyncio.sleep(0)


async def measure_line(waiting: int, flows: int) -> LineCost:
    """Return the best of some rounds, with so many waiting in so many flows."""
    clock = _StepClock()
    total = waiting + ROUNDS * STEPS
    fair_queue = FairQueue(RateLimit(20.0, 1.0), clock, queue=total, max_wait_s=1e9)
    callers = await _join(fair_queue, range(waiting), flows)
    join_us, leave_us = [], []
    for first in range(waiting, total, STEPS):
        started_at = time.perf_counter()
        callers += await _join(fair_queue, range(first, first + STEPS), flows)
        join_us.append((time.perf_counter() - started_at) / STEPS * 1e6)
    for _ in range(ROUNDS):
        departures = fair_queue.state().departures + STEPS
        clock.open.set()
        started_at = time.perf_counter()
        while fair_queue.state().departures < departures:
            await asyncio.sleep(0)
        leave_us.append((time.perf_counter() - started_at) / STEPS * 1e6)
        clock.open.clear()
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    return LineCost(min(join_us), min(leave_us))


async def _join(fair_queue: FairQueue, numbers: range, flows: int) -> list[asyncio.Task[float]]:
    callers = [asyncio.create_task(fair_queue.acquire(number % flows)) for number in numbers]
    await asyncio.sleep(0)
    return callers
