"""Limits of a listener's client connections: which one is closed when there are too many."""

from __future__ import annotations

import asyncio
import contextlib

from cfproxy.server.connection_limits import ConnectionLimits
from tests.support.origin import OK, Peer, answering, until
from tests.support.proxied import Client, proxied

TWO = ConnectionLimits(connections=2, unfinished=2)


async def ended(client: Client) -> bool:
    with contextlib.suppress(ConnectionError):
        return await client.reader.read() == b""
    return True


async def test_an_idle_connection_makes_room_but_a_busy_one_never() -> None:
    """When all connections are busy, a new one is closed."""
    held = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            if (await peer.take()).target == b"/slow":
                await held.wait()
            await peer.send(OK)

    async with proxied(script, connection_limits=TWO) as world:
        busy, idle = await world.client(), await world.client()
        await busy.send(busy.compose(b"GET /slow HTTP/1.1"))
        assert (await idle.ask(b"GET / HTTP/1.1")).body == b"ok"
        third = await world.client()
        assert (await third.ask(b"GET / HTTP/1.1")).body == b"ok"
        assert await ended(idle)
        await third.send(third.compose(b"GET /slow HTTP/1.1"))
        await until(lambda: world.listener.connections.counts()["busy"] == 2)
        assert await ended(await world.client())
        held.set()
        for client in (busy, third):
            assert (await client.read_answer()).body == b"ok"
        assert (await (await world.client()).ask(b"GET / HTTP/1.1")).body == b"ok"


async def test_a_connection_with_a_partial_head_outlives_a_silent_one() -> None:
    """A kept-alive connection is idle until its next request begins, and again after the response."""
    async with proxied(answering(OK), connection_limits=TWO) as world:
        first, second = await world.client(), await world.client()
        for client in (first, second):
            await client.ask(b"GET / HTTP/1.1")
        part = first.compose(b"GET / HTTP/1.1")
        await first.send(part[:10])
        await until(lambda: world.listener.connections.counts()["unfinished"] == 1)
        await (await world.client()).ask(b"GET / HTTP/1.1")
        assert await ended(second)
        await first.send(part[10:])
        assert (await first.read_answer()).body == b"ok"
        assert world.listener.connections.counts()["idle"] == 2
