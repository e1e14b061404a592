"""Connection limits: which connections are closed when there are too many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.server.connection import ClientConnection
from cfproxy.server.connection_limits import ConnectionLimits, Connections
from cfproxy.server.memory import release_memory

LIMITS = ConnectionLimits(connections=4, unfinished=2, unfinished_bytes=50)


@dataclass(eq=False)
class FakeConnection(ClientConnection):
    """A connection that records why it was closed, and reports it like a real one."""

    tracker: Connections
    ended: str | None = None
    stuck: bool = False

    def end(self, cause: str) -> None:
        assert self.ended is None, "ended twice"
        self.ended = cause
        self.tracker.closed(self)

    def tarpit(self) -> None:
        assert (self.ended, self.stuck) == (None, False), "ended or stuck already"
        self.stuck = True


@dataclass
class World:
    """A tracker whose clock and timers are controlled by the test."""

    limits: ConnectionLimits = LIMITS
    now: float = 100.0
    alarms: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    told: list[dict[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connections = Connections(self.limits, cast("asyncio.AbstractEventLoop", self), self.told.append)

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        self.alarms.append((self.now + delay_s, call))
        self.alarms.sort(key=lambda alarm: alarm[0])
        return cast("asyncio.TimerHandle", object())

    def open(self) -> FakeConnection:
        client = FakeConnection(self.connections)
        self.connections.opened(client)
        return client

    def go(self, seconds: float) -> None:
        until = self.now + seconds
        while self.alarms and self.alarms[0][0] <= until:
            self.now, call = self.alarms.pop(0)
            call()
        self.now = until


def test_the_total_size_of_incomplete_heads_is_limited() -> None:
    """Whatever their age, the oldest with data get stuck; others don't count."""
    world = World(ConnectionLimits(connections=9, unfinished=9, unfinished_bytes=100))
    silent, first, second, through, last = (world.open() for _ in range(5))
    for client, size in ((first, 30), (second, 30), (through, 40), (second, 20), (through, 50)):
        world.connections.head_grew(client, size)
    world.connections.request_started(through)
    world.connections.head_grew(last, 50)
    assert (first.stuck, second.stuck, last.stuck) == (False, False, False)
    world.connections.head_grew(last, 60)
    assert (first.stuck, second.stuck, last.stuck) == (True, False, False)
    world.connections.closed(second)
    world.connections.head_grew(last, 100)
    assert not last.stuck
    world.connections.head_grew(last, 101)
    assert last.stuck
    assert (silent.stuck, through.stuck) == (False, False)
    assert world.connections.counts() == {"unfinished": 1, "stuck": 2, "idle": 0, "busy": 1}
    world.go(1)
    assert world.told == [{"unfinished": 2}]


@pytest.fixture
def world() -> World:
    return World()


def test_the_oldest_incomplete_heads_over_the_limit_get_stuck(world: World) -> None:
    """Closed clients would reconnect, so they are kept, and are the first to be closed for others."""
    first, second, third = world.open(), world.open(), world.open()
    for client in (first, second, third):
        world.connections.head_grew(client, 10)
    world.go(1)
    assert [client.stuck for client in (first, second, third)] == [True, False, False]
    assert [client.ended for client in (first, second, third)] == [None] * 3
    world.connections.request_started(third)
    world.connections.request_finished(third)
    world.open()
    world.open()
    assert [client.ended for client in (first, second, third)] == ["unfinished", None, None]
    world.open()
    assert [client.ended for client in (first, second, third)] == ["unfinished", None, "idle"]
    assert world.told == [{"unfinished": 1}]


def test_the_oldest_silent_connections_over_the_limit_are_closed(world: World) -> None:
    """Young ones are spared; others are closed, so that their clients can connect again."""
    first, second, third = world.open(), world.open(), world.open()
    assert [client.ended for client in (first, second, third)] == [None] * 3
    world.go(1)
    assert [client.ended for client in (first, second, third)] == ["unfinished", None, None]
    world.connections.request_started(second)
    fourth = world.open()
    world.go(2)
    assert [client.ended for client in (second, third, fourth)] == [None] * 3


def test_a_new_connection_replaces_the_one_that_has_been_idle_longest(world: World) -> None:
    """Then the oldest unfinished one, but never one with a request in progress."""
    clients = [world.open() for _ in range(4)]
    for client in clients[:3]:
        world.connections.request_started(client)
    world.connections.request_finished(clients[1])
    world.connections.request_finished(clients[0])
    world.open()
    assert [client.ended for client in clients] == [None, "idle", None, None]
    world.open()
    assert [client.ended for client in clients] == ["idle", "idle", None, None]
    world.open()
    assert [client.ended for client in clients] == ["idle", "idle", None, "unfinished"]


