"""What is forwarded and what is refused, on real sockets and byte by byte."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import gc
import gzip
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfproxy.http1.headers import normalise
from cfproxy.proxy.access import AccessRules
from cfproxy.proxy.account_server import AccountServer
from cfproxy.proxy.admission import USER_AGENTS_MAX
from cfproxy.proxy.exchange import Exchange
from cfproxy.secret import Secret
from tests.support.examples import examples
from tests.support.origin import OK, Message, Peer, answering, chunked, reply, until
from tests.support.proxied import Proxied, proxied


def problem(message: Message) -> tuple[int, str]:
    """Return status and slug of a problem document."""
    assert message.all(b"Content-Type") == [b"application/problem+json"]
    document: dict[str, Any] = json.loads(message.body)
    assert document["status"] == message.status
    assert message.all(b"Proxy-Status")[0].startswith(b"cfproxy; error=")
    return message.status, document["type"].removeprefix("urn:cfproxy:problem:")


# --- requests -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"//evil.example/p",
        b"/a%2Fb%zz/%0a",
        b"/a//b/../c/.",
        b"/?",
        b"/a?b=%20&c+d?e=/../",
        b'/[]|<>"{}^`:80@;',
    ],
)
async def test_targets_arrive_unchanged_at_the_configured_host(target: bytes) -> None:
    """No path is normalised, and none selects the host."""
    async with proxied(answering(OK)) as world:
        answer = await world.ask(b"GET %s HTTP/1.1" % target)
        assert (answer.status, answer.body) == (200, b"ok")
        [request] = world.origin.requests
        assert request.start == b"GET %s HTTP/1.1" % target
        assert request.all(b"Host") == [world.origin.host.encode()]


async def test_request_headers_arrive_unchanged() -> None:
    """In order, with case, duplicates and high bytes, followed by Via and the token; nothing is added."""
    headers = [
        b"x-B: 1",
        b"ACCEPT: */*",
        b"X-Bytes: gr\xc3\xbc\xff\x80",
        b"x-b: 2",
        b"Cookie: a=1",
        b"X-Empty:",
    ]
    async with proxied(answering(OK)) as world:
        await world.ask(b"GET / HTTP/1.1", *headers)
        [request] = world.origin.requests
        assert request.headers == [
            (b"Host", world.origin.host.encode()),
            *[(name, value.strip()) for name, _, value in (header.partition(b":") for header in headers)],
            (b"Via", b"1.1 cfproxy-test"),
            (b"Authorization", b"Bearer token-1"),
        ]


async def test_hop_by_hop_and_reserved_headers_are_dropped() -> None:
    """So are Connection-listed and forwarding headers, underscore twins and credentials."""
    async with proxied(answering(OK)) as world:
        await world.ask(
            b"GET / HTTP/1.1",
            b"Connection: keep-alive, X-Mine, Authorization, TE",
            b"Keep-Alive: timeout=5",
            b"TE: trailers",
            b"Trailer: X-Sum",
            b"Proxy-Authorization: Basic x",
            b"X-Mine: 1",
            b"Authorization: Bearer client",
            b"AUTHORIZATION: Basic client",
            b"X-Forwarded-For: 1.2.3.4",
            b"X_Forwarded_Host: evil",
            b"Forwarded: for=1.2.3.4",
            b"X-Real-IP: 1.2.3.4",
            b"X_Cfproxy_Key: s",
            b"X-Cfproxy-Key: s",
            b"X-Kept: 1",
        )
        [request] = world.origin.requests
        assert request.names == [b"Host", b"X-Kept", b"Via", b"Authorization"]
        assert request.all(b"Authorization") == [b"Bearer token-1"]


async def test_a_body_with_a_length_arrives_with_that_length() -> None:
    """Compressed bodies stay compressed."""
    packed = gzip.compress(b"hello" * 100)
    async with proxied(answering(OK)) as world:
        client = await world.client()
        await client.ask(
            b"POST / HTTP/1.1", b"Content-Encoding: gzip", b"content-length: %d" % len(packed), body=packed
        )
        await client.ask(b"POST / HTTP/1.1", b"Content-Length: 0")
        await client.ask(b"POST / HTTP/1.1")
        with_body, empty, without = world.origin.requests
        assert (with_body.body, with_body.all(b"Content-Length")) == (packed, [b"%d" % len(packed)])
        assert with_body.all(b"Transfer-Encoding") == []
        assert empty.all(b"Content-Length") == [b"0"]
        assert without.all(b"Content-Length") == without.all(b"Transfer-Encoding") == []


async def test_a_chunked_body_arrives_chunked() -> None:
    """A body of unknown length is chunked on both sides."""
    async with proxied(answering(OK)) as world:
        await world.ask(
            b"PUT / HTTP/1.1", b"Transfer-Encoding: chunked", body=chunked(b"ab", b"c" * 70_000, b"d")
        )
        [request] = world.origin.requests
        assert request.body == b"ab" + b"c" * 70_000 + b"d"
        assert request.all(b"Transfer-Encoding") == [b"chunked"]
        assert request.all(b"Content-Length") == []


# --- responses ----------------------------------------------------------------------------


async def test_responses_arrive_unchanged() -> None:
    """Reason, header order, case, duplicates and bytes are the API's; no Date, Server or type is added."""
    packed = gzip.compress(b"hello" * 100)
    raw = b"HTTP/1.1 299 Sch\xc3\xb6n \xff\r\nx-A: 1\r\nX-a: \xe4\r\nContent-Encoding: gzip\r\nX-A: 1\r\n"
    raw += b"content-LENGTH: %d\r\n\r\n%s" % (len(packed), packed)
    async with proxied(answering(raw)) as world:
        client = await world.client()
        await client.send(client.compose(b"GET / HTTP/1.1"))
        assert await client.reader.readexactly(len(raw)) == raw


