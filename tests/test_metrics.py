"""What a Prometheus server gets to see."""

from __future__ import annotations

import math

from prometheus_client.parser import text_string_to_metric_families

from cfproxy.broker import BrokerState
from cfproxy.forward import Outcome, Times
from cfproxy.metrics import Metrics
from cfproxy.pacing import Pace
from cfproxy.secret import Secret
from cfproxy.shaper import Shaper
from cfproxy.token import Login, Token
from tests.clock import FakeClock
from tests.test_too_many import Refusal

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
    """Return every sample by its name and its labels' values."""
    text = metrics.render().decode()
    assert "marker" not in text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_are_counted_by_what_the_client_got() -> None:
    """Account, method and status class; a made-up method does not make a new series."""
    metrics = Metrics()
    for method in ("GET", "BREW", "FOO"):
        metrics.count_request("default", method, 204, 0.1, None)
    samples = read(metrics)
    assert samples["cfproxy_requests_total", "default", "GET", "2xx"] == 1
    assert samples["cfproxy_requests_total", "default", "other", "2xx"] == 2
    assert samples["cfproxy_request_duration_seconds_count", "default"] == 3


def test_retries_and_waiting_are_counted() -> None:
    """A retry is told by the answer that caused it."""
    metrics = Metrics()
    outcome = Outcome(Refusal(200), Times(queued_s=2.0), retried=True, postponed=2)
    metrics.count_request("default", "GET", 200, 3.0, outcome)
    samples = read(metrics)
    assert samples["cfproxy_retries_total", "default", "401"] == 1
    assert samples["cfproxy_retries_total", "default", "429 or 503"] == 2
    assert samples["cfproxy_queue_duration_seconds_sum", "default"] == 2.0


def test_an_account_shows_whether_it_works_and_until_when() -> None:
    """Token and login expiry are what an alert needs."""
    metrics = Metrics()
    metrics.accounts["default"] = lambda: BrokerState(LOGIN, 30.0, None, 0.0, None, False, 7)
    metrics.accounts["new"] = lambda: BrokerState(None, 0.0, None, 0.0, None, False, 0)
    samples = read(metrics)
    assert samples["cfproxy_account_ready", "default"] == 1
    assert samples["cfproxy_token_usable_seconds", "default"] == 30.0
    assert samples["cfproxy_token_refreshes_total", "default"] == 7
    assert samples["cfproxy_login_expiry_timestamp_seconds", "default"] == 2_592_000.0
    assert ("cfproxy_login_expiry_timestamp_seconds", "new") not in samples


async def test_the_queue_shows_its_length_its_rate_and_the_429s() -> None:
    """A scrape reads the shaper as it is at that moment."""
    metrics = Metrics()
    shaper = Shaper(Pace(20.0, 1.0), FakeClock(), 10, 60.0)
    metrics.pacing["https://api"] = shaper.state
    metrics.pacing["off"] = Shaper(Pace(None, 1.0), FakeClock(), 10, 60.0).state
    assert math.isclose(await shaper.slot("a"), 0.0)
    shaper.back_off(1.0, slower=True)
    samples = read(metrics)
    assert samples["cfproxy_departures_total", "https://api"] == 1
    assert samples["cfproxy_upstream_refusals_total", "https://api"] == 1
    assert samples["cfproxy_pacing_rate", "https://api"] == 16.0
    assert samples["cfproxy_queue_length", "https://api"] == 0
    assert ("cfproxy_pacing_rate", "off") not in samples
