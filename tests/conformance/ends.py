"""One end of a connection, and the messages that came out of it, as bytes.

Owns: reading HTTP/1.1 messages piece by piece, and noticing how a connection ended.
Must not know: cases, proxies, or any HTTP library.
Invariant: nothing is normalised or mended; what is not there yet is waited for, with one bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tests.support.origin import LINGER_NOT

Framing = Literal["length", "chunked", "close", "none"]


class NotKept(AssertionError):
    """Something did not come as it was sent.

    Args:
        what: the part of the message, in a word or two.
        detail: what was expected and what came.
    """

    def __init__(self, what: str, detail: str) -> None:
        super().__init__(f"{what}: {detail}")
        self.what = what


@dataclass
class Message:
    """A request or an answer whose head has come, and as much of its body as was taken so far."""

    start: bytes
    headers: list[tuple[bytes, bytes]]
    framing: Framing = "none"
    left: int = 0  # bytes of the body, or of the chunk and its line end, that are still to come
    body: bytearray = field(default_factory=bytearray)
    seen: int = 0  # how much of the body the steps have looked at piece by piece
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    whole: bool = False

    def take(self, buffer: bytearray, *, ended: bool) -> None:
        """Move what has come of the body out of `buffer`."""
        if self.framing == "chunked":
            while not self.whole and self._take_chunk(buffer):
                pass
        elif self.framing == "length":
            self.left -= _move(buffer, self.body, self.left)
            self.whole = not self.left
        elif self.framing == "close":
            _move(buffer, self.body, len(buffer))
            self.whole = ended
        else:
            self.whole = True

    def _take_chunk(self, buffer: bytearray) -> bool:
        """Take a chunk's line, or some of its data, or the trailers; False when more must come first."""
        if self.left > 2:
            moved = _move(buffer, self.body, self.left - 2)
            self.left -= moved
            return bool(moved)
        if self.left:
            if len(buffer) < 2:
                return False
            if buffer[:2] != b"\r\n":
                raise NotKept("framing", f"a chunk ends with {bytes(buffer[:2])!r}")
            del buffer[:2]
            self.left = 0
            return True
        line, found, rest = bytes(buffer).partition(b"\r\n")
        if not found:
            return False
        size = int(line.partition(b";")[0], 16)
        if size:
            del buffer[: len(line) + 2]
            self.left = size + 2
            return True
        # The last chunk: its line is kept until the empty line after the trailers has come.
        fields, found, rest = (b"\r\n" + rest).partition(b"\r\n\r\n")
        if found:
            self.trailers = [split_line(line) for line in fields.split(b"\r\n")[1:]]
            buffer[:] = rest
            self.whole = True
        return False


def _move(source: bytearray, target: bytearray, limit: int) -> int:
    piece = source[:limit]
    target += piece
    del source[: len(piece)]
    return len(piece)


def split_line(line: bytes) -> tuple[bytes, bytes]:
    """Return a header line's name and its value without the blanks around it (RFC 9112 §5)."""
    name, _, value = line.partition(b":")
    return name, value.strip(b" \t")


class End(asyncio.Protocol):
    """One end of a connection: what came is kept until a step takes it.

    Args:
        patience_s: seconds that a wait may last; only a failure takes that long.
        on_news: called after everything that happens.
    """

    def __init__(self, patience_s: float, on_news: Callable[[], None] = lambda: None) -> None:
        self.buffer = bytearray()
        self.ended = False  # the other side has closed, or has reset the connection
        self.reset = False
        self.message: Message | None = None
        self._patience_s = patience_s
        self._on_news = on_news
        self._news = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._tell()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._tell()

    def eof_received(self) -> bool:
        self.ended = True
        self._tell()
        # Our own direction stays open, where the transport has two.
        return self._transport is not None and self._transport.can_write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.reset = self.reset or exc is not None
        self._transport = None
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._on_news()

    # What steps do.

    def send(self, data: bytes) -> None:
        """Send without waiting for anybody to read."""
        if self._transport is not None:
            self._transport.write(data)

    def half_close(self) -> None:
        """Say that nothing more will be sent; over TLS that closes the connection."""
        if self._transport is not None and not self._transport.can_write_eof():
            self._transport.close()
        elif self._transport is not None:
            with contextlib.suppress(OSError):  # the other side has reset the connection
                self._transport.write_eof()

    def close(self) -> None:
        """Close the connection in good order."""
        if self._transport is not None:
            self._transport.close()

    def reset_now(self) -> None:
        """Reset the connection."""
        if self._transport is None:
            return
        if not self._transport.is_closing():  # over TLS nothing is known of a closed socket
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        # asyncio's TLS transport lets go of its protocol when it is closed a second time (3.11).
        with contextlib.suppress(AttributeError):
            self._transport.abort()

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until `condition` holds.

        Raises:
            NotKept: it did not within the end's patience.
        """
        try:
            async with asyncio.timeout(self._patience_s):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise NotKept(what, "did not come") from None

    async def next_message(self, *, is_answer: bool, to_head: bool = False) -> Message:
        """Return the next message as soon as its head has come; what is left of the one before is dropped."""
        if self.message is not None:
            await self.until(self.more, "body")
        await self.until(lambda: self.ended or b"\r\n\r\n" in self.buffer, "head")
        head, found, rest = bytes(self.buffer).partition(b"\r\n\r\n")
        if not found:
            raise NotKept("connection", f"ended after {bytes(self.buffer)!r}")
        self.buffer[:] = rest
        start, *lines = head.split(b"\r\n")
        self.message = _framed(start, [split_line(line) for line in lines], is_answer, to_head)
        return self.message

    def more(self) -> bool:
        """Take what has come of the body; True once no more of it can come."""
        assert self.message is not None
        if not self.message.whole:
            self.message.take(self.buffer, ended=self.ended)
        return self.message.whole or self.ended


def _framed(start: bytes, headers: list[tuple[bytes, bytes]], is_answer: bool, to_head: bool) -> Message:
    """Return a message with the one framing that RFC 9112 §6.3 gives it."""
    message = Message(start, headers)
    status = start.split(b" ")[1][:3] if is_answer else b""
    codings = [value for name, value in headers if name.lower() == b"transfer-encoding"]
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    if len(codings) + len(lengths) > 1:
        raise NotKept("framing", f"ambiguous: {headers!r}")
    if to_head or status in {b"204", b"304"} or status.startswith(b"1"):
        message.whole = True
    elif codings:
        message.framing = "chunked"
    elif lengths:
        message.framing, message.left = "length", int(lengths[0])
    elif is_answer:
        message.framing = "close"
    return message
