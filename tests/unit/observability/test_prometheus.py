"""The metrics that Prometheus scrapes."""

from __future__ import annotations

import math

from prometheus_client.parser import text_string_to_metric_families

from cfproxy.auth.models import Login, Token, TokenStatus
from cfproxy.errors import LoginRequired, TokenEndpointUnavailable
from cfproxy.observability.metrics import Metrics
from cfproxy.observability.prometheus import MetricsCollector
from cfproxy.pacing.queue import FairQueue, QueueState
from cfproxy.pacing.rate import RateLimit
from cfproxy.secret import Secret
from tests.support.clock import FakeClock

LOGIN = Login(
    "default",
    "app",
    "https://t",
    "https://a",
    "s",
    Token(Secret("marker"), 0.0, 60.0),
    None,
    1,
    0.0,
    2_592_000.0,
)


def read(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return every sample by its name and label values."""
    text = MetricsCollector(metrics).render().decode()
    assert "marker" not in text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_are_counted_by_their_response() -> None:
    """By account, method, status class and origin; an invented method creates no new series."""
    metrics = Metrics()
    stats = metrics.request_stats("default", "https://api")
    for method in ("GET", "BREW", "FOO"):
        stats.record(method, "/", 204, "", total_s=0.1, received_bytes=3, sent_bytes=5)
    stats.record("GET", "/", 503, "queue-full", total_s=0.1)
    samples = read(metrics)
    assert samples["cfproxy_requests_total", "default", "GET", "upstream", "", "2xx"] == 1
    assert samples["cfproxy_requests_total", "default", "other", "upstream", "", "2xx"] == 2
    assert samples["cfproxy_requests_total", "default", "GET", "cfproxy", "queue-full", "5xx"] == 1
    assert samples["cfproxy_request_duration_seconds_count", "default"] == 4
    assert samples["cfproxy_request_body_bytes_total", "default"] == 9
    assert samples["cfproxy_response_body_bytes_total", "default"] == 15


def test_retries_and_waits_are_counted() -> None:
    """Each wait has a histogram; retries are counted by their cause."""
    metrics = Metrics()
    metrics.request_stats("default", "https://api").record(
        "GET", "/", 200, "", total_s=3.0, queued_s=2.0, token_s=0.3, upstream_s=0.7, retried=True, postponed=2
    )
    samples = read(metrics)
    assert samples["cfproxy_retries_total", "default", "unauthorized"] == 1
    assert samples["cfproxy_retries_total", "default", "too_many_requests"] == 2
    assert samples["cfproxy_queue_duration_seconds_sum", "default"] == 2.0
    assert samples["cfproxy_queue_duration_seconds_bucket", "default", "1.0"] == 0
    assert samples["cfproxy_queue_duration_seconds_bucket", "default", "2.5"] == 1
    assert samples["cfproxy_token_duration_seconds_sum", "default"] == 0.3
    assert samples["cfproxy_upstream_duration_seconds_sum", "default"] == 0.7


def test_requests_in_progress_are_passed_in() -> None:
    """The caller of `render` counts them."""
    text = MetricsCollector(Metrics()).render({"default": 7}).decode()
    assert 'cfproxy_requests_in_flight{account="default"} 7.0' in text


def test_an_account_shows_its_state_and_expiry_times() -> None:
    """Alerts need the expiry times of token and login."""
    metrics = Metrics()
    metrics.accounts["default"] = lambda: TokenStatus(LOGIN, 30.0, None, 0.0, None, False, 7)
    metrics.accounts["new"] = lambda: TokenStatus(None, 0.0, None, 0.0, None, False, 0)
    samples = read(metrics)
    assert samples["cfproxy_account_ready", "default"] == 1
    assert samples["cfproxy_token_expiry_timestamp_seconds", "default"] == 60.0
    assert samples["cfproxy_token_refreshes_total", "default", "ok"] == 7
    assert samples["cfproxy_account_state", "default", "ok"] == 1
    assert samples["cfproxy_login_expiry_timestamp_seconds", "default"] == 2_592_000.0
    assert ("cfproxy_login_expiry_timestamp_seconds", "new") not in samples


def test_a_failing_account_shows_its_state() -> None:
    """One of a fixed set of states is 1, failures are counted by state, and the login's expiry has a step."""
    error = TokenEndpointUnavailable("down")
    failures = {TokenEndpointUnavailable: 3, LoginRequired: 1}
    metrics = Metrics()
    metrics.accounts["default"] = lambda: TokenStatus(
        LOGIN, 0.0, error, 1.0, None, True, 0, failures=failures, store_failures=2, warning_step=3
    )
    samples = read(metrics)
    assert samples["cfproxy_account_ready", "default"] == 0
    assert samples["cfproxy_account_state", "default", "token-endpoint-unavailable"] == 1
    assert samples["cfproxy_account_state", "default", "ok"] == 0
    assert samples["cfproxy_token_refreshes_total", "default", "token-endpoint-unavailable"] == 3
    assert samples["cfproxy_token_refreshes_total", "default", "login-required"] == 1
    assert samples["cfproxy_store_errors_total", "default"] == 2
    assert samples["cfproxy_store_unsaved", "default"] == 1
    assert samples["cfproxy_login_expiry_warning", "default"] == 3


async def test_the_queue_shows_its_length_its_rate_and_the_429s() -> None:
    """A scrape reads the queue's current state."""
    metrics = Metrics()
    fair_queue = FairQueue(RateLimit(20.0, 1.0), FakeClock(), 10, 60.0)
    metrics.pacing["https://api"] = fair_queue.state
    metrics.pacing["off"] = FairQueue(RateLimit(None, 1.0), FakeClock(), 10, 60.0).state
    assert math.isclose(await fair_queue.acquire("a"), 0.0)
    fair_queue.throttle(1.0, step_down=True)
    samples = read(metrics)
    assert samples["cfproxy_departures_total", "https://api"] == 1
    assert samples["cfproxy_upstream_refusals_total", "https://api"] == 1
    assert samples["cfproxy_pacing_rate", "https://api"] == 16.0
    assert samples["cfproxy_queue_length", "https://api"] == 0
    assert samples["cfproxy_queue_capacity", "https://api"] == 10
    assert samples["cfproxy_pacing_paused", "https://api"] == 1
    assert ("cfproxy_pacing_rate", "off") not in samples
    assert ("cfproxy_pacing_replicas", "https://api") not in samples


def test_a_shared_rate_shows_its_replicas() -> None:
    """And whether this replica has lost the store."""
    metrics = Metrics()
    metrics.pacing["https://api"] = lambda: QueueState(0, 0, 0, 2.5, None, 0.0, 1000, 1.0, 8, alone=True)
    samples = read(metrics)
    assert samples["cfproxy_pacing_replicas", "https://api"] == 8
    assert samples["cfproxy_pacing_alone", "https://api"] == 1
