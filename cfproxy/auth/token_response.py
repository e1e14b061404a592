"""Reads the token endpoint's responses, more tolerantly than anything else is read here.

A refresh can't be repeated: with its 2xx the server has replaced the refresh token, and only this response
holds the new one. Whatever has one plausible meaning is therefore read: odd heads, wrong lengths, wrong
labels, unexpected compression. That is safe because each response has a connection of its own, to a server
whose certificate was verified. No next response could begin at the wrong byte, and nothing is passed on.

Invariants:
1. Head, body and unpacked body are bounded.
2. A string of the document is used as a whole or not at all, wherever the response breaks off.
3. Errors hold no text of the response.
4. Reading takes milliseconds, whatever arrives: it happens on the event loop.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from cfproxy.errors import TokenEndpointUnavailable

HEAD_MAX_BYTES = 256 * 1024
REPLY_MAX_BYTES = 64 * 1024
RETRY_AFTER_MAX_S = 300.0
_FRAMED_MAX_BYTES = 8 * REPLY_MAX_BYTES  # with the framing of chunks
RESPONSE_MAX_BYTES = HEAD_MAX_BYTES + _FRAMED_MAX_BYTES
_CHECK = "check whatever intercepts the connection"
_LENGTH_MAX_DIGITS = 12  # a longer number is no length
_CODINGS_MAX = 3  # one inside the other
# No honest response has more of these; what comes after them is not read.
_LINES_MAX, _CHUNKS_MAX, _PARTS_MAX, _MEMBERS_MAX = 4096, 4096, 16, 1000
_BLOCK_BYTES = 512  # of what is unpacked at once
_TEXT_STARTS = (b"", b"{", b"[", b'"', b"<")

_STATUS = re.compile(rb"\s*HTTP(?:/[0-9.]*)?[ \t]+([0-9]{3})(?![0-9])[^\n]*\n", re.IGNORECASE)
_HEAD_END = re.compile(rb"\n\r*\n")
_LINE_END = re.compile(rb"\n(?![ \t])")  # a line that begins with a space continues the one before
_CHUNK = re.compile(rb"\s*([0-9A-Fa-f]{1,18})[ \t]*(?:;[^\n]*|\r*)\n")
# What may precede an object: guards against scripts, JSONP, a list. Not a web page, and no assignment in one.
_OBJECT = re.compile(r'\s*(?:[^\s{"<=][^{"<=]{0,40})?\{')
_FORM = re.compile(r"[a-z_]+=[!-%'-~]*(?:&[a-z_]+=[!-%'-~]*){0,50}")
_SEPARATOR = re.compile(r"[\s,]*")
_COLON = re.compile(r"\s*:\s*")
_DECODER = json.JSONDecoder(strict=False, parse_int=float)  # `int` refuses numbers of 5,000 digits


class Unreadable(Exception):
    """There is no usable response; the message is a fixed text."""


@dataclass(frozen=True, slots=True)
class EndpointResponse:
    """A response of the token or revocation endpoint, as far as it has arrived.

    Args:
        status: the HTTP status, not 1xx.
        content_type: used for messages only; JSON is parsed whatever its type.
        body: without framing and compression.
        retry_after: the header; a number of seconds, capped at `RETRY_AFTER_MAX_S`.
        where: names the endpoint in messages.
        complete: False if it breaks off.
        packed: the body has a content coding that can't be unpacked.
    """

    status: int
    content_type: str
    body: bytes = field(repr=False)
    retry_after: str = ""
    where: str = "the token endpoint"
    complete: bool = True
    packed: bool = False

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def is_client_error(self) -> bool:
        """Whether the status is 4xx."""
        return 400 <= self.status < 500

    @property
    def refuses_client(self) -> bool:
        """Whether the app's own credentials were refused, before anything else was looked at."""
        return self.is_client_error and self.parse_object().get("error") == "invalid_client"

    def parse_object(self) -> dict[str, Any]:
        """Return the JSON object in the body, {} if there is none.

        Of an object that breaks off, nothing is used unless its end can't change what is known already: a
        refusal, or that there is a new refresh token. Some servers send a form instead of JSON.
        """
        members, closed = read_object(self.body)
        if closed or members.get("refresh_token") or members.get("error"):
            return members
        form = self.body.decode("ascii", "replace").strip()
        if self.complete and _FORM.fullmatch(form):
            return dict(parse_qsl(form))
        return {}

    def error(self, what: str = "") -> TokenEndpointUnavailable:
        """Return the error for a response described by `what`, or for its status."""
        text = f"{self.where} answered {self.status} {what}" if what else self._explain_status()
        retry_after_s = self._retry_after_s()
        return TokenEndpointUnavailable(text, retry_after_s=retry_after_s, answered=not self.is_success)

    def _explain_status(self) -> str:
        text = f"{self.where} answered {self.status}"
        if 300 <= self.status < 400:
            return f"{text}; redirects are never followed: check the URL in the configuration"
        if self.is_success:
            return f"{text} with an error"
        if self.is_client_error and self.status != 429:
            return f"{text} without a known reason: check the URL in the configuration"
        return f"{text}: try again later"

    def _retry_after_s(self) -> float:
        # A date (RFC 9110 §10.2.3) would need a clock; the caller's own backoff applies instead.
        least_s = TokenEndpointUnavailable.retry_after_s
        value = self.retry_after.strip()
        if self.status not in {429, 503} or not re.fullmatch(r"[0-9]{1,18}", value):
            return least_s
        return max(least_s, min(float(value), RETRY_AFTER_MAX_S))


