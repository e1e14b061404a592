"""One case of the corpus: the bytes that a client sends, and what must come of them.

Owns: the table's vocabulary.
Must not know: sockets, the proxy, how a case is played.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cfproxy.proxy.access import AccessRules

# What stands for `localhost:PORT` in a case, and the header line that names it. Where keys are asked for,
# the key goes behind this line.
AUTHORITY = b"<authority>"
PORT = b"<port>"
HOST = b"Host: " + AUTHORITY
KEY = b"local-key-0123456789abcdef"

# Slug → status: the contract's table, as far as a request alone can bring it about.
STATUSES = {
    "host-not-allowed": 421,
    "bad-target": 400,
    "cross-site": 403,
    "key-required": 401,
    "not-allowed": 403,
    "upgrade-not-supported": 501,
    "loop": 508,
}
# After these the rest of the connection may be part of the attack.
IN_DOUBT = frozenset({"bad-target", "upgrade-not-supported"})


@dataclass(frozen=True)
class Case:
    """What is sent on one connection, and its outcome.

    Args:
        name: unique in the corpus.
        sent: the bytes, with `AUTHORITY` and `PORT` where the listener's own belong.
        answers: in order: "ok" for one of the origin's, "100" for an interim one, or the slug of ours.
        up: what the origin gets: each request with its body out of its chunks, its trailers behind that in
            lower case, and without the three headers that are always ours (Host, Via, Authorization); None
            where "ok" says enough.
        rules: the listener's.
        base_path: the upstream's.
    """

    name: str
    sent: bytes
    answers: tuple[str, ...]
    up: tuple[bytes, ...] | None = None
    rules: AccessRules = field(default_factory=AccessRules)
    base_path: bytes = b""

    def bytes_for(self, port: int, key: bytes = b"") -> bytes:
        """Return what goes over the wire to the listener at `port`; `key` goes beside each right Host."""
        host = HOST + b"\r\nX-Cfproxy-Key: " + key if key else HOST
        sent = self.sent.replace(HOST + b"\r\n", host + b"\r\n")
        return sent.replace(AUTHORITY, b"localhost:%d" % port).replace(PORT, b"%d" % port)


def request(*lines: bytes, body: bytes = b"") -> bytes:
    """Return lines with their ends, the empty line, and a body."""
    return b"\r\n".join([*lines, b"", b""]) + body


def get(*headers: bytes, target: bytes = b"/a") -> bytes:
    """Return a GET with the right Host and these header lines."""
    return request(b"GET %s HTTP/1.1" % target, HOST, *headers)


def post(*headers: bytes, body: bytes = b"") -> bytes:
    """Return a POST with the right Host and these header lines; its framing is the caller's to write."""
    return request(b"POST /a HTTP/1.1", HOST, *headers, body=body)


def refused(
    name: str,
    sent: bytes,
    slug: str = "bad-target",
    *,
    rules: AccessRules | None = None,
    base_path: bytes = b"",
) -> Case:
    """Return a case that ends with our answer; nothing whole reaches the origin."""
    return Case(name, sent, (slug,), (), rules or AccessRules(), base_path)


def passes(
    name: str,
    sent: bytes,
    up: bytes | None = None,
    *,
    rules: AccessRules | None = None,
    base_path: bytes = b"",
) -> Case:
    """Return a case that is forwarded as one request, `up` without what is always ours."""
    return Case(name, sent, ("ok",), None if up is None else (up,), rules or AccessRules(), base_path)
