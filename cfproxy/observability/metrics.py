"""The metrics of one process: the states of accounts and queues, and statistics of requests."""

from __future__ import annotations

from collections.abc import Callable

from cfproxy.auth.models import TokenStatus
from cfproxy.observability.request_stats import Latest, RequestStats, Trend
from cfproxy.pacing.queue import QueueState


class Metrics:
    """The metrics of one process.

    Attributes:
        accounts: return the token status of each account; may change.
        pacing: return the state of each upstream's queue; may change.
        latest: the latest requests.
        requests: statistics by account; they outlive a reload.
        dropped_lines: returns how many lines of the log were lost.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Callable[[], TokenStatus]] = {}
        self.pacing: dict[str, Callable[[], QueueState]] = {}
        self.latest = Latest()
        self.requests: dict[str, RequestStats] = {}
        self.dropped_lines: Callable[[], int] = int
        self._trends: dict[str, Trend] = {}

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
