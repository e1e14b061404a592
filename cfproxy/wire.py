"""Which headers and targets pass, in both directions: bytes in, bytes out.

Owns: the head that goes up, the headers that come down.
Must not know: sockets, tokens, who may call (that is `access`).

Invariants:
1. The origin is the configuration's: no byte of a request chooses scheme, host or port.
2. The target goes up as it came; what could be read in two ways is refused, not mended.
3. Names are compared lower-cased with `_` as `-`, because some servers fold them so.
4. Framing is ours: `Content-Length` is the parsed one, `Transfer-Encoding` is never copied.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

from cfproxy.errors import BadTarget, LoopDetected, NotAllowed, UpgradeNotSupported

RawHeaders = Iterable[tuple[bytes, bytes]]
_V = TypeVar("_V")
_NAME_OF = operator.itemgetter(0)

# RFC 9110 §7.6.1, and the older names that mean the same.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# What a client must not tell the upstream in our name.
OWNED = frozenset(
    {
        b"authorization",
        b"expect",
        b"forwarded",
        b"host",
        b"via",
        b"x-cfproxy-key",
        b"x-real-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"fastly-client-ip",
        b"true-client-ip",
        b"cf-connecting-ip",
        b"x-original-url",
        b"x-original-host",
        b"x-original-forwarded-for",
        b"x-rewrite-url",
        b"x-http-host-override",
        b"x-host",
        b"proxy",  # CGI shows it as HTTP_PROXY (CVE-2016-5385)
    }
)
OWNED_PREFIX = b"x-forwarded"
# What a browser is told about pages of other origins: the upstream's word is about its own address, and
# who may read what comes through here is for us to say (`cors.py`).
CORS_ANSWERS = frozenset(
    {
        b"access-control-allow-credentials",
        b"access-control-allow-headers",
        b"access-control-allow-methods",
        b"access-control-allow-origin",
        b"access-control-allow-private-network",
        b"access-control-expose-headers",
        b"access-control-max-age",
    }
)
OWN_COOKIES = b"cfproxy"  # how the names of the admin listener's cookies begin
_NOT_SENT_UP = HOP_BY_HOP | OWNED
_NOT_SENT_DOWN = HOP_BY_HOP | CORS_ANSWERS
# Behind a body they would get past what is done with them in a head.
_NO_TRAILERS = _NOT_SENT_UP | CORS_ANSWERS | {b"content-length", b"cookie", b"location", b"set-cookie"}
_LOOKED_AT = _NOT_SENT_DOWN | {b"location", b"set-cookie"}

_USUAL_METHODS = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
}
# A request that names itself may be sent again by whatever stands in between, like an idempotent one.
IDEMPOTENCY_KEYS = frozenset({b"idempotency-key", b"x-idempotency-key"})

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BAD_IN_TARGET = re.compile(rb"[\x00-\x20\x7f#\\]")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Methods are case-sensitive: what `get` is, some servers read as GET and others don't.
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Z]+")
# Encoded once or more often, or overlong: what some server makes a dot or a slash of.
_SLASH = rb"[/\\]|%(?:25)*(?:2f|5c)|%(?:25)*c0%(?:25)*af"
_DOT = rb"\.|%(?:25)*2e|%(?:25)*c0%(?:25)*ae"
_DOT_SEGMENT = re.compile(
    rb"(?:^|%b)(?:%b){1,2}(?:[?;]|%%(?:25)*3b|%b|$)" % (_SLASH, _DOT, _SLASH), re.IGNORECASE
)
_COOKIE_DOMAIN = re.compile(rb";\s*domain\s*=[^;]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Origin:
    """The one place that requests go to.

    Args:
        scheme: `http` or `https`.
        authority: `host[:port]` as it stands in `Host`.
        base_path: prefix of every target, without trailing slash; often empty.
        via: our pseudonym in `Via` (RFC 9110 §7.6.3), unlike any other process's.
    """

    scheme: str
    authority: bytes
    base_path: bytes
    via: bytes


@dataclass(frozen=True, slots=True)
class Framing:
    """How a request's body is delimited: by length, in chunks, or not there at all."""

    length: int | None
    chunked: bool

    @property
    def has_body(self) -> bool:
        """Whether any byte of a body can follow."""
        return self.chunked or bool(self.length)


