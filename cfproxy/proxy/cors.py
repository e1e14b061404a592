"""What a browser is told about pages of other origins (Fetch standard, "CORS protocol").

Owns: answers to preflights, and the CORS headers of every other answer.
Must not know: sockets, keys, the upstream.
Invariants: only origins that the settings list are ever named, and none but the asking one; an answer has
one `Access-Control-Allow-Origin` at most, and it is ours: the upstream's speaks for the upstream's address.

A listed origin may read every header of an answer and may send credentials: its pages may do whatever the
proxy may do, which is what listing it means.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from cfproxy.http1.headers import CORS_ANSWERS, RawHeaders

MAX_AGE_S = 600  # how long a browser may rely on a preflight's answer
# What a page may read without a word of ours, and what no page may read.
_NOT_LISTED = {
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
_NAMES = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:[ \t]*,[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+)*")


def listed_origin(headers: RawHeaders, origins: Collection[str]) -> bytes | None:
    """Return the request's `Origin` as it was sent, if it is the only one and in `origins`."""
    found = [value for name, value in headers if name.lower() == b"origin"]
    if len(found) != 1 or found[0].decode("latin-1").strip().lower() not in origins:
        return None
    return found[0].strip()


def is_preflight(method: str, headers: RawHeaders) -> bool:
    """Return whether a browser asks on behalf of a page (Fetch standard, "CORS-preflight request")."""
    names = {name.lower() for name, _ in headers}
    return method == "OPTIONS" and {b"origin", b"access-control-request-method"} <= names


def render_preflight(
    headers: RawHeaders, origin: bytes, methods: Collection[str]
) -> list[tuple[bytes, bytes]]:
    """Return the headers of the 204 that answers a preflight.

    Args:
        headers: the preflight's.
        origin: from `listed_origin`.
        methods: those that `access.methods` allows; empty for all: then the asked one is allowed.
    """
    asked = {name.lower(): value.strip() for name, value in headers}
    method = asked.get(b"access-control-request-method", b"")
    allowed = ", ".join(methods).encode("ascii") if methods else method
    answer = [
        (b"Access-Control-Allow-Origin", origin),
        (b"Access-Control-Allow-Credentials", b"true"),
        (b"Access-Control-Max-Age", b"%d" % MAX_AGE_S),
        (b"Proxy-Status", b'cfproxy; details="preflight"'),
    ]
    if _NAMES.fullmatch(allowed):
        answer.append((b"Access-Control-Allow-Methods", allowed))
    wanted = asked.get(b"access-control-request-headers", b"")
    if _NAMES.fullmatch(wanted):
        answer.append((b"Access-Control-Allow-Headers", wanted))
    if asked.get(b"access-control-request-private-network", b"").lower() == b"true":
        # The page is on the internet, we are on its user's own network (Private Network Access).
        answer.append((b"Access-Control-Allow-Private-Network", b"true"))
    answer.append((b"Vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers"))
    return answer


def with_cors(
    headers: list[tuple[bytes, bytes]], origin: bytes | None, origins: Collection[str]
) -> list[tuple[bytes, bytes]]:
    """Return an answer's headers with our word instead of the upstream's.

    Args:
        headers: the upstream's, or those of an answer of our own.
        origin: from `listed_origin`; None for everybody else, who gets no CORS headers.
        origins: all that are listed: with any, caches have to tell requests apart by `Origin`.
    """
    kept = [header for header in headers if header[0].lower() not in CORS_ANSWERS]
    if origin is not None:
        names = dict.fromkeys(name for name, _ in kept if name.lower() not in _NOT_LISTED)
        kept += [
            (b"Access-Control-Allow-Origin", origin),
            (b"Access-Control-Allow-Credentials", b"true"),
        ]
        if names:
            kept.append((b"Access-Control-Expose-Headers", b", ".join(names)))
    if origins:
        kept.append((b"Vary", b"Origin"))
    return kept
