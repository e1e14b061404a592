"""What each kind of fault does to a request, and the queue that faults wait in.

Faults are taken first in, first out, each for its number of requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from aiohttp import web

from cfproxy.sandbox.behaviour import Fault

_CHUNK = b"\xff\x00garbage" * 8192
_HTML = "<!doctype html><title>Maintenance</title><h1>We will be right back</h1>"


def next_fault(queue: list[Fault]) -> Fault | None:
    """Return the fault for the current request and count it down; None when there is none."""
    if not queue:
        return None
    fault = queue.pop(0)
    if fault.times > 1:
        queue.insert(0, replace(fault, times=fault.times - 1))
    return fault


async def answer_with(
    fault: Fault | None, request: web.Request, process: Callable[[], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer `request` as `fault` says; `process` carries out the request."""
    if fault is None:
        return await process()
    match fault.kind:
        case "status":
            return _canned(fault)
        case "stall":
            await asyncio.Event().wait()
            raise AssertionError("unreachable")
        case "reset":
            return cut(request)
        case "lost":
            await process()
            return cut(request)
        case "html":
            return web.Response(text=_HTML, content_type="text/html")
        case "garbage":
            return await _garbage(request, fault.size_bytes)
        case "slow":
            response = await process()
            await asyncio.sleep(fault.delay_s)
            return response


def cut(request: web.BaseRequest) -> web.StreamResponse:
    """Drop the connection; the returned response is never sent, its status goes to the journal."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=444)


def _canned(fault: Fault) -> web.Response:
    headers: dict[str, Any] = {"Content-Type": "text/plain; charset=utf-8", **fault.headers}
    return web.Response(status=fault.status, body=fault.body.encode(), headers=headers)


async def _garbage(request: web.Request, size_bytes: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = size_bytes
    await response.prepare(request)
    for start in range(0, size_bytes, len(_CHUNK)):
        await response.write(_CHUNK[: size_bytes - start])
    await response.write_eof()
    return response
