"""Response headers on their way from the upstream to the client.

Framing belongs to each connection and is never copied. What names the upstream's own address is translated
to ours or dropped; everything else passes byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from cfproxy.http1.headers import (
    ADDRESSES,
    CORS_HEADERS,
    HOP_BY_HOP,
    ORIGIN_WIDE,
    NameMemo,
    RawHeaders,
    listed_in_connection,
    normalise,
)
from cfproxy.proxy.request_headers import REQUEST_ID, Origin, is_own_cookie

_RULES_FOR = HOP_BY_HOP | CORS_HEADERS | ADDRESSES | ORIGIN_WIDE | {b"x-request-id"}
_DEFAULT_PORTS = {b"http": 80, b"https": 443}
_AUTHORITY = re.compile(rb"(.*?)\.?(?::([0-9]{0,5}))?", re.DOTALL)
_PATH_START = re.compile(rb"[/?#]")
_LINK_TARGET = re.compile(rb"<([^<>/]*/[^<>]*)>")  # others are relative
# Browsers need neither the separator nor `url=` (HTML standard, "shared declarative refresh steps").
_REFRESH = re.compile(rb"([\s0-9.]*[;,]?\s*(?:url\s*=\s*)?(['\"]?))(.*)", re.DOTALL | re.IGNORECASE)
# Browsers accept these names with `Secure` only (RFC 6265bis §4.1.3).
_SECURE_NAMES = (b"__secure-", b"__host-", b"__http-")
_BLANKS = b" \t"
_ATTRIBUTES_MAX = 64  # of a cookie; there are about ten, and 100,000 would take a third of a second


def build_response_headers(
    headers: RawHeaders,
    origin: Origin,
    *,
    trailers: bool = False,
    request_id: bytes | None = None,
    to_page: bool = False,
) -> list[tuple[bytes, bytes]]:
    """Return the upstream's headers as the client gets them, without the framing, which is per connection.

    Args:
        headers: of the upstream, raw, in order.
        origin: the upstream.
        trailers: whether the client gets the trailers that `Trailer` announces.
        request_id: added as `X-Request-Id`, unless the upstream sent an ID of its own.
        to_page: whether a page of a listed origin gets them.
    """
    passed = []
    listed: AbstractSet[bytes] = frozenset()
    upstream_id = False
    for header in headers:
        rule = _RULES[header[0]]
        if rule is None:
            passed.append(header)
            continue
        name, value = header
        if rule in _TRANSLATIONS:
            passed.append((name, _TRANSLATIONS[rule](value, origin)))
        elif rule == b"set-cookie":
            if not is_own_cookie(value):
                passed.append((name, _callers_cookie(value, origin.base_path, to_page=to_page)))
        elif rule == b"x-request-id":
            passed.append(header)
            upstream_id = True
        elif rule == b"trailer":
            if trailers:
                passed.append(header)
        elif rule == b"connection" and value not in _USUAL_CONNECTION:
            listed = listed | listed_in_connection((header,))
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


# --- URLs ---------------------------------------------------------------------------------


def _callers_url(value: bytes, origin: Origin) -> bytes:
    """Return a URL reference with which the client reaches what the upstream points to.

    It is a path, because nothing tells the scheme by which clients reach us: there may be a TLS terminator.
    """
    url = value.translate(None, b"\t\r\n")  # clients ignore these (URL standard, "basic URL parser")
    if value.startswith(b"//"):
        url = b"%b:%b" % (origin.scheme.encode(), url)
    is_path = value.startswith(b"/") and not value.startswith(b"//")
    path = url if is_path else _path_on(origin, url)
    if path is None:
        return value
    inside = path[len(origin.base_path) :]
    if not path.startswith(origin.base_path) or (origin.base_path and inside[:1] not in b"/?#"):
        # Outside the base path, which clients can't reach through this proxy.
        return b"%b://%b%b" % (origin.scheme.encode(), origin.authority, path)
    if not inside.startswith(b"/"):
        inside = b"/" + inside
    if inside[1:2] in {b"/", b"\\"}:
        # A path that starts with two slashes would be taken for another host (RFC 3986 §4.2).
        return b"/." + inside
    return value if inside == url else inside


def _path_on(origin: Origin, url: bytes) -> bytes | None:
    """Return a URL's path, query and fragment if it is on `origin`; None otherwise.

    The other scheme of the same host is the same server: one behind a TLS terminator says http. So is the
    same port with the other scheme.
    """
    scheme, separator, rest = url.partition(b"://")
    scheme = scheme.lower()
    if not separator or scheme not in _DEFAULT_PORTS:
        return None
    authority = _PATH_START.split(rest, maxsplit=1)[0]
    if len(authority) > len(origin.authority) + len(b".:65535"):
        return None
    host, port = _split_authority(authority, scheme)
    own_scheme = origin.scheme.encode()
    own_host, own_port = _split_authority(origin.authority, own_scheme)
    same_port = port == own_port or (
        port == _DEFAULT_PORTS[scheme] and own_port == _DEFAULT_PORTS[own_scheme]
    )
    return rest[len(authority) :] if host == own_host and same_port else None


def _split_authority(authority: bytes, scheme: bytes) -> tuple[bytes, int]:
    """Return host and port; what is no port stays with the host."""
    match = _AUTHORITY.fullmatch(authority)
    assert match is not None  # noqa: S101 - both parts may be empty
    return match[1].lower(), int(match[2] or _DEFAULT_PORTS[scheme])


def _callers_refresh(value: bytes, origin: Origin) -> bytes:
    match = _REFRESH.fullmatch(value)
    assert match is not None  # noqa: S101 - every part may be empty
    before, quote, rest = match[1], match[2], match[3]
    url, end, after = rest.partition(quote) if quote else (rest, b"", b"")
    return before + _callers_url(url, origin) + end + after


def _callers_links(value: bytes, origin: Origin) -> bytes:
    return _LINK_TARGET.sub(lambda match: b"<%b>" % _callers_url(match[1], origin), value)


_TRANSLATIONS: dict[bytes, Callable[[bytes, Origin], bytes]] = {
    b"content-location": _callers_url,
    b"link": _callers_links,
    b"location": _callers_url,
    b"refresh": _callers_refresh,
}


# --- cookies ------------------------------------------------------------------------------


def _callers_cookie(value: bytes, base_path: bytes, *, to_page: bool) -> bytes:
    """Return a `Set-Cookie` that clients accept from a plain-http address, for the paths that they know.

    Its domain is the upstream's. `Secure` would keep it from being sent to us, and browsers reject
    `SameSite=None` and `Partitioned` without it (RFC 6265bis §5.7). A name that requires it keeps all three.
    So does one for a page of another site: its browser sets it with `Secure` only, and does so on localhost.
    """
    pair, *attributes = value.split(b";", _ATTRIBUTES_MAX + 1)[: _ATTRIBUTES_MAX + 1]
    is_secure = pair.strip(_BLANKS).lower().startswith(_SECURE_NAMES)
    named = [(part.partition(b"=")[0].strip(_BLANKS).lower(), part) for part in attributes]
    cross_site = [part for name, part in named if name == b"samesite" and _content(part).lower() == b"none"]
    insecure = any(name == b"secure" for name, _ in named) and not (is_secure or (to_page and cross_site))
    kept = [pair]
    for name, part in named:
        if name == b"domain" or (insecure and (name in {b"secure", b"partitioned"} or part in cross_site)):
            continue
        content = _content(part)
        if base_path and name == b"path":
            kept.append(part.replace(content, _callers_path(content, base_path)))
        else:
            kept.append(part)
    return b";".join(kept)


def _content(attribute: bytes) -> bytes:
    return attribute.partition(b"=")[2].strip(_BLANKS)


def _callers_path(path: bytes, base_path: bytes) -> bytes:
    """Return the `Path` of a cookie as clients know it; unchanged if it does not belong to the base path.

    It covers the base path if it is a prefix of that (RFC 6265 §5.1.4). Some clients allow quotes.
    """
    bare = path.strip(b'"')
    below = bare.rstrip(b"/") + b"/"
    if bare.startswith(b"/") and (base_path + b"/").startswith(below):
        return path.replace(bare, b"/")
    if bare.startswith(base_path + b"/"):
        return path.replace(bare, bare[len(base_path) :])
    return path
