"""Prometheus metrics in a registry of our own.

Owns: names and labels. No label has unbounded values.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cfproxy import __version__

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The counters of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        Gauge("cfproxy_build_info", "Version.", ["version"], registry=self.registry).labels(__version__).set(
            1
        )
        self._requests = Counter(
            "cfproxy_requests",
            "Requests answered, by the status class that the client got.",
            ["account", "method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "cfproxy_request_duration_seconds",
            "From the request's head to the answer's last byte.",
            ["account"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.refreshes = Gauge(
            "cfproxy_token_refreshes", "Tokens fetched since the start.", ["account"], registry=self.registry
        )
        self.token_usable = Gauge(
            "cfproxy_token_usable_seconds",
            "Seconds for which the access token is still sent.",
            ["account"],
            registry=self.registry,
        )
        self.ready = Gauge(
            "cfproxy_account_ready", "Whether requests get a token.", ["account"], registry=self.registry
        )

    def count_request(self, account: str, method: str, status: int, seconds: float) -> None:
        """Count one finished request."""
        known = method if method in _METHODS else "other"
        self._requests.labels(account, known, f"{status // 100}xx").inc()
        self._seconds.labels(account).observe(seconds)

    def render(self) -> bytes:
        """Return the exposition in Prometheus' text format."""
        return generate_latest(self.registry)