@pytest.mark.parametrize(
    "status", ["400 Bad Request", "401 No", "403 Forbidden", "404 Not Found", "429 Slow", "503 Ill"]
)
async def test_error_responses_of_the_api_pass_unchanged(status: str) -> None:
    """They are never replaced, so `Proxy-Status` marks only our own."""
    raw = reply(status, b"{}", b"Retry-After: 7", b"WWW-Authenticate: Bearer error=x")
    async with proxied(answering(raw), retry=False) as world:
        client = await world.client()
        await client.send(client.compose(b"GET / HTTP/1.1"))
        assert await client.reader.readexactly(len(raw)) == raw


async def test_hop_by_hop_headers_of_a_response_are_dropped() -> None:
    """Those that its Connection lists too."""
    raw = reply(
        "200 OK", b"ok", b"Connection: keep-alive, X-Mine", b"Keep-Alive: timeout=5", b"X-Mine: 1",
        b"Proxy-Authenticate: Basic", b"Upgrade: h2c", b"X-Kept: 1",
    )  # fmt: skip
    async with proxied(answering(raw)) as world:
        answer = await world.ask(b"GET / HTTP/1.1")
        assert answer.headers == [(b"X-Kept", b"1"), (b"Content-Length", b"2")]


async def test_responses_without_a_body_have_none() -> None:
    """HEAD, 204 and 304 keep their headers, and the connection stays open."""
    async with proxied(
        answering(
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 1000\r\n\r\n",
            OK,
        )
    ) as world:
        client = await world.client()
        assert (await client.ask(b"HEAD / HTTP/1.1")).headers == [(b"Content-Length", b"1000")]
        assert (await client.ask(b"HEAD / HTTP/1.1")).headers == []
        assert (await client.ask(b"GET / HTTP/1.1")).headers == [(b"X", b"1")]
        assert (await client.ask(b"GET / HTTP/1.1")).headers == [
            (b"ETag", b"x"),
            (b"Content-Length", b"1000"),
        ]
        assert (await client.ask(b"GET / HTTP/1.1")).body == b"ok"
        assert world.origin.connections == 1


async def test_responses_without_a_length_are_chunked_for_the_client() -> None:
    """Chunked and close-delimited responses reach an HTTP/1.1 client in chunks."""

    async def script(peer: Peer) -> None:
        request = await peer.take()
        if request.target == b"/chunked":
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunked(b"ab", b"cd"))
        else:
            await peer.send(b"HTTP/1.0 200 OK\r\n\r\nabcd")

    async with proxied(script) as world:
        client = await world.client()
        for target in (b"/chunked", b"/closing"):
            answer = await client.ask(b"GET %s HTTP/1.1" % target)
            assert (answer.complete, answer.body) == (True, b"abcd")
            assert answer.headers == [(b"Transfer-Encoding", b"chunked")]


