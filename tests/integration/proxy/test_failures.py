"""Failures of the API: the client gets a problem document, or after the first byte a cut connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Any

import pytest
import trustme

from cfproxy.errors import UpstreamTimeout
from cfproxy.http1.stream import BodyStream
from cfproxy.proxy import exchange
from tests.integration.proxy.test_proxy import problem
from tests.support.origin import OK, Peer, Script, answering, chunked, reply, serving, until
from tests.support.proxied import proxied


def closing(*answers: bytes, reset: bool = False) -> Script:
    """Answer one request per connection with the next bytes, then close."""
    left = list(answers)

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(left.pop(0) if len(left) > 1 else left[0])
        if reset:
            peer.abort()

    return script


async def stalling(peer: Peer) -> None:
    await peer.take()
    await peer.ended()


# --- before the first byte ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (closing(b""), (502, "upstream-unreachable")),
        (closing(b"", reset=True), (502, "upstream-unreachable")),
        (closing(b"SSH-2.0-OpenSSH_9.9\r\n"), (502, "upstream-protocol")),
        (
            closing(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
            (502, "upstream-protocol"),
        ),
        (
            closing(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"),
            (502, "upstream-protocol"),
        ),
        (stalling, (504, "upstream-timeout")),
    ],
    ids=["closed", "reset", "garbage", "two lengths", "switched", "stalled"],
)
@pytest.mark.parametrize("line", [b"GET / HTTP/1.1", b"POST / HTTP/1.1"])
async def test_a_failed_request_gets_its_problem_and_the_connection_stays_open(
    script: Script, expected: tuple[int, str], line: bytes
) -> None:
    """Each failure has its own slug and status, in the response and in the log."""
    async with proxied(script, idle_s=0.1) as world:
        client = await world.client()
        body = b"ab" if line.startswith(b"POST") else b""
        for _ in range(2):
            answer = await client.ask(line, b"Content-Length: %d" % len(body), body=body)
            assert problem(answer) == expected
        assert len(world.origin.requests) == 2
        assert [(event["event"], event["problem"]) for event in world.events] == [
            ("request.failed", expected[1])
        ] * 2
        assert {status for _, status in world.counted} == {expected[0]}


async def test_refused_connections_and_unknown_names_are_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both get the same slug."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        async with proxied(answering(OK), upstream_url=f"http://127.0.0.1:{free.getsockname()[1]}") as world:
            assert problem(await world.ask(b"GET / HTTP/1.1")) == (502, "upstream-unreachable")

    async def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with proxied(answering(OK), upstream_url="http://gateway.invalid") as world:
        client = await world.client()
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
        answer = await client.ask(b"POST / HTTP/1.1", b"Content-Length: 2", body=b"ab")
        assert problem(answer) == (502, "upstream-unreachable")


async def test_an_untrusted_certificate_is_upstream_tls() -> None:
    """The request ends before the token is sent."""
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(server_side)
    async with serving(answering(OK), server_side) as secured:
        async with proxied(answering(OK), upstream_url=secured.url) as world:
            assert problem(await world.ask(b"GET / HTTP/1.1")) == (502, "upstream-tls")
        assert secured.requests == []


async def test_a_stale_connection_costs_a_get_nothing_and_a_post_a_502() -> None:
    """Idempotent requests are repeated, others are left to the client (RFC 9110 §9.2.2)."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.take()
            if request.target == b"/stale" and len(world.origin.requests) % 2 == 0:
                return
            await peer.send(OK)

    async with proxied(script) as world:
        assert (await world.ask(b"GET / HTTP/1.1")).body == b"ok"
        assert (await world.ask(b"GET /stale HTTP/1.1")).body == b"ok"
        assert len(world.origin.requests) == 3
        stale_post = await world.ask(b"POST /stale HTTP/1.1", b"Content-Length: 2", body=b"ab")
        assert problem(stale_post) == (502, "upstream-unreachable")
        assert len(world.origin.requests) == 4
        assert len(world.pacer.journal) == 3


