"""Server-sent events for open status pages (WHATWG HTML, section 9.2).

Invariants:
1. At most `STREAMS_MAX` pages are connected, and no page waits for another one.
2. A page that reads too slowly is disconnected. Its browser reconnects and continues where it stopped.
3. One task feeds all pages; it runs only while there are any.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from cfproxy.admin.messages import AdminRequest, AdminResponse, HttpError
from cfproxy.admin.view import view_request
from cfproxy.observability.request_stats import Finished, Latest

STREAMS_MAX = 16
BACKLOG_MAX = 8  # messages queued for one page, besides what the kernel buffers
TICK_S = 1.0
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}


class EventStream:
    """The event stream.

    Args:
        describe: returns what the pages show now, in JSON types.
        latest: the latest requests.
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
        self._run_id = secrets.token_hex(4)  # serial numbers start at 1 in each process
        self._streams: dict[asyncio.Queue[bytes | None], AdminRequest] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._sent_serial = 0

    @property
    def last_event_id(self) -> str:
        """The event ID that a page rendered now continues from."""
        return f"{self._run_id}-{self._latest.serial}"

    async def serve(self, request: AdminRequest) -> AdminResponse:
        """Stream events to one page until it is closed.

        Raises:
            HttpError: too many pages are connected.
        """
        state = await self._describe()
        if len(self._streams) >= STREAMS_MAX:
            raise HttpError(503, "Too many open pages")
        last_event_id = request.header("Last-Event-ID") or request.query.get("after", "")
        first = b"retry: 2000\n\n" + _event("state", state) + self._catch_up(last_event_id)
        return AdminResponse(self._stream(request, first), headers=dict(_HEADERS))

    async def aclose(self) -> None:
        """End all streams."""
        for queue, request in list(self._streams.items()):
            self._send(queue, request, None)
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker

    async def _stream(self, request: AdminRequest, first: bytes) -> AsyncGenerator[bytes, None]:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(BACKLOG_MAX)
        self._streams[queue] = request
        if self._ticker is None:
            self._sent_serial = self._latest.serial
            self._ticker = asyncio.create_task(self._tick())
        try:
            yield first
            while (message := await queue.get()) is not None:
                yield message
        finally:
            self._streams.pop(queue, None)

    async def _tick(self) -> None:
        try:
            while self._streams:
                await self._sleep(TICK_S)
                message = _event("state", await self._describe())
                if self._latest.serial != self._sent_serial:
                    message += self._rows(self._latest.after(self._sent_serial), fresh=False)
                    self._sent_serial = self._latest.serial
                for queue, request in list(self._streams.items()):
                    self._send(queue, request, message)
        finally:
            self._ticker = None

    def _send(self, queue: asyncio.Queue[bytes | None], request: AdminRequest, message: bytes | None) -> None:
        try:
            queue.put_nowait(message)
        except asyncio.QueueFull:
            self._streams.pop(queue, None)
            request.connection.abort()

    def _catch_up(self, last_event_id: str) -> bytes:
        """Return the requests since an event; all of them if it is an event of another process."""
        run_id, _, serial = last_event_id.partition("-")
        fresh = run_id != self._run_id or not serial.isdecimal()
        return self._rows(self._latest.after(0 if fresh else int(serial[:20])), fresh=fresh)

    def _rows(self, requests: list[Finished], *, fresh: bool) -> bytes:
        """Return an event with requests up to the latest; a page skips those that it shows already."""
        last = self._latest.serial
        rows = {"fresh": fresh, "last": last, "rows": [view_request(each) for each in requests]}
        return b"id: %s-%d\n" % (self._run_id.encode(), last) + _event("rows", rows)


def _event(name: str, value: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(value, separators=(',', ':'))}\n\n".encode()