async def test_an_http_1_0_client_gets_no_chunks() -> None:
    """A body of unknown length ends with the connection."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"ab", b"cd")
    async with proxied(answering(answer)) as world:
        client = await world.client()
        await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        got = await client.read_answer()
        assert (got.body, got.headers) == (b"abcd", [(b"Connection", b"close")])
        assert await client.ended()
        assert world.origin.requests[0].start == b"GET / HTTP/1.1"


async def test_an_http_1_0_client_keeps_its_connection_when_it_asks_to() -> None:
    """With `Connection: keep-alive` and a known length, the connection stays open."""
    async with proxied(answering(OK)) as world:
        client = await world.client()
        for _ in range(2):
            await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            answer = await client.read_answer()
            assert (answer.body, answer.all(b"Connection")) == (b"ok", [b"keep-alive"])
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await client.read_answer()).all(b"Connection") == [b"close"]
        assert await client.ended()


async def test_unknown_methods_pass() -> None:
    """Every method is the API's business."""
    async with proxied(answering(OK)) as world:
        for method in (b"FOO", b"PROPFIND", b"M-SEARCH", b"X!Y"):
            assert (await world.ask(method + b" / HTTP/1.1")).status == 200
        assert [request.method for request in world.origin.requests] == [
            b"FOO",
            b"PROPFIND",
            b"M-SEARCH",
            b"X!Y",
        ]


async def test_redirects_are_not_followed_but_lead_back_to_the_proxy() -> None:
    """The client decides whether to follow; a Location on the API's origin becomes a path."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.take()
            here = b"http://%s/v2" % request.all(b"Host")[0]
            await peer.send(
                reply("307 T", b"", b"Location: " + (here if request.target == b"/in" else b"https://e/"))
            )

    async with proxied(script) as world:
        client = await world.client()
        inside = await client.ask(b"GET /in HTTP/1.1")
        assert (inside.status, inside.all(b"Location")) == (307, [b"/v2"])
        assert (await client.ask(b"GET /out HTTP/1.1")).all(b"Location") == [b"https://e/"]
        old = await world.client()
        await old.send(b"GET /in HTTP/1.0\r\n\r\n")
        assert (await old.read_answer()).all(b"Location") == [b"/v2"]
        assert len(world.origin.requests) == 3


async def test_only_the_client_stores_cookies() -> None:
    """A cookie loses the API's domain, and no caller gets another one's cookie."""
    set_cookie = reply("200 OK", b"", b"Set-Cookie: a=1; Domain=gateway.example; Path=/", b"Set-Cookie: b=2")
    async with proxied(answering(set_cookie)) as world:
        first = await world.ask(b"GET / HTTP/1.1")
        assert first.all(b"Set-Cookie") == [b"a=1; Path=/", b"b=2"]
        await world.ask(b"GET / HTTP/1.1")
        assert world.origin.requests[1].all(b"Cookie") == []


# --- connections --------------------------------------------------------------------------


async def test_connections_are_kept_alive() -> None:
    """On both sides; `Connection: close` closes the client's side only."""
    async with proxied(answering(OK)) as world:
        client = await world.client()
        for _ in range(3):
            assert (await client.ask(b"GET / HTTP/1.1")).headers == [(b"Content-Length", b"2")]
        last = await client.ask(b"GET / HTTP/1.1", b"Connection: close")
        assert last.all(b"Connection") == [b"close"]
        assert await client.ended()
        assert world.origin.connections == 1


