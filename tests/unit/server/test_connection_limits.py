"""Which client connection has to go when there are too many."""

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

LIMITS = ConnectionLimits(connections=4, unfinished=2, unfinished_bytes=50)


@dataclass(eq=False)
class FakeClient(ClientConnection):
    """A connection that notes why it was ended; it then says that it is closed, as a real one does."""

    room: Connections
    ended: str | None = None
    stuck: bool = False

    def end(self, cause: str) -> None:
        assert self.ended is None, "ended once"
        self.ended = cause
        self.room.closed(self)

    def tarpit(self) -> None:
        assert (self.ended, self.stuck) == (None, False), "once, and while it is there"
        self.stuck = True


@dataclass
class World:
    """Connections on a clock that the test moves."""

    limits: ConnectionLimits = LIMITS
    now: float = 100.0
    alarms: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    told: list[dict[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.room = Connections(self.limits, lambda: self.now, self._later, self.told.append)

    def _later(self, delay_s: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        self.alarms.append((self.now + delay_s, call))
        return cast("asyncio.TimerHandle", object())

    def open(self) -> FakeClient:
        client = FakeClient(self.room)
        self.room.opened(client)
        return client

    def go(self, seconds: float) -> None:
        until = self.now + seconds
        while self.alarms and self.alarms[0][0] <= until:
            self.now, call = self.alarms.pop(0)
            call()
        self.now = until


def test_what_unfinished_heads_hold_is_bounded_however_young_they_are() -> None:
    """The oldest that hold anything are stuck; who is silent, at work or through with it holds nothing."""
    world = World(ConnectionLimits(connections=9, unfinished=9, unfinished_bytes=100))
    silent, first, second, through, last = (world.open() for _ in range(5))
    for client, size in ((first, 30), (second, 30), (through, 40), (second, 20), (through, 50)):
        world.room.head_grew(client, size)
    world.room.request_started(through)
    world.room.head_grew(last, 50)
    assert (first.stuck, second.stuck, last.stuck) == (False, False, False)
    world.room.head_grew(last, 60)
    assert (first.stuck, second.stuck, last.stuck) == (True, False, False)
    world.room.closed(second)
    world.room.head_grew(last, 100)
    assert not last.stuck
    world.room.head_grew(last, 101)
    assert last.stuck
    assert (silent.stuck, through.stuck) == (False, False)
    assert world.room.counts() == {"unfinished": 1, "stuck": 2, "idle": 0, "busy": 1}
    world.go(1)
    assert world.told == [{"unfinished": 2}]


@pytest.fixture
def world() -> World:
    return World()


def test_slow_heads_over_the_bound_are_stuck_oldest_first(world: World) -> None:
    """Who is cut off comes back at once; so they are not told, and make room before anybody else does."""
    first, second, third = world.open(), world.open(), world.open()
    for client in (first, second, third):
        world.room.head_grew(client, 10)
    world.go(1)
    assert [client.stuck for client in (first, second, third)] == [True, False, False]
    assert [client.ended for client in (first, second, third)] == [None] * 3
    world.room.request_started(third)
    world.room.request_finished(third)
    world.open()
    world.open()
    assert [client.ended for client in (first, second, third)] == ["unfinished", None, None]
    world.open()
    assert [client.ended for client in (first, second, third)] == ["unfinished", None, "idle"]
    assert world.told == [{"unfinished": 1}]


def test_silent_clients_over_the_bound_are_ended_oldest_first(world: World) -> None:
    """A burst is spared; and who may still mean to say something hears that it must begin anew."""
    first, second, third = world.open(), world.open(), world.open()
    assert [client.ended for client in (first, second, third)] == [None] * 3
    world.go(1)
    assert [client.ended for client in (first, second, third)] == ["unfinished", None, None]
    world.room.request_started(second)
    fourth = world.open()
    world.go(2)
    assert [client.ended for client in (second, third, fourth)] == [None] * 3


def test_a_newcomer_takes_the_place_of_the_one_that_is_idle_the_longest(world: World) -> None:
    """Then of the oldest unfinished one; connections at work are never ended for it."""
    clients = [world.open() for _ in range(4)]
    for client in clients[:3]:
        world.room.request_started(client)
    world.room.request_finished(clients[1])
    world.room.request_finished(clients[0])
    world.open()
    assert [client.ended for client in clients] == [None, "idle", None, None]
    world.open()
    assert [client.ended for client in clients] == ["idle", "idle", None, None]
    world.open()
    assert [client.ended for client in clients] == ["idle", "idle", None, "unfinished"]


def test_a_newcomer_is_refused_when_all_are_at_work(world: World) -> None:
    """What is under way goes on."""
    clients = [world.open() for _ in range(4)]
    for client in clients:
        world.room.request_started(client)
    assert world.open().ended == "refused"
    assert [client.ended for client in clients] == [None] * 4
    world.room.closed(clients[0])
    assert world.open().ended is None
    world.go(1)
    assert world.told == [{"refused": 1}]


def test_nothing_is_timed_where_nobody_is(world: World) -> None:
    """An empty listener wakes nobody up."""
    world.room.closed(world.open())
    world.go(5)
    assert world.alarms == []
    world.open()
    assert len(world.alarms) == 1


def test_what_is_closed_stays_closed(world: World) -> None:
    """Late news of a connection that is gone bring nothing back."""
    client = world.open()
    world.room.closed(client)
    for news in (
        world.room.head_started,
        world.room.request_started,
        world.room.request_finished,
        world.room.closed,
    ):
        news(client)
    assert len(world.room) == 0


_NEWS = st.sampled_from(
    ["open", "head_started", "head_grew", "request_started", "request_finished", "closed", "go"]
)


@given(st.lists(st.tuples(_NEWS, st.integers(0, 30)), max_size=80))
def test_the_bounds_hold_whatever_happens(news: list[tuple[str, int]]) -> None:
    """Never more than allowed, never one at work ended, and a newcomer let in while anybody is silent."""
    world, clients = World(), [FakeClient(World().room)]
    working: set[FakeClient] = set()
    for what, number in news:
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
                continue  # nothing is read of it
            if what == "head_grew":
                if client in working or number == 0:
                    continue
                world.room.head_started(client)
                world.room.head_grew(client, number)
            else:
                getattr(world.room, what)(client)
            if what == "closed":
                client.ended = "by itself"
            if what in {"request_started", "request_finished", "closed"}:
                (working.add if what == "request_started" else working.discard)(client)
        assert len(world.room) == sum(world.room.counts().values()) <= LIMITS.connections
        assert world.room.counts()["busy"] == len(working)
        assert all(client.ended is None for client in working)
        assert world.room.counts()["stuck"] == sum(c.stuck and c.ended is None for c in clients)
    world.go(3)
    assert world.room.counts()["unfinished"] <= LIMITS.unfinished


def test_hundreds_are_not_ended_in_one_turn_of_the_loop() -> None:
    """Others would wait meanwhile; all that are too many are ended all the same, and told once."""
    world = World(ConnectionLimits(connections=1000, unfinished=10))
    clients = [world.open() for _ in range(210)]

    def ended() -> int:
        return sum(client.ended is not None for client in clients)

    world.go(1.0)
    assert 0 < ended() <= 50
    world.go(0.9)
    assert ended() == 200
    assert world.told == [{"unfinished": 200}]
