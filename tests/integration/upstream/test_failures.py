"""Each failure of the upstream has its own error, and none can be taken for a response."""

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
from tests.support.names import resolve_by
from tests.support.origin import OK, Peer, answering, serving, until, until_still
from tests.support.proxied import a_body


async def test_a_refused_connection_is_unreachable() -> None:
    """Nothing listens on the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        async with dialling(f"http://127.0.0.1:{port}") as upstream:
            with pytest.raises(UpstreamUnreachable) as caught:
                await fetch(upstream)
    assert caught.value.unsent


async def test_an_unknown_name_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS does not know the host."""

    async def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    async with dialling("http://gateway.invalid") as upstream:
        with pytest.raises(UpstreamUnreachable, match=r"gateway\.invalid") as caught:
            await fetch(upstream)
    assert caught.value.unsent


@pytest.mark.parametrize("name", ["gw.localhost", "localhost", "gateway.invalid"])
async def test_without_tls_a_name_must_be_this_machine(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The token goes to loopback, or nowhere; every new connection looks again."""
    async with serving(answering(OK)) as origin, dialling(origin.url.replace("127.0.0.1", name)) as upstream:
        names = resolve_by(monkeypatch, **{name: ["127.0.0.1"]})
        assert await fetch(upstream) == b"ok"
        for connection in list(upstream.pool._all):
            connection.abort()
        for addresses in (["127.0.0.2", "192.0.2.7"], ["192.0.2.7"], ["::ffff:127.0.0.1"], ["0.0.0.0"], []):
            names.addresses[name] = addresses
            with pytest.raises(UpstreamUnreachable, match="use https") as caught:
                await fetch(upstream)
            assert caught.value.unsent
            assert "192.0.2.7" not in str(caught.value)
        assert origin.connections == 1


async def test_with_tls_a_name_may_be_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """There the certificate tells; the connection is tried."""
    resolve_by(monkeypatch, gw__localhost=["127.0.0.3"])
    async with dialling("https://gw.localhost:1") as upstream:
        with pytest.raises(UpstreamUnreachable, match="check the network"):
            await fetch(upstream)


async def test_the_connect_timeout_covers_dns_and_tls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It applies to a name server and to a handshake that never respond."""

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


async def test_only_a_trusted_certificate_for_the_right_name_is_accepted() -> None:
    """With an unknown authority or another name, the handshake fails before the token is sent."""
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
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 140_000 + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
    ids=range(9),
)
async def test_malformed_http_is_a_protocol_error(garbage: bytes) -> None:
    """Also ambiguous framing and unexpected protocol switches."""
    async with upstream_of(answering(garbage)) as (_, upstream):
        with pytest.raises(UpstreamProtocol):
            await fetch(upstream)


async def test_a_connection_closed_or_reset_before_the_response_is_unreachable() -> None:
    """The request has been sent, so the error is not `unsent`."""

    async def reset(peer: Peer) -> None:
        await peer.take()
        peer.abort()

    for script in (closing_after(0), reset):
        async with upstream_of(script) as (_, upstream):
            with pytest.raises(UpstreamUnreachable) as caught:
                await fetch(upstream)
            assert not caught.value.unsent


@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_an_api_that_does_not_respond_is_a_timeout(interim: bytes) -> None:
    """`timeouts.idle` limits the wait for a response, also after interim responses."""

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
    """Return a body that never ends and can't be replayed."""

    async def read() -> bytes:
        return b"x" * 65536

    return a_body(then=read, memory_bytes=0, max_bytes=0)


async def stop_reading(peer: Peer) -> None:
    """Read a head, and then nothing more."""
    await peer.take_head()
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport can read
    while True:  # without reading, an end is noticed only by writing
        await peer.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        await asyncio.sleep(0.001)


async def test_an_api_that_stops_reading_is_a_timeout() -> None:
    """The upload fails after `timeouts.idle`, and its connection is closed."""
    ended = asyncio.Event()

    async def script(peer: Peer) -> None:
        try:
            await stop_reading(peer)
        finally:
            ended.set()

    async with upstream_of(script, idle_s=0.05) as (_, upstream):
        with pytest.raises(UpstreamTimeout):
            await fetch(upstream, call("POST", endless()))
        await ended.wait()


async def test_cancelling_an_upload_that_the_api_does_not_read_closes_its_connection() -> None:
    """Data that can't be sent does not keep the connection open."""
    ended = asyncio.Event()

    async def script(peer: Peer) -> None:
        try:
            await stop_reading(peer)
        finally:
            ended.set()

    async with upstream_of(script) as (origin, upstream):
        task = asyncio.create_task(upstream.send(call("POST", endless()), TOKEN))
        await until(lambda: origin.requests)
        [connection] = upstream.pool._all
        await until(lambda: connection.writing_paused)
        task.cancel()
        await ended.wait()


async def test_an_api_that_stops_reading_after_its_response_has_started_is_an_error() -> None:
    """The response is reported as incomplete."""

    async def script(peer: Peer) -> None:
        await peer.take_head()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport can read
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n")
        while True:
            await peer.send(b"x")
            await asyncio.sleep(0.001)

    async with upstream_of(script, idle_s=0.05) as (_, upstream):
        with pytest.raises(UpstreamProtocol):
            await fetch(upstream, call("POST", endless()))


async def test_after_an_error_status_no_more_of_the_body_is_read() -> None:
    """The rest of the upload stays unread, even while the response is still arriving."""
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
            response = await upstream.send(call("POST", body), TOKEN)
            seen = pieces
            assert await response.body.read() == b"half"
            assert await until_still(lambda: pieces) == seen
            await response.aclose()


@pytest.mark.parametrize(
    "head", [b"Content-Length: 9\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n9\r\n", b"\r\n"]
)
async def test_a_response_that_is_reset_is_an_error(head: bytes) -> None:
    """However its body is delimited."""

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(b"HTTP/1.1 200 OK\r\n", head, b"half")
        await read.wait()
        peer.abort()

    read = asyncio.Event()
    async with upstream_of(script) as (_, upstream):
        response = await upstream.send(call(), TOKEN)
        assert await response.body.read() == b"half"
        read.set()
        with pytest.raises(UpstreamProtocol):
            await response.body.read()
        await response.aclose()


@pytest.mark.parametrize("head", [b"Content-Length: 9\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n4\r\n"])
async def test_a_truncated_or_malformed_response_is_an_error(head: bytes) -> None:
    """An orderly close before the end of the body, or garbage between chunks."""
    for end in (b"", b"rubbish") if b"chunked" in head else (b"",):

        async def script(peer: Peer, end: bytes = end) -> None:
            await peer.take()
            await peer.send(b"HTTP/1.1 200 OK\r\n", head, b"half", end)

        async with upstream_of(script) as (_, upstream):
            with pytest.raises(UpstreamProtocol):
                await fetch(upstream)


async def test_a_stalled_response_is_a_timeout() -> None:
    """`timeouts.idle` limits each wait within a response."""

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await peer.ended()

    async with upstream_of(script, idle_s=0.05) as (_, upstream):
        with pytest.raises(UpstreamTimeout):
            await fetch(upstream)


async def test_a_response_delimited_by_the_end_of_the_connection_is_complete() -> None:
    """Without length and chunks, the close is the end (RFC 9112 §6.3)."""
    closing = b"HTTP/1.1 200 OK\r\n\r\nall of it"

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(closing)

    async with upstream_of(script) as (_, upstream):
        assert await fetch(upstream) == b"all of it"
