"""Prometheus metrics in a registry of our own.

Owns: names and labels. What can be read when it is asked for is read then; only requests are counted as
they come. No label has unbounded values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cfproxy import __version__
from cfproxy.broker import BrokerState
from cfproxy.forward import Outcome
from cfproxy.shaper import ShaperState

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.accounts: dict[str, Callable[[], BrokerState]] = {}
        self.pacing: dict[str, Callable[[], ShaperState]] = {}
        build = Gauge("cfproxy_build_info", "Version.", ["version"], registry=self.registry)
        build.labels(__version__).set(1)
        self._requests = Counter(
            "cfproxy_requests",
            "Requests answered, by the status class that the client got.",
            ["account", "method", "status"],
            registry=self.registry,
        )
        self._retries = Counter(
            "cfproxy_retries",
            "Requests sent again, by what the API had answered.",
            ["account", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "cfproxy_request_duration_seconds",
            "From the request's head to the answer's last byte.",
            ["account"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._queued = Histogram(
            "cfproxy_queue_duration_seconds",
            "Waiting for a slot, all tries of a request together.",
            ["account"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(_Live(self))

    def count_request(
        self, account: str, method: str, status: int, seconds: float, outcome: Outcome | None
    ) -> None:
        """Count one finished request; `outcome` is None where the API did not answer."""
        known = method if method in _METHODS else "other"
        self._requests.labels(account, known, f"{status // 100}xx").inc()
        self._seconds.labels(account).observe(seconds)
        if outcome is None:
            return
        self._queued.labels(account).observe(outcome.times.queued_s)
        if outcome.retried:
            self._retries.labels(account, "401").inc()
        if outcome.postponed:
            self._retries.labels(account, "429 or 503").inc(outcome.postponed)

    def render(self) -> bytes:
        """Return the exposition in Prometheus' text format."""
        return generate_latest(self.registry)


class _Live(Collector):
    """What brokers and shapers say of themselves at the moment of a scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        yield from self._collect_accounts()
        yield from self._collect_pacing()

    def _collect_accounts(self) -> Iterable[Metric]:
        refreshes = CounterMetricFamily(
            "cfproxy_token_refreshes", "Tokens fetched since the start.", labels=["account"]
        )
        usable = GaugeMetricFamily(
            "cfproxy_token_usable_seconds",
            "Seconds for which the access token is still sent.",
            labels=["account"],
        )
        login = GaugeMetricFamily(
            "cfproxy_login_expiry_timestamp_seconds", "When the login itself dies.", labels=["account"]
        )
        ready = GaugeMetricFamily(
            "cfproxy_account_ready", "Whether requests get a token.", labels=["account"]
        )
        for name, read in self._metrics.accounts.items():
            state = read()
            refreshes.add_metric([name], state.refreshes)
            usable.add_metric([name], state.usable_s)
            ready.add_metric([name], state.ready)
            if state.login is not None and state.login.login_expires_at is not None:
                login.add_metric([name], state.login.login_expires_at)
        yield from (refreshes, usable, login, ready)

    def _collect_pacing(self) -> Iterable[Metric]:
        labels = ["upstream"]
        waiting = GaugeMetricFamily("cfproxy_queue_length", "Requests waiting for a slot.", labels=labels)
        oldest = GaugeMetricFamily(
            "cfproxy_queue_oldest_seconds", "How long the first of them has waited.", labels=labels
        )
        departures = CounterMetricFamily("cfproxy_departures", "Slots given out.", labels=labels)
        refusals = CounterMetricFamily("cfproxy_upstream_refusals", "429s of the upstream.", labels=labels)
        rate = GaugeMetricFamily(
            "cfproxy_pacing_rate", "Departures per pacing.per in use now; absent when off.", labels=labels
        )
        for upstream, read in self._metrics.pacing.items():
            state = read()
            waiting.add_metric([upstream], state.waiting)
            oldest.add_metric([upstream], state.oldest_wait_s)
            departures.add_metric([upstream], state.departures)
            refusals.add_metric([upstream], state.refusals)
            if state.rate is not None:
                rate.add_metric([upstream], state.rate)
        yield from (waiting, oldest, departures, refusals, rate)
