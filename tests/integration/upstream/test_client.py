"""The connection to the API: what is sent, what is sent again, and how each failure is told apart."""

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


async def whole(answer: UpstreamResponse) -> bytes:
    """Read an answer to its end and let it go."""
    try:
        out = b""
        while piece := await answer.body.read():
            out += piece
        return out
    finally:
        await answer.aclose()


async def fetch(upstream: UpstreamClient, what: Call | None = None) -> bytes:
    return await whole(await upstream.send(what or call(), TOKEN))


async def never(peer: Peer) -> None:
    """Take a request and say nothing until the other side leaves."""
    await peer.take()
    await peer.ended()


# --- what is sent -------------------------------------------------------------------------


async def test_the_token_is_the_one_authorization_header_and_comes_last() -> None:
    """The API sees the head as it was built, followed by exactly one Authorization line."""
    async with upstream_of(answering(OK)) as (origin, upstream):
        assert await fetch(upstream) == b"ok"
    [request] = origin.requests
    assert request.headers == [(b"Host", b"h"), (b"Authorization", b"Bearer token-1")]


async def test_environment_and_netrc_are_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither proxy variables nor a .netrc file decide where a token goes or what it is."""
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
    """A complete exchange leaves its connection for the next one."""
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
    """`Connection: close` and HTTP/1.0 end with their answer, and what HTTP/1.0 has no name for."""
    async with upstream_of(answering(answer)) as (origin, upstream):
        assert [await fetch(upstream), await fetch(upstream)] == [b"ok", b"ok"]
    assert origin.connections == 2


async def test_an_answer_that_was_not_read_to_its_end_is_not_followed_by_another() -> None:
    """Letting go of half an answer cuts its connection: the rest would be taken for the next one's."""
    async with upstream_of(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", OK)) as (
        origin,
        upstream,
    ):
        answer = await upstream.send(call(), TOKEN)
        assert await answer.body.read() == b"half"
        await answer.aclose()
        assert await fetch(upstream) == b"ok"
    assert origin.connections == 2


async def test_an_answer_that_nobody_asked_for_is_given_to_nobody() -> None:
    """A server's parting 408 on an idle connection is not the answer to the next request."""
    told = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(OK)
        await told.wait()
        if len(origin.requests) == 1:
            await peer.send(reply("408 Request Timeout"))
        await peer.take()
        await peer.send(OK)

    async with upstream_of(script) as (origin, upstream):
        await fetch(upstream)
        told.set()
        [idle] = upstream.pool._idle
        await until(lambda: idle.lost)
        answer = await upstream.send(call(), TOKEN)
        assert answer.status == 200
        assert await whole(answer) == b"ok"
    assert origin.connections == 2


