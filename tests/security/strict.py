"""A strict HTTP/1.1 parser for what the origin and the client received.

It accepts one form of each message and raises a violation for everything else. It follows RFC 9112, without
what that allows only for compatibility.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Z-]+) (/[!-~\x80-\xff]*) HTTP/1\.1")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2}) [\t\x20-\x7e\x80-\xff]*")
_FIELD = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?((?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?)"
)
# Upstream values are forwarded unchanged; RFC 9110 §5.5 tolerates other control bytes.
_ANSWER_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([^\x00\r\n]*)")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")
_CHUNK_SIZE = re.compile(rb"0|[1-9a-f][0-9a-f]{0,15}")


class Violation(AssertionError):
    """These bytes are ambiguous or invalid."""


@dataclass(frozen=True)
class Heard:
    """A complete message.

    Args:
        start: request line or status line.
        headers: names in lower case, values without surrounding white space.
        body: dechunked.
        trailers: as `headers`.
        raw: all bytes as received.
    """

    start: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    trailers: tuple[tuple[bytes, bytes], ...]
    raw: bytes

    def all(self, name: bytes) -> list[bytes]:
        return [value for given, value in self.headers if given == name]

    @property
    def method(self) -> bytes:
        return self.start.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.start.split(b" ")[1]

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])


def read_requests(data: bytes) -> tuple[list[Heard], bytes]:
    """Return the complete requests of a connection, and the bytes of an incomplete one.

    Raises:
        Violation
    """
    return _read_all(data, _REQUEST_LINE, lambda _, __: False)


def read_answers(data: bytes, *, heads: bool) -> tuple[list[Heard], bytes]:
    """Return the complete responses of a connection, and the bytes of an incomplete one.

    Args:
        data: everything received.
        heads: whether some of them may be responses to HEAD.

    Raises:
        Violation
    """
    return _read_all(data, _STATUS_LINE, lambda head, after: _is_bodiless(head, after, heads=heads))


def _is_bodiless(head: bytes, after: bytes, *, heads: bool) -> bool:
    """Return whether no body follows; the origin marks responses to HEAD, and ours would have a document."""
    if head[9:10] == b"1" or head[9:12] in {b"204", b"304"} or b"\r\nX-Origin: HEAD\r\n" in head:
        return True
    return heads and b"\r\nX-Origin: " not in head and after[:1] != b"{"


def _read_all(
    data: bytes, line: re.Pattern[bytes], bodiless: Callable[[bytes, bytes], bool]
) -> tuple[list[Heard], bytes]:
    whole: list[Heard] = []
    at = 0
    while at < len(data):
        message = _read_one(data, at, line, bodiless)
        if message is None:
            break
        whole.append(message)
        at += len(message.raw)
    return whole, data[at:]


def _read_one(
    data: bytes, at: int, line: re.Pattern[bytes], bodiless: Callable[[bytes, bytes], bool]
) -> Heard | None:
    end = data.find(b"\r\n\r\n", at)
    head = data[at:] if end < 0 else data[at:end]
    start, *fields = head.split(b"\r\n")
    if b"\n" in head.replace(b"\r\n", b"") or b"\r" in head.replace(b"\r\n", b"").removesuffix(b"\r"):
        raise Violation(f"a bare CR or LF in {head[:200]!r}")
    if end < 0:
        return None
    if not line.fullmatch(start):
        raise Violation(f"start line {start[:200]!r}")
    headers = _fields(fields, line)
    framing = [(name, value) for name, value in headers if name in {b"content-length", b"transfer-encoding"}]
    if len(framing) > 1:
        raise Violation(f"framed twice: {framing!r}")
    found = _read_body(
        data, end + 4, framing, bodiless=bodiless(head + b"\r\n", data[end + 4 : end + 5]), line=line
    )
    if found is None:
        return None
    body, trailers, after = found
    return Heard(start, headers, body, trailers, data[at:after])


def _fields(lines: list[bytes], start: re.Pattern[bytes]) -> tuple[tuple[bytes, bytes], ...]:
    fields = []
    for text in lines:
        match = (_FIELD if start is _REQUEST_LINE else _ANSWER_FIELD).fullmatch(text)
        if match is None:
            raise Violation(f"header line {text[:200]!r}")
        fields.append((match[1].lower(), match[2].strip(b" \t")))
    return tuple(fields)


def _read_body(
    data: bytes,
    at: int,
    framing: list[tuple[bytes, bytes]],
    *,
    bodiless: bool,
    line: re.Pattern[bytes],
) -> tuple[bytes, tuple[tuple[bytes, bytes], ...], int] | None:
    """Return the body, its trailers, and where it ends; None while it is incomplete."""
    if not framing:
        return b"", (), at
    name, value = framing[0]
    if name == b"content-length":
        if not _LENGTH.fullmatch(value):
            raise Violation(f"Content-Length {value!r}")
        length = 0 if bodiless else int(value)
        return None if len(data) < at + length else (data[at : at + length], (), at + length)
    if value != b"chunked":
        raise Violation(f"Transfer-Encoding {value!r}")
    if bodiless:
        return b"", (), at
    pieces: list[bytes] = []
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        if not _CHUNK_SIZE.fullmatch(data[at:end]):
            raise Violation(f"chunk size {data[at:end][:100]!r}")
        size = int(data[at:end], 16)
        if not size:
            return _read_trailers(data, b"".join(pieces), end, line)
        at = end + 2 + size + 2
        if len(data) < at:
            return None
        if data[at - 2 : at] != b"\r\n":
            raise Violation("a chunk without its end")
        pieces.append(data[end + 2 : at - 2])


def _read_trailers(
    data: bytes, body: bytes, at: int, line: re.Pattern[bytes]
) -> tuple[bytes, tuple[tuple[bytes, bytes], ...], int] | None:
    """Read what follows the last chunk's size, whose line ends at `at`."""
    end = data.find(b"\r\n\r\n", at)
    if end < 0:
        return None
    lines = data[at + 2 : end].split(b"\r\n") if end > at else []
    return body, _fields(lines, line), end + 4
