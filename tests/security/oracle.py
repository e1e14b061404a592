"""Invariants that hold whatever a client sends.

What goes to the origin and what the client receives are each checked by two parsers.
"""

from __future__ import annotations

import base64
import json
import re

import h11

from tests.security.case import KEY, STATUSES
from tests.security.strict import Heard, Violation, read_answers, read_requests

TOKEN = b"Bearer token-1"
VIA = re.compile(rb"(?:.*, )?1\.[01] cfproxy-test")
# Marks the origin's responses; ours do not have it.
MARK = b"x-origin"

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection".split()
    + b"te trailer upgrade http2-settings".split()
)
# A client that could set these would speak for the proxy, or for another client.
OURS = frozenset(
    b"forwarded x-cfproxy-key x-real-ip x-client-ip x-cluster-client-ip true-client-ip".split()
    + b"cf-connecting-ip fastly-client-ip x-original-url x-original-host x-rewrite-url x-host".split()
    + b"x-original-forwarded-for x-http-host-override x-forwarded proxy".split()
)
FRAMING = frozenset({b"content-length", b"transfer-encoding"})
ONCE = (b"host", b"authorization", b"via")


def check_upstream(
    data: bytes, *, host: bytes, base_path: bytes = b"", key_in_content: bool = False
) -> list[Heard]:
    """Return the complete, unambiguous requests on one of the origin's connections.

    Args:
        data: everything received on the connection.
        host: the expected `Host`.
        base_path: the expected prefix of every target.
        key_in_content: whether the client may have put the access key into a target, a body or the middle of
            a header value, which are forwarded as they are. No header or trailer value may be the key.

    Raises:
        Violation
    """
    requests, rest = read_requests(data)
    for one in requests:
        _check_request(one, host, base_path, chunked=bool(one.all(b"transfer-encoding")))
    if b"\r\n\r\n" in rest:  # its head is complete
        head = rest.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        bare = b"\r\n".join(
            line for line in head.split(b"\r\n") if line.split(b":")[0].lower() not in FRAMING
        )
        [alone], _ = read_requests(bare)
        _check_request(alone, host, base_path, chunked=b"\r\ntransfer-encoding:" in head.lower())
    if KEY in data and not key_in_content:
        raise Violation("an access key went up")
    if _h11_reads(b"".join(_plain(r.start) + r.raw[len(r.start) :] for r in requests)) != [
        (r.method, _plain(r.target), r.headers, r.body) for r in requests
    ]:
        raise Violation("two parsers disagree")
    return requests


def _check_request(one: Heard, host: bytes, base_path: bytes, *, chunked: bool) -> None:
    names = [name for name, _ in one.headers]
    for name in ONCE:
        if names.count(name) != 1:
            raise Violation(f"{name!r} {names.count(name)} times in {one.raw[:500]!r}")
    if (
        one.all(b"host") != [host]
        or one.all(b"authorization") != [TOKEN]
        or not VIA.fullmatch(one.all(b"via")[0])
    ):
        raise Violation(f"not ours: {one.raw[:500]!r}")
    if not one.target.startswith(base_path + b"/") or b"#" in one.target or b"\\" in one.target:
        raise Violation(f"target {one.target!r}")
    if one.method in {b"CONNECT", b"TRACE", b"TRACK", b"PRI"}:
        raise Violation(f"method {one.method!r}")
    if one.all(b"expect") not in ([], [b"100-continue"]):
        raise Violation(f"Expect: {one.all(b'expect')!r}")
    for name, _ in one.trailers:
        if name in {*ONCE, *FRAMING, b"expect"}:
            raise Violation(f"trailer {name!r}")
    for name, value in (*one.headers, *one.trailers):
        if _is_key(value):
            raise Violation(f"the access key went up in {name!r}")
    names += [name for name, _ in one.trailers]
    for name in names:
        normalise = name.replace(b"_", b"-")
        if name == b"trailer" and chunked:
            continue  # it announces what follows the chunks (RFC 9110 §6.6.2)
        if normalise in HOP_BY_HOP | OURS or normalise.startswith(b"x-forwarded-"):
            raise Violation(f"header {name!r}")
        if normalise != name and normalise in {*ONCE, *FRAMING}:
            raise Violation(f"twin {name!r}")


def _is_key(value: bytes) -> bool:
    """Return whether a value is the access key, alone or as credentials of any scheme."""
    scheme, *credentials = value.split(None, 1) or [b""]
    if KEY in (value, *credentials):
        return True
    if scheme.lower() != b"basic" or not credentials:
        return False
    try:
        return base64.b64decode(credentials[0]).partition(b":")[2] == KEY
    except ValueError:
        return False


def _plain(text: bytes) -> bytes:
    """Return a target in ASCII for h11, which reads nothing else; the proxy forwards the original bytes."""
    return bytes(code if code < 0x80 else ord("x") for code in text)


def _h11_reads(data: bytes) -> list[tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...], bytes]]:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 24)
    connection.receive_data(data)
    read = []
    try:
        while isinstance(event := connection.next_event(), h11.Request):
            pieces = []
            while isinstance(piece := connection.next_event(), h11.Data):
                pieces.append(bytes(piece.data))
            if not isinstance(piece, h11.EndOfMessage):
                break
            read.append((event.method, event.target, tuple(event.headers), b"".join(pieces)))
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
    except h11.RemoteProtocolError as error:
        raise Violation(f"h11: {error}") from None
    return read


def check_downstream(data: bytes, *, heads: bool = False) -> tuple[list[Heard], list[str]]:
    """Return the complete responses that a client received, each as "ok", "100", or a slug.

    Raises:
        Violation: one of them is cut short, or is neither the origin's nor a well-formed one of ours.
    """
    answers, rest = read_answers(data, heads=heads)
    if rest:
        raise Violation(f"an answer that is not whole: {rest[:200]!r}")
    return answers, [_kind(answer) for answer in answers]


def _kind(answer: Heard) -> str:
    if answer.status == 100:
        return "100"
    if answer.all(MARK):
        return "ok"
    if answer.all(b"content-type") != [b"application/problem+json"] or answer.all(b"cache-control") != [
        b"no-store"
    ]:
        raise Violation(f"nobody's answer: {answer.raw!r}")
    if not answer.all(b"proxy-status")[0].startswith(b"cfproxy; error="):
        raise Violation(f"not recognisably ours: {answer.raw!r}")
    if not answer.body:
        return next(
            (slug for slug in STATUSES if f'"{slug}"'.encode() in answer.all(b"proxy-status")[0]), "?"
        )
    document = json.loads(answer.body)
    slug = str(document["type"]).removeprefix("urn:cfproxy:problem:")
    if (
        document.keys() != {"type", "title", "status", "detail", "instance"}
        or document["status"] != answer.status
    ):
        raise Violation(f"not RFC 9457: {document!r}")
    if STATUSES.get(slug) != answer.status:
        raise Violation(f"{slug} with status {answer.status}")
    return slug
