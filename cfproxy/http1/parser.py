"""Parses the heads of requests and responses.

The parser is aiohttp's: llhttp where its C extension is available. Each complete head gets a new parser,
which never sees a body, so that nothing of one message can affect the next.

Invariants:
1. The request target never reaches the parser: it is forwarded byte for byte, including bytes above 0x7f.
2. A head describes exactly one message whose body has one unambiguous framing; anything else is refused.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from typing import Any

from aiohttp.http import HttpRequestParser, HttpResponseParser, RawRequestMessage, RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError

from cfproxy.errors import BadTarget
from cfproxy.http1.framing import BodyReader, ChunkReader, CloseReader, Framing, LengthReader, read_framing
from cfproxy.http1.headers import CONTROL, HEADER_NAME, NameMemo

_HEAD_END = b"\r\n\r\n"
_LENIENT_END = re.compile(rb"\n\r?\n")  # the sender takes its head for complete, and will send no more of it
_REQUEST_LINE = re.compile(rb"[^ ]+ [^ ]+ HTTP/1\.[01]")
_NO_BODY = frozenset({204, 304})


class MalformedHead(Exception):
    """The data is not an HTTP/1.x head, or the head is too long."""


class HeadTooLong(MalformedHead):
    """The head exceeds its limits."""


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """The maximum size of a head.

    Args:
        line_bytes: of the first line and of each header line.
        head_bytes: of the whole head.
        headers: number of header lines.
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
    """A request head without its method and target; often the same for many requests of a client.

    Args:
        version: of HTTP.
        raw: names and values as received, in order.
        framing: of the body.
        keep_alive: whether the client wants to reuse the connection.
        cache: for what a handler derives from these fields alone.
    """

    version: tuple[int, int]
    raw: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    framing: Framing
    keep_alive: bool
    cache: Any = field(default=None, repr=False)


def parse_fields(fields: bytes, limits: HeadLimits) -> RequestFields:
    """Parse what follows the target in a request head.

    Args:
        fields: from `HTTP/1.` to the empty line.
        limits: of the head.

    Raises:
        MalformedHead
        BadTarget: `Host` or the framing of the body is ambiguous.
    """
    parser = HttpRequestParser(None, None, 0, **limits.options)  # protocol and loop are used for bodies only
    message = _only_message(parser, b"GET / " + fields)
    assert isinstance(message, RawRequestMessage)  # noqa: S101 - the only kind that this parser returns
    version = (message.version.major, message.version.minor)
    if version not in {(1, 0), (1, 1)}:
        raise MalformedHead
    hosts = [value for name, value in message.raw_headers if name.lower() == b"host"]
    if len(hosts) > 1 or (version == (1, 1) and not hosts) or b"" in hosts:
        raise BadTarget("HTTP/1.1 requires exactly one Host header, and not an empty one (RFC 9112 §3.2)")
    framing = read_framing(version, message.raw_headers)
    return RequestFields(version, message.raw_headers, framing, not message.should_close)


def build_reader(framing: Framing) -> BodyReader:
    """Return a reader for a request's body."""
    return ChunkReader() if framing.chunked else LengthReader(framing.length or 0)


def _frames(name: bytes) -> bool:
    """Return whether a header of this name is a framing header.

    Raises:
        MalformedHead: it is not a header name. The parser accepts `Content-Length : 5` as a length and keeps
            the space in the name. We would not recognize that name, but the client might.
    """
    if not HEADER_NAME.fullmatch(name):
        raise MalformedHead
    return name.lower() in {b"transfer-encoding", b"content-length"}


_FRAMES = NameMemo(_frames)
_NAME_OF = operator.itemgetter(0)


def _framing_at(headers: tuple[tuple[bytes, bytes], ...]) -> list[int]:
    """Return the indices of the framing headers.

    Raises:
        MalformedHead: a header name is invalid (see `_frames`).
    """
    frames = list(map(_FRAMES.__getitem__, map(_NAME_OF, headers)))
    if frames.count(True) == 1:  # nearly always; faster than the comprehension
        return [frames.index(True)]
    return [at for at, one in enumerate(frames) if one]


