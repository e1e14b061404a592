"""Each failure of the connection to the API has its own error, and none looks like an answer."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import closing
from typing import Any

import pytest
import trustme

from cfproxy.errors import UpstreamProtocol, UpstreamTimeout, UpstreamTls, UpstreamUnreachable
from cfproxy.proxy.request_body import ReplayableBody
from tests.integration.upstream.test_client import (
    TOKEN,
    call,
    closing_after,
    dialling,
    fetch,
    upstream_of,
)
from tests.support.origin import OK, Peer, answering, serving, until, until_still
from tests.support.proxied import a_body

# --- failures, each by its name -----------------------------------------------------------


async def test_a_refused_connection_is_unreachable() -> None:
    """Nobody listens there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        async with dialling(f"http://127.0.0.1:{port}") as upstream:
            with pytest.raises(UpstreamUnreachable) as caught:
                await fetch(upstream)
    assert caught.value.unsent


async def test_an_unknown_name_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS has no such host."""

    async def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    async with dialling("http://gateway.invalid") as upstream:
        with pytest.raises(UpstreamUnreachable, match=r"gateway\.invalid") as caught:
            await fetch(upstream)
    assert caught.value.unsent


async def test_dns_tcp_and_tls_together_take_no_longer_than_the_connect_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name server or a handshake that stays silent is a timeout."""

    async def silent(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    async def mute(peer: Peer) -> None:
        while not await peer.ended():
            pass

    async with serving(mute) as origin, dialling(f"https://{origin.host}", connect_s=0.05) as upstream:
        with pytest.raises(UpstreamTimeout):
            await fetch(upstream)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", silent)
    async with dialling("http://gateway.invalid", connect_s=0.05) as upstream:
        with pytest.raises(UpstreamTimeout):
            await fetch(upstream)


async def test_only_a_trusted_certificate_for_the_right_name_is_talked_to() -> None:
    """An unknown authority or another name ends the handshake before the token is sent."""
    authority, stranger = trustme.CA(), trustme.CA()
    for issuer, name, trusted in (
        (authority, "127.0.0.1", True),
        (stranger, "127.0.0.1", False),
        (authority, "other.example", False),
    ):
        server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        issuer.issue_cert(name).configure_cert(server_side)
        client_side = ssl.create_default_context()
        authority.configure_trust(client_side)
        async with (
            serving(answering(OK), server_side) as origin,
            dialling(origin.url, tls=client_side) as upstream,
        ):
            if trusted:
                assert await fetch(upstream) == b"ok"
            else:
                with pytest.raises(UpstreamTls):
                    await fetch(upstream)
                assert origin.requests == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 000 Nothing\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\rY: b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
    ids=range(9),
)
async def test_what_is_not_http_is_a_protocol_error(garbage: bytes) -> None:
    """Garbage, ambiguous framing and unasked-for protocol switches are not passed on."""
    async with upstream_of(answering(garbage)) as (_, upstream):
        with pytest.raises(UpstreamProtocol):
            await fetch(upstream)


async def test_a_connection_closed_or_reset_before_the_answer_is_unreachable() -> None:
    """The API hung up on the request."""

    async def reset(peer: Peer) -> None:
        await peer.take()
        peer.abort()

    for script in (closing_after(0), reset):
        async with upstream_of(script) as (_, upstream):
            with pytest.raises(UpstreamUnreachable) as caught:
                await fetch(upstream)
            assert not caught.value.unsent


@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_an_api_that_says_nothing_is_a_timeout(interim: bytes) -> None:
    """`timeouts.idle` bounds the wait for an answer, after interim answers too."""

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(interim)
        await peer.ended()

    async with upstream_of(script, idle_s=0.05) as (_, upstream):
        with pytest.raises(UpstreamTimeout):
            await fetch(upstream)
        with closing(a_body(b"x")) as body, pytest.raises(UpstreamTimeout):
            await fetch(upstream, call("POST", body))


def endless() -> ReplayableBody:
    """A body that never ends and can't be replayed."""

    async def read() -> bytes:
        return b"x" * 65536

    return a_body(then=read, memory_bytes=0, max_bytes=0)


async def deaf(peer: Peer) -> None:
    """Take a head and read no more."""
    await peer.take_head()
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport reads, too
    while True:  # whoever does not read notices an end only by writing
        await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        await asyncio.sleep(0.001)


