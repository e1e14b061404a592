"""What comes in small pieces is handled in turns, bounded in total, and never held without bound."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from cfproxy.http1.framing import CHUNKS_MAX, TRAILER_LINES_MAX
from cfproxy.http1.request_buffer import EMPTY_LINES_MAX
from cfproxy.server.request import Limits
from cfproxy.upstream.connection import INTERIM_MAX_BYTES
from tests.support.origin import OK, Peer, answering, chunked, until
from tests.support.proxied import Client, proxied

CHUNKED = b"Transfer-Encoding: chunked"
ANSWER = b"HTTP/1.1 200 OK\r\n" + CHUNKED + b"\r\n\r\n"
FEW = 3000


async def flood(client: Client, piece: bytes, count: int) -> None:
    """Send `piece` that often, unless the connection ends before."""
    with contextlib.suppress(ConnectionError):
        await client.send(piece * count)


# --- honest clients and servers -------------------------------------------------------------


async def test_a_few_thousand_small_chunks_pass_in_both_directions() -> None:
    """Nothing is lost, nor put in another order."""
    pieces = [b"%d" % (number % 10) for number in range(FEW)]

    async def script(peer: Peer) -> None:
        request = await peer.take()
        assert request.body == b"".join(pieces)
        await peer.send(ANSWER, chunked(*pieces))

    async with proxied(script) as world:
        answer = await world.ask(b"POST /a HTTP/1.1", CHUNKED, body=chunked(*pieces))
        assert (answer.status, answer.body) == (200, b"".join(pieces))


async def test_a_body_in_segments_of_one_byte_passes() -> None:
    """Also when the reader is faster than the sender."""

    async def script(peer: Peer) -> None:
        request = await peer.take()
        for byte in ANSWER + chunked(request.body):
            await peer.send(bytes([byte]))
            await asyncio.sleep(0)

    async with proxied(script) as world:
        client = await world.client()
        for byte in client.compose(b"POST /a HTTP/1.1", CHUNKED, body=chunked(b"ab", b"c")):
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.read_answer()).body == b"abc"


async def test_a_request_behind_small_chunks_is_served() -> None:
    """It arrives while the chunks are still being handled."""
    async with proxied(answering(OK)) as world:
        client = await world.client()
        first = client.compose(b"POST /a HTTP/1.1", CHUNKED, body=chunked(*[b"x"] * FEW))
        await client.send(first, client.compose(b"GET /b HTTP/1.1"))
        assert [(await client.read_answer()).status for _ in range(2)] == [200, 200]
        assert [request.target for request in world.origin.requests] == [b"/a", b"/b"]


async def test_an_empty_line_before_a_request_is_ignored() -> None:
    """Each request may have some (RFC 9112 §2.2)."""
    async with proxied(answering(OK)) as world:
        client = await world.client()
        for _ in range(3):
            await client.send(b"\r\n" * (EMPTY_LINES_MAX - 1), client.compose(b"GET /a HTTP/1.1"))
            assert (await client.read_answer()).status == 200


# --- requests -------------------------------------------------------------------------------

FLOODS = {
    "chunks of one byte": (b"1\r\nx\r\n", 2 * CHUNKS_MAX),
    "chunks of eight bytes": (b"8\r\n12345678\r\n", 4 * CHUNKS_MAX),
    "extensions": (b"1;" + b"e" * 1000 + b"\r\nx\r\n", CHUNKS_MAX),
    "trailers": (b"0\r\n" + b"a:\r\n" * (TRAILER_LINES_MAX + 1), 1),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_body_of_small_pieces_is_refused(name: str) -> None:
    """The client gets 400, and its connection ends."""
    async with proxied(answering(OK)) as world:
        client = await world.client()
        await client.send(client.compose(b"POST /a HTTP/1.1", CHUNKED))
        sending = asyncio.create_task(flood(client, *FLOODS[name]))
        answer = await client.read_answer()
        assert answer.status == 400
        if "chunks" in name or name == "extensions":
            assert b"tiny chunks" in answer.body
        client.abort()
        await sending


async def test_empty_lines_instead_of_a_request_are_refused() -> None:
    """However they arrive."""
    async with proxied(answering(OK)) as world:
        for pieces in ([b"\r\n" * (EMPTY_LINES_MAX + 1)], [b"\r\n"] * (EMPTY_LINES_MAX + 1)):
            client = await world.client()
            for piece in pieces:
                await client.send(piece)
                await asyncio.sleep(0.001)
            assert (await client.read_answer()).status == 400
            assert await client.ended()


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_pipelined_requests_are_read_as_fast_as_they_are_served(method: bytes) -> None:
    """What is held of them is bounded, also while bodies among them are read."""
    ahead_bytes = 4096
    async with proxied(answering(OK), limits=Limits(ahead_bytes=ahead_bytes)) as world:
        client = await world.client()
        body = chunked(b"x") if method == b"POST" else b""
        one = client.compose(method + b" /a HTTP/1.1", *([CHUNKED] if body else []), body=body)
        count = 3 * 2**20 // len(one)
        sending = asyncio.create_task(flood(client, one, count))
        held = []
        for _ in range(200):
            assert (await client.read_answer()).status == 200
            (connection,) = world.listener.connections
            held.append(len(connection._buffer.data))
        assert max(held) <= ahead_bytes + 256_000  # and one read of the socket
        client.abort()
        await sending


async def test_what_follows_a_refusal_is_not_read_without_a_pause() -> None:
    """The others are served while a client sends on as fast as it can."""
    async with proxied(answering(OK)) as world:
        client = await world.client()
        await client.send(client.compose(b"POST /a HTTP/1.1", b"Transfer-Encoding: gzip"))
        assert (await client.read_answer()).status == 400
        (connection,) = world.listener.connections
        sending = asyncio.create_task(flood(client, b"x" * 2**20, 64))
        await until(lambda: not connection.transport.is_reading())
        await until(connection.transport.is_reading)
        assert (await world.ask(b"GET /b HTTP/1.1")).status == 200
        client.abort()
        await sending


# --- responses ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FLOODS)
async def test_a_response_of_small_pieces_is_cut(name: str) -> None:
    """The client notices that it is incomplete, and others are served."""
    piece, count = FLOODS[name]

    async def script(peer: Peer) -> None:
        request = await peer.take()
        await peer.send(ANSWER + piece * count if request.target == b"/a" else OK)
        await peer.ended()

    async with proxied(script) as world:
        answer = await world.ask(b"GET /a HTTP/1.1")
        assert answer.status == 502 or not answer.complete
        assert (await world.ask(b"GET /b HTTP/1.1")).status == 200
        assert world.events[0]["problem"] == "upstream-protocol"


async def test_interim_responses_are_bounded() -> None:
    """They are relayed in turns."""

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(b"HTTP/1.1 102 A\r\n\r\n" * INTERIM_MAX_BYTES)

    async with proxied(script) as world:
        client = await world.client()
        await client.send(client.compose(b"GET /a HTTP/1.1"))
        while (answer := await client.read_answer()).status == 102:
            pass
        assert answer.status == 502