async def test_pipelined_requests_are_answered_in_order() -> None:
    """Their bodies are kept apart."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.take()
            await peer.send(reply("200 OK", request.target + request.body))

    async with proxied(script) as world:
        client = await world.client()
        await client.send(
            *[
                client.compose(b"POST /%d HTTP/1.1" % n, b"Content-Length: 2", body=b"%02d" % n)
                for n in range(30)
            ]
        )
        assert [(await client.read_answer()).body for _ in range(30)] == [
            b"/%d%02d" % (n, n) for n in range(30)
        ]


# --- refusals -----------------------------------------------------------------------------


async def raw_problem(world: Proxied, request: bytes) -> tuple[int, str]:
    client = await world.client()
    await client.send(request.replace(b"HOST", client.host))
    answer = problem(await client.read_answer())
    assert world.origin.requests == []
    return answer


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"GET https://HOST/v1 HTTP/1.1\r\nHost: HOST\r\n\r\n", (421, "host-not-allowed")),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: HOST\r\n\r\n", (421, "host-not-allowed")),
        (b"GET evil.example:443 HTTP/1.1\r\nHost: HOST\r\n\r\n", (400, "bad-target")),
        (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: HOST\r\n\r\n", (501, "upgrade-not-supported")),
        (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n", (421, "host-not-allowed")),
        (b"OPTIONS * HTTP/1.1\r\nHost: HOST\r\n\r\n", (400, "bad-target")),
        (b"GET /a#b HTTP/1.1\r\nHost: HOST\r\n\r\n", (400, "bad-target")),
        (b"GET / HTTP/1.1\r\n\r\n", (400, "bad-target")),
        (b"GET / HTTP/1.1\r\nHost: HOST\r\nHost: HOST\r\n\r\n", (400, "bad-target")),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", (421, "host-not-allowed")),
        (b"GET / HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n", (421, "host-not-allowed")),
        (b"GET / HTTP/1.1\r\nHost: HOST\r\nX: a\x00b\r\n\r\n", (400, "bad-target")),
        (b"GET / HTTP/1.1\r\nHost: HOST\r\nX: a\x01b\r\n\r\n", (400, "bad-target")),
        (b"GET / HTTP/1.1\r\nHost: HOST\r\nX: a\rb: c\r\n\r\n", (400, "bad-target")),
        (b"GET / HTTP/1.1\r\nHost: HOST\r\nX : y\r\n\r\n", (400, "bad-target")),
        (b"GET / HTTP/1.1\r\nHost: HOST\r\n folded: y\r\n\r\n", (400, "bad-target")),
        (b"GET / HTTP/1.1\r\nHost: HOST\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", (400, "bad-target")),
        (b"GET / HTTP/3.7\r\nHost: HOST\r\n\r\n", (400, "bad-target")),
        (b"F(O / HTTP/1.1\r\nHost: HOST\r\n\r\n", (400, "bad-target")),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", (400, "bad-target")),
        (
            b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            (400, "bad-target"),
        ),
        (b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: +1\r\n\r\na", (400, "bad-target")),
        (
            b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
            (400, "bad-target"),
        ),
        (
            b"POST / HTTP/1.1\r\nHost: HOST\r\nContent-Length: 5\r\nTransfer-Encoding:\r\n\r\n12345",
            (400, "bad-target"),
        ),
        (
            b"POST / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            (400, "bad-target"),
        ),
        (b"POST / HTTP/1.1\r\nHost: HOST\r\nContent_Length: 5\r\n\r\n", (400, "bad-target")),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (400, "bad-target")),
        (
            b"GET / HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            (501, "upgrade-not-supported"),
        ),
        (b"GET / HTTP/1.1\r\nHost: HOST\r\nVia: 1.1 cfproxy-test\r\n\r\n", (508, "loop")),
        (b"TRACE / HTTP/1.1\r\nHost: HOST\r\n\r\n", (403, "not-allowed")),
        (b"GET / HTTP/1.1\r\nHost: HOST\r\nOrigin: https://evil.example\r\n\r\n", (403, "cross-site")),
        (b"GET / HTTP/1.1\r\nHost: HOST\r\nSec-Fetch-Site: cross-site\r\n\r\n", (403, "cross-site")),
    ],
    ids=range(32),
)
async def test_refusals_are_problem_documents(
    request_bytes: bytes, expected: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Each has its status and slug, needs neither token nor API, and logs no traceback."""
    async with proxied(answering(OK)) as world:
        assert await raw_problem(world, request_bytes) == expected
        assert world.source.journal == world.pacer.journal == []
    assert caplog.records == []