async def test_an_api_that_stops_reading_is_a_timeout() -> None:
    """An upload that nobody takes ends after `timeouts.idle`, and so does the connection."""
    ended = asyncio.Event()

    async def script(peer: Peer) -> None:
        try:
            await deaf(peer)
        finally:
            ended.set()

    async with upstream_of(script, idle_s=0.05) as (_, upstream):
        with pytest.raises(UpstreamTimeout):
            await fetch(upstream, call("POST", endless()))
        await ended.wait()


async def test_leaving_an_upload_that_nobody_takes_ends_its_connection() -> None:
    """What is still to be written does not keep a connection whose request was given up."""
    ended = asyncio.Event()

    async def script(peer: Peer) -> None:
        try:
            await deaf(peer)
        finally:
            ended.set()

    async with upstream_of(script) as (origin, upstream):
        task = asyncio.create_task(upstream.send(call("POST", endless()), TOKEN))
        await until(lambda: origin.requests)
        [connection] = upstream.pool._all
        await until(lambda: connection.writing_paused)
        task.cancel()
        await ended.wait()


async def test_an_api_that_stops_reading_within_its_answer_ends_the_answer() -> None:
    """An upload that got stuck after the answer began shows as a broken answer, not as a wait for ever."""

    async def script(peer: Peer) -> None:
        await peer.take_head()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport reads, too
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n")
        while True:
            await peer.send(b"x")
            await asyncio.sleep(0.001)

    async with upstream_of(script, idle_s=0.05) as (_, upstream):
        with pytest.raises(UpstreamProtocol):
            await fetch(upstream, call("POST", endless()))


async def test_after_a_refusal_no_more_of_the_body_is_read() -> None:
    """Once the API has said no, the rest of the upload is left where it is, even while its answer comes."""
    pieces = 0

    async def more() -> bytes:
        nonlocal pieces
        pieces += 1
        await asyncio.sleep(0)
        return b"x"

    async def script(peer: Peer) -> None:
        await peer.take_head()
        await peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\nhalf")
        while not await peer.ended():
            pass

    async with upstream_of(script) as (_, upstream):
        with closing(a_body(then=more)) as body:
            answer = await upstream.send(call("POST", body), TOKEN)
            seen = pieces
            assert await answer.body.read() == b"half"
            assert await until_still(lambda: pieces) == seen
            await answer.aclose()


@pytest.mark.parametrize(
    "head", [b"Content-Length: 9\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n9\r\n", b"\r\n"]
)
async def test_an_answer_that_breaks_off_is_never_taken_for_a_whole_one(head: bytes) -> None:
    """However its body is delimited, an answer that is reset in the middle ends in an error."""

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(b"HTTP/1.1 200 OK\r\n", head, b"half")
        await read.wait()
        peer.abort()

    read = asyncio.Event()
    async with upstream_of(script) as (_, upstream):
        answer = await upstream.send(call(), TOKEN)
        assert await answer.body.read() == b"half"
        read.set()
        with pytest.raises(UpstreamProtocol):
            await answer.body.read()
        await answer.aclose()


@pytest.mark.parametrize("head", [b"Content-Length: 9\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n4\r\n"])
async def test_an_answer_cut_short_or_garbled_is_an_error(head: bytes) -> None:
    """A clean close before the announced end, or rubbish between chunks, shows as well."""
    for end in (b"", b"rubbish") if b"chunked" in head else (b"",):

        async def script(peer: Peer, end: bytes = end) -> None:
            await peer.take()
            await peer.send(b"HTTP/1.1 200 OK\r\n", head, b"half", end)

        async with upstream_of(script) as (_, upstream):
            with pytest.raises(UpstreamProtocol):
                await fetch(upstream)


async def test_a_stalled_answer_is_a_timeout() -> None:
    """`timeouts.idle` bounds each silence within an answer."""

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await peer.ended()

    async with upstream_of(script, idle_s=0.05) as (_, upstream):
        with pytest.raises(UpstreamTimeout):
            await fetch(upstream)


async def test_an_answer_delimited_by_the_end_of_the_connection_is_whole() -> None:
    """Without length and chunks the close is the end (RFC 9112 §6.3)."""
    closing = b"HTTP/1.1 200 OK\r\n\r\nall of it"

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(closing)

    async with upstream_of(script) as (_, upstream):
        assert await fetch(upstream) == b"all of it"
