"""Headers: their syntax, sets of names with a common meaning, and how names are compared.

Names are compared in lower case with `_` as `-`, because some servers treat them as equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import TypeVar

RawHeaders = Iterable[tuple[bytes, bytes]]
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 §5.6.2
HEADER_NAME = re.compile(TOKEN)
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_V = TypeVar("_V")

# RFC 9110 §7.6.1, and older names with the same meaning.
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
# A client must not send these to the upstream through us.
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
        b"proxy",  # CGI programs would see it as HTTP_PROXY (CVE-2016-5385)
    }
)
OWNED_PREFIX = b"x-forwarded"
# What a browser lets pages of other origins do. The upstream's headers are about its own address; for ours,
# `proxy.cors` decides.
CORS_HEADERS = frozenset(
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
# Response headers that name places of the server: `proxy.response_headers` translates each.
ADDRESSES = frozenset({b"content-location", b"link", b"location", b"refresh", b"set-cookie"})
# What a server says about its whole origin. A browser would apply it to ours: to a port that we don't have
# (RFC 7838), or to all programs on our host. Set-Cookie2 is obsolete (RFC 6265), but Java reads its domain.
ORIGIN_WIDE = frozenset(
    {b"alt-svc", b"clear-site-data", b"nel", b"strict-transport-security", b"set-cookie2"}
)
# A request with one of these may be sent again like an idempotent one, because the server recognizes it.
IDEMPOTENCY_KEYS = frozenset({b"idempotency-key", b"x-idempotency-key"})


class NameMemo(dict[bytes, _V]):
    """A cache of what follows from a header's name alone: nearly all messages use the same few names.

    Args:
        compute: returns the value for a name; its exceptions are raised.
    """

    __slots__ = ("_compute",)
    NAMES_MAX, BYTES_MAX = 1024, 64  # arbitrary names must not fill the memory

    def __init__(self, compute: Callable[[bytes], _V]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, name: bytes) -> _V:
        value = self._compute(name)
        if len(name) <= self.BYTES_MAX:
            if len(self) >= self.NAMES_MAX:
                self.clear()
            self[name] = value
        return value


_NORMALISED = NameMemo(lambda name: name.lower().replace(b"_", b"-"))


def normalise(name: bytes) -> bytes:
    """Return a header name in the form in which names are compared."""
    return _NORMALISED[name]


def listed_in_connection(headers: RawHeaders) -> AbstractSet[bytes]:
    """Return the names that `Connection` declares to be hop-by-hop, without `Content-Length`."""
    names: set[bytes] = set()
    for name, value in headers:
        if name.lower() == b"connection":
            names.update(map(bytes.strip, normalise(value).split(b",")))  # there may be thousands
    names.difference_update((b"", b"close", b"keep-alive", b"content-length"))
    return names
