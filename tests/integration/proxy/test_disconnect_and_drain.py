"""Clients that leave, and servers that drain."""

from __future__ import annotations

import asyncio

import pytest

from cfproxy.server import connection
from cfproxy.server.hangup import HangupWatch
from tests.integration.proxy.test_proxy import problem
from tests.support.origin import OK, Message, Peer, answering, chunked, until
from tests.support.proxied import Client, Proxied, proxied


class Watched:
    """A script that starts a response on demand, and notices that its client has left."""

    def __init__(self, begin: bytes = b"") -> None:
        self.begin = begin
        self.gone = asyncio.Event()

    async def __call__(self, peer: Peer) -> None:
        await peer.take_head()
        await peer.send(self.begin)
        try:
            while not await peer.ended():
                pass
        finally:
            self.gone.set()


# --- clients that leave -------------------------------------------------------------------


@pytest.mark.parametrize(
    "begin", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"], ids=["waiting", "reading"]
)
@pytest.mark.parametrize(
    "leave", [Client.abort, lambda client: client.writer.close()], ids=["reset", "close"]
)
@pytest.mark.parametrize("warm", [False, True], ids=["opening", "at once"])
async def test_a_client_that_leaves_cancels_its_request_to_the_api(
    begin: bytes, leave: object, warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the response or during it; nothing stays in flight."""
    monkeypatch.setattr(connection, "HALF_CLOSE_S", 0.0)  # as if that time had passed
    script = Watched(begin)
    async with proxied(script, warm=warm) as world:
        client = await world.client()
        await client.send(client.compose(b"GET / HTTP/1.1"))
        await until(lambda: world.origin.requests)
        if begin:
            await client.read_head()
        assert callable(leave)
        leave(client)
        await script.gone.wait()
        await until(lambda: not world.listener.in_flight)
        assert [event["event"] for event in world.events] == ["request.abandoned"]


async def test_a_client_that_leaves_during_its_upload_leaves_no_complete_request() -> None:
    """The API sees a body that breaks off, never a shortened one that looks complete."""

    async def script(peer: Peer) -> None:
        request = await peer.take_head()
        await peer.read_body(request)
        await peer.send(OK)

    for headers, body in (
        ([b"Transfer-Encoding: chunked"], chunked(b"ab")[:-5]),
        ([b"Content-Length: 9"], b"half"),
    ):
        async with proxied(script) as world:
            client = await world.client()
            await client.send(client.compose(b"POST / HTTP/1.1", *headers, body=body))
            await until(lambda world=world: world.origin.requests)  # type: ignore[misc] # bound now, not later
            client.abort()
            await until(lambda world=world: not world.origin.requests[0].complete)  # type: ignore[misc] # the same
            await until(lambda world=world: not world.listener.in_flight)  # type: ignore[misc] # the same


async def test_a_client_that_leaves_while_queued_frees_its_place() -> None:
    """No request waits behind it, and it never reaches the API."""
    async with proxied(answering(OK)) as world:
        world.pacer.gate.clear()
        client = await world.client()
        await client.send(client.compose(b"GET / HTTP/1.1"))
        await until(lambda: world.pacer.waiting == 1)
        client.abort()
        await until(lambda: world.pacer.waiting == 0)
        await until(lambda: not world.listener.in_flight)
        world.pacer.gate.set()
        assert world.origin.connections == 0
        assert [(event["event"], event["status"]) for event in world.events] == [("request.abandoned", 499)]
        assert world.counted == [("GET", 499)]


@pytest.mark.skipif(not HangupWatch.works, reason="only Linux tells of a peer that is not read from")
async def test_a_client_that_leaves_while_its_large_upload_is_queued_frees_its_place() -> None:
    """The proxy notices although it does not read the body while the request waits."""
    async with proxied(answering(OK)) as world:
        world.pacer.gate.clear()
        client = await world.client()
        await client.send(client.compose(b"POST / HTTP/1.1", b"Content-Length: 8000000"))
        client.writer.write(bytes(8_000_000))  # more than all buffers hold
        await until(lambda: world.pacer.waiting == 1)
        client.abort()
        await until(lambda: world.pacer.waiting == 0)
        world.pacer.gate.set()
        assert world.origin.connections == 0


# --- draining -----------------------------------------------------------------------------


async def held(world: Proxied) -> tuple[Client, asyncio.Task[Message]]:
    """Start a request that waits for its slot."""
    world.pacer.gate.clear()
    client = await world.client()
    task = asyncio.create_task(client.ask(b"GET / HTTP/1.1"))
    await until(lambda: world.pacer.waiting == 1)
    return client, task


async def test_draining_refuses_new_requests_and_finishes_old_ones() -> None:
    """Each response announces that its connection closes, then the server is idle."""
    async with proxied(answering(OK)) as world:
        kept = await world.client()
        assert (await kept.ask(b"GET / HTTP/1.1")).all(b"Connection") == []
        client, task = await held(world)
        world.listener.drain()
        assert not world.listener.idle.is_set()
        turned_away = await kept.ask(b"GET / HTTP/1.1")
        assert problem(turned_away) == (503, "shutting-down")
        assert turned_away.all(b"Connection") == [b"close"]
        assert await kept.ended()
        world.pacer.gate.set()
        answer = await task
        assert (answer.body, answer.all(b"Connection")) == (b"ok", [b"close"])
        assert await client.ended()
        await world.listener.idle.wait()


async def test_draining_completes_a_response_under_way_and_closes_its_connection() -> None:
    """No byte of it is lost."""
    more = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
        await more.wait()
        await peer.send(b"rest")

    async with proxied(script) as world:
        client = await world.client()
        await client.send(client.compose(b"GET / HTTP/1.1"))
        answer = await client.read_head()
        world.listener.drain()
        more.set()
        await client.read_body(answer)
        assert (answer.body, answer.complete) == (b"halfrest", True)
        assert await client.ended()
        await world.listener.idle.wait()


async def test_an_idle_server_drains_at_once() -> None:
    """With nothing in flight there is nothing to wait for."""
    async with proxied(answering(OK)) as world:
        assert (await world.ask(b"GET / HTTP/1.1")).body == b"ok"
        await until(lambda: not world.listener.in_flight)
        world.listener.drain()
        assert world.listener.idle.is_set()


async def test_a_response_cut_at_the_end_is_visibly_incomplete() -> None:
    """If draining takes too long, a response of unknown length does not look complete."""
    begin = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
    for version in (b"1.1", b"1.0"):
        async with proxied(Watched(begin)) as world:
            client = await world.client()
            await client.send(b"GET / HTTP/%s\r\nHost: %s\r\n\r\n" % (version, client.host))
            answer = await client.read_head()
            world.listener.drain()
            await world.listener.aclose()
            assert world.listener.in_flight == 0
            await client.read_body(answer, until_end=True)
            assert not answer.complete
