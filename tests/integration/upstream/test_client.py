"""The upstream client: what it sends, what it sends again, and when it reuses connections."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from cfproxy.errors import BadTarget, UpstreamError, UpstreamProtocol, UpstreamTimeout, UpstreamUnreachable
from cfproxy.proxy.request_body import ReplayableBody
from cfproxy.upstream.client import UpstreamClient, UpstreamResponse
from cfproxy.upstream.request import Call
from tests.support.origin import OK, Origin, Peer, Script, answering, chunked, reply, serving, until
from tests.support.proxied import LIMIT_S, a_body, a_token

TOKEN = a_token(1)


@asynccontextmanager
async def dialling(
    url: str,
    *,
    tls: ssl.SSLContext | None = None,
    connect_s: float = 10.0,
    idle_s: float = 10.0,
    limit: int = 1000,
) -> AsyncIterator[UpstreamClient]:
    upstream = UpstreamClient(url, tls=tls, connect_s=connect_s, idle_s=idle_s, limit=limit)
    try:
        async with asyncio.timeout(LIMIT_S):
            yield upstream
    finally:
        await upstream.aclose()


@asynccontextmanager
async def upstream_of(
    script: Script, *, idle_s: float = 10.0
) -> AsyncIterator[tuple[Origin, UpstreamClient]]:
    async with serving(script) as origin, dialling(origin.url, idle_s=idle_s) as upstream:
        yield origin, upstream


def call(method: str = "GET", body: ReplayableBody | None = None) -> Call:
    framing = b"Transfer-Encoding: chunked\r\n" if body is not None else b""
    return Call(
        method, f"{method} /x HTTP/1.1\r\nHost: h\r\n".encode() + framing, body, chunked=body is not None
    )


async def whole(response: UpstreamResponse) -> bytes:
    """Read a response to its end and close it."""
    try:
        out = b""
        while piece := await response.body.read():
            out += piece
        return out
    finally:
        await response.aclose()


async def fetch(upstream: UpstreamClient, what: Call | None = None) -> bytes:
    return await whole(await upstream.send(what or call(), TOKEN))


async def never(peer: Peer) -> None:
    """Read a request and send nothing until the client leaves."""
    await peer.take()
    await peer.ended()


# --- what is sent -------------------------------------------------------------------------


async def test_the_token_is_the_one_authorization_header_and_comes_last() -> None:
    """The API receives the head as it was built, followed by exactly one Authorization line."""
    async with upstream_of(answering(OK)) as (origin, upstream):
        assert await fetch(upstream) == b"ok"
    [request] = origin.requests
    assert request.headers == [(b"Host", b"h"), (b"Authorization", b"Bearer token-1")]


async def test_environment_and_netrc_are_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither proxy variables nor a .netrc file change where a token is sent, or which one."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login thief password gotcha\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with upstream_of(answering(OK)) as (origin, upstream):
        assert await fetch(upstream) == b"ok"
    assert origin.requests[0].all(b"Authorization") == [b"Bearer token-1"]


async def test_a_connection_serves_many_requests() -> None:
    """After a complete exchange its connection is reused."""
    async with upstream_of(answering(OK, reply("200 OK", b"x" * 200_000), OK)) as (origin, upstream):
        for _ in range(3):
            await fetch(upstream)
        with closing(a_body(b"a", b"b")) as body:
            await fetch(upstream, call("POST", body))
        await fetch(upstream)
    assert origin.connections == 1
    assert origin.requests[3].body == b"ab"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"ok"),
    ],
)
async def test_a_connection_that_the_api_will_close_is_not_reused(answer: bytes) -> None:
    """After `Connection: close`, after HTTP/1.0, and after chunks in HTTP/1.0."""
    async with upstream_of(answering(answer)) as (origin, upstream):
        assert [await fetch(upstream), await fetch(upstream)] == [b"ok", b"ok"]
    assert origin.connections == 2


async def test_a_connection_is_not_reused_after_a_response_that_was_not_read() -> None:
    """The rest would be taken for the next response, so closing half a response aborts its connection."""
    async with upstream_of(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", OK)) as (
        origin,
        upstream,
    ):
        response = await upstream.send(call(), TOKEN)
        assert await response.body.read() == b"half"
        await response.aclose()
        assert await fetch(upstream) == b"ok"
    assert origin.connections == 2


async def test_a_response_without_a_request_is_ignored() -> None:
    """A 408 on an idle connection that the server closes is not the response to the next request."""
    idle_now = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(OK)
        await idle_now.wait()
        if len(origin.requests) == 1:
            await peer.send(reply("408 Request Timeout"))
        await peer.take()
        await peer.send(OK)

    async with upstream_of(script) as (origin, upstream):
        await fetch(upstream)
        idle_now.set()
        [idle] = upstream.pool._idle
        await until(lambda: idle.lost)
        response = await upstream.send(call(), TOKEN)
        assert response.status == 200
        assert await whole(response) == b"ok"
    assert origin.connections == 2


async def test_interim_responses_are_not_the_response() -> None:
    """Several 1xx may precede it (RFC 9110 §15.2)."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    async with upstream_of(answering(interim + OK)) as (_, upstream):
        assert await fetch(upstream) == b"ok"


