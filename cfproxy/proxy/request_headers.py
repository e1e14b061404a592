"""The request head that goes to the upstream, request IDs, and the trailers in both directions.

Invariants:
1. No byte of a request selects the scheme, host or port: they are those of the configured origin.
2. The target is forwarded unchanged; what servers could read in two ways is refused, not repaired.
3. Framing is written anew: `Content-Length` from the parsed length, `Transfer-Encoding` never copied.
4. A request ID has a bounded length and consists of letters, digits and a few punctuation marks, whatever
   the client sends: it is safe in a log line, a header and a URN.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from cfproxy.errors import BadTarget, LoopDetected, NotAllowed, UpgradeNotSupported
from cfproxy.http1.framing import Framing
from cfproxy.http1.headers import (
    ADDRESSES,
    CONTROL,
    CORS_HEADERS,
    HEADER_NAME,
    HOP_BY_HOP,
    ORIGIN_WIDE,
    OWNED,
    OWNED_PREFIX,
    RawHeaders,
    listed_in_connection,
    normalise,
)
from cfproxy.http1.request_line import USUAL_METHODS
from cfproxy.proxy.paths import has_dot_segment

REQUEST_ID = b"X-Request-Id"
_VALID_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._~:@+=/-]{0,127}")
# W3C Trace Context §3.2: version, trace-id, parent-id, flags; an all-zero trace-id is invalid.
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
OWN_COOKIES = b"cfproxy"  # prefix of the admin listener's cookies
_DROPPED = HOP_BY_HOP | OWNED
# As trailers these would bypass the header rules.
_DROPPED_TRAILERS = (
    _DROPPED | CORS_HEADERS | ADDRESSES | ORIGIN_WIDE | {b"content-length", b"cookie", b"origin"}
)

# One of the protocols that an `Upgrade` lists, whatever its version.
_WEBSOCKET = re.compile(rb"(?:^|,)[ \t]*websocket[ \t]*(?:$|[,/])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Origin:
    """The upstream that requests are sent to.

    Args:
        scheme: `http` or `https`.
        authority: `host[:port]` for `Host`.
        base_path: prefix of every target, without a trailing slash; often empty.
        via: our pseudonym in `Via` (RFC 9110 §7.6.3), unique to this process.
    """

    scheme: str
    authority: bytes
    base_path: bytes
    via: bytes


def check_method(method: bytes) -> str:
    """Return the method if it may be forwarded.

    Raises:
        UpgradeNotSupported, NotAllowed
    """
    if method in USUAL_METHODS:
        return USUAL_METHODS[method]
    if method == b"CONNECT":
        raise UpgradeNotSupported("this is a reverse proxy: send the request itself, without CONNECT")
    if method in {b"TRACE", b"TRACK"}:
        # The upstream would echo the request with the token (RFC 9110 §9.3.8).
        raise NotAllowed("TRACE is never forwarded, since its response would show the access token")
    return method.decode("ascii")


def check_fields(version: tuple[int, int], headers: RawHeaders, via: bytes) -> None:
    """Refuse headers that can't be forwarded: malformed, of a WebSocket handshake, or of a forwarding loop.

    Any other `Upgrade` is declined: the request is served without it (RFC 9110 §7.8).

    Raises:
        BadTarget, UpgradeNotSupported, LoopDetected
    """
    for name, value in headers:
        if CONTROL.search(value) or not HEADER_NAME.fullmatch(name):
            raise BadTarget("a header contains a control byte; remove it")
        low = name.lower()
        if low == b"upgrade" and version >= (1, 1) and _WEBSOCKET.search(value):
            raise UpgradeNotSupported("the API has no WebSockets; send an ordinary HTTP request")
        if low == b"via" and via in value:
            raise LoopDetected("this proxy has forwarded the request before; check the upstream setting")


def expects_continue(version: tuple[int, int], headers: RawHeaders) -> bool:
    """Return whether the client waits for 100 Continue (RFC 9110 §10.1.1); HTTP/1.0 has no such thing."""
    return version >= (1, 1) and any(
        name.lower() == b"expect" and value.lower() == b"100-continue" for name, value in headers
    )


def build_request_target(target: bytes, base_path: bytes) -> bytes:
    """Return the target to send: `base_path` and the client's target, unchanged.

    Raises:
        BadTarget: it is the `*` of OPTIONS, or could leave `base_path`.
    """
    if not target.startswith(b"/"):
        raise BadTarget("the API can't be asked about the whole server; send 'OPTIONS /v1/…'")
    if not base_path:
        return target
    if has_dot_segment(target.partition(b"?")[0]):
        raise BadTarget("a dot segment could leave the upstream's base path; send the path without it")
    return base_path + target


def _no_key(_value: bytes) -> bool:
    return False


def build_request_headers(
    headers: RawHeaders,
    origin: Origin,
    framing: Framing,
    *,
    version: tuple[int, int] = (1, 1),
    expects: bool = False,
    carries_key: Callable[[bytes], bool] = _no_key,
) -> bytes:
    """Return the header lines of a forwarded request, except `Authorization` and the final empty line.

    `TE` is hop-by-hop (RFC 9110 §10.1.4): the client's is dropped and none is added, since servers send
    trailers without it. `Trailer` is end-to-end (§6.6.2): it is forwarded with a chunked body.

    Args:
        headers: of the client, raw, in order.
        origin: the upstream.
        framing: of the client's body.
        version: of HTTP, as the client speaks it.
        expects: whether the client waits for 100 Continue, which is then up to the upstream.
        carries_key: whether a header's value is an access key; such a header is dropped, whatever its name.
    """
    listed = listed_in_connection(headers)
    lines = [b"Host: %b\r\n" % origin.authority]
    vias = []
    for name, value in headers:
        low = normalise(name)
        if low == b"content-length":
            if framing.length is not None:
                lines.append(b"%b: %d\r\n" % (name, framing.length))
        elif carries_key(value):
            continue
        elif low in _DROPPED or low in listed or low.startswith(OWNED_PREFIX):
            if low == b"via":
                vias.append(value)
            elif low == b"expect" and expects:
                lines.append(b"%b: 100-continue\r\n" % name)
                expects = False  # once, however often the client says it
            elif low == b"trailer" and framing.chunked and low not in listed:
                lines.append(b"%b: %b\r\n" % (name, value))
        elif low == b"cookie" and OWN_COOKIES in value.lower():
            if others := _without_own_cookies(value):
                lines.append(b"%b: %b\r\n" % (name, others))
        else:
            lines.append(b"%b: %b\r\n" % (name, value))
    if framing.chunked:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    vias.append(b"%d.%d %b" % (*version, origin.via))
    lines.append(b"Via: %b\r\n" % b", ".join(vias))
    return b"".join(lines)


def build_request_head(method: bytes, target: bytes, fields: bytes) -> bytes:
    """Return a request head, except `Authorization` and the final empty line.

    Args:
        method: that passed `check_method`.
        target: from `build_request_target`.
        fields: from `build_request_headers`.
    """
    return b"%b %b HTTP/1.1\r\n%b" % (method, target, fields)


def _without_own_cookies(value: bytes) -> bytes:
    """Return a `Cookie` without the admin listener's: browsers send a host's cookies to all its ports."""
    parts = [part for part in value.split(b";") if not is_own_cookie(part)]
    return b";".join(parts).strip(b" ")


def is_own_cookie(pair: bytes) -> bool:
    """Return whether a cookie's name is one of the admin listener's.

    Browsers send the value of a nameless cookie (`=a=1`) alone, where it looks like a name and a value.
    """
    return pair.lstrip(b" \t=").lower().startswith(OWN_COOKIES)


def forwardable_trailers(
    trailers: list[tuple[bytes, bytes]],
    headers: RawHeaders,
    carries_key: Callable[[bytes], bool] = _no_key,
    drops: Callable[[bytes], bool] | None = None,
) -> list[tuple[bytes, bytes]]:
    """Return the trailers to forward: none that frames, routes or authorizes (RFC 9110 §6.5.1).

    Args:
        trailers: as received.
        headers: of the same message; its `Connection` names trailers, too (§7.6.1).
        carries_key: see `build_request_headers`.
        drops: returns whether to drop trailers of this name, too; None for no others.
    """
    if not trailers:
        return trailers
    drop = _DROPPED_TRAILERS | listed_in_connection(headers)
    return [
        (name, value)
        for name, value in trailers
        if (low := normalise(name)) not in drop
        and not low.startswith(OWNED_PREFIX)
        and not carries_key(value)
        and not (drops is not None and drops(name))
    ]


class RequestIds(NamedTuple):
    """The IDs that a client sent with its request.

    Args:
        client_id: from `X-Request-Id`; None unless exactly one valid ID was sent.
        trace_id: from `traceparent`; None unless that is valid.
    """

    client_id: str | None
    trace_id: str | None


def request_id_factory() -> Callable[[], str]:
    """Return a function that makes IDs: a random prefix per process, and a counter.

    That is far cheaper than a random ID for each request, and shows the order of requests.
    """
    render = f"{secrets.token_hex(4)}-{{:x}}".format
    return map(render, itertools.count(1)).__next__  # runs without a Python frame


def parse_request_ids(headers: RawHeaders) -> RequestIds:
    """Return the IDs that a request's headers carry."""
    ids = [value for name, value in headers if name.lower() == b"x-request-id"]
    client_id = ids[0].decode("ascii") if len(ids) == 1 and _VALID_ID.fullmatch(ids[0]) else None
    traceparent = next((value for name, value in headers if name.lower() == b"traceparent"), b"")
    trace = _TRACEPARENT.fullmatch(traceparent)
    return RequestIds(client_id, None if trace is None else trace[1].decode("ascii"))
