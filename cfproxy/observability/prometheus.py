"""The metrics in Prometheus' form, in a registry of our own.

Owns: names, help texts and labels. What can be read when it is asked for is read then: from brokers and
shapers, and from what `traffic.py` has counted. No label has unbounded values: accounts and upstreams are
the configuration's, methods, status classes, problems and states are fixed sets.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cfproxy import __version__
from cfproxy.auth.models import TokenStatus
from cfproxy.errors import state_of
from cfproxy.observability.request_stats import Activity, Durations, RequestStats
from cfproxy.observability.status import ACCOUNT_STATES
from cfproxy.pacing.queue import QueueState

_DURATIONS: tuple[tuple[str, str, Callable[[RequestStats], Durations]], ...] = (
    (
        "cfproxy_request_duration_seconds",
        "From a request's head to its answer's last byte.",
        lambda traffic: traffic.total,
    ),
    (
        "cfproxy_queue_duration_seconds",
        "Waiting for a slot, all tries of a request together.",
        lambda traffic: traffic.queued,
    ),
    (
        "cfproxy_token_duration_seconds",
        "Waiting for a token, all tries of a request together.",
        lambda traffic: traffic.token,
    ),
    (
        "cfproxy_upstream_duration_seconds",
        "From sending to the head of the API's answer, all tries together.",
        lambda traffic: traffic.upstream,
    ),
)


class Exposition:
    """The metrics of one process, in Prometheus' text format.

    Args:
        accounts: whose states are exposed; may change while it is used.
        pacing: likewise.
        activity: what requests came to.
    """

    def __init__(
        self,
        accounts: Mapping[str, Callable[[], TokenStatus]],
        pacing: Mapping[str, Callable[[], QueueState]],
        activity: Activity,
    ) -> None:
        self._registry = CollectorRegistry()
        self._accounts = accounts
        self._pacing = pacing
        self._activity = activity
        self._in_flight: Mapping[str, int] = {}
        build = Gauge("cfproxy_build_info", "Version.", ["version", "python"], registry=self._registry)
        build.labels(__version__, platform.python_version()).set(1)
        ProcessCollector(registry=self._registry)
        for collect in (self._collect_requests, self._collect_accounts, self._collect_pacing):
            self._registry.register(_Reading(collect))

    def render(self, in_flight: Mapping[str, int]) -> bytes:
        """Return it (see `Metrics.render`)."""
        self._in_flight = in_flight
        return generate_latest(self._registry)

    def _collect_requests(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            "cfproxy_requests",
            "Requests answered, by what the client got; origin: whose answer it was; problem: our slug.",
            labels=["account", "method", "status", "origin", "problem"],
        )
        retries = CounterMetricFamily(
            "cfproxy_retries",
            "Requests sent again: with another token after a 401 (unauthorized), after a pause that a 429 "
            "or 503 asked for (too_many_requests).",
            labels=["account", "reason"],
        )
        received = CounterMetricFamily(
            "cfproxy_request_body_bytes", "Of request bodies, from clients.", labels=["account"]
        )
        sent = CounterMetricFamily(
            "cfproxy_response_body_bytes", "Of answers' bodies, to clients.", labels=["account"]
        )
        in_flight = GaugeMetricFamily(
            "cfproxy_requests_in_flight", "Requests being worked at.", labels=["account"]
        )
        for account, count in self._in_flight.items():
            in_flight.add_metric([account], count)
        for account, traffic in self._activity.accounts.items():
            for (method, first_digit, problem), count in traffic.requests.items():
                origin = "cfproxy" if problem else "upstream"
                requests.add_metric([account, method, f"{first_digit}xx", origin, problem], count)
            for reason, count in traffic.retries.items():
                retries.add_metric([account, reason], count)
            received.add_metric([account], traffic.received_bytes)
            sent.add_metric([account], traffic.sent_bytes)
        yield from (requests, retries, received, sent, in_flight)
        for name, text, choose in _DURATIONS:
            family = HistogramMetricFamily(name, text, labels=["account"])
            for account, traffic in self._activity.accounts.items():
                durations = choose(traffic)
                family.add_metric([account], durations.cumulative(), durations.sum_s)
            yield family

    def _collect_accounts(self) -> Iterable[Metric]:
        label = ["account"]
        refreshes = CounterMetricFamily(
            "cfproxy_token_refreshes",
            "Attempts to get a token, by result: ok, or what kept it from coming.",
            labels=["account", "result"],
        )
        store_errors = CounterMetricFamily(
            "cfproxy_store_errors", "Failed reads and writes of the token store.", labels=label
        )
        unsaved = GaugeMetricFamily(
            "cfproxy_store_unsaved", "Whether the newest token is in memory only.", labels=label
        )
        token = GaugeMetricFamily(
            "cfproxy_token_expiry_timestamp_seconds", "When the access token expires.", labels=label
        )
        login = GaugeMetricFamily(
            "cfproxy_login_expiry_timestamp_seconds", "When the login itself dies.", labels=label
        )
        warning = GaugeMetricFamily(
            "cfproxy_login_expiry_warning",
            "How near the login's end is: 0 far, 1 from 7 days, 2 from 2 days, 3 from 1 day, 4 over; "
            "in proportion for logins shorter than 28 days.",
            labels=label,
        )
        ready = GaugeMetricFamily("cfproxy_account_ready", "Whether requests get a token.", labels=label)
        states = GaugeMetricFamily(
            "cfproxy_account_state", "1 for the state that the account is in.", labels=["account", "state"]
        )
        for name, read in self._accounts.items():
            state = read()
            failures = Counter({"ok": state.refreshes})
            for kind, count in state.failures.items():
                failures[kind.state] += count
            for result in ACCOUNT_STATES:
                refreshes.add_metric([name, result], failures[result])
            store_errors.add_metric([name], state.store_failures)
            unsaved.add_metric([name], state.unsaved)
            ready.add_metric([name], state.ready)
            warning.add_metric([name], state.warning_step)
            for word in ACCOUNT_STATES:
                states.add_metric([name, word], state_of(state.error) == word)
            if state.login is not None:
                token.add_metric([name], state.login.token.expires_at)
                if state.login.login_expires_at is not None:
                    login.add_metric([name], state.login.login_expires_at)
        yield from (refreshes, store_errors, unsaved, token, login, warning, ready, states)

    def _collect_pacing(self) -> Iterable[Metric]:
        label = ["upstream"]
        waiting = GaugeMetricFamily("cfproxy_queue_length", "Requests waiting for a slot.", labels=label)
        capacity = GaugeMetricFamily("cfproxy_queue_capacity", "How many may wait.", labels=label)
        oldest = GaugeMetricFamily(
            "cfproxy_queue_oldest_seconds", "How long the first of them has waited.", labels=label
        )
        departures = CounterMetricFamily("cfproxy_departures", "Slots given out.", labels=label)
        refusals = CounterMetricFamily("cfproxy_upstream_refusals", "429s of the upstream.", labels=label)
        rate = GaugeMetricFamily(
            "cfproxy_pacing_rate", "Departures per pacing.per in use now; absent when off.", labels=label
        )
        paused = GaugeMetricFamily(
            "cfproxy_pacing_paused", "Whether nobody may leave because the API asked for it.", labels=label
        )
        replicas = GaugeMetricFamily(
            "cfproxy_pacing_replicas", "How many keep the rate together; absent: not shared.", labels=label
        )
        alone = GaugeMetricFamily(
            "cfproxy_pacing_alone",
            "Whether this replica keeps to its part of the rate, since the store is out of reach.",
            labels=label,
        )
        for upstream, read in self._pacing.items():
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


class _Reading(Collector):
    """One of the functions above, as the registry wants it."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()