# --- stale connections --------------------------------------------------------------------


def closing_after(count: int, last: bytes = b"", answer: bytes = OK) -> Script:
    """Answer `count` requests over all connections, close the next one after `last`, and answer the rest."""
    seen = 0

    async def script(peer: Peer) -> None:
        nonlocal seen
        while True:
            await peer.take()
            seen += 1
            if seen == count + 1:
                await peer.send(last)
                return
            await peer.send(answer)

    return script


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_an_idempotent_request_is_sent_again_if_the_reused_connection_was_closed(method: str) -> None:
    """The client does not notice a reused connection that closes without a response; the body is replayed."""
    body = a_body(b"ab", b"cd") if method == "PUT" else None
    async with upstream_of(closing_after(1, answer=reply("204 No Content"))) as (origin, upstream):
        await fetch(upstream)
        await fetch(upstream, call(method, body))
    assert origin.connections == 2
    assert [r.method for r in origin.requests[1:]] == [method.encode()] * 2
    assert [r.body for r in origin.requests[1:]] == [b"" if body is None else b"abcd"] * 2
    if body is not None:
        body.close()


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_other_requests_are_never_sent_twice(method: str) -> None:
    """The API may have processed the first one, so the client decides."""
    async with upstream_of(closing_after(1)) as (origin, upstream):
        await fetch(upstream)
        with closing(a_body(b"ab")) as body, pytest.raises(UpstreamUnreachable):
            await fetch(upstream, call(method, body))
    assert len(origin.requests) == 2


async def test_a_connection_known_to_be_closed_is_not_used() -> None:
    """So even a POST succeeds."""

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(OK)

    async with upstream_of(script) as (origin, upstream):
        await fetch(upstream)
        [idle] = upstream.pool._idle
        await until(lambda: idle.lost)
        with closing(a_body(b"ab")) as body:
            assert await fetch(upstream, call("POST", body)) == b"ok"
    assert origin.connections == 2


async def test_a_new_connection_is_tried_once() -> None:
    """A server that closes every connection gets no further attempts."""
    async with upstream_of(closing_after(0)) as (origin, upstream):
        with pytest.raises(UpstreamUnreachable):
            await fetch(upstream)
    assert len(origin.requests) == 1


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_a_request_is_not_sent_again_once_a_response_has_started(part: bytes) -> None:
    """Once a byte has arrived, the server may have processed the request."""
    async with upstream_of(closing_after(1, part)) as (origin, upstream):
        await fetch(upstream)
        with pytest.raises(UpstreamError):
            await fetch(upstream, call("PUT"))
    assert len(origin.requests) == 2


# --- bodies that end early ----------------------------------------------------------------


