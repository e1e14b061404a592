"""Every error has an answer of ours, an exit code and a state, as the contract lists them."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re

import pytest

import cfproxy
from cfproxy import errors as e
from cfproxy.server.problem_details import render_problem

# What callers rely on, by slug: the status, and whether the answer has Retry-After.
ANSWERS = {
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
# Slug, exit code and state of each class. A new class needs a line here; CONTRIBUTING.md lists what a new
# slug, exit code or state needs.
CONTRACT = {
    e.CfproxyError: ("misconfigured", 1, "misconfigured"),
    e.ConfigError: ("misconfigured", 2, "misconfigured"),
    e.UsageError: ("misconfigured", 2, "misconfigured"),
    e.ListenError: ("misconfigured", 1, "misconfigured"),
    e.Misconfigured: ("misconfigured", 5, "misconfigured"),
    e.LoginRequired: ("login-required", 3, "login-required"),
    e.LoginFailed: ("login-required", 1, "misconfigured"),
    e.StoreUnavailable: ("store-unavailable", 4, "store-unavailable"),
    e.StoreUnusable: ("misconfigured", 4, "store-unusable"),
    e.TokenEndpointUnavailable: ("token-endpoint-unavailable", 5, "token-endpoint-unavailable"),
    e.GrantRefused: ("misconfigured", 5, "misconfigured"),
    e.QueueRefusal: ("queue-full", 1, "misconfigured"),
    e.QueueFull: ("queue-full", 1, "misconfigured"),
    e.QueueTimeout: ("queue-timeout", 1, "misconfigured"),
    e.UpstreamError: ("upstream-unreachable", 5, "upstream-unreachable"),
    e.UpstreamUnreachable: ("upstream-unreachable", 5, "upstream-unreachable"),
    e.UpstreamTls: ("upstream-tls", 5, "upstream-tls"),
    e.UpstreamProtocol: ("upstream-protocol", 5, "upstream-protocol"),
    e.UpstreamTimeout: ("upstream-timeout", 5, "upstream-timeout"),
    e.Refusal: ("bad-target", 1, "misconfigured"),
    e.HostNotAllowed: ("host-not-allowed", 1, "misconfigured"),
    e.BadTarget: ("bad-target", 1, "misconfigured"),
    e.CrossSite: ("cross-site", 1, "misconfigured"),
    e.KeyRequired: ("key-required", 1, "misconfigured"),
    e.NotAllowed: ("not-allowed", 1, "misconfigured"),
    e.UpgradeNotSupported: ("upgrade-not-supported", 1, "misconfigured"),
    e.LoopDetected: ("loop", 1, "misconfigured"),
    e.ShuttingDown: ("shutting-down", 1, "misconfigured"),
}
# RFC 9209 §2.3, the registered types.
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
    """Return every class of the tree, wherever the package defines it."""
    for module in pkgutil.walk_packages(cfproxy.__path__, "cfproxy."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    # Other tests may define errors of their own in the same process.
    return [kind for kind in e.error_kinds() if kind.__module__.startswith("cfproxy.")]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_is_answered_with_a_problem_document(kind: type[e.CfproxyError]) -> None:
    """The slug and status of every error are among those that the contract lists."""
    headers, body = render_problem(kind("it failed; do this"), "id-1")
    assert kind.status == ANSWERS[kind.slug][0]
    assert kind.proxy_error in PROXY_ERRORS
    assert json.loads(body) == {
        "type": f"urn:cfproxy:problem:{kind.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": "it failed; do this",
        "instance": "urn:cfproxy:request:id-1",
    }
    given = dict(headers)
    assert len(given) == len(headers)
    assert given[b"Content-Type"] == b"application/problem+json"
    assert given[b"Cache-Control"] == b"no-store"
    assert given[b"Proxy-Status"].startswith(f"cfproxy; error={kind.proxy_error}".encode())


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_has_the_slug_exit_code_and_state_of_the_contract(kind: type[e.CfproxyError]) -> None:
    """Callers, scripts and dashboards can tell the failures apart."""
    assert (kind.slug, kind.exit_code, kind.state) == CONTRACT[kind]
    assert e.state_of(kind("x")) == kind.state


@pytest.mark.parametrize("kind", CONTRACT, ids=lambda kind: kind.__name__)
def test_only_errors_that_may_pass_have_retry_after(kind: type[e.CfproxyError]) -> None:
    """A client is asked to come back only when that may help."""
    headers, _ = render_problem(kind("x"), "id")
    retry = [value for name, value in headers if name == b"Retry-After"]
    assert bool(retry) == ANSWERS[kind.slug][1]
    assert all(re.fullmatch(rb"[1-9]\d*", value) for value in retry)


def test_every_slug_of_the_contract_is_in_use() -> None:
    """The listed slugs and the error classes cover each other."""
    assert {slug for slug, _, _ in CONTRACT.values()} == set(ANSWERS)


def test_no_error_is_no_trouble() -> None:
    """An account without an error is in the state `ok`."""
    assert e.state_of(None) == "ok"


@pytest.mark.parametrize(("seconds", "text"), [(0.0, b"1"), (0.2, b"1"), (4.1, b"5"), (7.0, b"7")])
def test_retry_after_is_rounded_up_to_whole_seconds(seconds: float, text: bytes) -> None:
    """Retry-After has whole seconds (RFC 9110 §10.2.3) and is never zero, so no client returns too early."""
    headers, _ = render_problem(e.QueueFull("x", retry_after_s=seconds), "id")
    assert (b"Retry-After", text) in headers


def test_a_missing_access_key_is_answered_with_a_challenge() -> None:
    """A 401 of ours says how to authenticate (RFC 9110 §15.5.2)."""
    headers, _ = render_problem(e.KeyRequired("x"), "id")
    assert next(value for name, value in headers if name == b"WWW-Authenticate").startswith(b"Basic ")


def test_any_text_makes_a_valid_document() -> None:
    """Quotes, line ends and letters outside ASCII in a detail do not break the answer."""
    _, body = render_problem(e.BadTarget('"\r\n… \udcff'), "id")
    assert json.loads(body)["detail"] == '"\r\n… \udcff'


def test_a_refused_configuration_is_answered_with_each_of_its_problems() -> None:
    """The answer to a reload lists the problems beside the detail."""
    problems = (e.Problem("config.yaml", "listen", "is wrong"), e.Problem("environment", "CFPROXY_X", "too"))
    _, body = render_problem(e.ConfigError("two problems", problems), "id")
    assert json.loads(body)["problems"] == ["config.yaml: listen: is wrong", "environment: CFPROXY_X: too"]


@pytest.mark.parametrize("kind", [each for each in all_errors() if issubclass(each, e.UpstreamError)])
def test_a_failure_of_the_api_comes_with_a_next_step(kind: type[e.UpstreamError]) -> None:
    """The message has its own next step, or gets the one of its kind."""
    assert kind("it failed").message == f"it failed; {kind.step}"
    assert kind("it failed; call somebody", unsent=True).message == "it failed; call somebody"
    assert str(e.without_traceback(kind("it failed"))) == f"it failed; {kind.step}"