class NameMemo(dict[bytes, _V]):
    """What follows from a header's name alone, remembered, since the same few names come again and again.

    Args:
        read: tells it of a name; what it raises is raised.
    """

    __slots__ = ("_read",)
    NAMES_MAX, BYTES_MAX = 1024, 64  # so that invented names take up a bounded room

    def __init__(self, read: Callable[[bytes], _V]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, name: bytes) -> _V:
        told = self._read(name)
        if len(name) <= self.BYTES_MAX:
            if len(self) >= self.NAMES_MAX:
                self.clear()
            self[name] = told
        return told


_FOLDED = NameMemo(lambda name: name.lower().replace(b"_", b"-"))


def folded(name: bytes) -> bytes:
    """Return a header name as it is compared: lower case, `_` as `-`."""
    return _FOLDED[name]


def has_header(headers: RawHeaders, name: bytes) -> bool:
    """Return whether one of `headers` is called `name`, which is `folded`."""
    return name in map(_FOLDED.__getitem__, map(_NAME_OF, headers))


def read_framing(version: tuple[int, int], headers: RawHeaders) -> Framing:
    """Return the one way in which these headers delimit a body (RFC 9112 §6.3).

    Raises:
        BadTarget: two readers could disagree.
    """
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    codings = [value for name, value in headers if name.lower() == b"transfer-encoding"]
    for name, _ in headers:
        if b"_" in name and folded(name) in {b"content-length", b"transfer-encoding"}:
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


def check_method(method: bytes) -> str:
    """Return the method of a request that may be forwarded.

    Raises:
        BadTarget, NotAllowed
    """
    if method in _USUAL_METHODS:
        return _USUAL_METHODS[method]
    if not _METHOD.fullmatch(method):
        raise BadTarget("the request's method is not a token in capitals (RFC 9110 §9.1)")
    if method == b"CONNECT":
        raise BadTarget("this is a reverse proxy: send the request itself, without CONNECT")
    if method in {b"TRACE", b"TRACK"}:
        # An upstream that echoes the request would show the token (RFC 9110 §9.3.8).
        raise NotAllowed("TRACE is never forwarded, since its answer would show the access token")
    return method.decode("ascii")


def check_fields(version: tuple[int, int], headers: RawHeaders, via: bytes) -> None:
    """Refuse headers that are not those of a plain HTTP request for an upstream.

    Raises:
        BadTarget, UpgradeNotSupported, LoopDetected
    """
    hosts = 0
    for name, value in headers:
        if _CONTROL.search(value) or not _TOKEN.fullmatch(name):
            raise BadTarget("a header holds a control byte; remove it")
        low = name.lower()
        if low == b"host":
            hosts += 1 if value else 2  # an empty one names nobody
        elif low == b"upgrade":
            raise UpgradeNotSupported("the API speaks plain HTTP only; send the request without Upgrade")
        elif low == b"via" and via in value:
            raise LoopDetected("this request has come back to the proxy it left; check the upstream setting")
    if hosts > 1 or (not hosts and version >= (1, 1)):
        raise BadTarget("HTTP/1.1 wants exactly one Host header (RFC 9112 §3.2)")


def waits_to_go_on(version: tuple[int, int], headers: RawHeaders) -> bool:
    """Return whether the client waits for 100 Continue (RFC 9110 §10.1.1); HTTP/1.0 can't."""
    return version >= (1, 1) and any(
        name.lower() == b"expect" and value.lower() == b"100-continue" for name, value in headers
    )


def outgoing_target(target: bytes, base_path: bytes) -> bytes:
    """Return the target to send: `base_path` and the client's bytes, unchanged.

    Raises:
        BadTarget: not origin-form (RFC 9112 §3.2.1), or it would leave `base_path`.
    """
    if not target.startswith(b"/"):
        raise BadTarget("the request target is not a path; send 'GET /v1/…', not a whole URL")
    if _BAD_IN_TARGET.search(target):
        raise BadTarget("the request target holds a byte that must be percent-encoded")
    if not base_path:
        return target
    if has_dot_segment(target):
        raise BadTarget("a dot segment could leave the upstream's base path; send the path without it")
    return base_path + target


