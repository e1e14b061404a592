"""Endpoints for developers: `/v1/_echo`, `/v1/_bytes/N`, `/v1/_sse` and `/v1/_status/CODE`.

No response contains a token. Bodies stream in both directions.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re

from aiohttp import web

from cfproxy.sandbox.api import Route
from cfproxy.sandbox.assets import hash_body
from cfproxy.sandbox.problem import invalid

BYTES_MAX = 16 * 1024**3
_BLOCK = bytes(range(256)) * 256
_MASKED = (b"authorization", b"proxy-authorization")


def build_routes() -> list[Route]:
    """Return the routes, for every method, except `_bytes` and `_sse`, which accept GET only."""
    return [
        Route(None, re.compile(r"/_echo(?:/.*)?", re.DOTALL), _echo),
        Route("GET", re.compile(r"/_bytes/([0-9]{1,11})"), _bytes),
        Route("GET", re.compile(r"/_sse"), _sse),
        Route(None, re.compile(r"/_status/([2-5][0-9][0-9])"), _status),
    ]


def build_block(start: int, size_bytes: int) -> bytes:
    """Return `size_bytes` (at most 64 KiB) of the stream of `/v1/_bytes`, from offset `start`."""
    return (_BLOCK + _BLOCK)[start % 256 :][:size_bytes]


async def _echo(request: web.Request) -> web.Response:
    size_bytes, digest = await hash_body(request)
    return web.json_response(
        {
            "method": request.method,
            "target": request.raw_path,
            "version": f"{request.version.major}.{request.version.minor}",
            "headers": [[_text(name), _show(name, value)] for name, value in request.raw_headers],
            "bodyLength": size_bytes,
            "bodySha256": digest,
        }
    )


async def _bytes(request: web.Request, count: str) -> web.StreamResponse:
    """Stream that many bytes; `chunked=1` omits the length, `cut=K` drops the connection after K."""
    size_bytes = int(count)
    if size_bytes > BYTES_MAX:
        raise invalid("n", f"The field n must be between 0 and {BYTES_MAX}.")
    cut_after = int(_number(request, "cut", size_bytes))
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    if request.query.get("chunked", "0") == "0":
        response.content_length = size_bytes
    await response.prepare(request)
    end = min(size_bytes, cut_after)
    for start in range(0, end, len(_BLOCK)):
        await response.write(build_block(start, min(len(_BLOCK), end - start)))
    if cut_after < size_bytes and request.transport is not None:
        request.transport.close()
    else:
        await response.write_eof()
    return response


async def _sse(request: web.Request) -> web.StreamResponse:
    """Stream `events` server-sent events (default 5), `interval_s` seconds (default 1) apart."""
    events = int(_number(request, "events", 5))
    interval_s = _number(request, "interval_s", 1)
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    for number in range(1, events + 1):
        await response.write(f'id: {number}\ndata: {{"number": {number}}}\n\n'.encode())
        if number < events:
            await asyncio.sleep(interval_s)
    await response.write_eof()
    return response


async def _status(request: web.Request, code: str) -> web.Response:
    await hash_body(request)
    status = int(code)
    return web.Response(status=status, text=None if status in (204, 205, 304) else f"{status}\n")


def _show(name: bytes, value: bytes) -> str:
    """Return a header's value, with credentials replaced by a fingerprint."""
    if name.lower() not in _MASKED:
        return _text(value)
    scheme, _, credential = value.partition(b" ")
    return f"{_text(scheme)} [masked sha256:{hashlib.sha256(credential).hexdigest()[:16]}]"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _number(request: web.Request, name: str, default: float) -> float:
    try:
        number = float(request.query.get(name, default))
    except ValueError:
        number = math.nan
    if not 0 <= number <= BYTES_MAX:
        raise invalid(name, f"The field {name} must be a number, 0 or more.")
    return number
