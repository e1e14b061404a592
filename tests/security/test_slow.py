"""Many clients that send as little as possible do not affect the others."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from cfproxy.server.connection_limits import ConnectionLimits
from cfproxy.server.request import Limits
from tests.support.origin import OK, Peer, answering, until
from tests.support.proxied import Client, Proxied, proxied

SLOW = 300
BEGINNINGS = {
    "nothing": b"",
    "half a request line": b"GET /a",
    "half a head": b"GET /a HTTP/1.1\r\nHost: elsewhere\r\nX-A: " + b"a" * 2048,
    "half a body": b"POST /a HTTP/1.1\r\nHost: localhost:%d\r\nContent-Length: 99999\r\n\r\n" + b"a" * 2048,
}


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
async def test_slow_clients_block_no_other_client(beginning: bytes) -> None:
    """Each sends one byte between two requests of other clients, which are all served."""
    async with proxied(answering(OK)) as world:
        slow = [await world.client() for _ in range(SLOW)]
        for client in slow:
            await client.send(beginning.replace(b"%d", b"%d" % world.port))
        for _ in range(5):
            for client in slow:
                await client.send(b"a" if beginning else b"\r\n")
            answer = await world.ask(b"GET /b HTTP/1.1")
            assert (answer.status, answer.body) == (200, b"ok")
        assert [event["path"] for event in world.events] == ["/b"] * 5


async def test_endless_heads_are_bounded_in_memory() -> None:
    """The oldest are dropped first; what follows on their connections is not read."""
    async with proxied(answering(OK), connection_limits=ConnectionLimits(unfinished_bytes=20_000)) as world:
        slow = [await world.client() for _ in range(20)]
        for client in slow:
            await client.send(BEGINNINGS["half a head"])
        await until(lambda: world.listener.connections.counts()["stuck"] == 11)
        await slow[0].send(b"\r\n\r\n")
        assert (await world.ask(b"GET /b HTTP/1.1", b"X-A: " + b"a" * 2048)).status == 200
        await slow[-1].send(b"\r\n\r\n")
        assert (await slow[-1].read_answer()).status == 421  # Host names somebody else: but it was read
        assert len(world.origin.requests) == 1
        assert world.listener.connections.counts()["stuck"] == 11


async def test_an_incomplete_head_times_out() -> None:
    """Its connection is closed when its time is over."""
    bounds = ConnectionLimits(unfinished_bytes=20_000)
    async with proxied(
        answering(OK), limits=Limits(head_s=SHORT_S, keep_alive_s=LONG_S), connection_limits=bounds
    ) as world:
        slow = [await world.client() for _ in range(20)]
        for client in slow:
            await client.send(BEGINNINGS["half a head"])
        for client in slow:
            assert await client.ended()
        assert world.listener.connections.counts()["stuck"] == 0


# The limit under test; the other one would apply later.
SHORT_S, LONG_S = 0.05, 600.0


async def drip(client: Client) -> None:
    """Continue a head byte by byte until the connection ends."""
    with contextlib.suppress(ConnectionError):
        while True:
            await client.send(b"a")
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("earlier", [False, True], ids=["first", "later"])
async def test_a_slow_head_times_out_from_its_first_byte(earlier: bool) -> None:
    """Sending a byte now and then gains nothing, for a first request or a later one."""
    limits = Limits(head_s=SHORT_S, keep_alive_s=LONG_S)
    async with proxied(answering(OK), limits=limits) as world:
        client = await world.client()
        if earlier:
            assert (await client.ask(b"GET /a HTTP/1.1")).status == 200
        await client.send(b"GET /b HTTP/1.1\r\nX-A: ")
        dripping = asyncio.create_task(drip(client))
        assert await client.ended()
        await dripping
        assert len(world.origin.requests) == earlier


@pytest.mark.parametrize("said", [b"", b"\r\n"], ids=["nothing", "an empty line"])
@pytest.mark.parametrize("earlier", [False, True], ids=["first", "later"])
async def test_an_idle_connection_times_out(earlier: bool, said: bytes) -> None:
    """A connection without a request is closed, whether it had one before or not."""
    limits = Limits(head_s=LONG_S, keep_alive_s=SHORT_S)
    async with proxied(answering(OK), limits=limits) as world:
        client = await world.client()
        if earlier:
            await client.send(client.compose(b"GET /a HTTP/1.1") + said)
            assert (await client.read_answer()).status == 200
        else:
            await client.send(said)
        assert await client.ended()


CONNECTIONS = 4


async def begin_upload(world: Proxied) -> Client:
    client = await world.client()
    await client.send(client.compose(b"POST /slow HTTP/1.1", b"Content-Length: 2", body=b"a"))
    return client


async def test_stalled_uploads_leave_upstream_connections_for_others() -> None:
    """They hold at most half of the connections; complete or short bodies are not held up."""
    async with proxied(answering(OK), connections=CONNECTIONS) as world:
        slow = [await begin_upload(world) for _ in range(3 * CONNECTIONS)]
        await until(lambda: world.listener.in_flight == len(slow))
        await until(lambda: world.origin.connections == CONNECTIONS // 2)
        assert (await world.ask(b"GET /b HTTP/1.1")).status == 200
        assert (await world.ask(b"POST /b HTTP/1.1", b"Content-Length: 2", body=b"ab")).status == 200
        client = await world.client()
        await client.send(client.compose(b"POST /b HTTP/1.1", b"Content-Length: 2"))
        await until(lambda: world.listener.in_flight == len(slow) + 1)
        await client.send(b"ab")
        assert (await client.read_answer()).status == 200


async def test_delayed_uploads_are_all_sent() -> None:
    """A waiting upload is sent when a slot is free, or when its body is complete."""
    async with proxied(answering(OK), connections=CONNECTIONS) as world:
        slow = [await begin_upload(world) for _ in range(2 * CONNECTIONS)]
        await until(lambda: world.listener.in_flight == len(slow))
        for client in reversed(slow):
            await client.send(b"b")
        assert [(await client.read_answer()).status for client in slow] == [200] * len(slow)
        for _ in range(2):
            upload = await begin_upload(world)
            await upload.send(b"b")
            assert (await upload.read_answer()).status == 200


async def test_abandoned_uploads_release_their_slots() -> None:
    """A client that disconnects during an upload costs the others nothing afterwards."""
    async with proxied(answering(OK), connections=2) as world:
        for _ in range(5):
            client = await begin_upload(world)
            await until(lambda: world.listener.in_flight == 1)
            await until(lambda: world.origin.requests or world.origin.connections)
            client.abort()
            await until(lambda: world.listener.in_flight == 0)
        upload = await begin_upload(world)
        await upload.send(b"b")
        assert (await upload.read_answer()).status == 200


async def test_a_complete_upload_waits_for_its_response_without_a_slot() -> None:
    """A slow API is not a slow client."""

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.ended()

    async with proxied(script, connections=2) as world:
        first = await begin_upload(world)
        await until(lambda: world.origin.connections == 1)
        await first.send(b"b")
        await until(lambda: world.origin.requests)
        await begin_upload(world)
        await until(lambda: world.origin.connections == 2)