async def test_interim_answers_are_not_the_answer() -> None:
    """Several 1xx may come first (RFC 9110 §15.2)."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    async with upstream_of(answering(interim + OK)) as (_, upstream):
        assert await fetch(upstream) == b"ok"


# --- stale connections --------------------------------------------------------------------


def closing_after(count: int, last: bytes = b"", answer: bytes = OK) -> Script:
    """Answer `count` requests over all connections; the next gets `last` and the end, then all is well."""
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
async def test_an_idempotent_request_goes_again_when_the_kept_connection_was_dead(method: str) -> None:
    """A reused connection that closes without an answer costs the client nothing, body included."""
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
async def test_other_requests_never_go_twice(method: str) -> None:
    """What may have been done already is not done again: the client decides."""
    async with upstream_of(closing_after(1)) as (origin, upstream):
        await fetch(upstream)
        with closing(a_body(b"ab")) as body, pytest.raises(UpstreamUnreachable):
            await fetch(upstream, call(method, body))
    assert len(origin.requests) == 2


async def test_a_close_that_was_seen_costs_nobody_anything() -> None:
    """A connection known to be closed is not used at all, so even a POST goes through."""

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
    """A server that closes every connection is not asked again and again."""
    async with upstream_of(closing_after(0)) as (origin, upstream):
        with pytest.raises(UpstreamUnreachable):
            await fetch(upstream)
    assert len(origin.requests) == 1


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_an_answer_that_began_is_not_asked_for_again(part: bytes) -> None:
    """Once a byte of an answer came the server was at work: sending again could do it twice."""
    async with upstream_of(closing_after(1, part)) as (origin, upstream):
        await fetch(upstream)
        with pytest.raises(UpstreamError):
            await fetch(upstream, call("PUT"))
    assert len(origin.requests) == 2


# --- bodies that end early ----------------------------------------------------------------


async def test_a_refusal_in_the_middle_of_an_upload_stops_it() -> None:
    """An API that says no early gets no more of the body and no other request there (RFC 9112 §9.5)."""
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
            answer = await upstream.send(call("POST", body), TOKEN)
            assert (answer.status, await whole(answer)) == (413, b"no")
            assert body.replayable
            assert await fetch(upstream) == b"ok"
        await until(lambda: not origin.requests[0].complete)
    assert origin.connections == 2


async def test_a_malformed_body_fails_the_request_wherever_the_answer_is() -> None:
    """A client's broken upload ends the exchange: before an answer as what it is, within one as a cut."""
    begun = asyncio.Event()

    async def broken() -> bytes:
        await begun.wait()
        raise BadTarget("broken")

    async def early(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await peer.ended()

    async with upstream_of(early) as (_, upstream):
        with closing(a_body(b"x", then=broken)) as body:
            answer = await upstream.send(call("POST", body), TOKEN)
            assert await answer.body.read() == b"half"
            begun.set()
            with pytest.raises(UpstreamProtocol):
                await answer.body.read()
            await answer.aclose()
    async with upstream_of(never) as (_, upstream):
        with closing(a_body(b"x", then=broken)) as body, pytest.raises(BadTarget):
            await fetch(upstream, call("POST", body))


async def test_chunks_go_up_as_they_come() -> None:
    """Each piece of a chunked upload is a chunk of its own, sent when it is there."""
    async with upstream_of(answering(OK)) as (origin, upstream):
        with closing(a_body(b"one", b"two" * 10_000, b"3")) as body:
            await fetch(upstream, call("POST", body))
    assert origin.requests[0].chunks == [b"one", b"two" * 10_000, b"3"]


async def test_an_answer_with_chunks_reads_without_their_framing() -> None:
    """What the client gets framed anew is the body, not the API's chunk lines."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"ab", b"cd")
    async with upstream_of(answering(answer)) as (_, upstream):
        assert await fetch(upstream) == b"abcd"


@pytest.mark.parametrize("as_new", [False, True])
async def test_a_place_that_comes_free_at_the_last_instant_is_not_lost(as_new: bool) -> None:
    """Who was given it the instant its time was over gives it on, and gets a 504."""
    async with serving(answering(OK)) as origin, dialling(origin.url, connect_s=0.05, limit=1) as upstream:
        pool, loop = upstream.pool, asyncio.get_running_loop()
        connection = await pool.acquire()
        connection.start_exchange(60.0, to_head=False, on_interim=None)
        late = asyncio.create_task(pool.acquire())
        await until(lambda: pool._waiting)
        [waiter] = pool._waiting
        timeouts = [handle.when() for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        # Both are due in one turn of the loop, and this comes first.
        if as_new:
            loop.call_at(min(timeouts) - 0.001, pool._forget, connection)
        else:
            loop.call_at(min(timeouts) - 0.001, pool._add_idle, connection)
        time.sleep(0.1)
        with pytest.raises(UpstreamTimeout):
            await late
        assert waiter.done()
        assert not waiter.cancelled()
        again = await pool.acquire()
        assert again is not None
        connection.abort()


async def test_leaving_while_waiting_for_the_answer_closes_the_connection() -> None:
    """A cancelled request takes its connection with it."""
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


async def test_letting_go_ends_the_connection_even_when_it_is_interrupted() -> None:
    """A request that is cancelled while its upload is being stopped leaves no connection behind."""
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
            answer = await upstream.send(call("POST", body), TOKEN)
            letting_go = asyncio.create_task(answer.aclose())
            await asyncio.sleep(0)
            letting_go.cancel()
            await asyncio.wait({letting_go})
            await gone.wait()
