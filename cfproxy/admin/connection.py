"""aiohttp's server, with what it leaves to be wished for: for listeners that are no proxies.

Owns: the limits of a client's connection there, and our answers to what the parser refuses.
Must not know: what is done with a request.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler
from structlog.typing import FilteringBoundLogger

from cfproxy.errors import BadTarget, CfproxyError
from cfproxy.server.connection_limits import ConnectionLimits, Connections
from cfproxy.server.problem_details import render_problem

if TYPE_CHECKING:
    from cfproxy.server.connection import ClientConnection

MAX_HEADER_BYTES = 32 * 1024
KEEPALIVE_S = 75.0
HEAD_S = 10.0
CONNECTIONS_MAX, UNFINISHED_MAX = 256, 64


def build_room(log: FilteringBoundLogger) -> Connections:
    """Return what keeps a listener's connections within bounds; for people, probes and scrapers."""
    loop = asyncio.get_running_loop()
    return Connections(
        ConnectionLimits(CONNECTIONS_MAX, UNFINISHED_MAX),
        loop.time,
        loop.call_later,
        lambda causes: log.warning("connections.ended", listen="admin", **causes),
    )


def build_connection(server: web.Server, room: Connections) -> RequestHandler:
    """Return the protocol of one more connection of `server`, in `room`.

    Called instead of the server itself: that one drops all options when one of them is misspelt.
    """
    return _Connection(
        server,
        room,
        loop=asyncio.get_running_loop(),
        access_log=None,  # which is how it is switched off
        auto_decompress=False,
        keepalive_timeout=KEEPALIVE_S,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        tcp_keepalive=True,
    )


class _Connection(RequestHandler):
    """One client connection; a malformed request gets a problem document and no stack trace."""

    __slots__ = ("_head_timer", "_room", "_tracked")

    def __init__(self, server: web.Server, room: Connections, **options: Any) -> None:
        super().__init__(server, **options)
        self._room = room
        self._tracked = cast("ClientConnection", self)  # as far as it is ended from outside
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place, and wait for a first request, but not as long as for further ones."""
        super().connection_made(transport)
        self._head_timer = self._loop.call_later(HEAD_S, self.end, "late")
        self._room.opened(self._tracked)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the place back."""
        self._stop_timer()
        self._room.closed(self._tracked)
        super().connection_lost(exc)

    def end(self, cause: str) -> None:  # noqa: ARG002 - all are alike here
        """Make room for others (see `connections.Client`)."""
        if self.transport is not None:
            self.transport.abort()

    def tarpit(self) -> None:
        """Make room, too: nothing is held of a head here that comes slowly."""
        self.end("unfinished")

    async def _handle_request(self, *args: Any) -> tuple[web.StreamResponse, bool]:
        self._stop_timer()
        self._room.request_started(self._tracked)
        try:
            return await super()._handle_request(*args)
        finally:
            self._room.request_finished(self._tracked)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def data_received(self, data: bytes) -> None:
        """Take what came; if it breaks the body that is being read, tell the reader, as aiohttp does not."""
        self._room.head_started(self._tracked)
        super().data_received(data)
        if not self._messages or isinstance(self._messages[-1][0], RawRequestMessage):
            return
        bodies = [body for _, body in self._messages]
        if self._current_request is not None:
            bodies.append(self._current_request.content)
        for body in bodies:
            if not body.is_eof():
                body.set_exception(web.RequestPayloadError("malformed"))
                body.feed_eof()  # there is nothing to be waited for after the answer

    def handle_error(
        self,
        request: web.BaseRequest,  # noqa: ARG002 - the parent's signature
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it may hold what the client sent
    ) -> web.StreamResponse:
        """Answer what could not be parsed, or what a fault of ours left without an answer."""
        if status != 400 and exc is not None:
            self.log_exception("request.crashed", exc_info=exc)
        error: CfproxyError = BadTarget("the request is not well-formed HTTP/1.1, or its header is too long")
        if status != 400:
            error = CfproxyError("an internal fault; the log has it under request.crashed")
        headers, document = render_problem(error, "unparsed")
        reply = web.Response(
            status=error.status,
            body=document,
            headers={name.decode(): value.decode() for name, value in headers} | {"Server": "cfproxy"},
        )
        reply.force_close()
        return reply
