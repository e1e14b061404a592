"""The heads of requests and answers, parsed: bytes in, facts out.

Owns: what is a head, and what it says of its message's framing and of its connection.
Must not know: sockets, bodies; which headers pass (`wire.py`) and who may call (`access.py`).

The parser is aiohttp's, llhttp where its C extension is there. It gets one whole head at a time, from a
fresh state, and no body, so that nothing of one message is left over for the next. Invariants:
1. The request target never meets the parser: it goes on as it came, bytes above 0x7f included.
2. A head is one message with one body, whose framing is certain, or it is refused.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from typing import Any

from aiohttp.http import HttpRequestParser, HttpResponseParser, RawRequestMessage, RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError

from cfproxy.http1.framing import BodyReader, ChunkReader, CloseReader, Framing, LengthReader, read_framing
from cfproxy.http1.headers import NameMemo

_HEAD_END = b"\r\n\r\n"
_LENIENT_END = re.compile(rb"\n\r?\n")  # of whoever sends this nothing more is to be expected
_REQUEST_LINE = re.compile(rb"[^ ]+ [^ ]+ HTTP/1\.[01]")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NO_BODY = frozenset({204, 304})


class MalformedHead(Exception):
    """What came is not a head of HTTP/1.x, or it is too long."""


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """How large a head may be.

    Args:
        line_bytes: its first line, or one header line.
        head_bytes: all together.
        headers: header lines.
    """

    line_bytes: int = 32 * 1024
    head_bytes: int = 64 * 1024
    headers: int = 128
    options: dict[str, Any] = field(init=False, repr=False, compare=False)  # the parser's

    def __post_init__(self) -> None:
        options = {
            "max_line_size": self.line_bytes,
            "max_field_size": self.line_bytes,
            "max_headers": self.headers,
            "response_with_body": False,
            "auto_decompress": False,
        }
        object.__setattr__(self, "options", options)


@dataclass(slots=True)
class RequestFields:
    """A request head without its method and target: the same for one request after another, often.

    Args:
        version: of HTTP.
        raw: names and values as they came, in order.
        framing: of the body.
        keep_alive: whether the client wants its connection to go on.
        cache: for what a handler derives from these fields alone.
    """

    version: tuple[int, int]
    raw: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    framing: Framing
    keep_alive: bool
    cache: Any = field(default=None, repr=False)


def parse_fields(fields: bytes, limits: HeadLimits) -> RequestFields:
    """Parse a request head from behind its target.

    Args:
        fields: from `HTTP/1.` to the empty line.
        limits: how large it may be.

    Raises:
        MalformedHead
        BadTarget: the body's framing is not certain.
    """
    parser = HttpRequestParser(
        None, None, 0, **limits.options
    )  # without a body protocol and loop are not used
    message = _only_message(parser, b"GET / " + fields)
    assert isinstance(message, RawRequestMessage)  # noqa: S101 - the one kind that this parser makes
    version = (message.version.major, message.version.minor)
    if version not in {(1, 0), (1, 1)}:
        raise MalformedHead
    framing = read_framing(version, message.raw_headers)
    return RequestFields(version, message.raw_headers, framing, not message.should_close)


def build_reader(framing: Framing) -> BodyReader:
    """Return what finds a request's body."""
    return ChunkReader() if framing.chunked else LengthReader(framing.length or 0)


def _frames(name: bytes) -> bool:
    """Return whether a header of that name frames.

    Raises:
        MalformedHead: no name. The parser takes `Content-Length : 5` for a length and leaves the space in the
            name, with which it would be none to us, and perhaps one to the client.
    """
    if not _NAME.fullmatch(name):
        raise MalformedHead
    return name.lower() in {b"transfer-encoding", b"content-length"}


_FRAMES = NameMemo(_frames)
_NAME_OF = operator.itemgetter(0)


def _framing_at(headers: tuple[tuple[bytes, bytes], ...]) -> list[int]:
    """Return the places of the headers that frame.

    Raises:
        MalformedHead: a header has no name (see `_frames`).
    """
    frames = list(map(_FRAMES.__getitem__, map(_NAME_OF, headers)))
    if frames.count(True) == 1:  # nearly always
        return [frames.index(True)]
    return [at for at, one in enumerate(frames) if one]