def test_a_new_connection_is_refused_if_all_are_busy(world: World) -> None:
    """Requests in progress continue."""
    clients = [world.open() for _ in range(4)]
    for client in clients:
        world.connections.request_started(client)
    assert world.open().ended == "refused"
    assert [client.ended for client in clients] == [None] * 4
    world.connections.closed(clients[0])
    assert world.open().ended is None
    world.go(1)
    assert world.told == [{"refused": 1}]


def test_there_is_no_timer_without_connections(world: World) -> None:
    """An unused listener never wakes the process."""
    world.connections.closed(world.open())
    world.go(5)
    assert world.alarms == []
    world.open()
    assert len(world.alarms) == 1


def test_a_closed_connection_stays_closed(world: World) -> None:
    """Late reports about it are ignored."""
    client = world.open()
    world.connections.closed(client)
    for report in (
        world.connections.head_started,
        world.connections.request_started,
        world.connections.request_finished,
        world.connections.closed,
    ):
        report(client)
    assert len(world.connections) == 0


_REPORTS = st.sampled_from(
    ["open", "head_started", "head_grew", "request_started", "request_finished", "closed", "go"]
)


@given(st.lists(st.tuples(_REPORTS, st.integers(0, 30)), max_size=80))
def test_the_limits_hold_in_any_sequence(reports: list[tuple[str, int]]) -> None:
    """Never too many, never a busy one closed, and new ones accepted while another is not busy."""
    world, clients = World(), [FakeConnection(World().connections)]
    working: set[FakeConnection] = set()
    for what, number in reports:
        alive = [client for client in clients[1:] if client.ended is None]
        if what == "open":
            was_full = len(working) == LIMITS.connections
            clients.append(world.open())
            assert (clients[-1].ended == "refused") == was_full
        elif what == "go":
            world.go(number)
        elif alive:
            client = alive[number % len(alive)]
            if client.stuck and what != "closed":
                continue  # nothing is read from it
            if what == "head_grew":
                if client in working or number == 0:
                    continue
                world.connections.head_started(client)
                world.connections.head_grew(client, number)
            else:
                getattr(world.connections, what)(client)
            if what == "closed":
                client.ended = "by the client"
            if what in {"request_started", "request_finished", "closed"}:
                (working.add if what == "request_started" else working.discard)(client)
        assert len(world.connections) == sum(world.connections.counts().values()) <= LIMITS.connections
        assert world.connections.counts()["busy"] == len(working)
        assert all(client.ended is None for client in working)
        assert world.connections.counts()["stuck"] == sum(c.stuck and c.ended is None for c in clients)
    world.go(3)
    assert world.connections.counts()["unfinished"] <= LIMITS.unfinished


def test_hundreds_are_not_closed_in_one_iteration() -> None:
    """Other connections would wait meanwhile. All are closed soon, and reported once."""
    world = World(ConnectionLimits(connections=1000, unfinished=10))
    clients = [world.open() for _ in range(210)]

    def ended() -> int:
        return sum(client.ended is not None for client in clients)

    world.go(1.0)
    assert 0 < ended() <= 50
    world.go(0.9)
    assert ended() == 200
    assert world.told == [{"unfinished": 200}]


@pytest.mark.parametrize(("busy", "left", "released"), [(63, 0, 0), (64, 33, 0), (64, 32, 1), (200, 0, 1)])
def test_memory_is_released_when_many_requests_have_ended(
    monkeypatch: pytest.MonkeyPatch, busy: int, left: int, released: int
) -> None:
    """Half of a crowd is enough, and a few are not worth it."""
    calls: list[None] = []
    monkeypatch.setattr("cfproxy.server.connection_limits.release_memory", lambda: calls.append(None))
    world = World(ConnectionLimits(connections=1000))
    clients = [world.open() for _ in range(busy)]
    for client in clients:
        world.connections.request_started(client)
    world.go(1)
    assert not calls
    for client in clients[left:]:
        world.connections.request_finished(client)
    world.go(5)
    assert len(calls) == released


def test_releasing_memory_works_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does nothing where the C library can't, or need not."""
    release_memory()
    monkeypatch.setattr("sys.platform", "win32")
    release_memory()
