"""Response headers on their way from the upstream to the client.

Framing belongs to each connection and is never copied.
"""

from __future__ import annotations

import re

from cfproxy.http1.headers import (
    CORS_HEADERS,
    HOP_BY_HOP,
    NameMemo,
    RawHeaders,
    listed_in_connection,
    normalise,
)
from cfproxy.proxy.request_headers import REQUEST_ID, Origin, is_own_cookie

_COOKIE_DOMAIN = re.compile(rb";\s*domain\s*=[^;]*", re.IGNORECASE)
_RULES_FOR = HOP_BY_HOP | CORS_HEADERS | {b"location", b"set-cookie", b"x-request-id"}


def build_response_headers(
    headers: RawHeaders,
    origin: Origin,
    caller_url: bytes,
    *,
    trailers: bool = False,
    request_id: bytes | None = None,
) -> list[tuple[bytes, bytes]]:
    """Return the upstream's headers as the client gets them, without the framing, which is per connection.

    Args:
        headers: of the upstream, raw, in order.
        origin: the upstream.
        caller_url: `scheme://authority` by which the client addresses us; empty without a `Host`.
        trailers: whether the client gets the trailers that `Trailer` announces.
        request_id: added as `X-Request-Id`, unless the upstream sent an ID of its own.
    """
    passed = []
    listed: frozenset[bytes] = frozenset()
    upstream_id = False
    for header in headers:
        rule = _RULES[header[0]]
        if rule is None:
            passed.append(header)
            continue
        name, value = header
        if rule == b"location":
            passed.append((name, _callers_location(value, origin, caller_url)))
        elif rule == b"set-cookie":
            if not is_own_cookie(value):
                # Its domain is the upstream's, so the client would reject the cookie.
                passed.append((name, _COOKIE_DOMAIN.sub(b"", value)))
        elif rule == b"x-request-id":
            passed.append(header)
            upstream_id = True
        elif rule == b"trailer":
            if trailers:
                passed.append(header)
        elif rule == b"connection" and value not in _USUAL_CONNECTION:
            listed |= listed_in_connection((header,))
    if listed:
        passed = [header for header in passed if normalise(header[0]) not in listed]
    if request_id is not None and (not upstream_id or b"x-request-id" in listed):
        passed.append((REQUEST_ID, request_id))
    return passed


# Common values that list no header.
_USUAL_CONNECTION = frozenset({b"keep-alive", b"Keep-Alive", b"close"})


def _rule(name: bytes) -> bytes | None:
    """Return the normalised name of a header that needs a closer look; None if it is simply forwarded."""
    low = normalise(name)
    return low if low in _RULES_FOR else None


_RULES = NameMemo(_rule)


def _callers_location(value: bytes, origin: Origin, caller_url: bytes) -> bytes:
    """Return a `Location` with which the client reaches what the upstream points to."""
    url = b"%b:%b" % (origin.scheme.encode(), value) if value.startswith(b"//") else value
    path = _path_on(origin, url)
    if path is None:
        return value
    absolute = not url.startswith(b"/")
    inside = path[len(origin.base_path) :]
    if not path.startswith(origin.base_path) or (origin.base_path and inside[:1] not in b"/?#"):
        # Outside the base path, which clients can't reach through this proxy.
        return url if absolute else b"%s://%s%s" % (origin.scheme.encode(), origin.authority, path)
    if not inside.startswith(b"/"):
        inside = b"/" + inside
    # A path that starts with two slashes would be taken for another host (RFC 3986 §4.2).
    if inside[1:2] in {b"/", b"\\"}:
        return (caller_url or b"/.") + inside
    return caller_url + inside if absolute else inside


def _path_on(origin: Origin, location: bytes) -> bytes | None:
    """Return a location's path, query and fragment if it is on `origin`; None otherwise."""
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