class AnswerHead:
    """The head of an answer.

    Args:
        message: as parsed.
        to_head: whether it answers a HEAD.
    """

    __slots__ = ("_message", "chunked", "keep_alive", "length", "raw_headers", "reason", "status", "to_head")

    def __init__(self, message: RawResponseMessage, *, to_head: bool) -> None:
        self.status: int = message.code
        self.reason = message.reason.encode("utf-8", "surrogateescape")
        self.raw_headers = message.raw_headers
        self.to_head = to_head
        self.chunked = False
        self.length: int | None = None
        for at in _framing_at(message.raw_headers):
            name, value = message.raw_headers[at]
            low = name.lower()
            if low == b"transfer-encoding":
                # Another coding would have to be undone, or named to a client that did not ask for it.
                if value.lower() != b"chunked" or self.chunked:
                    raise MalformedHead
                self.chunked = True
            else:
                if not value.isdigit() or len(value) > 18:
                    raise MalformedHead
                self.length = int(value)
        if _CONTROL.search(self.reason):
            raise MalformedHead
        # HTTP/1.0 knows no chunks: who sends them all the same may mean another end (RFC 9112 §6.1).
        old = message.version < (1, 1)
        self.keep_alive = not (message.should_close or (old and self.chunked))

    @property
    def has_body(self) -> bool:
        """Whether a body can follow (RFC 9112 §6.3)."""
        return not (self.to_head or self.status in _NO_BODY)

    def build_reader(self) -> BodyReader:
        """Return what finds the body."""
        if not self.has_body:
            return LengthReader(0)
        if self.chunked:
            return ChunkReader(padded=True)
        return CloseReader() if self.length is None else LengthReader(self.length)


def parse_answer(head: bytes, limits: HeadLimits, *, to_head: bool) -> AnswerHead:
    """Parse an answer's head, from its status line to the empty line.

    Raises:
        MalformedHead
    """
    parser = HttpResponseParser(
        None, None, 0, **limits.options
    )  # without a body protocol and loop are not used
    message = _only_message(parser, head)
    assert isinstance(message, RawResponseMessage)  # noqa: S101 - the one kind that this parser makes
    return AnswerHead(message, to_head=to_head)


def request_end(data: bytes | bytearray, limits: HeadLimits, seen: int = 0) -> int:
    """Return where the request head that `data` begins with ends; 0 while that is not to be seen.

    Args:
        data: what came.
        limits: how large it may be.
        seen: of so much of it the answer was 0: a head that comes byte by byte is not looked through anew
            for each.

    Raises:
        MalformedHead: it is too long, or nothing that could follow would make a head of it.
    """
    end = data.find(_HEAD_END, max(0, seen - 3)) + 4
    if end > 3:
        if end > limits.head_bytes:
            raise MalformedHead
        return end
    line_end = data.find(b"\r\n")
    if (
        len(data) > limits.head_bytes
        or _has_bare_line_end(data, max(0, seen - 1))
        or (line_end >= max(0, seen - 1) and not _REQUEST_LINE.fullmatch(data, 0, line_end))
        or not 0x20 < (data or b"-")[0] < 0x7F  # TLS, for instance
    ):
        raise MalformedHead
    return 0


def _has_bare_line_end(data: bytes | bytearray, start: int) -> bool:
    """Return whether a CR or LF stands alone from `start` on; a CR at the very end may get its LF yet.

    By counting: an expression that looks at each byte takes milliseconds for a large head, from everybody.
    """
    start -= data[start - 1 : start] == b"\r"
    pairs = data.count(b"\r\n", start)
    lone = data.count(b"\r", start) - data.endswith(b"\r")
    return data.count(b"\n", start) != pairs or lone != pairs


def split_request(head: bytes, limits: HeadLimits) -> tuple[bytes, bytes, bytes]:
    """Return method, target and the rest, for `parse_fields`, of a whole request head.

    Raises:
        MalformedHead
    """
    method, _, rest = head.partition(b" ")
    target, _, rest = rest.partition(b" ")
    if not (method and target and rest.startswith(b"HTTP/1.")):
        raise MalformedHead
    if len(method) + len(target) + len("  HTTP/1.1") > limits.line_bytes:
        raise MalformedHead
    return method, target, rest


def answer_end(data: bytes, limits: HeadLimits) -> int:
    """Return where the answer's head that `data` begins with ends; 0 while that is not to be seen.

    Raises:
        MalformedHead: it is too long, or nothing that could follow would make a head of it.
    """
    end = data.find(_HEAD_END) + 4
    if max(end, len(data) if end == 3 else 0) > limits.head_bytes or data[:7] != b"HTTP/1."[: len(data)]:
        raise MalformedHead
    if end == 3 and _LENIENT_END.search(data):
        raise MalformedHead
    return end if end > 3 else 0


def _only_message(parser: Any, head: bytes) -> Any:
    try:
        messages, _, _ = parser.feed_data(head)
    except HttpProcessingError:
        raise MalformedHead from None
    if len(messages) != 1:
        raise MalformedHead
    return messages[0][0]