def read_response(data: bytes, *, ended: bool) -> EndpointResponse | None:
    """Return the response that `data` starts with; None if more of it must be awaited, or never came.

    Args:
        data: what has arrived.
        ended: no more will arrive.

    Raises:
        Unreadable: not HTTP, or more than is read.
    """
    if (split := _split_head(data)) is None:
        return None
    status, headers, body_at = split
    success = 200 <= status < 300
    coding = headers.get(b"content-encoding", b"").lower()
    framed, done, announced = _unframe(data[body_at:], headers)
    done = done or (status in {204, 304} and not framed)
    body = _unpack(framed, coding + headers.get(b"transfer-encoding", b"").lower())
    if len(body) > REPLY_MAX_BYTES or len(data) - body_at > _FRAMED_MAX_BYTES or announced > REPLY_MAX_BYTES:
        if success:
            raise Unreadable(f"answered {status} with more than {REPLY_MAX_BYTES // 1024} KiB: {_CHECK}")
        body, done = body[:REPLY_MAX_BYTES], True
    members, closed = read_object(body)
    # A wrong length may be too short for the document.
    if not (ended or closed or (done and not (success and body.lstrip().startswith(b"{")))):
        return None
    return EndpointResponse(
        status,
        headers.get(b"content-type", b"").decode("latin-1"),
        body,
        headers.get(b"retry-after", b"").decode("latin-1"),
        complete=closed or done or announced < 0,
        packed=not members and coding not in {b"", b"identity"},
    )


def _split_head(data: bytes) -> tuple[int, dict[bytes, bytes], int] | None:
    """Return status, headers and where the body starts; None while the head is incomplete."""
    at = 0
    while True:
        start = _STATUS.match(data, at)
        end = None if start is None else _HEAD_END.search(data, start.end() - 1)
        if max(len(data) if end is None else end.end(), at) > HEAD_MAX_BYTES:
            raise Unreadable(f"answered with a head of more than {HEAD_MAX_BYTES // 1024} KiB: {_CHECK}")
        if start is None or end is None:
            begun = data[at:].lstrip()
            if (start is None and b"\n" in begun) or begun[:4].upper() != b"HTTP"[: len(begun)]:
                raise Unreadable("did not answer in HTTP: check the URL in the configuration")
            return None
        at = end.end()
        if not 100 <= int(start[1]) < 200:  # interim
            return int(start[1]), _parse_headers(data[start.end() : end.start()]), at


def _parse_headers(lines: bytes) -> dict[bytes, bytes]:
    """Return values by lower-case name; those of a repeated name are joined with commas (RFC 9110 §5.3)."""
    headers: dict[bytes, list[bytes]] = {}
    for line in _LINE_END.split(lines, _LINES_MAX):
        name, _, value = line.partition(b":")
        headers.setdefault(name.strip().lower(), []).append(value.strip())
    return {name: b",".join(values) for name, values in headers.items()}