def has_dot_segment(target: bytes) -> bool:
    """Return whether the target's path holds `.` or `..` as a segment, encoded or not."""
    return _DOT_SEGMENT.search(target.partition(b"?")[0]) is not None


def outgoing_fields(
    headers: RawHeaders,
    origin: Origin,
    framing: Framing,
    *,
    version: tuple[int, int] = (1, 1),
    expects: bool = False,
) -> bytes:
    """Return the header lines of a request head, but for `Authorization` and the empty line.

    `TE` is one connection's (RFC 9110 §10.1.4): a client's ends here, and we send none of our own, since no
    server waits for it to send trailers. `Trailer` is not (§6.6.2): it goes with the trailers that it
    announces, in a chunked body, and is dropped elsewhere.

    Args:
        headers: the client's, raw, in order.
        origin: where it goes.
        framing: from `read_framing`.
        version: of HTTP, as the client speaks it.
        expects: whether the client waits for 100 Continue; then the upstream decides.
    """
    drop = _NOT_SENT_UP
    listed = _listed_in_connection(headers)
    if listed:
        drop = drop | listed
    lines = [b"Host: %b\r\n" % origin.authority]
    vias = []
    for name, value in headers:
        low = folded(name)
        if low == b"content-length":
            if framing.length is not None:
                lines.append(b"%b: %d\r\n" % (name, framing.length))
        elif low in drop or low.startswith(OWNED_PREFIX):
            if low == b"via":
                vias.append(value)
            elif low == b"expect" and expects:
                lines.append(b"%b: 100-continue\r\n" % name)
            elif low == b"trailer" and framing.chunked and low not in listed:
                lines.append(b"%b: %b\r\n" % (name, value))
        elif low == b"cookie" and OWN_COOKIES in value.lower():
            if others := _without_own_cookies(value):
                lines.append(b"%b: %b\r\n" % (name, others))
        else:
            lines.append(b"%b: %b\r\n" % (name, value))
    if framing.chunked:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    vias.append(b"%d.%d %b" % (*version, origin.via))
    lines.append(b"Via: %b\r\n" % b", ".join(vias))
    return b"".join(lines)


def outgoing_head(method: bytes, target: bytes, fields: bytes) -> bytes:
    """Return a request head up to where `Authorization` and the empty line follow.

    Args:
        method: one that passed `check_method`.
        target: from `outgoing_target`.
        fields: from `outgoing_fields`.
    """
    return b"%b %b HTTP/1.1\r\n%b" % (method, target, fields)


def _without_own_cookies(value: bytes) -> bytes:
    """Return a `Cookie` without the admin listener's: a browser has one jar for all ports of a host."""
    parts = [part for part in value.split(b";") if not _is_own_cookie(part)]
    return b";".join(parts).strip(b" ")


def _is_own_cookie(pair: bytes) -> bool:
    return pair.lstrip(b" \t").lower().startswith(OWN_COOKIES)


