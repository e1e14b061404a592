"""Httpbin responds the same behind the proxy as without it: every endpoint, header and byte."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from collections.abc import Iterator

import pytest

from tests.conformance.ends import End, Message
from tests.conformance.httpbin_calls import CALLS, Call, routes, running_httpbin
from tests.support.origin import OK, answering
from tests.support.proxied import Proxied, proxied

pytest.importorskip("httpbin", reason="httpbin is not installed (it is in the extra `test`)")

PATIENCE_S = 20.0
# Added by the proxy, and sent to httpbin directly as well, so that both echo the same.
ADDED = (b"Via: 1.1 cfproxy-test", b"Authorization: Bearer token-1")
_PER_CONNECTION = {b"connection", b"transfer-encoding"}
_NEW_EACH_TIME = {b"date", b"last-modified", b"etag", b"www-authenticate"}


@pytest.fixture(scope="module")
def httpbin_port() -> Iterator[int]:
    """The port of one httpbin for all tests."""
    with running_httpbin() as port:
        yield port


async def _asked(port: int, request: bytes) -> Message:
    """Return the response to the only request of a new connection."""
    _, end = await asyncio.get_running_loop().create_connection(lambda: End(PATIENCE_S), "127.0.0.1", port)
    try:
        end.send(request)
        message = await end.next_message(is_answer=True, to_head=request.startswith(b"HEAD "))
        await end.until(end.more, "body")
    finally:
        end.close()
    assert message.whole
    return message


def _headers(message: Message, call: Call, upstream: bytes, host: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers to compare, without those of the connection and those that change each time."""
    kept = []
    for name, value in message.headers:
        low = name.lower()
        # What a page may read is said for our address by us, for those of `access.origins`.
        if low in _PER_CONNECTION or low.startswith(b"access-control-"):
            continue
        if low == b"date" or (call.varies and low in _NEW_EACH_TIME):
            kept.append((name, b"*"))
        elif low == b"location":
            kept.append((name, value.replace(b"http://" + upstream, b"")))
        elif low == b"content-length" and call.coding:
            kept.append((name, b"%d" % len(message.body)))
        else:
            kept.append((name, value))
    return kept


def _body(message: Message, call: Call) -> bytes | int:
    """Return the body to compare."""
    body = bytes(message.body)
    if call.varies:
        return len(body)
    if call.coding == b"gzip":
        return gzip.decompress(body)
    if call.coding == b"deflate":
        return zlib.decompress(body)
    return body


async def _compare(world: Proxied, httpbin_port: int, call: Call) -> None:
    upstream, host = b"127.0.0.1:%d" % httpbin_port, b"localhost:%d" % world.port
    direct = await _asked(httpbin_port, call.request(upstream, *ADDED))
    behind = await _asked(world.port, call.request(host))
    assert behind.start == direct.start
    direct_headers, headers = (_headers(message, call, upstream, host) for message in (direct, behind))
    if call.coding:  # the time stamp in it may change its length
        assert [name for name, _ in headers] == [name for name, _ in direct_headers]
    else:
        assert headers == direct_headers
    assert _body(behind, call) == _body(direct, call)
    if not (call.varies or call.coding):
        assert direct.framing in {behind.framing, "close"}


def _calls() -> list[object]:
    calls: list[object] = []
    for route, asked in CALLS.items():
        for number, call in enumerate(asked):
            calls.append(pytest.param(call, id=f"{call.method.decode()} {route} {number}"))
            if call.method == b"GET" and not number:
                head = Call(b"HEAD", call.target, call.lines, varies=True)
                calls.append(pytest.param(head, id=f"HEAD {route}"))
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("call", _calls())
async def test_httpbin_responds_the_same_behind_the_proxy(call: Call, httpbin_port: int) -> None:
    """Status, headers in their order, and body are the same; redirects to httpbin name the proxy."""
    async with proxied(answering(OK), upstream_url=f"http://127.0.0.1:{httpbin_port}", retry=False) as world:
        await _compare(world, httpbin_port, call)


@pytest.mark.slow
async def test_all_calls_work_on_one_client_connection(httpbin_port: int) -> None:
    """One connection carries all responses in sequence, and none affects the next."""
    async with proxied(answering(OK), upstream_url=f"http://127.0.0.1:{httpbin_port}", retry=False) as world:
        host = b"localhost:%d" % world.port
        _, end = await asyncio.get_running_loop().create_connection(
            lambda: End(PATIENCE_S), "127.0.0.1", world.port
        )
        for call in [call for calls in CALLS.values() for call in calls]:
            end.send(call.request(host))
            message = await end.next_message(is_answer=True)
            await end.until(end.more, "body")
            assert message.start.startswith(b"HTTP/1.1 ")
            assert (message.whole, bytes(end.buffer)) == (True, b"")
        end.close()


async def test_the_token_and_via_are_all_that_httpbin_sees_of_the_proxy(httpbin_port: int) -> None:
    """Httpbin receives the client's headers, the upstream's host, the token and Via."""
    async with proxied(answering(OK), upstream_url=f"http://127.0.0.1:{httpbin_port}") as world:
        call = Call(
            b"GET", b"/headers?show_env=1", (b"X-A: 1", b"User-Agent: x", b"Authorization: Basic eDp5")
        )
        message = await _asked(world.port, call.request(b"localhost:%d" % world.port))
        assert json.loads(message.body)["headers"] == {
            "Host": f"127.0.0.1:{httpbin_port}",
            "X-A": "1",
            "User-Agent": "x",
            "Via": "1.1 cfproxy-test",
            "Authorization": "Bearer token-1",
        }


@pytest.mark.parametrize("call", [Call(b"GET", b"/status/401"), Call(b"GET", b"/basic-auth/u/p")])
async def test_a_401_is_the_same_after_a_refresh(call: Call, httpbin_port: int) -> None:
    """A 401 causes one refresh and one retry, whose response arrives unchanged."""
    async with proxied(answering(OK), upstream_url=f"http://127.0.0.1:{httpbin_port}") as world:
        await _compare(world, httpbin_port, call)
        asked = [entry for entry in world.source.journal if re.match("replace|distrust", entry)]
        assert asked == ["replace token-1", "distrust token-2"]


def test_every_endpoint_of_httpbin_is_called() -> None:
    """Fails when a new version of httpbin has a route without calls."""
    assert set(CALLS) == routes()