async def test_a_request_after_a_refusal_is_served_where_that_is_safe() -> None:
    """A refused method leaves the connection usable, an ambiguous request closes it."""
    async with proxied(answering(OK)) as world:
        client = await world.client()
        assert problem(await client.ask(b"TRACE / HTTP/1.1")) == (403, "not-allowed")
        assert (await client.ask(b"GET / HTTP/1.1")).body == b"ok"
        bad = await client.ask(b"GET /x#y HTTP/1.1")
        assert (problem(bad), bad.all(b"Connection")) == ((400, "bad-target"), [b"close"])
        assert await client.ended()
        other = await world.client()
        upgrade = await other.ask(b"GET / HTTP/1.1", b"Connection: upgrade", b"Upgrade: websocket")
        assert problem(upgrade) == (501, "upgrade-not-supported")
        assert await other.ended()


async def test_access_rules_are_enforced() -> None:
    """Key, method and path rules each refuse with their slug, and the key is not forwarded."""
    rules = AccessRules(keys=(Secret("k"),), methods=("GET",), paths=("/v1/**",))
    async with proxied(answering(OK), rules=rules) as world:
        no_key = await world.ask(b"GET /v1/x HTTP/1.1")
        assert problem(no_key) == (401, "key-required")
        assert no_key.all(b"WWW-Authenticate")
        key = b"X-Cfproxy-Key: k"
        assert problem(await world.ask(b"POST /v1/x HTTP/1.1", key)) == (403, "not-allowed")
        assert problem(await world.ask(b"GET /v2/x HTTP/1.1", key)) == (403, "not-allowed")
        assert problem(await world.ask(b"GET /v1/../x HTTP/1.1", key)) == (400, "bad-target")
        for given_key in (key, b"Authorization: Bearer k", b"Authorization: Basic eDpr"):
            assert (await world.ask(b"GET /v1/x HTTP/1.1", given_key)).body == b"ok"
        for request in world.origin.requests:
            assert request.names == [b"Host", b"Via", b"Authorization"]
            assert request.all(b"Authorization") == [b"Bearer token-1"]


async def test_an_access_key_is_never_forwarded_whatever_its_header_is_called() -> None:
    """A misspelt name must not hand the key to the API, be it alone or behind a scheme word."""
    key, other = b"a-key-of-this-listener", b"a-key-of-another-account"
    rules = AccessRules(keys=(Secret(key.decode()),))
    async with proxied(answering(OK), rules=rules) as world:
        settings = dataclasses.replace(
            world.listener.settings, rules=AccessRules(keys=(Secret(other.decode()),))
        )
        world.listener._others = {
            "other": AccountServer(settings, world.listener.forwarder, world.listener.log)
        }
        answer = await world.ask(
            b"GET /a HTTP/1.1",
            b"X-Cfproxy-Key: " + key,
            b"uthorization: bearer " + key,
            b"X-Api-Key: " + key,
            b"X_Auth: Token\t" + key,
            b"X-Basic: BASIC " + base64.b64encode(b"anyone:" + key),
            b"Via: " + key,
            b"Cookie: " + key,
            b"X-Other: Bearer " + other,
            b"X-Longer: " + key + b"s",
            b"X-No-Base64: Basic ###",
        )
        assert answer.status == 200
        [request] = world.origin.requests
        assert request.names == [b"Host", b"X-Longer", b"X-No-Base64", b"Via", b"Authorization"]
        assert request.all(b"Via") == [b"1.1 cfproxy-test"]


async def test_a_base_path_precedes_every_target() -> None:
    """And no target leaves it."""
    async with proxied(answering(OK), base_path=b"/base") as world:
        assert (await world.ask(b"GET /v1?x HTTP/1.1")).body == b"ok"
        assert problem(await world.ask(b"GET /%2e%2e/x HTTP/1.1")) == (400, "bad-target")
        assert [request.target for request in world.origin.requests] == [b"/base/v1?x"]


# --- any request --------------------------------------------------------------------------

_NAME = st.sampled_from(
    [
        b"X-A",
        b"x_b",
        b"Connection",
        b"authorization",
        b"AUTHORIZATION",
        b"Author_ization",
        b"Via",
        b"X_Forwarded_For",
        b"Keep-Alive",
        b"proxy_authorization",
        b"X-Cfproxy-Key",
        b"Te",
        b"Forwarded",
        b"Cookie",
    ]
)
_VALUE = st.text("aX-_, ;\xe9", max_size=10).map(lambda text: text.encode("latin-1").strip())
_ANY_HEADERS = st.lists(st.tuples(_NAME, _VALUE), max_size=8)
_TARGET = st.text("a/.%2e?&=:@[]|~;,", max_size=20).map(lambda text: b"/" + text.encode())