def passing_trailers(trailers: list[tuple[bytes, bytes]], headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """Return the trailers that go on: none that frames, routes or authorizes (RFC 9110 §6.5.1).

    Args:
        trailers: as they came.
        headers: of the same message; its `Connection` names trailers, too (§7.6.1).
    """
    if not trailers:
        return trailers
    drop = _NO_TRAILERS | _listed_in_connection(headers)
    return [
        (name, value)
        for name, value in trailers
        if (low := folded(name)) not in drop and not low.startswith(OWNED_PREFIX)
    ]


def incoming_headers(
    headers: RawHeaders, origin: Origin, caller: bytes, *, trailers: bool = False
) -> list[tuple[bytes, bytes]]:
    """Return the upstream's headers as the client gets them, without framing that is per connection.

    Args:
        headers: the upstream's, raw, in order.
        origin: where they come from.
        caller: `scheme://authority` under which the client knows us; empty when it named none.
        trailers: whether the client gets the trailers that `Trailer` announces.
    """
    passed = []
    listed: frozenset[bytes] = frozenset()
    for header in headers:
        rule = _DOWN[header[0]]
        if rule is None:
            passed.append(header)
            continue
        name, value = header
        if rule == b"location":
            passed.append((name, _callers_location(value, origin, caller)))
        elif rule == b"set-cookie":
            if not _is_own_cookie(value):
                # Its domain is the upstream's: the client would throw such a cookie away.
                passed.append((name, _COOKIE_DOMAIN.sub(b"", value)))
        elif rule == b"trailer":
            if trailers:
                passed.append(header)
        elif rule == b"connection" and value not in _USUAL_CONNECTION:
            listed |= _listed_in_connection((header,))
    if listed:
        passed = [header for header in passed if _FOLDED[header[0]] not in listed]
    return passed


# As it comes nearly always: said of the connection, and of no header.
_USUAL_CONNECTION = frozenset({b"keep-alive", b"Keep-Alive", b"close"})


def _down(name: bytes) -> bytes | None:
    """Return the name, as it is compared, of a header of an answer that does not simply pass."""
    low = folded(name)
    return low if low in _LOOKED_AT else None


_DOWN = NameMemo(_down)


def _listed_in_connection(headers: RawHeaders) -> frozenset[bytes]:
    """Return the names that `Connection` declares to be hop-by-hop; framing is never among them."""
    names: set[bytes] = set()
    for name, value in headers:
        if name.lower() == b"connection":
            names.update(_elements(value))
    return frozenset(names - {b"", b"close", b"keep-alive", b"content-length"})


def _elements(value: bytes) -> set[bytes]:
    """Return the elements of a comma-separated list, as they are compared."""
    return {folded(part.strip()) for part in value.split(b",")}


def _callers_location(value: bytes, origin: Origin, caller: bytes) -> bytes:
    """Return where the client finds what the upstream points to."""
    url = b"%b:%b" % (origin.scheme.encode(), value) if value.startswith(b"//") else value
    path = _path_on(origin, url)
    if path is None:
        return value
    absolute = not url.startswith(b"/")
    inside = path[len(origin.base_path) :]
    if not path.startswith(origin.base_path) or (origin.base_path and inside[:1] not in b"/?#"):
        # Outside of the base path, where this proxy does not lead.
        return url if absolute else b"%s://%s%s" % (origin.scheme.encode(), origin.authority, path)
    if not inside.startswith(b"/"):
        inside = b"/" + inside
    # A path that begins with two slashes would be read as another host (RFC 3986 §4.2).
    if inside[1:2] in {b"/", b"\\"}:
        return (caller or b"/.") + inside
    return caller + inside if absolute else inside


def _path_on(origin: Origin, location: bytes) -> bytes | None:
    """Return the path and what follows of a URL or absolute path on `origin`; None for any other place."""
    if location.startswith(b"/"):
        return location
    scheme, separator, rest = location.partition(b"://")
    if not separator or scheme.lower() != origin.scheme.encode():
        return None
    authority = re.split(rb"[/?#]", rest, maxsplit=1)[0]
    if _with_port(authority, scheme) != _with_port(origin.authority, scheme):
        return None
    return rest[len(authority) :]


def _with_port(authority: bytes, scheme: bytes) -> bytes:
    low = authority.lower()
    if re.search(rb":\d+$", low):
        return low
    return low.rstrip(b":") + (b":443" if scheme.lower() == b"https" else b":80")


def retry_after_s(headers: RawHeaders, now: float) -> float | None:
    """Return the seconds that a `Retry-After` asks for (RFC 9110 §10.2.3); None without a readable one.

    Args:
        headers: the answer's, raw.
        now: the wall clock, for one that gives a date.
    """
    for name, value in headers:
        if name.lower() == b"retry-after":
            text = value.decode("latin-1").strip()
            if text.isascii() and text.isdigit():
                return float(text[:9])
            try:
                return max(0.0, parsedate_to_datetime(text).timestamp() - now)
            except (ValueError, OverflowError):
                return None
    return None
