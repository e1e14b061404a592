"""Message framing: where a body ends, and its trailers (RFC 9112 §6 and §7.1).

Invariants:
1. Every byte belongs to exactly one of body, framing and rest, however the bytes are split.
2. Anything that two implementations could read differently is refused, never repaired: line ends are CRLF,
   sizes are hexadecimal digits, and only a line end follows a chunk.
3. Framing has a maximum size: each size line, and all trailers together.
4. One call handles a bounded number of chunks, and small chunks that come faster than a person or an event
   stream would send them are bounded in total: parsing a chunk of one byte takes as long as copying 10 KB.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from cfproxy.errors import BadTarget
from cfproxy.http1.headers import TOKEN, RawHeaders, normalise


@dataclass(frozen=True, slots=True)
class Framing:
    """How a request's body is delimited: by its length, or by chunks; neither if there is none."""

    length: int | None
    chunked: bool

    @property
    def has_body(self) -> bool:
        """Whether at least one byte of a body can follow."""
        return self.chunked or bool(self.length)


def read_framing(version: tuple[int, int], headers: RawHeaders) -> Framing:
    """Return how these headers delimit a request body (RFC 9112 §6.3).

    Raises:
        BadTarget: it is ambiguous.
    """
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    codings = [value for name, value in headers if name.lower() == b"transfer-encoding"]
    for name, _ in headers:
        if b"_" in name and normalise(name) in {b"content-length", b"transfer-encoding"}:
            raise BadTarget("a header name imitates a framing header; send it as Content-Length")
    if codings:
        if lengths or len(codings) > 1 or codings[0].strip().lower() != b"chunked" or version < (1, 1):
            raise BadTarget("the body's length is ambiguous; send either Content-Length or chunked, once")
        return Framing(None, chunked=True)
    if not lengths:
        return Framing(None, chunked=False)
    text = lengths[0].strip()
    if len(lengths) > 1 or not text.isdigit() or len(text) > 18:
        raise BadTarget("the Content-Length is not one plain number; send exactly one")
    return Framing(int(text), chunked=False)


SIZE_LINE_MAX = 1024
TRAILERS_MAX = 4 * 1024
TRAILER_LINES_MAX = 128
# A piece is a chunk, or 64 bytes of its extension. It takes about a microsecond.
PIECE_BYTES = 64
TURN_PIECES = 128
# A body may have this many pieces, one more for each `CHUNK_AVERAGE` bytes, and some per second: a stream of
# short events lasts for days.
CHUNKS_MAX = 10_000
CHUNK_AVERAGE = 16
CHUNKS_PER_S = 100

# Extensions are ignored (RFC 9112 §7.1.1). 16 digits overflow no implementation's integers.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_PADDED_SIZE_LINE = re.compile(_SIZE_LINE.pattern.replace(b"(?:;", b" *(?:;"))
_TRAILER = re.compile(rb"(%b):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*\r\n" % TOKEN)
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})


class MalformedBody(Exception):
    """The data is not a body with the framing that its head announced."""


class TinyChunks(MalformedBody):
    """There are more small chunks than a body may have (see `CHUNKS_MAX`)."""


