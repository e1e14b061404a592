"""The received bytes of a client connection that were not parsed yet."""

from __future__ import annotations

import re

from cfproxy.errors import BadTarget, Refusal, without_traceback
from cfproxy.http1.framing import Framing
from cfproxy.http1.parser import (
    HeadLimits,
    MalformedHead,
    RequestFields,
    parse_fields,
    request_head_end,
    split_request_head,
)
from cfproxy.http1.request_line import resolve_target

_BEFORE_HEAD = (b"", b"\r")
_EMPTY_LINES = re.compile(rb"\A(?:\r\n)+")
# Larger heads are not cached: the cache lives as long as its connection, also while that is idle.
CACHED_HEAD_BYTES = 8 * 1024
# One is enough for clients that end a body with a line of its own; more than these are an attack.
EMPTY_LINES_MAX = 64
_MALFORMED = "the request is not well-formed HTTP/1.1, or its header is too long"
_NO_FIELDS = RequestFields((1, 1), (), Framing(None, chunked=False), keep_alive=False)


class RequestBuffer:
    """Received bytes of a client connection that were not parsed yet: the next head, and what follows it.

    Args:
        limits: of a head.
    """

    __slots__ = ("_cached", "_empty_lines", "_head_bytes", "_limits", "_malformed", "_seen", "data")

    def __init__(self, limits: HeadLimits) -> None:
        self._limits = limits
        self.data: bytes | bytearray = b""
        self._head_bytes = 0  # of the next head, once it is complete
        self._malformed = False
        self._empty_lines = 0  # before the next head
        self._seen = 0  # length of the start of a head that is not complete yet
        self._cached: tuple[bytes, RequestFields | None] = (b"", None)  # of the head before

    @property
    def started(self) -> bool:
        """Whether a head has started; an empty line may come before it (RFC 9112 §2.2)."""
        return self.data not in _BEFORE_HEAD

    def append(self, data: bytes) -> None:
        """Add received bytes."""
        if not self.data:
            self.data = data
        else:  # a bytearray, so that a head that arrives byte by byte is not copied for each byte
            self.data = bytearray(self.data) if isinstance(self.data, bytes) else self.data
            self.data += data

    def has_head(self) -> bool:
        """Return whether `pop_head` can be called: for a complete head, or for one that is malformed."""
        if self._head_bytes or self._malformed:
            return True
        if not self.started:
            return False
        if self.data.startswith(b"\r\n"):
            before = len(self.data)
            self.data = _EMPTY_LINES.sub(b"", self.data, count=1)
            self._empty_lines += (before - len(self.data)) // 2
        self._malformed = self._empty_lines > EMPTY_LINES_MAX
        try:
            self._head_bytes = request_head_end(self.data, self._limits, self._seen)
        except MalformedHead:
            self._malformed = True
        self._seen = 0 if self._head_bytes else len(self.data)
        return self._malformed or self._head_bytes != 0

    def pop_head(self) -> tuple[bytes, bytes, RequestFields, Refusal | None]:
        """Remove the next head; return its method, target and fields, and an error if it is malformed.

        The target is in origin form (see `resolve_target`). Of a malformed head, parts may be placeholders.
        """
        method, target, fields = b"-", b"", _NO_FIELDS
        if self._malformed:
            return method, target, fields, BadTarget(_MALFORMED)
        try:
            head, self.data = bytes(self.data[: self._head_bytes]), bytes(self.data[self._head_bytes :])
            self._head_bytes = self._empty_lines = 0
            method, target, rest = split_request_head(head, self._limits)
            cached_head, cached = self._cached
            fields = cached if cached is not None and rest == cached_head else self._parse_fields(rest)
            target, fields = resolve_target(method, target, fields)
        except MalformedHead:
            return method, target, fields, BadTarget(_MALFORMED)
        except Refusal as error:
            return method, target, fields, without_traceback(error)
        return method, target, fields, None

    def _parse_fields(self, rest: bytes) -> RequestFields:
        fields = parse_fields(rest, self._limits)
        if len(rest) <= CACHED_HEAD_BYTES:
            self._cached = (rest, fields)
        return fields

    def clear(self) -> None:
        """Discard everything."""
        self.data = b""
        self._head_bytes = self._seen = 0
        self._malformed = False
