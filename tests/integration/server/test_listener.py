"""Doors: who comes to a listening address, whenever it is, is answered."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from cfproxy.config import TcpAddress
from cfproxy.server.listener import ACCEPTS, ListeningSocket
from tests.support.origin import until


class Echo(asyncio.Protocol):
    """Sends back what it hears, and ends when it has heard all."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by ancestry

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def a_door() -> AsyncIterator[tuple[ListeningSocket, Callable[[], asyncio.Future[Client]]]]:
    """A door that nobody serves yet, and what connects to it."""
    door = await ListeningSocket.open(TcpAddress("127.0.0.1", 0))
    clients: list[Client] = []

    async def connect() -> Client:
        clients.append(await asyncio.open_connection("127.0.0.1", door.port))
        return clients[-1]

    try:
        async with asyncio.timeout(10):
            yield door, lambda: asyncio.ensure_future(connect())
    finally:
        door.close()
        for _, writer in clients:
            writer.close()


@pytest.mark.parametrize("ends", [False, True])
async def test_who_comes_before_the_door_is_served_is_served_then(ends: bool) -> None:
    """What a client said in the meantime is heard, even if it has ended its side behind it."""
    async with a_door() as (door, connect):
        reader, writer = await connect()
        writer.write(b"hello")
        if ends:
            writer.write_eof()
        await until(lambda: [early for early in door._early if early._said])
        door.serve(Echo)
        assert await reader.readexactly(5) == b"hello"
        if ends:
            assert await reader.read() == b""
        else:
            writer.write(b"again")
            assert await reader.readexactly(5) == b"again"


async def test_who_leaves_before_the_door_is_served_is_forgotten() -> None:
    """Nobody is served who is not there."""
    async with a_door() as (door, connect):
        _, writer = await connect()
        await until(lambda: door._early)
        writer.close()
        await until(lambda: not door._early)
        door.serve(Echo)


async def test_a_door_that_closes_unserved_keeps_nobody_waiting() -> None:
    """When the start fails, who has come already is told by the end of the connection."""
    async with a_door() as (door, connect):
        reader, writer = await connect()
        writer.write(b"hello")
        await until(lambda: door._early)
        door.close()
        with contextlib.suppress(ConnectionError):  # an end in good order, or a reset
            assert await reader.read() == b""


def knock(door: ListeningSocket) -> socket.socket:
    """Connect without a turn of the event loop."""
    client = socket.create_connection(("127.0.0.1", cast("int", door.port)))
    client.setblocking(False)
    return client


async def let_in(door: ListeningSocket) -> None:
    """Wait until a connection was taken whose protocol has not heard of it yet."""
    while not door.asked.is_set():
        await asyncio.sleep(0)
    assert not door._early


async def test_who_comes_in_the_turn_in_which_the_door_is_served_is_served() -> None:
    """Asked who serves it before anybody did, told of its connection afterwards."""
    async with a_door() as (door, _):
        with knock(door) as client:
            await let_in(door)
            door.serve(Echo)
            client.send(b"hello")
            assert await asyncio.get_running_loop().sock_recv(client, 5) == b"hello"


async def test_who_comes_in_the_turn_in_which_the_door_closes_is_not_kept_waiting() -> None:
    """Likewise: nobody is going to serve it."""
    async with a_door() as (door, _):
        with knock(door) as client:
            await let_in(door)
            door.close()
            with contextlib.suppress(ConnectionError):
                assert await asyncio.get_running_loop().sock_recv(client, 1) == b""


@pytest.mark.parametrize("given", [False, True])
def test_a_closed_door_takes_nobody_and_leaves_nothing(given: bool) -> None:
    """With uvloop, which listens by several numbers of one socket, as well; who is served already stays."""

    async def go(sock: socket.socket | None) -> None:
        door = await ListeningSocket.open(TcpAddress("127.0.0.1", 0), None if sock is None else sock.dup())
        door.serve(Echo)
        before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        clients = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", door.port) for _ in range(ACCEPTS * 2))
        )
        for closed in (False, True):
            for reader, writer in clients:
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
            if not closed:
                door.close()
        for _, writer in clients:
            writer.close()
        if sock is not None:
            sock.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", door.port)
        if before:
            # The loop itself may have taken one meanwhile.
            await until(lambda: len(os.listdir("/proc/self/fd")) <= before - ACCEPTS + 1)

    uvloop = pytest.importorskip("uvloop")  # there is none for Windows
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(go(socket.create_server(("127.0.0.1", 0)) if given else None))
