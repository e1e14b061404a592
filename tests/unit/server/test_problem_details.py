"""Our own answers: every error has one, and each is as the table of the design says."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re

import pytest

import cfproxy
from cfproxy import errors as e
from cfproxy.server.problem_details import render_problem, row_of

# The table that callers rely on: slug → status, and whether Retry-After must, may not or does not come.
CONTRACT = {
    "login-required": (503, False),
    "token-endpoint-unavailable": (503, True),
    "store-unavailable": (503, True),
    "misconfigured": (500, False),
    "queue-full": (503, True),
    "queue-timeout": (503, True),
    "upstream-unreachable": (502, False),
    "upstream-tls": (502, False),
    "upstream-protocol": (502, False),
    "upstream-timeout": (504, False),
    "host-not-allowed": (421, False),
    "bad-target": (400, False),
    "cross-site": (403, False),
    "key-required": (401, False),
    "not-allowed": (403, False),
    "upgrade-not-supported": (501, False),
    "loop": (508, False),
    "shutting-down": (503, False),
}
SLUGS = {
    e.LoginRequired: "login-required",
    e.TokenEndpointUnavailable: "token-endpoint-unavailable",
    e.StoreUnavailable: "store-unavailable",
    e.StoreUnusable: "misconfigured",
    e.Misconfigured: "misconfigured",
    e.QueueFull: "queue-full",
    e.QueueTimeout: "queue-timeout",
    e.UpstreamUnreachable: "upstream-unreachable",
    e.UpstreamTls: "upstream-tls",
    e.UpstreamProtocol: "upstream-protocol",
    e.UpstreamTimeout: "upstream-timeout",
    e.HostNotAllowed: "host-not-allowed",
    e.BadTarget: "bad-target",
    e.CrossSite: "cross-site",
    e.KeyRequired: "key-required",
    e.NotAllowed: "not-allowed",
    e.UpgradeNotSupported: "upgrade-not-supported",
    e.LoopDetected: "loop",
    e.ShuttingDown: "shutting-down",
}
# RFC 9209 §2.3, the types that the registry knows.
PROXY_ERRORS = {
    "dns_timeout", "dns_error", "destination_not_found", "destination_unavailable",
    "destination_ip_prohibited",
    "destination_ip_unroutable", "connection_refused", "connection_terminated", "connection_timeout",
    "connection_read_timeout", "connection_write_timeout", "connection_limit_reached", "tls_protocol_error",
    "tls_certificate_error", "tls_alert_received", "http_request_error", "http_request_denied",
    "http_response_incomplete", "http_response_header_section_size", "http_response_header_size",
    "http_response_body_size", "http_response_trailer_section_size", "http_response_trailer_size",
    "http_response_transfer_coding", "http_response_content_coding", "http_response_timeout",
    "http_upgrade_failed", "http_protocol_error", "proxy_internal_response", "proxy_internal_error",
    "proxy_configuration_error", "proxy_loop_detected",
}  # fmt: skip


def all_errors() -> list[type[e.CfproxyError]]:
    for module in pkgutil.walk_packages(cfproxy.__path__, "cfproxy."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = [e.CfproxyError]
    for kind in found:
        found.extend(kind.__subclasses__())
    # Tests of other modules may define errors of their own in the same process.
    return [kind for kind in found if kind.__module__.startswith("cfproxy.")]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_has_an_answer_of_the_contract(kind: type[e.CfproxyError]) -> None:
    """Whatever error meets a caller, its slug and status are among those that the design lists."""
    row, headers, body = render_problem(kind("it failed; do this"), "id-1")
    assert row.status == CONTRACT[row.slug][0]
    assert row.proxy_error in PROXY_ERRORS
    assert json.loads(body) == {
        "type": f"urn:cfproxy:problem:{row.slug}",
        "title": row.title,
        "status": row.status,
        "detail": "it failed; do this",
        "instance": "urn:cfproxy:request:id-1",
    }
    given = dict(headers)
    assert len(given) == len(headers)
    assert given[b"Content-Type"] == b"application/problem+json"
    assert given[b"Cache-Control"] == b"no-store"
    assert given[b"Proxy-Status"].startswith(f"cfproxy; error={row.proxy_error}".encode())


@pytest.mark.parametrize(("kind", "slug"), SLUGS.items(), ids=lambda value: getattr(value, "__name__", value))
def test_each_kind_of_failure_has_its_slug_and_retry_after(kind: type[e.CfproxyError], slug: str) -> None:
    """A caller can tell the failures apart, and is told to come back only when that may help."""
    error = kind("x")
    row, headers, _ = render_problem(error, "id")
    assert row_of(error) is row
    assert row.slug == slug
    retry = [value for name, value in headers if name == b"Retry-After"]
    assert bool(retry) == CONTRACT[slug][1]
    assert all(re.fullmatch(rb"[1-9]\d*", value) for value in retry)


def test_the_design_lists_no_slug_that_nothing_raises() -> None:
    """The list of slugs and the errors that exist cover each other."""
    assert set(SLUGS.values()) == set(CONTRACT)


@pytest.mark.parametrize(("seconds", "text"), [(0.0, b"1"), (0.2, b"1"), (4.1, b"5"), (7.0, b"7")])
def test_retry_after_is_whole_seconds_and_never_zero(seconds: float, text: bytes) -> None:
    """Retry-After rounds up (RFC 9110 §10.2.3 knows whole seconds), so that nobody comes back too early."""
    _, headers, _ = render_problem(e.QueueFull("x", retry_after_s=seconds), "id")
    assert (b"Retry-After", text) in headers


def test_a_missing_access_key_comes_with_a_challenge() -> None:
    """A 401 of ours says how to authenticate (RFC 9110 §15.5.2)."""
    _, headers, _ = render_problem(e.KeyRequired("x"), "id")
    assert next(value for name, value in headers if name == b"WWW-Authenticate").startswith(b"Basic ")


def test_any_text_makes_a_valid_document() -> None:
    """Quotes, line ends and letters outside ASCII in a detail do not break the answer."""
    _, _, body = render_problem(e.BadTarget('"\r\n… \udcff'), "id")
    assert json.loads(body)["detail"] == '"\r\n… \udcff'


def test_a_configuration_that_is_refused_is_answered_with_each_of_its_problems() -> None:
    """For whoever asked for a reload: as a list, beside the detail."""
    problems = (e.Problem("config.yaml", "listen", "is wrong"), e.Problem("environment", "CFPROXY_X", "too"))
    _, _, body = render_problem(e.ConfigError("two problems", problems), "id")
    assert json.loads(body)["problems"] == ["config.yaml: listen: is wrong", "environment: CFPROXY_X: too"]


@pytest.mark.parametrize("kind", [each for each in all_errors() if issubclass(each, e.UpstreamError)])
def test_what_the_api_did_comes_with_a_next_step(kind: type[e.UpstreamError]) -> None:
    """Its own, or the one of its kind; a caller is never left with the mere fact."""
    assert kind("it failed").message == f"it failed; {kind.step}"
    assert kind("it failed; call somebody", unsent=True).message == "it failed; call somebody"
    assert str(e.without_traceback(kind("it failed"))) == f"it failed; {kind.step}"
