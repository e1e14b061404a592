"""Streaming: nothing is buffered whole, back-pressure works, and bodies are requested only when wanted."""

from __future__ import annotations

import asyncio
import contextlib
import functools

import pytest

from cfproxy.errors import LoginRequired
from cfproxy.upstream import client as upstream
from tests.integration.proxy.test_proxy import problem
from tests.support.origin import OK, Message, Peer, Script, answering, reply, until, until_still
from tests.support.proxied import Client, proxied

PIECE = b"0123456789abcdef" * 4096
# Well above what the kernel's and our own buffers between two sockets can hold together.
PIECES = 768
HELD_BYTES = 24 * 1024 * 1024
SMALL_BYTES = 64 * 1024


async def test_a_slow_client_pauses_the_api_and_gets_everything() -> None:
    """The response does not pile up in memory."""
    written = 0

    async def script(peer: Peer) -> None:
        nonlocal written
        await peer.take()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (PIECES * len(PIECE)))
        for _ in range(PIECES):
            await peer.send(PIECE)
            written += len(PIECE)

    async with proxied(script) as world:
        client = await world.client(receive_bytes=SMALL_BYTES)
        await client.send(client.compose(b"GET / HTTP/1.1"))
        await client.reader.readuntil(b"\r\n\r\n")
        assert 0 < await until_still(lambda: written) < HELD_BYTES
        for _ in range(PIECES):
            assert await client.reader.readexactly(len(PIECE)) == PIECE
        assert written == PIECES * len(PIECE)


async def test_nothing_is_read_ahead_for_a_client_that_reads_nothing() -> None:
    """What was read waits in one buffer, not in two; the connection is used again afterwards."""
    size = 16 * 1024 * 1024

    async def script(peer: Peer) -> None:
        while True:
            await peer.take()
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, b"x" * size)

    async with proxied(script) as world:
        client = await world.client(receive_bytes=SMALL_BYTES)
        for _ in range(2):
            await client.send(client.compose(b"GET / HTTP/1.1"))
            await client.reader.readuntil(b"\r\n\r\n")
            (connection,) = world.listener.forwarder.upstream.pool._all
            await until(functools.partial(getattr, connection, "reading_held"))
            await asyncio.sleep(0)
            assert connection.reading_held
            await client.reader.readexactly(size)
        assert world.origin.connections == 1


async def test_a_slow_api_pauses_the_client_and_gets_everything() -> None:
    """The upload does not pile up in memory."""
    begun, read_on = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        request = await peer.take_head()
        begun.set()
        await read_on.wait()
        await peer.read_body(request)
        await peer.send(reply("200 OK", b"%d" % len(request.body)))

    written = 0

    async def upload(client: Client) -> None:
        nonlocal written
        await client.send(client.compose(b"POST / HTTP/1.1", b"Content-Length: %d" % (PIECES * len(PIECE))))
        for _ in range(PIECES):
            await client.send(PIECE)
            written += len(PIECE)

    async with proxied(script, max_bytes=0) as world:
        client = await world.client()
        task = asyncio.create_task(upload(client))
        await begun.wait()
        assert 0 < await until_still(lambda: written) < HELD_BYTES
        read_on.set()
        await task
        assert (await client.read_answer()).body == b"%d" % (PIECES * len(PIECE))


async def test_events_arrive_one_by_one() -> None:
    """The client has each server-sent event before the next one exists."""
    seen = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for number in range(5):
            event = b"data: %d\n\n" % number
            await peer.send(b"%x\r\n%s\r\n" % (len(event), event))
            await seen.wait()
            seen.clear()
        await peer.send(b"0\r\n\r\n")

    async with proxied(script) as world:
        client = await world.client()
        await client.send(client.compose(b"GET / HTTP/1.1"))
        await client.read_head()
        for number in range(5):
            assert await client.read_chunk() == b"data: %d\n\n" % number
            seen.set()
        assert await client.read_chunk() == b""


