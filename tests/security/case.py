"""One case of the corpus: the bytes that a client sends, and the expected outcome."""

from __future__ import annotations

from dataclasses import dataclass, field

from cfproxy.proxy.access import AccessRules

# Placeholder for `localhost:PORT` in a case, and the header line with it. Where a key is required, it is
# added after this line.
AUTHORITY = b"<authority>"
PORT = b"<port>"
HOST = b"Host: " + AUTHORITY
KEY = b"local-key-0123456789abcdef"

# Slug → status, for the errors that a request alone can cause.
STATUSES = {
    "host-not-allowed": 421,
    "bad-target": 400,
    "cross-site": 403,
    "key-required": 401,
    "not-allowed": 403,
    "upgrade-not-supported": 501,
    "loop": 508,
}
# After these errors the rest of the connection may be part of the attack.
IN_DOUBT = frozenset({"bad-target", "upgrade-not-supported"})


@dataclass(frozen=True)
class Case:
    """What is sent on one connection, and its outcome.

    Args:
        name: unique in the corpus.
        sent: the bytes, with `AUTHORITY` and `PORT` in place of the listener's own.
        answers: in order, "ok" for a response of the origin, "100" for an interim one, or our problem slug.
        up: what the origin receives: each request with its dechunked body, its trailers after that in lower
            case, and without the three headers that the proxy always sets (Host, Via, Authorization); None if
            "ok" is enough.
        rules: the listener's access rules.
        base_path: the upstream's base path.
    """

    name: str
    sent: bytes
    answers: tuple[str, ...]
    up: tuple[bytes, ...] | None = None
    rules: AccessRules = field(default_factory=AccessRules)
    base_path: bytes = b""

    def bytes_for(self, port: int, key: bytes = b"") -> bytes:
        """Return the bytes for the listener at `port`; `key` is added after each right Host."""
        host = HOST + b"\r\nX-Cfproxy-Key: " + key if key else HOST
        sent = self.sent.replace(HOST + b"\r\n", host + b"\r\n")
        return sent.replace(AUTHORITY, b"localhost:%d" % port).replace(PORT, b"%d" % port)


def request(*lines: bytes, body: bytes = b"") -> bytes:
    """Return lines with their line ends, the empty line, and a body."""
    return b"\r\n".join([*lines, b"", b""]) + body


def get(*headers: bytes, target: bytes = b"/a") -> bytes:
    """Return a GET with the right Host and these header lines."""
    return request(b"GET %s HTTP/1.1" % target, HOST, *headers)


def post(*headers: bytes, body: bytes = b"") -> bytes:
    """Return a POST with the right Host and these header lines; the caller adds its framing."""
    return request(b"POST /a HTTP/1.1", HOST, *headers, body=body)


def refused(
    name: str,
    sent: bytes,
    slug: str = "bad-target",
    *,
    rules: AccessRules | None = None,
    base_path: bytes = b"",
) -> Case:
    """Return a case that ends with our error; no complete request reaches the origin."""
    return Case(name, sent, (slug,), (), rules or AccessRules(), base_path)


def passes(
    name: str,
    sent: bytes,
    up: bytes | None = None,
    *,
    rules: AccessRules | None = None,
    base_path: bytes = b"",
) -> Case:
    """Return a case that is forwarded as one request; `up` omits the headers that the proxy always sets."""
    return Case(name, sent, ("ok",), None if up is None else (up,), rules or AccessRules(), base_path)