class BodyReader(ABC):
    """Extracts one body from received data."""

    def __init__(self, *, done: bool = False) -> None:
        self.done = done  # whether the body has ended
        self.trailers: list[tuple[bytes, bytes]] = []  # empty unless chunked

    @abstractmethod
    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the part of the body that `data` contains, and what is left of `data`.

        If the body is `done`, the latter follows it. If not, it is to be fed in a later turn of the loop.

        Raises:
            MalformedBody
        """

    def end(self) -> None:
        """Handle the end of the connection.

        Raises:
            MalformedBody: the body is not complete.
        """
        if not self.done:
            raise MalformedBody


class LengthReader(BodyReader):
    """A body of known length."""

    def __init__(self, length: int) -> None:
        super().__init__(done=not length)
        self._left = length

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """See `BodyReader.feed`."""
        left = self._left - len(data)
        if left > 0:
            self._left = left
            return data, b""
        self._left, self.done = 0, True
        return (data, b"") if not left else (data[:left], data[left:])


class CloseReader(BodyReader):
    """A body that ends with its connection; only responses can have one (RFC 9112 §6.3)."""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """See `BodyReader.feed`."""
        return data, b""

    def end(self) -> None:
        """End the body."""
        self.done = True


class ChunkReader(BodyReader):
    """A chunked body (RFC 9112 §7.1).

    Args:
        padded: whether spaces may follow a size, as some old servers send them.
        now: a monotonic clock.
    """

    def __init__(self, *, padded: bool = False, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._size_line = _PADDED_SIZE_LINE if padded else _SIZE_LINE
        self._now = now
        self._started_at = now()
        self._held = b""  # the start of a line, or of the line end behind a chunk
        self._left = 0  # of the current chunk
        self._after_chunk = False  # its line end must follow
        self._in_trailers = False
        self._trailer_bytes = 0
        self._pieces = 0
        self._bytes = 0  # of the body

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """See `BodyReader.feed`."""
        data, self._held = self._held + data, b""
        body: list[bytes] = []
        at = pieces = 0
        while at < len(data) and not self.done:
            if self._left:
                piece = data[at : at + self._left]
                body.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._after_chunk = not self._left
                continue
            if pieces >= TURN_PIECES and not self._in_trailers:  # which are few
                break
            after = self._skip_line_end(data, at) if self._after_chunk else self._read_line(data, at)
            if after == at:  # it is incomplete
                self._held, at = data[at:], len(data)
                break
            pieces += 1 + (after - at) // PIECE_BYTES
            at = after
            if self._left and data.startswith(b"\r\n", at + self._left):  # nearly always, with small chunks
                body.append(data[at : at + self._left])
                at += self._left + 2
                self._left = 0
        whole = body[0] if len(body) == 1 else b"".join(body)
        self._count(pieces, len(whole))
        return whole, data[at:]

    def _count(self, pieces: int, size_bytes: int) -> None:
        self._pieces += pieces
        self._bytes += size_bytes
        excess = self._pieces - CHUNKS_MAX - self._bytes // CHUNK_AVERAGE
        if excess > 0 and excess > (self._now() - self._started_at) * CHUNKS_PER_S:
            raise TinyChunks

    def _skip_line_end(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self._after_chunk = False
            return at + 2
        if data[at:] == b"\r":
            return at
        raise MalformedBody

    def _read_line(self, data: bytes, at: int) -> int:
        """Read a size line, a trailer or the last line; return where it ends, or `at` if it is incomplete."""
        if self._in_trailers:
            return self._read_trailer(data, at)
        match = self._size_line.match(data, at, at + SIZE_LINE_MAX)
        if match is None:
            if b"\n" in data[at : at + SIZE_LINE_MAX] or len(data) - at >= SIZE_LINE_MAX:
                raise MalformedBody
            return at
        self._left = int(match[1], 16)
        self._in_trailers = not self._left
        return match.end()

    def _read_trailer(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self.done = True
            return at + 2
        end = data.find(b"\n", at) + 1
        too_long = self._trailer_bytes + (end or len(data)) - at > TRAILERS_MAX
        if too_long or len(self.trailers) >= TRAILER_LINES_MAX:
            raise MalformedBody
        if not end:
            return at
        match = _TRAILER.fullmatch(data, at, end)
        if match is None or match[1].lower() in _FRAMING:
            raise MalformedBody
        self.trailers.append((match[1], match[2]))
        self._trailer_bytes += end - at
        return end


def render_chunk(piece: bytes) -> bytes:
    """Return `piece` as a chunk; it must not be empty."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def render_last_chunk(trailers: list[tuple[bytes, bytes]]) -> bytes:
    """Return the end of a chunked body."""
    if not trailers:
        return b"0\r\n\r\n"
    return b"0\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % trailer for trailer in trailers)
