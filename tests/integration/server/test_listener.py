"""Listening sockets: a connection is answered whenever it arrives."""

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
from cfproxy.server.listener import ACCEPTS, ListeningSocket, address_of
from tests.support.origin import until


class Echo(asyncio.Protocol):
    """Sends back what it receives, and closes at the end of the stream."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class WatchedSocket(ListeningSocket):
    """Notes that it has accepted a connection."""

    accepted = False

    def _accept(self) -> asyncio.Protocol:
        self.accepted = True
        return super()._accept()


@asynccontextmanager
async def listening_socket() -> AsyncIterator[tuple[WatchedSocket, Callable[[], asyncio.Future[Client]]]]:
    """Return a socket that is not served yet, and a function that connects to it."""
    listening = await WatchedSocket.open(TcpAddress("127.0.0.1", 0))
    clients: list[Client] = []

    async def connect() -> Client:
        clients.append(await asyncio.open_connection("127.0.0.1", listening.port))
        return clients[-1]

    try:
        async with asyncio.timeout(10):
            yield listening, lambda: asyncio.ensure_future(connect())
    finally:
        listening.close()
        for _, writer in clients:
            writer.close()


@pytest.mark.parametrize("ends", [False, True])
async def test_a_connection_waits_until_its_socket_is_served(ends: bool) -> None:
    """What the client has sent meanwhile is not lost, even if it has ended its side."""
    async with listening_socket() as (listening, connect):
        reader, writer = await connect()
        writer.write(b"hello")
        if ends:
            writer.write_eof()
        await until(lambda: [pending for pending in listening._pending if pending.received])
        listening.serve(Echo)
        assert await reader.readexactly(5) == b"hello"
        if ends:
            assert await reader.read() == b""
        else:
            writer.write(b"again")
            assert await reader.readexactly(5) == b"again"


async def test_a_client_that_leaves_before_its_socket_is_served_is_forgotten() -> None:
    """No protocol is built for a connection that has ended."""
    async with listening_socket() as (listening, connect):
        _, writer = await connect()
        await until(lambda: listening._pending)
        writer.close()
        await until(lambda: not listening._pending)
        listening.serve(Echo)


async def test_a_socket_that_closes_without_being_served_closes_pending_connections() -> None:
    """When the start fails, clients notice by the end of their connections."""
    async with listening_socket() as (listening, connect):
        reader, writer = await connect()
        writer.write(b"hello")
        await until(lambda: listening._pending)
        listening.close()
        with contextlib.suppress(ConnectionError):  # an orderly end, or a reset
            assert await reader.read() == b""


def connect_now(listening: WatchedSocket) -> socket.socket:
    """Connect without an iteration of the event loop."""
    client = socket.create_connection(("127.0.0.1", cast("int", listening.port)))
    client.setblocking(False)
    return client


async def accept(listening: WatchedSocket) -> None:
    """Wait until a connection was accepted whose `connection_made` was not called yet."""
    while not listening.accepted:
        await asyncio.sleep(0)
    assert not listening._pending


async def test_a_connection_accepted_in_the_iteration_in_which_serving_starts_is_served() -> None:
    """Its protocol is built before the socket is served, and its connection is made afterwards."""
    async with listening_socket() as (listening, _):
        with connect_now(listening) as client:
            await accept(listening)
            listening.serve(Echo)
            client.send(b"hello")
            assert await asyncio.get_running_loop().sock_recv(client, 5) == b"hello"


async def test_a_connection_accepted_in_the_iteration_in_which_the_socket_closes_is_closed() -> None:
    """It will never be served."""
    async with listening_socket() as (listening, _):
        with connect_now(listening) as client:
            await accept(listening)
            listening.close()
            with contextlib.suppress(ConnectionError):
                assert await asyncio.get_running_loop().sock_recv(client, 1) == b""


@pytest.mark.parametrize("inherited", [False, True])
def test_a_closed_socket_accepts_nothing_and_leaks_nothing(inherited: bool) -> None:
    """Also with uvloop, which gets several duplicates of the socket; served connections stay open."""

    async def go(sock: socket.socket | None) -> None:
        listening = await (
            ListeningSocket.open(TcpAddress("127.0.0.1", 0))
            if sock is None
            else ListeningSocket.open(address_of(sock), [sock.dup()])
        )
        listening.serve(Echo)
        before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
        clients = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", listening.port) for _ in range(ACCEPTS * 2))
        )
        for closed in (False, True):
            for reader, writer in clients:
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
            if not closed:
                listening.close()
        for _, writer in clients:
            writer.close()
        if sock is not None:
            sock.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", listening.port)
        if before:
            # The loop itself may have opened one meanwhile.
            await until(lambda: len(os.listdir("/proc/self/fd")) <= before - ACCEPTS + 1)

    uvloop = pytest.importorskip("uvloop")  # not available on Windows
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(go(socket.create_server(("127.0.0.1", 0)) if inherited else None))
