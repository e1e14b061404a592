"""The metrics in Prometheus' text format, in a registry of our own.

States and counters are read when the metrics are rendered. Labels have bounded sets of values: accounts and
upstreams of the configuration; fixed methods, status classes, problems and states.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cfproxy import __version__
from cfproxy.errors import state_of
from cfproxy.observability.metrics import Metrics
from cfproxy.observability.request_stats import Durations
from cfproxy.observability.status import ACCOUNT_STATES

# Name, help text, attribute of `RequestStats`.
_DURATIONS = (
    ("cfproxy_request_duration_seconds", "From the request's head to the response's last byte.", "total"),
    ("cfproxy_queue_duration_seconds", "Time waiting for slots, over all attempts.", "queued"),
    ("cfproxy_token_duration_seconds", "Time waiting for tokens, over all attempts.", "token"),
    ("cfproxy_upstream_duration_seconds", "From sending to the response's head, all attempts.", "upstream"),
)


class MetricsCollector(Collector):
    """Collects the metrics of one process.

    Args:
        metrics: the metrics.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._in_flight: Mapping[str, int] = {}
        self._registry = CollectorRegistry()
        build = Gauge("cfproxy_build_info", "Versions.", ["version", "python"], registry=self._registry)
        build.labels(__version__, platform.python_version()).set(1)
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def render(self, in_flight: Mapping[str, int] | None = None) -> bytes:
        """Return all metrics in Prometheus' text format.

        Args:
            in_flight: requests in progress, by account.
        """
        self._in_flight = in_flight or {}
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """Return all metrics; called by the registry."""
        yield from self._collect_requests()
        yield from self._collect_accounts()
        yield from self._collect_pacing()
        text = "Lines of the log that were lost, because nothing read it or it could not be written."
        yield CounterMetricFamily("cfproxy_log_lines_dropped", text, value=self._metrics.dropped_lines())

    def _collect_requests(self) -> Iterable[Metric]:
        counter, gauge = _kinds("account")
        requests = CounterMetricFamily(
            "cfproxy_requests",
            "Finished requests, by response; origin: who responded; problem: the slug of our own responses.",
            labels=["account", "method", "status", "origin", "problem"],
        )
        retries = CounterMetricFamily(
            "cfproxy_retries",
            "Requests sent again: with another token after a 401 (unauthorized), or after the pause that a "
            "429 or 503 asked for (too_many_requests).",
            labels=["account", "reason"],
        )
        received = counter("cfproxy_request_body_bytes", "Request body bytes received from clients.")
        sent = counter("cfproxy_response_body_bytes", "Response body bytes sent to clients.")
        in_flight = gauge("cfproxy_requests_in_flight", "Requests in progress.")
        for account, count in self._in_flight.items():
            in_flight.add_metric([account], count)
        for account, stats in self._metrics.requests.items():
            for (method, first_digit, problem), count in stats.requests.items():
                origin = "cfproxy" if problem else "upstream"
                requests.add_metric([account, method, f"{first_digit}xx", origin, problem], count)
            for reason, count in stats.retries.items():
                retries.add_metric([account, reason], count)
            received.add_metric([account], stats.received_bytes)
            sent.add_metric([account], stats.sent_bytes)
        yield from (requests, retries, received, sent, in_flight)
        for name, text, attribute in _DURATIONS:
            family = HistogramMetricFamily(name, text, labels=["account"])
            for account, stats in self._metrics.requests.items():
                durations: Durations = getattr(stats, attribute)
                family.add_metric([account], durations.cumulative(), durations.sum_s)
            yield family

    def _collect_accounts(self) -> Iterable[Metric]:
        counter, gauge = _kinds("account")
        refreshes = CounterMetricFamily(
            "cfproxy_token_refreshes",
            "Token requests, by result: ok, or the state that the failure caused.",
            labels=["account", "result"],
        )
        store_errors = counter("cfproxy_store_errors", "Failed reads and writes of the token store.")
        unsaved = gauge("cfproxy_store_unsaved", "1 if the newest token is in memory only.")
        token = gauge("cfproxy_token_expiry_timestamp_seconds", "When the access token expires.")
        login = gauge("cfproxy_login_expiry_timestamp_seconds", "When the login expires.")
        warning = gauge(
            "cfproxy_login_expiry_warning",
            "How soon the login expires: 0 not soon, 1 within 7 days, 2 within 2 days, 3 within 1 day, "
            "4 expired; proportionally less for logins shorter than 28 days.",
        )
        ready = gauge("cfproxy_account_ready", "1 if requests get a token.")
        states = GaugeMetricFamily(
            "cfproxy_account_state", "1 for the current state of the account.", labels=["account", "state"]
        )
        for name, read in self._metrics.accounts.items():
            state = read()
            results = Counter({"ok": state.refreshes})
            for kind, count in state.failures.items():
                results[kind.state] += count
            store_errors.add_metric([name], state.store_failures)
            unsaved.add_metric([name], state.unsaved)
            ready.add_metric([name], state.ready)
            warning.add_metric([name], state.warning_step)
            for word in ACCOUNT_STATES:
                refreshes.add_metric([name, word], results[word])
                states.add_metric([name, word], state_of(state.error) == word)
            if state.login is not None:
                token.add_metric([name], state.login.token.expires_at)
                if state.login.login_expires_at is not None:
                    login.add_metric([name], state.login.login_expires_at)
        yield from (refreshes, store_errors, unsaved, token, login, warning, ready, states)

    def _collect_pacing(self) -> Iterable[Metric]:
        counter, gauge = _kinds("upstream")
        waiting = gauge("cfproxy_queue_length", "Requests waiting for a slot.")
        capacity = gauge("cfproxy_queue_capacity", "Maximum number of waiting requests.")
        oldest = gauge("cfproxy_queue_oldest_seconds", "How long the first request in the queue has waited.")
        departures = counter("cfproxy_departures", "Slots granted to requests.")
        refusals = counter("cfproxy_upstream_refusals", "429 responses of the upstream.")
        rate = gauge(
            "cfproxy_pacing_rate", "Current rate, in requests per pacing.per; absent if pacing is off."
        )
        paused = gauge(
            "cfproxy_pacing_paused", "1 while no request is sent because the API asked for a pause."
        )
        replicas = gauge(
            "cfproxy_pacing_replicas", "Replicas that share the rate; absent if it is not shared."
        )
        alone = gauge(
            "cfproxy_pacing_alone",
            "1 while this replica uses only its part of the shared rate because the store is unreachable.",
        )
        for upstream, read in self._metrics.pacing.items():
            state = read()
            if state.replicas is not None:
                replicas.add_metric([upstream], state.replicas)
                alone.add_metric([upstream], state.alone)
            waiting.add_metric([upstream], state.waiting)
            capacity.add_metric([upstream], state.capacity)
            oldest.add_metric([upstream], state.oldest_wait_s)
            departures.add_metric([upstream], state.departures)
            refusals.add_metric([upstream], state.refusals)
            paused.add_metric([upstream], state.paused_until is not None)
            if state.rate is not None:
                rate.add_metric([upstream], state.rate)
        yield from (waiting, capacity, oldest, departures, refusals, rate, paused, replicas, alone)


def _kinds(label: str) -> tuple[Callable[..., CounterMetricFamily], Callable[..., GaugeMetricFamily]]:
    """Return what builds counters and gauges with one label."""
    labels = [label]
    return partial(CounterMetricFamily, labels=labels), partial(GaugeMetricFamily, labels=labels)
