"""What passes of an answer's head: bytes in, bytes out.

Owns: the headers that come down, what the API points to as its callers see it.
Must not know: sockets, statuses, what goes up (`wire.py`).
Invariant: framing is the connection's, and is never copied.
"""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime

from cfproxy.http1.headers import (
    CORS_ANSWERS,
    HOP_BY_HOP,
    NameMemo,
    RawHeaders,
    listed_in_connection,
    normalise,
)
from cfproxy.proxy.request_headers import Origin, is_own_cookie

_COOKIE_DOMAIN = re.compile(rb";\s*domain\s*=[^;]*", re.IGNORECASE)
_LOOKED_AT = HOP_BY_HOP | CORS_ANSWERS | {b"location", b"set-cookie"}


def build_response_headers(
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
            if not is_own_cookie(value):
                # Its domain is the upstream's: the client would throw such a cookie away.
                passed.append((name, _COOKIE_DOMAIN.sub(b"", value)))
        elif rule == b"trailer":
            if trailers:
                passed.append(header)
        elif rule == b"connection" and value not in _USUAL_CONNECTION:
            listed |= listed_in_connection((header,))
    if listed:
        passed = [header for header in passed if normalise(header[0]) not in listed]
    return passed


# As it comes nearly always: said of the connection, and of no header.
_USUAL_CONNECTION = frozenset({b"keep-alive", b"Keep-Alive", b"close"})


def _down(name: bytes) -> bytes | None:
    """Return the name, as it is compared, of a header of an answer that does not simply pass."""
    low = normalise(name)
    return low if low in _LOOKED_AT else None


_DOWN = NameMemo(_down)


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