class ResponseHead:
    """The head of a response.

    Args:
        message: the parser's result.
        to_head: whether the request was a HEAD.
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
                # We would have to decode another coding, or pass it on to a client that did not ask for it.
                if value.lower() != b"chunked" or self.chunked:
                    raise MalformedHead
                self.chunked = True
            else:
                if not value.isdigit() or len(value) > 18:
                    raise MalformedHead
                self.length = int(value)
        if CONTROL.search(self.reason):
            raise MalformedHead
        # HTTP/1.0 has no chunks: a server that sends them may mean another end of the body (RFC 9112 §6.1).
        old = message.version < (1, 1)
        self.keep_alive = not (message.should_close or (old and self.chunked))

    @property
    def has_body(self) -> bool:
        """Whether a body can follow (RFC 9112 §6.3)."""
        return not (self.to_head or self.status in _NO_BODY)

    def build_reader(self) -> BodyReader:
        """Return a reader for the body."""
        if not self.has_body:
            return LengthReader(0)
        if self.chunked:
            return ChunkReader(padded=True)
        return CloseReader() if self.length is None else LengthReader(self.length)


def parse_response_head(head: bytes, limits: HeadLimits, *, to_head: bool) -> ResponseHead:
    """Parse the head of a response, from its status line to the empty line.

    Raises:
        MalformedHead
        HeadTooLong: a line exceeds the limits, or the number of lines.
    """
    # Only a long head can have a long line, or many lines of at least four bytes.
    if len(head) > limits.line_bytes and max(map(len, head.split(b"\r\n"))) > limits.line_bytes:
        raise HeadTooLong
    if len(head) > 4 * limits.headers and head.count(b"\r\n") - 2 > limits.headers:
        raise HeadTooLong
    parser = HttpResponseParser(None, None, 0, **limits.options)  # protocol and loop are used for bodies only
    message = _only_message(parser, head)
    assert isinstance(message, RawResponseMessage)  # noqa: S101 - the only kind that this parser returns
    return ResponseHead(message, to_head=to_head)


def request_head_end(data: bytes | bytearray, limits: HeadLimits, seen: int = 0) -> int:
    """Return the length of the request head that `data` starts with; 0 while it is incomplete.

    Args:
        data: the received bytes.
        limits: of the head.
        seen: how many of them a previous call has seen, so that a head that arrives byte by byte is not
            searched from the start each time.

    Raises:
        MalformedHead: the head is too long, or can't become valid whatever follows.
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
    """Return whether a CR or LF stands alone from `start` on; a CR at the very end may still get its LF.

    It counts, because a regular expression that tests each byte blocks the loop for milliseconds per head.
    """
    start -= data[start - 1 : start] == b"\r"
    pairs = data.count(b"\r\n", start)
    lone = data.count(b"\r", start) - data.endswith(b"\r")
    return data.count(b"\n", start) != pairs or lone != pairs


def split_request_head(head: bytes, limits: HeadLimits) -> tuple[bytes, bytes, bytes]:
    """Split a complete request head into method, target and the fields for `parse_fields`.

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


def response_head_end(data: bytes | bytearray, limits: HeadLimits, seen: int = 0) -> int:
    """Return the length of the response head that `data` starts with; 0 while it is incomplete.

    Args:
        data: the received bytes.
        limits: of the head.
        seen: how many of them a previous call has seen (see `request_head_end`).

    Raises:
        MalformedHead: the head can't become valid whatever follows.
        HeadTooLong
    """
    if not data.startswith(b"HTTP/1."[: len(data)]):
        raise MalformedHead
    end = data.find(_HEAD_END, max(0, seen - 3)) + 4
    if end == 3 and _LENIENT_END.search(data, max(0, seen - 2)):
        raise MalformedHead
    if (len(data) if end == 3 else end) > limits.head_bytes:
        raise HeadTooLong
    return end if end > 3 else 0


def _only_message(parser: Any, head: bytes) -> Any:
    try:
        messages, _, _ = parser.feed_data(head)
    except HttpProcessingError:
        raise MalformedHead from None
    if len(messages) != 1:
        raise MalformedHead
    return messages[0][0]
