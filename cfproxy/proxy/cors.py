"""Cross-origin resource sharing (Fetch standard, "CORS protocol"): preflights and CORS headers.

Invariants:
1. Only origins in `access.origins` are ever named, and only the one that asks.
2. A response has at most one `Access-Control-Allow-Origin`, set here: the upstream's is about its own
   address.

A listed origin may read all response headers and send credentials: its pages may do what any caller may.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from cfproxy.http1.headers import CORS_HEADERS, TOKEN, RawHeaders

MAX_AGE_S = 600  # how long a browser may cache the response to a preflight
# Headers that every page may read anyway, and those that no page may read.
_NOT_EXPOSED = {
    b"cache-control",
    b"content-language",
    b"content-length",
    b"content-type",
    b"expires",
    b"last-modified",
    b"pragma",
    b"set-cookie",
    b"set-cookie2",
}
# What browsers say about the page that sends a request.
PAGE_HEADERS = frozenset({b"origin", b"referer", b"sec-fetch-site"})
_NAMES = re.compile(rb"%b(?:[ \t]*,[ \t]*%b)*" % (TOKEN, TOKEN))


def listed_origin(headers: RawHeaders, origins: Collection[str]) -> bytes | None:
    """Return the request's `Origin` as sent, if there is exactly one and it is in `origins`."""
    found = [value for name, value in headers if name.lower() == b"origin"]
    if len(found) != 1 or found[0].decode("latin-1").strip().lower() not in origins:
        return None
    return found[0].strip()


def without_page_headers(
    headers: tuple[tuple[bytes, bytes], ...], host: str, origins: Collection[str]
) -> tuple[tuple[bytes, bytes], ...]:
    """Return an admitted request's headers without those that name the page that sends it.

    They are about our address, by which they have been judged. An API compares them with its own address, and
    refuses pages that may call.

    Args:
        headers: of the request.
        host: value of its `Host`; empty without.
        origins: listed origins.
    """
    pages = {f"http://{host}".lower(), f"https://{host}".lower(), *origins}
    return tuple(
        header
        for header in headers
        if header[0].lower() not in PAGE_HEADERS or not _names_page(*header, pages)
    )


def _names_page(name: bytes, value: bytes, pages: Collection[str]) -> bool:
    text = value.decode("latin-1").strip().lower()
    match name.lower():
        case b"referer":
            return "/".join(text.split("/", 3)[:3]) in pages
        case b"sec-fetch-site":
            return text not in {"same-origin", "none"}  # these are true of the API's address as well
    return True


def preflight_origin(method: bytes, headers: RawHeaders, origins: Collection[str]) -> bytes | None:
    """Return the listed origin that sends a preflight; None if the request is anything else."""
    names = {name.lower() for name, _ in headers}
    if method != b"OPTIONS" or b"access-control-request-method" not in names:
        return None
    return listed_origin(headers, origins)


def render_preflight(
    headers: RawHeaders, origin: bytes, methods: Collection[str]
) -> list[tuple[bytes, bytes]]:
    """Return the headers of the 204 that answers a preflight.

    Args:
        headers: of the preflight.
        origin: from `preflight_origin`.
        methods: allowed by `access.methods`; empty to allow the requested one.
    """
    fields = {name.lower(): value.strip() for name, value in headers}
    method = fields.get(b"access-control-request-method", b"")
    allowed = ", ".join(methods).encode("ascii") if methods else method
    response = [
        (b"Access-Control-Allow-Origin", origin),
        (b"Access-Control-Allow-Credentials", b"true"),
        (b"Access-Control-Max-Age", b"%d" % MAX_AGE_S),
        (b"Proxy-Status", b'cfproxy; details="preflight"'),
    ]
    if _NAMES.fullmatch(allowed):
        response.append((b"Access-Control-Allow-Methods", allowed))
    requested_headers = fields.get(b"access-control-request-headers", b"")
    if _NAMES.fullmatch(requested_headers):
        response.append((b"Access-Control-Allow-Headers", requested_headers))
    if fields.get(b"access-control-request-private-network", b"").lower() == b"true":
        # A page from the internet calls an address in its user's own network (Private Network Access).
        response.append((b"Access-Control-Allow-Private-Network", b"true"))
    response.append((b"Vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"))
    return response


def with_cors(
    headers: list[tuple[bytes, bytes]], origin: bytes | None, origins: Collection[str]
) -> list[tuple[bytes, bytes]]:
    """Return a response's headers with CORS headers of our own.

    Args:
        headers: of the response; the upstream's CORS headers are dropped.
        origin: from `listed_origin`; None for callers that get no CORS headers.
        origins: all listed origins: if there are any, caches must distinguish requests by `Origin`.
    """
    kept = [header for header in headers if header[0].lower() not in CORS_HEADERS]
    if origin is not None:
        names = dict.fromkeys(name for name, _ in kept if name.lower() not in _NOT_EXPOSED)
        kept += [
            (b"Access-Control-Allow-Origin", origin),
            (b"Access-Control-Allow-Credentials", b"true"),
        ]
        if names:
            kept.append((b"Access-Control-Expose-Headers", b", ".join(names)))
    if origins:
        kept.append((b"Vary", b"Origin"))
    return kept