@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(_TARGET, _ANY_HEADERS), min_size=1, max_size=10))
def test_any_request_is_sent_to_the_upstream_with_one_token(
    requests: list[tuple[bytes, list[tuple[bytes, bytes]]]],
) -> None:
    """The API sees its own Host, the client's target and one Authorization."""

    async def run() -> None:
        async with proxied(answering(OK)) as world:
            for target, headers in requests:
                lines = [name + b": " + value for name, value in headers]
                answer = await world.ask(b"GET %s HTTP/1.1" % target, *lines)
                assert answer.status == 200
                request = world.origin.requests[-1]
                assert request.start == b"GET %s HTTP/1.1" % target
                assert request.all(b"Host") == [world.origin.host.encode()]
                names = [normalise(name) for name in request.names]
                assert names.count(b"authorization") == names.count(b"host") == names.count(b"via") == 1
                assert request.headers[-1] == (b"Authorization", b"Bearer token-1")
                allowed = {b"x-a", b"x-b", b"author-ization", b"cookie", b"authorization", b"host", b"via"}
                assert allowed.issuperset(names)

    asyncio.run(run())


async def test_server_timing_shows_where_the_time_went() -> None:
    """Only with the option, since the API did not send the header."""
    async with proxied(answering(reply("200 OK", b"{}")), server_timing=True) as world:
        answer = await world.ask(b"GET / HTTP/1.1")
        (value,) = answer.all(b"Server-Timing")
        told = dict(part.split(";dur=") for part in value.decode().split(", "))
        assert list(told) == ["queue", "token", "upstream"]
        assert float(told["queue"]) == 250.0  # what the fake pacer says
        assert all(float(milliseconds) >= 0 for milliseconds in told.values())


async def test_the_flows_of_one_caller_are_limited() -> None:
    """A program that changes its User-Agent with every request can't fill the queue."""
    async with proxied(answering(OK)) as world:
        client = await world.client()
        world.pacer.at_once = False
        for number in range(3 * USER_AGENTS_MAX):
            await client.ask(b"GET / HTTP/1.1", b"User-Agent: %d" % number)
        assert USER_AGENTS_MAX / 2 < len(set(world.pacer.flows)) <= USER_AGENTS_MAX


@pytest.mark.parametrize("warm", [False, True])
async def test_a_request_leaves_nothing_for_the_garbage_collector(warm: bool) -> None:
    """A reference cycle per request would make the collector run again and again."""
    async with proxied(answering(OK), warm=warm) as world:
        client = await world.client()
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                await client.ask(b"GET / HTTP/1.1")
            await until(lambda: not world.listener.in_flight)
            assert sum(isinstance(one, Exchange) for one in gc.get_objects()) <= 1  # the latest one at most
        finally:
            gc.enable()


async def test_a_flow_is_one_program_of_one_caller() -> None:
    """Account, key or address, and User-Agent make a flow; connection, target and other headers do not."""
    rules = AccessRules(keys=(Secret("a"), Secret("b")))

    async def flow_of(world: Proxied, *headers: bytes, target: bytes = b"/") -> Any:
        await world.ask(b"GET %s HTTP/1.1" % target, *headers)
        return world.pacer.flows[-1]

    async with proxied(answering(OK), rules=rules) as world:
        world.pacer.at_once = False
        mine = await flow_of(world, b"X-Cfproxy-Key: a", b"User-Agent: x")
        assert mine == await flow_of(world, b"X-Cfproxy-Key: a", b"User-Agent: x", target=b"/v1")
        assert mine == await flow_of(
            world, b"Authorization: Bearer a", b"User-Agent: x", b"X-Forwarded-For: 1"
        )
        assert mine != await flow_of(world, b"X-Cfproxy-Key: b", b"User-Agent: x")
        assert mine[0] == "default"  # the account of the listener's settings
    async with proxied(answering(OK)) as world:
        world.pacer.at_once = False
        flows = {await flow_of(world, b"User-Agent: %d" % number) for number in range(10)}
        assert len(flows) > 1
        assert {flow[1] for flow in flows} == {"127.0.0.1"}
