"""Writes the response to one request on its client connection, with the framing that this client needs."""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cfproxy.http1.framing import render_chunk, render_last_chunk
from cfproxy.http1.headers import normalise
from cfproxy.http1.stream import StreamProtocol
from cfproxy.server.request import Request

if TYPE_CHECKING:
    from cfproxy.server.connection import ClientConnection

CLIENT_LEFT = 499  # nginx's status for logs and metrics; never sent
# `struct linger`, on and 0 s: closing the socket resets the connection.
_RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(slots=True, eq=False)
class Response:
    """A response: `start`, any number of `write`, `finish`.

    Args:
        request: the request it responds to.
        idle_s: how long the client may leave it unread.
    """

    request: Request
    idle_s: float
    status: int = field(default=CLIENT_LEFT, init=False)  # until it is started
    client_waits: bool = field(default=False, init=False)  # for 100 Continue
    started: bool = field(default=False, init=False)
    complete: bool = field(default=False, init=False)
    aborted: bool = field(default=False, init=False)
    body_bytes: int = field(default=0, init=False)
    connection: ClientConnection = field(init=False)
    _old_client: bool = field(init=False)
    _keep_alive: bool = field(init=False)
    _no_body: bool = field(init=False)
    _chunked: bool = field(default=False, init=False)
    _until_close: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.connection = self.request.connection
        self._old_client = self.request.fields.version < (1, 1)
        self._keep_alive = self.request.fields.keep_alive
        self._no_body = self.request.method == b"HEAD"

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may serve another request."""
        return self.complete and self._keep_alive

    def close_after(self) -> None:
        """Close the connection after this response."""
        self._keep_alive = False

    def send_continue(self) -> None:
        """Send 100 Continue if the client waits for it (RFC 9110 §10.1.1), once."""
        if self.client_waits:
            self.send_interim(100, b"Continue", ())

    def send_interim(self, status: int, reason: bytes, headers: Headers) -> None:
        """Send a 1xx response: none to an HTTP/1.0 client (RFC 9110 §15.2), and 100 only if it is awaited."""
        if self.started or self._old_client or (status == 100 and not self.client_waits):
            return
        self.client_waits = self.client_waits and status != 100
        self.connection.write(_render_head(status, reason, _without_length(headers)))

    def start(
        self,
        status: int,
        reason: bytes,
        headers: list[tuple[bytes, bytes]],
        first: bytes = b"",
        *,
        sized: bool,
    ) -> None:
        """Write the head and the first part of the body.

        Args:
            status: never 1xx.
            reason: as it is sent.
            headers: without the framing headers of this connection, which are appended to the list.
            first: as much of the body as is available.
            sized: whether `headers` includes a Content-Length.
        """
        self.status = status
        self._no_body = self._no_body or status in {204, 304}
        if not sized and not self._no_body:
            # For HTTP/1.0 the end of the connection is the end of the body.
            self._chunked = not self._old_client
            self._until_close = self._old_client
        unwanted = status >= 400 or self.client_waits
        if self._until_close or (unwanted and not self.request.read_whole):
            # The rest of the request body is not needed, and may or may not arrive (RFC 9110 §10.1.1).
            self._keep_alive = False
        if status == 204:
            headers = _without_length(headers)
        if self._chunked:
            headers.append((b"Transfer-Encoding", b"chunked"))
        if not self._keep_alive:
            headers.append((b"Connection", b"close"))
        elif self._old_client:
            headers.append((b"Connection", b"keep-alive"))
        self.started = True
        self.connection.write_soon(_render_head(status, reason, headers) + self._framed(first))

    async def write(self, data: bytes, source: StreamProtocol | None = None) -> None:
        """Write a part of the body, and `drain`."""
        if data := self._framed(data):
            self.connection.write(data)
        await self.drain(source)

    async def drain(self, source: StreamProtocol | None = None) -> None:
        """Wait while the client reads more slowly than we write.

        Args:
            source: of the body; it is not read from meanwhile, until the body's next `read`.

        Raises:
            ConnectionResetError: the client left, or stopped reading.
        """
        if source is not None and self.connection.writing_paused:
            source.hold_reading()
        try:
            await self.connection.drain(self.idle_s)
        except TimeoutError:
            raise ConnectionResetError from None

    def finish(self, trailers: list[tuple[bytes, bytes]]) -> None:
        """Write the end of the body."""
        if self._chunked:
            self.connection.write_soon(render_last_chunk(trailers))
        self.complete = True

    def abort(self) -> None:
        """Close the connection now, so that the client notices that the response is incomplete."""
        self.aborted = True
        self._keep_alive = False
        connection = self.connection
        if connection.lost:
            return
        if self._until_close:
            with contextlib.suppress(OSError):  # the socket is closed
                sock = connection.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.abort()

    def _framed(self, data: bytes) -> bytes:
        if self._no_body or not data:
            return b""
        self.body_bytes += len(data)
        return render_chunk(data) if self._chunked else data


def _without_length(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers of a response that can't have a body (RFC 9110 §8.6)."""
    return [(name, value) for name, value in headers if normalise(name) != b"content-length"]


def _render_head(status: int, reason: bytes, headers: Headers) -> bytes:
    lines = [b"HTTP/1.1 %d %b" % (status, reason), *map(b": ".join, headers), b"\r\n"]
    return b"\r\n".join(lines)
