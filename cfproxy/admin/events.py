"""Server-sent events: what open pages are told as it happens (WHATWG HTML, section 9.2).

Owns: who listens, and one task that tells all of them; it runs only while somebody listens.
Must not know: what is told.
Invariants: no more than `LISTENERS_MAX` listen; one that does not read as fast as it is told is cut off,
and its browser comes back by itself and goes on where it was; nobody waits for anybody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from cfproxy.admin.pages import SECURITY_HEADERS
from cfproxy.admin.view import view_request
from cfproxy.observability.request_stats import Finished, Latest

LISTENERS_MAX = 16
BEHIND_MAX = 8  # messages that one may be behind, besides what the kernel holds
TICK_S = 1.0
_HEADERS = SECURITY_HEADERS | {
    "Content-Type": "text/event-stream; charset=utf-8",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}


class Feed:
    """The event stream.

    Args:
        describe: what the pages show now, in JSON types.
        latest: the requests.
        sleep: waits for the next tick.
    """

    def __init__(
        self,
        describe: Callable[[], Awaitable[dict[str, Any]]],
        latest: Latest,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._describe = describe
        self._latest = latest
        self._sleep = sleep
        self._run_id = secrets.token_hex(4)  # serial numbers begin anew with each process
        self._listeners: dict[asyncio.Queue[bytes | None], web.Request] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._told = 0

    @property
    def mark(self) -> str:
        """Up to where the requests are known to whoever asks now."""
        return f"{self._run_id}-{self._latest.serial}"

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Tell one page what happens until it is closed.

        Raises:
            HTTPServiceUnavailable: as many listen as may.
        """
        state = await self._describe()
        if len(self._listeners) >= LISTENERS_MAX:
            raise web.HTTPServiceUnavailable(reason="Too many open pages")
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(BEHIND_MAX)
        mark = request.headers.get("Last-Event-ID") or request.query.get("after", "")
        queue.put_nowait(b"retry: 2000\n\n" + _event("state", state) + self._catch_up(mark))
        self._listeners[queue] = request
        if self._ticker is None:
            self._told = self._latest.serial
            self._ticker = asyncio.create_task(self._tell())
        response = web.StreamResponse(headers=_HEADERS)
        try:
            await response.prepare(request)
            while (message := await queue.get()) is not None:
                await response.write(message)
        except ConnectionError:
            pass  # the page was closed
        finally:
            self._listeners.pop(queue, None)
        return response

    async def aclose(self) -> None:
        """End all streams."""
        for queue, request in list(self._listeners.items()):
            self._offer(queue, request, None)
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker

    async def _tell(self) -> None:
        try:
            while self._listeners:
                await self._sleep(TICK_S)
                message = _event("state", await self._describe())
                if self._latest.serial != self._told:
                    message += self._rows(self._latest.after(self._told), fresh=False)
                    self._told = self._latest.serial
                for queue, request in list(self._listeners.items()):
                    self._offer(queue, request, message)
        finally:
            self._ticker = None

    def _offer(self, queue: asyncio.Queue[bytes | None], request: web.Request, message: bytes | None) -> None:
        try:
            queue.put_nowait(message)
        except asyncio.QueueFull:
            self._listeners.pop(queue, None)
            if request.transport is not None:
                request.transport.abort()

    def _catch_up(self, mark: str) -> bytes:
        """Return the requests since `mark`, all of them when it is of another process."""
        run_id, _, serial = mark.partition("-")
        fresh = run_id != self._run_id or not serial.isdecimal()
        return self._rows(self._latest.after(0 if fresh else int(serial[:20])), fresh=fresh)

    def _rows(self, requests: list[Finished], *, fresh: bool) -> bytes:
        """Return an event with requests up to the latest; a page passes over those that it has."""
        last = self._latest.serial
        rows = {"fresh": fresh, "last": last, "rows": [view_request(each) for each in requests]}
        return b"id: %s-%d\n" % (self._run_id.encode(), last) + _event("rows", rows)


def _event(name: str, value: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n".encode()
