"""The request line: its method, and the form of its target (RFC 9112 §3.2).

Invariants:
1. A target that passes is in origin form, or it is the authority of CONNECT or the `*` of OPTIONS.
2. Where a target names an authority, no `Host` that differs from it is seen by anybody.
"""

from __future__ import annotations

import re
from dataclasses import replace

from cfproxy.errors import BadTarget, HostNotAllowed
from cfproxy.http1.parser import RequestFields

USUAL_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
# Methods are case-sensitive, but some servers take `get` for GET.
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Z]+")
_BAD_IN_TARGET = re.compile(rb"[\x00-\x20\x7f#\\]")
_ABSOLUTE = re.compile(rb"(https?)://([^/?@]+)((?:[/?].*)?)", re.IGNORECASE)
_AUTHORITY = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[^:/?@\[\]]+):[0-9]+")


def resolve_target(method: bytes, target: bytes, fields: RequestFields) -> tuple[bytes, RequestFields]:
    """Return the target in origin form, and the fields with the `Host` that counts.

    Args:
        method: as received.
        target: as received; its authority replaces `Host` (RFC 9112 §3.2.2).
        fields: the rest of the head.

    Raises:
        BadTarget: the request line is malformed.
        HostNotAllowed: the target is an https URL, and the connection is not encrypted (RFC 9110 §7.4).
    """
    if method not in USUAL_METHODS and not _METHOD.fullmatch(method):
        raise BadTarget("the request method is not a token in upper case (RFC 9110 §9.1)")
    if _BAD_IN_TARGET.search(target):
        raise BadTarget("the request target contains a byte that must be percent-encoded")
    if method == b"CONNECT":
        if not _AUTHORITY.fullmatch(target):
            raise BadTarget("the target of CONNECT is not host:port (RFC 9112 §3.2.3)")
        return target, fields
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return target, fields
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise BadTarget("the request target is neither a path nor an http:// URL; send 'GET /v1/…'")
    scheme, authority, path = absolute.groups()
    if len(scheme) > len("http"):
        raise HostNotAllowed("this listener does not speak TLS; call it with http://, not https://")
    if not path.startswith(b"/"):
        # Without a path, OPTIONS asks about the whole server (RFC 9112 §3.2.4).
        path = b"*" if method == b"OPTIONS" and not path else b"/" + path
    return path, _with_host(fields, authority)


def _with_host(fields: RequestFields, authority: bytes) -> RequestFields:
    others = (header for header in fields.raw if header[0].lower() != b"host")
    return replace(fields, raw=((b"Host", authority), *others), cache=None)
