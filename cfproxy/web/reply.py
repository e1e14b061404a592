"""The client's side of one request: its body as it comes, and the answer as bytes.

Owns: what is written to the client's transport, and how an answer ends or is cut.
Must not know: where the answer comes from.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.http import HttpVersion10
from aiohttp.streams import StreamReader

from cfproxy.errors import BadTarget

CLIENT_LEFT = 499  # what logs and metrics say, as nginx has it; never sent
# `struct linger`, on and 0 s: closing the socket resets the connection.
_RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class BodyReader:
    """Reads a client's body, and answers `Expect: 100-continue` when the first piece is wanted."""

    def __init__(self, content: StreamReader, expecting: Reply | None, idle_s: float) -> None:
        self._content = content
        self._idle_s = idle_s
        self._expecting = expecting

    async def read(self) -> bytes:
        """Return the next piece, b"" after the last one.

        Raises:
            BadTarget: the body is not well-formed, or nothing of it came for too long.
            ConnectionError: the client left.
        """
        if self._expecting is not None:
            self._expecting.go_on()
            self._expecting = None
        try:
            async with asyncio.timeout(self._idle_s):
                return await self._content.readany()
        except TimeoutError:
            raise BadTarget("nothing of the request body came within timeouts.idle") from None
        except ConnectionError:
            raise
        except (web.RequestPayloadError, ValueError, web.HTTPException):
            raise BadTarget(
                "the request body is not well-formed; check Content-Length or the chunks"
            ) from None


class Reply(web.StreamResponse):
    """An answer written to the client's transport as bytes, past aiohttp's header handling.

    aiohttp's own response adds `Date`, `Server` and `Content-Type`, and re-encodes header values.
    """

    def __init__(self, request: web.BaseRequest, is_draining: Callable[[], bool], idle_s: float) -> None:
        super().__init__(status=CLIENT_LEFT)  # until it begins
        self._client = request
        self._is_draining = is_draining
        self._transport = request.transport
        self._old_client = request.version <= HttpVersion10
        self._no_body = request.method == "HEAD"
        self._idle_s = idle_s
        self._chunked_out = False
        self._until_close = False
        self._keep = request.keep_alive and not self._old_client
        self.begun = False
        self.complete = False
        self.cut_off = False
        self.body_bytes = 0

    # What aiohttp's server calls after the handler: everything has been written by then.

    async def prepare(self, request: web.BaseRequest) -> None:
        """Do nothing: `begin` has written the head."""

    async def write_eof(self, data: Any = b"") -> None:
        """Do nothing: `end` has written the end."""

    @property
    def keep_alive(self) -> bool:
        """Whether the connection serves another request after this one."""
        return self._keep and not self._is_draining()

    def close_after(self) -> None:
        """Let the connection end with this answer."""
        self._keep = False

    def go_on(self) -> None:
        """Tell a client that waits with its body to send it (RFC 9110 §10.1.1)."""
        if not self.begun and not self._old_client:
            self._send(_CONTINUE)

    def begin(self, status: int, reason: str, headers: list[tuple[bytes, bytes]]) -> None:
        """Write the head; framing follows from the headers and from what the client understands."""
        self.set_status(status)
        self._no_body = self._no_body or status in {204, 304}
        if status >= 400 and not self._client.content.is_eof():
            # The rest of the request's body is not wanted, and may or may not come (RFC 9110 §10.1.1).
            self._keep = False
        has_length = any(name.lower() == b"content-length" for name, _ in headers)
        self._chunked_out = not (has_length or self._no_body or self._old_client)
        # HTTP/1.0: the end of the connection is the end of the body.
        self._until_close = not (has_length or self._no_body or self._chunked_out)
        lines = [b"HTTP/1.1 %d %s\r\n" % (status, reason.encode("utf-8", "surrogateescape"))]
        lines += [b"%s: %s\r\n" % header for header in headers]
        if self._chunked_out:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        if not self.keep_alive:
            lines.append(b"Connection: close\r\n")
        lines.append(b"\r\n")
        self.begun = True
        self._send(b"".join(lines))

    async def write(self, data: Any) -> None:
        """Write a piece of the body and wait while the client reads slower than we write."""
        if self._no_body or not data:
            return
        self.body_bytes += len(data)
        self._send(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked_out else data)
        if self._client.protocol.writing_paused:
            try:
                async with asyncio.timeout(self._idle_s):
                    await self._client.writer.drain()
            except TimeoutError:
                raise ConnectionResetError from None  # reads nothing: gone, as far as we are concerned

    async def end(self) -> None:
        """Write the end of the body."""
        if self._chunked_out:
            self._send(b"0\r\n\r\n")
        self.complete = True

    def cut(self) -> None:
        """Close the connection now, so that the client sees that its answer is not whole."""
        self.cut_off = True
        self._keep = False
        if self._transport is None:
            return
        if self._until_close:
            with contextlib.suppress(OSError):  # gone already
                self._transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _RESET
                )
        self._transport.abort()

    def _send(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError
        self._transport.write(data)
