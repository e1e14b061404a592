"""aiohttp's low-level server, with what it leaves to be wished for.

Owns: the limits of a client's connection, and our answers to what the parser refuses.
Must not know: what is done with a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from cfproxy.errors import BadTarget, CfproxyError
from cfproxy.web.problems import render_problem

MAX_HEADER_BYTES = 32 * 1024
KEEPALIVE_S = 75.0
# A request that waits in the queue holds about twice this of its body, and what one read of the socket gives.
READ_BUFFER_BYTES = 64 * 1024


class ProxyServer(web.Server):
    """aiohttp's low-level server with our answers to what its parser refuses."""

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        # A client that hung up gives its place in the queue back.
        super().__init__(handler, handler_cancellation=True)

    def __call__(self) -> RequestHandler:
        """Return the protocol of one more connection."""
        return build_connection(self)


def build_connection(server: web.Server) -> RequestHandler:
    """Return the protocol of one more connection of `server`, which may be that of an application.

    Called instead of the server itself: that one drops all options when one of them is misspelt.
    """
    return _Connection(
        server,
        loop=asyncio.get_running_loop(),
        access_log=None,  # type: ignore[arg-type] # None is how it is switched off
        auto_decompress=False,
        keepalive_timeout=KEEPALIVE_S,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        read_bufsize=READ_BUFFER_BYTES,
        tcp_keepalive=True,
    )


class _Connection(RequestHandler):
    """One client connection; a malformed request gets a problem document and no stack trace."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        """Take what came; if it breaks the body that is being read, tell the reader, as aiohttp does not."""
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
        row, headers, document = render_problem(error, "unparsed")
        reply = web.Response(
            status=row.status,
            body=document,
            headers={name.decode(): value.decode() for name, value in headers},
        )
        reply.force_close()
        return reply
