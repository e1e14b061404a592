"""The names of headers: which of them mean what, and how they are compared.

Owns: the sets of names that rules are made of.
Must not know: the rules (`wire.py`, `answers.py`).
Invariant: names are compared lower-cased with `_` as `-`, because some servers fold them so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

RawHeaders = Iterable[tuple[bytes, bytes]]
_V = TypeVar("_V")

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
# A request that names itself may be sent again by whatever stands in between, like an idempotent one.
IDEMPOTENCY_KEYS = frozenset({b"idempotency-key", b"x-idempotency-key"})


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


def normalise(name: bytes) -> bytes:
    """Return a header name as it is compared: lower case, `_` as `-`."""
    return _FOLDED[name]


def listed_in_connection(headers: RawHeaders) -> frozenset[bytes]:
    """Return the names that `Connection` declares to be hop-by-hop; framing is never among them."""
    names: set[bytes] = set()
    for name, value in headers:
        if name.lower() == b"connection":
            names.update(_elements(value))
    return frozenset(names - {b"", b"close", b"keep-alive", b"content-length"})


def _elements(value: bytes) -> set[bytes]:
    """Return the elements of a comma-separated list, as they are compared."""
    return {normalise(part.strip()) for part in value.split(b",")}
