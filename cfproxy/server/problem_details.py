"""Our own answers: one table from errors to RFC 9457 problem documents.

Owns: slug, status, title and RFC 9209 `Proxy-Status` of every error that a caller can meet.
Invariant: every error class of the tree finds a row (a test walks the tree), and a row's texts are fixed;
the detail is the error's own message, which holds no secret by the tree's rule.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from cfproxy import errors as e


@dataclass(frozen=True, slots=True)
class Row:
    """How one kind of error is answered.

    Args:
        slug: the last part of `type`.
        status: HTTP status.
        title: the same words for every occurrence.
        proxy_error: the error type of RFC 9209 §2.3.
    """

    slug: str
    status: int
    title: str
    proxy_error: str


_TABLE: dict[type[e.CfproxyError], Row] = {
    e.LoginRequired: Row("login-required", 503, "Login required", "proxy_configuration_error"),
    e.LoginFailed: Row("login-required", 503, "Login required", "proxy_configuration_error"),
    e.TokenEndpointUnavailable: Row(
        "token-endpoint-unavailable", 503, "Token endpoint unavailable", "destination_unavailable"
    ),
    e.StoreUnavailable: Row("store-unavailable", 503, "Token store unavailable", "proxy_internal_error"),
    e.StoreUnusable: Row("misconfigured", 500, "Misconfigured", "proxy_configuration_error"),
    e.Misconfigured: Row("misconfigured", 500, "Misconfigured", "proxy_configuration_error"),
    e.GrantRefused: Row("misconfigured", 500, "Misconfigured", "proxy_configuration_error"),
    e.QueueFull: Row("queue-full", 503, "Queue full", "connection_limit_reached"),
    e.QueueTimeout: Row("queue-timeout", 503, "Queue timeout", "connection_limit_reached"),
    e.QueueRefusal: Row("queue-full", 503, "Queue full", "connection_limit_reached"),
    e.UpstreamUnreachable: Row("upstream-unreachable", 502, "API unreachable", "destination_unavailable"),
    e.UpstreamTls: Row("upstream-tls", 502, "API's TLS not trusted", "tls_certificate_error"),
    e.UpstreamProtocol: Row("upstream-protocol", 502, "API's answer not usable", "http_protocol_error"),
    e.UpstreamTimeout: Row("upstream-timeout", 504, "API timed out", "http_response_timeout"),
    e.UpstreamError: Row("upstream-unreachable", 502, "API unreachable", "destination_unavailable"),
    e.HostNotAllowed: Row("host-not-allowed", 421, "Host not allowed", "http_request_denied"),
    e.BadTarget: Row("bad-target", 400, "Request not forwardable", "http_request_error"),
    e.CrossSite: Row("cross-site", 403, "Cross-site request", "http_request_denied"),
    e.KeyRequired: Row("key-required", 401, "Access key required", "http_request_denied"),
    e.NotAllowed: Row("not-allowed", 403, "Not allowed", "http_request_denied"),
    e.UpgradeNotSupported: Row("upgrade-not-supported", 501, "Upgrade not supported", "http_upgrade_failed"),
    e.LoopDetected: Row("loop", 508, "Loop detected", "proxy_loop_detected"),
    e.ShuttingDown: Row("shutting-down", 503, "Shutting down", "destination_unavailable"),
    e.Refusal: Row("bad-target", 400, "Request not forwardable", "http_request_error"),
    e.ConfigError: Row("misconfigured", 500, "Misconfigured", "proxy_configuration_error"),
    e.UsageError: Row("misconfigured", 500, "Misconfigured", "proxy_configuration_error"),
    e.CfproxyError: Row("misconfigured", 500, "Misconfigured", "proxy_internal_error"),
}


def slugs() -> frozenset[str]:
    """Return all slugs."""
    return frozenset(row.slug for row in _TABLE.values())


def row_of(error: e.CfproxyError) -> Row:
    """Return the row of the nearest class that has one."""
    for kind in type(error).__mro__:
        row = _TABLE.get(kind)
        if row is not None:
            return row
    raise AssertionError  # pragma: no cover - the tree's root has a row


def render_problem(error: e.CfproxyError, request_id: str) -> tuple[Row, list[tuple[bytes, bytes]], bytes]:
    """Return row, headers (without framing) and body of our answer.

    Args:
        error: what happened.
        request_id: identifies this occurrence in the log.
    """
    row = row_of(error)
    document: dict[str, Any] = {
        "type": f"urn:cfproxy:problem:{row.slug}",
        "title": row.title,
        "status": row.status,
        "detail": str(error),
        "instance": f"urn:cfproxy:request:{request_id}",
    }
    if isinstance(error, e.ConfigError) and error.problems:
        document["problems"] = [str(problem) for problem in error.problems]
    headers = [
        (b"Content-Type", b"application/problem+json"),
        (b"Cache-Control", b"no-store"),
        # A browser that shows this as a page would fetch an icon for it, as a page of our own.
        (b"Content-Security-Policy", b"default-src 'none'; sandbox"),
        (b"Proxy-Status", f'cfproxy; error={row.proxy_error}; details="{row.slug}"'.encode()),
    ]
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers.append((b"Retry-After", b"%d" % max(1, math.ceil(retry_after_s))))
    if isinstance(error, e.KeyRequired):
        # RFC 9110 §15.5.2 wants a challenge; Basic is the one that every client can answer.
        headers.append((b"WWW-Authenticate", b'Basic realm="cfproxy", charset="UTF-8"'))
    return row, headers, json.dumps(document, ensure_ascii=True).encode() + b"\n"