async def test_upload_and_response_may_overlap() -> None:
    """A response that starts early is relayed at once, and the upload continues."""

    async def script(peer: Peer) -> None:
        while (await peer.take_head()).method == b"POST":
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while chunk := await peer.read_chunk():
                await peer.send(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            await peer.send(b"0\r\n\r\n")
        await peer.send(OK)

    async with proxied(script) as world:
        client = await world.client()
        await client.send(client.compose(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked"))
        await client.read_head()
        for word in (b"ping", b"pong"):
            await client.send(b"4\r\n%s\r\n" % word)
            assert await client.read_chunk() == word
        await client.send(b"0\r\n\r\n")
        assert await client.read_chunk() == b""
        assert (await client.ask(b"GET / HTTP/1.1")).body == b"ok"


# --- Expect: 100-continue -----------------------------------------------------------------

EXPECT = b"Expect: 100-continue"


def deciding(*statuses: bytes) -> Script:
    """Answer each head with the next status; only 100 requests the body, which is then answered with OK."""
    left = list(statuses)

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.take_head()
            assert request.all(b"Expect") == [b"100-continue"]
            if left.pop(0) == b"100":
                await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
                await peer.read_body(request)
                await peer.send(OK)
            else:
                await peer.send(reply("401 No"))

    return script


async def test_100_continue_is_relayed_when_the_api_wants_the_body() -> None:
    """The expectation is forwarded, and the body only after the API's 100 Continue."""
    async with proxied(deciding(b"100")) as world:
        client = await world.client()
        await client.send(client.compose(b"POST / HTTP/1.1", EXPECT, b"Content-Length: 2"))
        assert (await client.read_head()).start == b"HTTP/1.1 100 Continue"
        await client.send(b"ab")
        assert (await client.read_answer()).body == b"ok"
        assert world.origin.requests[0].body == b"ab"


async def test_a_401_before_the_body_costs_no_upload() -> None:
    """The request is retried before a byte of the body was requested."""
    async with proxied(deciding(b"401", b"100"), max_bytes=0) as world:
        client = await world.client()
        await client.send(client.compose(b"POST / HTTP/1.1", EXPECT, b"Content-Length: 2"))
        assert (await client.read_head()).start == b"HTTP/1.1 100 Continue"
        await client.send(b"ab")
        assert (await client.read_answer()).body == b"ok"
        first, second = world.origin.requests
        assert (first.body, second.body) == (b"", b"ab")


async def test_a_refused_upload_is_never_sent() -> None:
    """The client gets the API's refusal instead of 100 Continue."""
    async with proxied(deciding(b"401", b"401"), retry=False) as world:
        client = await world.client()
        await client.send(client.compose(b"POST / HTTP/1.1", EXPECT, b"Content-Length: 2"))
        answer = await client.read_answer()
        assert (answer.status, answer.all(b"Connection")) == (401, [b"close"])


async def test_an_api_without_100_continue_gets_the_body_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its silence means that the client may continue (RFC 9110 §10.1.1)."""
    monkeypatch.setattr(upstream, "CONTINUE_S", 0.05)
    async with proxied(answering(OK)) as world:
        client = await world.client()
        await client.send(client.compose(b"POST / HTTP/1.1", EXPECT, b"Content-Length: 2"))
        assert (await client.read_head()).start == b"HTTP/1.1 100 Continue"
        await client.send(b"ab")
        assert (await client.read_answer()).body == b"ok"


async def test_100_continue_is_not_sent_while_the_request_queues() -> None:
    """The body is not requested before the request may be sent."""
    async with proxied(deciding(b"100")) as world:
        world.pacer.gate.clear()
        client = await world.client()
        await client.send(client.compose(b"POST / HTTP/1.1", EXPECT, b"Content-Length: 2"))
        head = asyncio.create_task(client.read_head())
        await until_still(lambda: world.pacer.waiting)
        assert not head.done()
        world.pacer.gate.set()
        assert (await head).status == 100


async def test_a_refused_request_gets_no_100_continue() -> None:
    """The connection closes, since the body may or may not follow."""
    async with proxied(answering(OK)) as world:
        world.source.error = LoginRequired("x")
        for line in (b"POST / HTTP/1.1", b"POST ftp://x/ HTTP/1.1"):
            client = await world.client()
            await client.send(client.compose(line, EXPECT, b"Content-Length: 2"))
            answer = await client.read_answer()
            assert problem(answer)[0] in {503, 400}
            assert answer.all(b"Connection") == [b"close"]
        assert world.origin.connections == 0


async def test_without_a_body_there_is_no_100_continue() -> None:
    """Nor for HTTP/1.0: the client gets the final response only."""
    async with proxied(answering(OK)) as world:
        assert (await world.ask(b"POST / HTTP/1.1", EXPECT, b"Content-Length: 0")).status == 200
        client = await world.client()
        await client.send(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab")
        assert (await client.read_answer()).status == 200


async def test_an_early_refusal_of_the_api_reaches_a_client_that_is_still_sending() -> None:
    """A 413 during an upload arrives whole and announces that the connection closes."""

    async def script(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(reply("413 Content Too Large", b"no"))
        while not await peer.ended():
            pass  # closing now would reset the connection before the response arrives

    async def send_on(client: Client) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await client.send(PIECE)

    async with proxied(script) as world:
        client = await world.client()
        await client.send(client.compose(b"POST / HTTP/1.1", b"Content-Length: 9000000000"))
        sending = asyncio.create_task(send_on(client))
        answer: Message = await client.read_answer()
        assert (answer.status, answer.body, answer.all(b"Connection")) == (413, b"no", [b"close"])
        sending.cancel()
        await asyncio.wait({sending})
