"""The metrics of one process: the states of accounts and queues, and statistics of requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cfproxy.auth.models import TokenStatus
from cfproxy.observability.request_stats import Latest, RequestStats, Trend
from cfproxy.pacing.queue import QueueState

if TYPE_CHECKING:
    from cfproxy.observability.prometheus import MetricsCollector


class Metrics:
    """The metrics of one process.

    Attributes:
        accounts: return the token status of each account; may change.
        pacing: return the state of each upstream's queue; may change.
        latest: the latest requests.
        requests: statistics by account; they outlive a reload.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Callable[[], TokenStatus]] = {}
        self.pacing: dict[str, Callable[[], QueueState]] = {}
        self.latest = Latest()
        self.requests: dict[str, RequestStats] = {}
        self._trends: dict[str, Trend] = {}
        self._collector: MetricsCollector | None = None

    def trend(self, upstream: str) -> Trend:
        """Return the trend of an upstream, `scheme://host:port`."""
        if upstream not in self._trends:
            self._trends[upstream] = Trend(lambda: read() if (read := self.pacing.get(upstream)) else None)
        return self._trends[upstream]

    def request_stats(self, account: str, upstream: str) -> RequestStats:
        """Return the statistics of an account, which sends its requests to `upstream`."""
        if account not in self.requests:
            self.requests[account] = RequestStats(account, self.latest, self.trend(upstream))
        self.requests[account].trend = self.trend(upstream)
        return self.requests[account]

    def render(self, in_flight: Mapping[str, int] | None = None) -> bytes:
        """Return the metrics in Prometheus' text format.

        Args:
            in_flight: requests in progress, by account.
        """
        if self._collector is None:
            from cfproxy.observability.prometheus import MetricsCollector  # noqa: PLC0415 - slow, and rarely needed

            self._collector = MetricsCollector(self)
        return self._collector.render(in_flight or {})