async def test_an_error_status_stops_an_upload() -> None:
    """The API gets no more of the body, and no other request on this connection (RFC 9112 §9.5)."""
    asked = asyncio.Event()

    async def more() -> bytes:
        asked.set()
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return] # never comes

    async def script(peer: Peer) -> None:
        request = await peer.take_head()
        if request.method == b"POST":
            await peer.read_chunk()
            await asked.wait()
            await peer.send(reply("413 Content Too Large", b"no"))
            request.complete = not await peer.ended()
        else:
            await peer.send(OK)

    async with upstream_of(script) as (origin, upstream):
        with closing(a_body(b"first", then=more)) as body:
            response = await upstream.send(call("POST", body), TOKEN)
            assert (response.status, await whole(response)) == (413, b"no")
            assert body.replayable
            assert await fetch(upstream) == b"ok"
        await until(lambda: not origin.requests[0].complete)
    assert origin.connections == 2


async def test_a_malformed_body_fails_the_request_before_and_after_the_response_has_started() -> None:
    """Before a response it is reported as itself, within one as an incomplete response."""
    started = asyncio.Event()

    async def broken() -> bytes:
        await started.wait()
        raise BadTarget("broken")

    async def early(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await peer.ended()

    async with upstream_of(early) as (_, upstream):
        with closing(a_body(b"x", then=broken)) as body:
            response = await upstream.send(call("POST", body), TOKEN)
            assert await response.body.read() == b"half"
            started.set()
            with pytest.raises(UpstreamProtocol):
                await response.body.read()
            await response.aclose()
    async with upstream_of(never) as (_, upstream):
        with closing(a_body(b"x", then=broken)) as body, pytest.raises(BadTarget):
            await fetch(upstream, call("POST", body))


async def test_chunks_are_sent_as_they_arrive() -> None:
    """Each piece of a chunked upload is sent at once, as a chunk of its own."""
    async with upstream_of(answering(OK)) as (origin, upstream):
        with closing(a_body(b"one", b"two" * 10_000, b"3")) as body:
            await fetch(upstream, call("POST", body))
    assert origin.requests[0].chunks == [b"one", b"two" * 10_000, b"3"]


async def test_a_chunked_response_is_read_without_its_framing() -> None:
    """The client's response gets framing of its own."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"ab", b"cd")
    async with upstream_of(answering(answer)) as (_, upstream):
        assert await fetch(upstream) == b"abcd"


@pytest.mark.parametrize("as_new", [False, True])
async def test_a_connection_that_becomes_free_at_the_timeout_is_not_lost(as_new: bool) -> None:
    """A request that gets it just as its time is up passes it on and fails."""
    async with serving(answering(OK)) as origin, dialling(origin.url, connect_s=0.2, limit=1) as upstream:
        pool, loop = upstream.pool, asyncio.get_running_loop()
        connection = await pool.acquire()
        connection.start_exchange(60.0, to_head=False, on_interim=None)
        late = asyncio.create_task(pool.acquire())
        await until(lambda: pool._waiting)
        [waiter] = pool._waiting
        timeouts = [handle.when() for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        # Both are due in the same iteration, this one first.
        if as_new:
            loop.call_at(min(timeouts) - 0.001, pool._forget, connection)
        else:
            loop.call_at(min(timeouts) - 0.001, pool._add_idle, connection)
        time.sleep(0.3)
        with pytest.raises(UpstreamTimeout):
            await late
        assert waiter.done()
        assert not waiter.cancelled()
        again = await pool.acquire()
        assert again is not None
        connection.abort()


async def test_cancelling_a_request_closes_its_connection() -> None:
    """Its response would arrive otherwise."""
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.ended()
        gone.set()

    async with upstream_of(script) as (origin, upstream):
        task = asyncio.create_task(upstream.send(call(), TOKEN))
        await until(lambda: origin.requests)
        task.cancel()
        await asyncio.wait({task})
        await gone.wait()


async def test_aclose_closes_the_connection_even_if_it_is_cancelled() -> None:
    """A request that is cancelled while its upload is being stopped leaks no connection."""
    gone = asyncio.Event()

    async def more() -> bytes:
        await asyncio.get_running_loop().create_future()
        return b""

    async def script(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        while not await peer.ended():
            pass
        gone.set()

    async with upstream_of(script) as (_, upstream):
        with closing(a_body(b"x", then=more)) as body:
            response = await upstream.send(call("POST", body), TOKEN)
            closing_task = asyncio.create_task(response.aclose())
            await asyncio.sleep(0)
            closing_task.cancel()
            await asyncio.wait({closing_task})
            await gone.wait()
