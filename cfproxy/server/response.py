"""The answer to one request, as bytes on the client's connection.

Owns: how an answer is framed for this client, how it ends or is cut, and whether the connection goes on.
Must not know: where the answer comes from.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Iterable

from cfproxy.http1.framing import render_chunk, render_last_chunk
from cfproxy.http1.headers import normalise
from cfproxy.server.request import Request

CLIENT_LEFT = 499  # what logs and metrics say, as nginx has it; never sent
# `struct linger`, on and 0 s: closing the socket resets the connection.
_RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)

Headers = Iterable[tuple[bytes, bytes]]


class Response:
    """An answer: `begin`, `write` as often as there is something, `end`.

    Args:
        request: what it answers.
        idle_s: seconds that the client may leave it unread.
    """

    __slots__ = (
        "_chunked",
        "_idle_s",
        "_keep",
        "_no_body",
        "_old_client",
        "_request",
        "_until_close",
        "begun",
        "body_bytes",
        "client_waits",
        "complete",
        "connection",
        "cut_off",
        "status",
    )

    def __init__(self, request: Request, idle_s: float) -> None:
        self._request = request
        self.connection = request.connection
        self._idle_s = idle_s
        self._old_client = request.fields.version < (1, 1)
        self._no_body = request.method == b"HEAD"
        self._keep = request.fields.keep_alive
        self._chunked = False
        self._until_close = False
        self.status = CLIENT_LEFT  # until it begins
        self.client_waits = False  # for 100 Continue
        self.begun = False
        self.complete = False
        self.cut_off = False
        self.body_bytes = 0

    @property
    def goes_on(self) -> bool:
        """Whether the connection may serve another request behind this answer."""
        return self.complete and self._keep

    def close_after(self) -> None:
        """Let the connection end with this answer."""
        self._keep = False

    def go_on(self) -> None:
        """Tell a client that waits with its body to send it (RFC 9110 §10.1.1), once."""
        if self.client_waits:
            self.tell(100, b"Continue", ())

    def tell(self, status: int, reason: bytes, headers: Headers) -> None:
        """Write an interim answer; HTTP/1.0 knows none (RFC 9110 §15.2), and 100 is for who waits for it."""
        if self.begun or self._old_client or (status == 100 and not self.client_waits):
            return
        self.client_waits = self.client_waits and status != 100
        self.connection.write(_render_head(status, reason, _without_length(headers)))

    def begin(
        self,
        status: int,
        reason: bytes,
        headers: list[tuple[bytes, bytes]],
        first: bytes = b"",
        *,
        sized: bool,
    ) -> None:
        """Write the head, and the first of the body in the same breath.

        Args:
            status: never 1xx.
            reason: as it goes over the wire.
            headers: all but the framing, which is this connection's; it is added to them.
            first: of the body, as far as it is there.
            sized: whether a Content-Length is among the headers.
        """
        self.status = status
        self._no_body = self._no_body or status in {204, 304}
        if not sized and not self._no_body:
            # HTTP/1.0: the end of the connection is the end of the body.
            self._chunked = not self._old_client
            self._until_close = self._old_client
        unwanted = status >= 400 or self.client_waits
        if self._until_close or (unwanted and not self._request.read_whole):
            # The rest of the request's body is not wanted, and may or may not come (RFC 9110 §10.1.1).
            self._keep = False
        if status == 204:
            headers = _without_length(headers)
        if self._chunked:
            headers.append((b"Transfer-Encoding", b"chunked"))
        if not self._keep:
            headers.append((b"Connection", b"close"))
        elif self._old_client:
            headers.append((b"Connection", b"keep-alive"))
        self.begun = True
        self.connection.write_soon(_render_head(status, reason, headers) + self._framed(first))

    async def write(self, data: bytes) -> None:
        """Write a piece of the body, and `drain`."""
        if data := self._framed(data):
            self.connection.write(data)
        await self.drain()

    async def drain(self) -> None:
        """Wait while the client reads slower than we write.

        Raises:
            ConnectionResetError: the client left, or reads nothing, which is the same to us.
        """
        if self.connection.writing_paused:
            try:
                await self.connection.drain(self._idle_s)
            except TimeoutError:
                raise ConnectionResetError from None

    def end(self, trailers: list[tuple[bytes, bytes]]) -> None:
        """Write the end of the body."""
        if self._chunked:
            self.connection.write_soon(render_last_chunk(trailers))
        self.complete = True

    def cut(self) -> None:
        """Close the connection now, so that the client sees that its answer is not whole."""
        self.cut_off = True
        self._keep = False
        transport = self.connection.transport
        if transport is None or self.connection.lost:
            return
        if self._until_close:
            with contextlib.suppress(OSError):  # gone already
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.connection.abort()

    def _framed(self, data: bytes) -> bytes:
        if self._no_body or not data:
            return b""
        self.body_bytes += len(data)
        return render_chunk(data) if self._chunked else data


def _without_length(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return what an answer says that has no body whatever it says (RFC 9110 §8.6)."""
    return [(name, value) for name, value in headers if normalise(name) != b"content-length"]


def _render_head(status: int, reason: bytes, headers: Headers) -> bytes:
    lines = [b"HTTP/1.1 %d %b" % (status, reason), *map(b": ".join, headers), b"\r\n"]
    return b"\r\n".join(lines)
