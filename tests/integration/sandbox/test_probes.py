"""Endpoints for developers: inspect requests, and get responses of every kind."""

from __future__ import annotations

import asyncio
import hashlib
import tracemalloc
from collections.abc import AsyncIterator

import aiohttp
import pytest

from cfproxy.sandbox.probes import build_block
from tests.integration.sandbox.world import World


@pytest.mark.parametrize(
    "target",
    [
        "/v1/_echo",
        "/v1/_echo/",
        "/v1/_echo?a=%20&a=+&b",
        "/v1/_echo/a%2Fb//c/../d/%2e%2e/%0A",
        "/v1/_echo/%zz?x=%C3%28;y=[1]",
    ],
)
async def test_the_echo_shows_the_target_unchanged(world: World, target: str) -> None:
    """Nothing is decoded, normalised or reordered."""
    assert (await world.get(target))["target"] == target


async def test_the_echo_accepts_the_absolute_form(world: World) -> None:
    """A target that is a whole URL is answered, and shown unchanged (RFC 9112 §3.2.2)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(world.sandbox.url.rpartition(":")[2]))
    token = world.bearer()["Authorization"]
    head = (
        "GET http://other/v1/_echo HTTP/1.1",
        "Host: other",
        f"Authorization: {token}",
        "Connection: close",
    )
    writer.write("\r\n".join((*head, "", "")).encode())
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"target": "http://other/v1/_echo"' in answer


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"])
async def test_the_echo_accepts_every_method_and_hashes_the_body(world: World, method: str) -> None:
    """It returns the method, and the size and SHA-256 of the body."""
    async with world.call(method, "/v1/_echo", data=b"body") as response:
        seen = await response.json()
    assert (seen["method"], seen["bodyLength"]) == (method, 4)
    assert seen["bodySha256"] == hashlib.sha256(b"body").hexdigest()


async def test_the_echo_shows_headers_in_order_but_no_token(world: World) -> None:
    """Header names and values are unchanged, except that credentials are replaced by a fingerprint."""
    token = world.sandbox.issue_login()["access_token"]
    headers = [("Authorization", f"Bearer {token}"), ("X-Twice", "1"), ("X-Twice", "2"), ("x-odd", "é")]
    async with world.call("GET", "/v1/_echo", headers=headers) as response:
        text = await response.text()
        seen = (await response.json())["headers"]
    assert token not in text
    fingerprint = hashlib.sha256(token.encode()).hexdigest()[:16]
    assert ["Authorization", f"Bearer [masked sha256:{fingerprint}]"] in seen
    assert [pair for pair in seen if pair[0].startswith(("X-", "x-"))] == [
        ["X-Twice", "1"],
        ["X-Twice", "2"],
        ["x-odd", "é"],
    ]


async def test_an_upload_is_not_buffered(world: World) -> None:
    """64 MiB are hashed while they stream."""
    block = bytes(65536)

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(1024):
            yield block

    tracemalloc.start()
    try:
        async with world.call("POST", "/v1/_echo", data=blocks()) as response:
            seen = await response.json()
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen["bodyLength"] == 64 * 1024**2
    assert peak_bytes < 8 * 1024**2


@pytest.mark.parametrize("size_bytes", [0, 1, 65536, 200_001])
@pytest.mark.parametrize("chunked", ["0", "1"])
async def test_bytes_have_the_requested_length(world: World, size_bytes: int, chunked: str) -> None:
    """The body repeats the bytes 0 to 255, with a length or, on request, chunked."""
    async with world.call("GET", f"/v1/_bytes/{size_bytes}?chunked={chunked}") as response:
        body = await response.read()
        assert (response.content_length is None) is (chunked == "1")
    assert body == (bytes(range(256)) * (size_bytes // 256 + 1))[:size_bytes]
    assert body == b"".join(
        build_block(at, min(65536, size_bytes - at)) for at in range(0, size_bytes, 65536)
    )


@pytest.mark.parametrize("chunked", ["0", "1"])
async def test_a_body_can_be_cut(world: World, chunked: str) -> None:
    """With `cut` the connection is dropped in the middle of the body, and the client can tell."""
    async with world.call("GET", f"/v1/_bytes/100000?cut=70000&chunked={chunked}") as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


@pytest.mark.parametrize(
    "target",
    ["/v1/_bytes/99999999999", "/v1/_bytes/5?cut=x", "/v1/_sse?events=-1", "/v1/_sse?interval_s=nan"],
)
async def test_a_number_out_of_range_is_refused(world: World, target: str) -> None:
    """Counts and intervals are finite and not negative."""
    assert await world.status("GET", target) == 400


async def test_events_are_streamed(world: World) -> None:
    """Server-sent events arrive one by one."""
    async with world.call("GET", "/v1/_sse?events=3&interval_s=0") as response:
        assert response.content_type == "text/event-stream"
        text = await response.text()
    assert text == "".join(f'id: {number}\ndata: {{"number": {number}}}\n\n' for number in (1, 2, 3))


async def test_an_event_arrives_before_the_next_one_is_due(world: World) -> None:
    """A client reads the first event while the stream stays open."""
    async with world.call("GET", "/v1/_sse?events=2&interval_s=3600") as response:
        assert await response.content.readuntil(b"\n\n") == b'id: 1\ndata: {"number": 1}\n\n'
        assert not response.content.at_eof()


@pytest.mark.parametrize("code", [200, 204, 302, 304, 401, 429, 503])
async def test_any_status_can_be_requested(world: World, code: int) -> None:
    """The number in the path is the response's status."""
    async with world.call("PUT", f"/v1/_status/{code}", data=b"body") as response:
        assert response.status == code
        assert await response.text() == ("" if code in (204, 304) else f"{code}\n")


async def test_an_invalid_status_is_404(world: World) -> None:
    """Only 200 to 599 can be requested."""
    assert [await world.status("GET", f"/v1/_status/{code}") for code in ("100", "600", "2000")] == [404] * 3


@pytest.mark.parametrize("path", ["_echo", "_bytes/1", "_sse", "_status/200"])
async def test_the_probes_need_a_token_too(world: World, path: str) -> None:
    """They need a token like the rest of the API."""
    assert await world.status("GET", f"/v1/{path}", headers={}) == 401