async def test_broken_chunks_of_a_client_get_400_and_the_api_no_complete_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the API got of the body is visibly incomplete."""

    async def script(peer: Peer) -> None:
        request = await peer.take_head()
        await peer.read_body(request)

    async with proxied(script) as world:
        client = await world.client()
        await client.send(
            client.compose(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"2\r\nab\r\n")
        )
        await until(lambda: world.origin.requests)
        await client.send(b"rubbish\r\n")
        answer = await client.read_answer()
        assert problem(answer) == (400, "bad-target")
        assert answer.all(b"Connection") == [b"close"]
        assert await client.ended()
        await until(lambda: not world.origin.requests[0].complete)
        assert world.events[-1]["event"] == "request.refused"
    assert caplog.records == []


# --- after the first byte -----------------------------------------------------------------


@pytest.mark.parametrize(
    "begin",
    [
        b"Content-Length: 9\r\n\r\nhalf",
        b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"half")[:-5],
    ],
    ids=["length", "chunks"],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_response_that_breaks_off_is_visibly_incomplete(begin: bytes, version: bytes) -> None:
    """The client gets too few bytes, no last chunk, or a reset."""
    for reset in (False, True):
        async with proxied(closing(b"HTTP/1.1 200 OK\r\n" + begin, reset=reset)) as world:
            client = await world.client()
            await client.send(b"GET / HTTP/%s\r\nHost: %s\r\n\r\n" % (version, client.host))
            try:
                answer = await client.read_answer()
            except (EOFError, ConnectionError):
                continue  # cut so early that not even the head came
            assert not answer.complete
            assert b"problem" not in answer.body
            assert await client.ended()
    assert world.events[-1]["event"] == "request.failed"
    assert world.events[-1]["cut"] is True


async def test_garbage_between_chunks_cuts_the_response() -> None:
    """At once and visibly."""

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"half")[:-5])
        await half.wait()
        await peer.send(b"rubbish\r\n")
        await peer.ended()

    half = asyncio.Event()
    async with proxied(script) as world:
        client = await world.client()
        await client.send(client.compose(b"GET / HTTP/1.1"))
        answer = await client.read_head()
        assert await client.read_chunk() == b"half"
        half.set()
        await client.read_body(answer)
        assert not answer.complete
        await until(lambda: world.events)
        assert world.events[-1]["problem"] == "upstream-protocol"


async def test_a_close_delimited_response_that_is_reset_is_visibly_incomplete() -> None:
    """It is not relayed as a complete one."""

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await half.wait()
        peer.abort()

    for version in (b"1.1", b"1.0"):
        half = asyncio.Event()
        async with proxied(script) as world:
            client = await world.client()
            await client.send(b"GET / HTTP/%s\r\nHost: %s\r\n\r\n" % (version, client.host))
            answer = await client.read_head()
            half.set()
            await client.read_body(answer, until_end=True)
            assert not answer.complete


async def test_a_stall_after_the_first_byte_is_cut() -> None:
    """The client need not wait for an API that falls silent."""

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await peer.ended()

    async with proxied(script, idle_s=0.1) as world:
        answer = await world.ask(b"GET / HTTP/1.1")
        assert (answer.status, answer.complete) == (200, False)
        await until(lambda: world.events)
        assert world.events[-1]["problem"] == "upstream-timeout"


async def test_a_bug_after_the_first_byte_cuts_the_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is logged, and nothing else is sent."""

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nhalf")
        await peer.ended()

    async def faulty(_: BodyStream) -> bytes:
        raise RuntimeError("a bug")

    monkeypatch.setattr(BodyStream, "read", faulty)
    async with proxied(script) as world:
        client = await world.client()
        await client.send(client.compose(b"GET / HTTP/1.1"))
        try:
            seen = await client.reader.read(-1)
        except ConnectionError:
            seen = b""
        assert seen in {b"", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nhalf"}
        assert world.listener.in_flight == 0
        assert [event["event"] for event in world.events] == ["request.crashed", "request.refused"]


async def test_a_bug_before_the_first_byte_is_a_500() -> None:
    """It is logged with its traceback, which the problem document does not contain."""
    async with proxied(answering(OK)) as world:
        world.source.error = RuntimeError("a bug")
        answer = await world.ask(b"GET / HTTP/1.1")
        assert problem(answer) == (500, "misconfigured")
        assert b"a bug" not in answer.body
        assert world.events[0]["event"] == "request.crashed"
        assert isinstance(world.events[0]["exc_info"], RuntimeError)


@pytest.mark.parametrize("part", ["build_response_headers", "forwardable_trailers"])
async def test_a_bug_while_relaying_without_a_task_is_reported(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first byte as a 500, after it by cutting the response; both are logged."""

    def broken(*_args: object, **_options: object) -> None:
        raise RuntimeError("a bug")

    fields = (b"Transfer-Encoding: chunked",)
    whole = b"HTTP/1.1 200 OK\r\n" + fields[0] + b"\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\n\r\n"

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(whole)

    async with proxied(script, warm=True) as world:
        monkeypatch.setattr(exchange, part, broken)
        client = await world.client()
        await client.send(client.compose(b"GET / HTTP/1.1"))
        if part == "build_response_headers":
            assert problem(await client.read_answer(b"GET")) == (500, "misconfigured")
        else:
            assert not (await client.reader.read()).endswith(b"0\r\n\r\n")
        await until(lambda: len(world.events) > 1)
        assert world.events[0]["event"] == "request.crashed"
        assert not world.listener.in_flight


async def test_a_client_that_reads_nothing_is_disconnected() -> None:
    """After `timeouts.idle`, so that it does not occupy an API connection for ever."""

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n")
        while True:
            await peer.send(b"x" * 65536)

    async with proxied(script, idle_s=0.1) as world:
        client = await world.client(receive_bytes=4096)
        await client.send(client.compose(b"GET / HTTP/1.1"))
        await until(lambda: world.events)
        assert world.events[-1]["event"] == "request.abandoned"


def test_a_hung_api_is_a_504() -> None:
    """That status means that the API was silent (RFC 9110 §15.6.5)."""
    assert UpstreamTimeout.status == 504
    assert reply("504 X").startswith(b"HTTP/1.1 504")


async def test_a_client_that_stalls_its_upload_is_disconnected() -> None:
    """`timeouts.idle` applies to both directions."""

    async def script(peer: Peer) -> None:
        await peer.take_head()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await peer.reader.readexactly(9)

    async with proxied(script, idle_s=0.1) as world:
        client = await world.client()
        await client.send(client.compose(b"POST / HTTP/1.1", b"Content-Length: 9", body=b"half"))
        assert problem(await client.read_answer(b"POST")) == (400, "bad-target")
        assert await client.ended()


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (b"/v1/jobs?token=secret", "/v1/jobs"),
        (b"/v1/jobs#token=secret", "/v1/jobs"),
        (b"/v1/jobs#a?token=secret", "/v1/jobs"),
        (b"http://user:secret@api.example/v1", "-"),
        (b"user:secret@api.example:443", "-"),
        (b"secret", "-"),
    ],
)
async def test_only_paths_are_logged(target: bytes, shown: str) -> None:
    """Queries, fragments and whole URLs, which may contain passwords, are not."""
    async with proxied(answering(OK)) as world:
        await world.ask(b"GET %s HTTP/1.1" % target)
        await until(lambda: world.events)
        assert world.events[-1]["path"] == shown
        assert "secret" not in repr(world.events)
