"""A client's body on its way to the API.

Owns: when the client is told to go on, which trailers follow.
Must not know: what the body is for, how it is framed.
"""

from __future__ import annotations

from cfproxy.http1.headers import RawHeaders
from cfproxy.http1.stream import BodyStream
from cfproxy.proxy.request_headers import forwardable_trailers
from cfproxy.server.response import Response


class IncomingBody:
    """A client's body, asked for when the first piece is wanted.

    Args:
        inflow: the body.
        reply: tells a client that waits for 100 Continue to go on.
        headers: in front of it.
    """

    __slots__ = ("_body_stream", "_headers", "_response")

    def __init__(self, body_stream: BodyStream, reply: Response, headers: RawHeaders) -> None:
        self._body_stream = body_stream
        self._response = reply
        self._headers = headers

    async def read(self) -> bytes:
        """Return the next piece, b"" after the last one.

        Raises:
            BadTarget: the body is not well-formed, or nothing of it came for too long.
            ConnectionError: the client left.
        """
        self._response.go_on()
        return await self._body_stream.read()

    def whole(self) -> bytes | None:
        """Return all of it if it is there already, None otherwise."""
        return self._body_stream.take() if self._body_stream.complete else None

    def arrived(self) -> bool:
        """Return whether the client has sent all of it."""
        return self._body_stream.complete

    def trailers(self) -> list[tuple[bytes, bytes]]:
        """Return what goes behind it, once it was read to its end."""
        return forwardable_trailers(self._body_stream.trailers, self._headers)
