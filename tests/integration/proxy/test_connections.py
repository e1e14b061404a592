"""What one client may do with its connection: pipeline requests, read nothing, send little."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest

from cfproxy.http1.parser import HeadLimits, MalformedHead, request_head_end
from cfproxy.http1.request_buffer import CACHED_HEAD_BYTES
from cfproxy.proxy.exchange import Exchange
from tests.support.origin import OK, Peer, answering, reply, until, until_still
from tests.support.proxied import proxied


async def test_a_body_behind_many_pipelined_requests_is_read() -> None:
    """Reading pauses while too much is buffered, and resumes before a body is awaited."""
    async with proxied(answering(OK)) as world:
        client = await world.client()
        world.pacer.gate.clear()
        get = client.compose(b"GET / HTTP/1.1", b"X-Fill: " + b"x" * 1000)
        post = client.compose(b"POST / HTTP/1.1", b"Content-Length: 5")
        count = 100
        await client.send(get)
        await until(lambda: world.pacer.waiting)
        await client.send(get * (count - 1) + post)
        [connection] = world.listener.connections
        await until(lambda: len(connection._buffer.data) == len(get) * (count - 1) + len(post))
        assert connection.reading_held
        world.pacer.gate.set()
        for _ in range(count):
            assert (await client.read_answer()).status == 200
        await client.send(b"hello")
        assert (await client.read_answer()).status == 200
        assert world.origin.requests[-1].body == b"hello"


async def test_a_client_that_reads_no_refusals_is_not_read_from() -> None:
    """Refusals are small and many, and must not pile up in memory."""
    async with proxied(answering(OK)) as world:
        client = await world.client(receive_bytes=4096)
        client.host = b"evil.example"
        ask = client.compose(b"GET / HTTP/1.1") * 1000
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                await client.send(ask)
                sent += len(ask)

        flooding = asyncio.create_task(flood())
        await until(lambda: [c for c in world.listener.connections if c.writing_paused])
        await until_still(lambda: sent)
        [connection] = world.listener.connections
        assert connection.writing_paused
        assert connection.transport is not None
        assert connection.transport.get_write_buffer_size() < 1024 * 1024
        assert not flooding.done()
        flooding.cancel()


async def test_only_a_small_head_is_cached() -> None:
    """An idle connection holds little memory."""
    async with proxied(answering(OK)) as world:
        client = await world.client()
        for size in (100, 20_000):
            assert (await client.ask(b"GET / HTTP/1.1", b"X-Fill: " + b"x" * size)).status == 200
        [connection] = world.listener.connections
        assert 100 < len(connection._buffer._cached[0]) <= CACHED_HEAD_BYTES


async def test_empty_lines_do_not_start_a_request() -> None:
    """Otherwise an occasional one could keep a connection open for ever."""
    async with proxied(answering(OK)) as world:
        client = await world.client()
        await client.ask(b"GET / HTTP/1.1")
        [connection] = world.listener.connections
        due_at = connection._timeout._due_at
        for _ in range(3):
            await client.send(b"\r\n")
            await until_still(lambda: len(connection._buffer.data))
        assert world.listener.connections.counts()["idle"] == 1
        assert connection._timeout._due_at == due_at
        assert (await client.ask(b"GET / HTTP/1.1")).status == 200


async def test_a_bug_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client does not wait for a response that can't come."""

    class Broken(Exchange):
        def start_now(self) -> bool:
            return False

        async def run(self) -> bool:
            raise RuntimeError("a bug")

    async with proxied(answering(OK)) as world:
        monkeypatch.setattr("cfproxy.proxy.exchange.Exchange", Broken)
        client = await world.client()
        await client.send(client.compose(b"GET / HTTP/1.1"))
        assert await client.ended()
        gc.collect()
        [crash] = world.crashes
        assert isinstance(crash["exception"], RuntimeError)
        world.crashes.clear()


async def test_a_final_response_instead_of_100_closes_the_connection() -> None:
    """The client can't know whether its body would be taken for a request (RFC 9110 §10.1.1)."""

    async def script(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(reply("303 See Other", b"", b"Location: /there"))
        await peer.ended()

    async with proxied(script) as world:
        client = await world.client()
        answer = await client.ask(b"POST / HTTP/1.1", b"Content-Length: 5", b"Expect: 100-continue")
        assert (answer.status, answer.all(b"Connection")) == (303, [b"close"])
        assert await client.ended()


async def test_a_response_without_a_body_has_no_length() -> None:
    """A client would otherwise read the next response as a body (RFC 9110 §8.6)."""
    script = answering(
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\nLink: </x>\r\n\r\n"
        b"HTTP/1.1 204 No Content\r\nContent-Length: 9\r\nX: 1\r\n\r\n",
        OK,
    )
    async with proxied(script) as world:
        client = await world.client()
        await client.send(client.compose(b"DELETE / HTTP/1.1"))
        assert (await client.read_head()).headers == [(b"Link", b"</x>")]
        assert (await client.read_head()).headers == [(b"X", b"1")]
        assert (await client.ask(b"GET / HTTP/1.1")).body == b"ok"


def test_a_head_that_arrives_byte_by_byte_is_scanned_once() -> None:
    """With the same outcome as when it arrives at once."""
    limits = HeadLimits()
    for whole in (
        b"GET / HTTP/1.1\r\nHost: h\r\nX: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: 1\nY: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: 1\rY: 2\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: h\r\n\r\n",
    ):
        for size in range(1, len(whole) + 1):
            outcomes: list[object] = []
            for seen in (0, size - 1):
                try:
                    outcomes.append(request_head_end(whole[:size], limits, seen))
                except MalformedHead:
                    outcomes.append("malformed")
            assert outcomes[0] == outcomes[1]
            if outcomes[0] == "malformed":
                break
    long = b"GET / HTTP/1.1\r\nX: " + b"x" * 60_000

    def took_s(seen: int) -> float:
        began_at = time.perf_counter()
        for _ in range(50):
            request_head_end(long, limits, seen)
        return time.perf_counter() - began_at

    assert took_s(len(long) - 1) * 10 < took_s(0)