def _unframe(body: bytes, headers: dict[bytes, bytes]) -> tuple[bytes, bool, int]:
    """Return the content, whether it is complete, and its announced length: -1 for none, 0 for chunks.

    Bytes beyond the announced length are part of the content: it is the document that shows its end.
    """
    if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
        return *_join_chunks(body), 0
    values = {value.strip() for value in headers.get(b"content-length", b"").split(b",")}
    value = values.pop()
    if values or not value.isdigit() or len(value) > _LENGTH_MAX_DIGITS:
        return (*_join_chunks(body)[:1], False, -1) if _CHUNK.match(body) else (body, False, -1)
    return body, len(body) >= int(value), int(value)


def _join_chunks(body: bytes) -> tuple[bytes, bool]:
    """Return the content of chunks, and whether the last one has come (RFC 9112 §7.1)."""
    pieces: list[bytes] = []
    at = 0
    while len(pieces) < _CHUNKS_MAX and (size := _CHUNK.match(body, at)) is not None:
        if int(size[1], 16) == 0:
            return b"".join(pieces), True
        at = size.end() + int(size[1], 16)
        pieces.append(body[size.end() : at])
    return (b"".join(pieces), False) if pieces else (body, False)


def _unpack(body: bytes, coding: bytes) -> bytes:
    """Return the body without gzip and deflate, by its own marks rather than by its label."""
    for _ in range(_CODINGS_MAX):
        if len(body) < 2 or len(body) > REPLY_MAX_BYTES:
            break
        if body.startswith(b"\x1f\x8b"):
            wbits = 31
        elif body[0] & 15 == zlib.DEFLATED and int.from_bytes(body[:2]) % 31 == 0:  # RFC 1950 §2.2
            wbits = 15
        elif (b"gzip" in coding or b"deflate" in coding) and body.lstrip()[:1] not in _TEXT_STARTS:
            wbits = -15  # RFC 9110 §8.4.1.2: some send deflate without its header
        else:
            break
        unpacked = _inflate(body, wbits)
        if not unpacked:
            break
        body = unpacked
    return body


def _inflate(body: bytes, wbits: int) -> bytes:
    """Return what can be unpacked, up to one byte more than is read."""
    unpacked = bytearray()
    engine = zlib.decompressobj(wbits)
    parts, block, at = 1, _BLOCK_BYTES, 0
    while at < len(body) and len(unpacked) <= REPLY_MAX_BYTES:
        if engine.eof:  # gzip may have several members (RFC 1952 §2.2)
            if parts == _PARTS_MAX:
                break
            engine = zlib.decompressobj(wbits)
            parts += 1
        before = engine.copy()
        try:
            unpacked += engine.decompress(body[at : at + block], REPLY_MAX_BYTES + 1 - len(unpacked))
        except zlib.error:
            if block == 1:
                break
            # Byte by byte: if the end is damaged, or its checksum wrong, what came before is kept.
            engine, block = before, 1
            continue
        at = min(at + block, len(body)) - len(engine.unused_data)
    return bytes(unpacked)


def read_object(body: bytes) -> tuple[dict[str, Any], bool]:
    """Return the members of the JSON object in `body` that have arrived whole, and whether the object has.

    Of a repeated member the last one counts that has a value.
    """
    text = body.decode(json.detect_encoding(body), "replace")
    if text.lstrip().startswith('"'):
        try:
            text, _ = _DECODER.raw_decode(text.lstrip())  # JSON in a string
        except (ValueError, RecursionError):
            return {}, False
    start = _OBJECT.match(text)
    members: dict[str, Any] = {}
    at = len(text) if start is None else start.end()
    for _ in range(_MEMBERS_MAX):
        at = _skip(_SEPARATOR, text, at)
        if text[at : at + 1] == "}":
            return members, True
        try:
            name, at = _DECODER.raw_decode(text, at)
            value, at = _DECODER.raw_decode(text, _skip(_COLON, text, at))
        except (ValueError, RecursionError):
            break
        if at == len(text) and isinstance(value, float):
            break  # more digits may have been meant to follow
        if isinstance(name, str) and (value not in (None, "") or name not in members):
            members[name] = value
    return members, False


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()
