"""What requests came to: counts and durations for `/metrics`, the latest ones and a trend for the page.

Owns: the numbers that one finished request leaves behind. They are plain integers and tuples, since
`RequestStats.record` stands on the path of every request; names and help texts are `exposition.py`'s.
Must not know: HTTP messages, who looks.
Invariants: all of it is bounded, whatever callers send (methods, paths, time); only a path's text without
its query is kept, and of that a bounded length; nothing runs by itself.
"""

from __future__ import annotations

import itertools
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cfproxy.pacing.queue import QueueState

# Queueing takes as long as pacing.max_wait may say, an upstream as long as timeouts.idle.
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
FRESH_MAX = 1024
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
LATEST_MAX = 200
PATH_MAX_CHARS = 200
TREND_S = 600.0
STEP_S = 5.0
SAMPLE_EVERY_S = 1.0


class Finished(NamedTuple):
    """One finished request: durations in seconds, `at` on the wall clock, `problem` our slug or empty."""

    at: float
    account: str
    method: str
    path: str
    status: int
    problem: str
    total_s: float
    queued_s: float | None
    token_s: float | None
    upstream_s: float | None
    tries: int


class Durations:
    """A histogram: how many lasted up to each of `BUCKETS_S`, and their sum.

    Counting is put off until somebody looks, or `FRESH_MAX` have come: sorting many costs less than a search
    for each.
    """

    __slots__ = ("_counts", "_fresh", "_sum_s", "observe")

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_S) + 1)  # up to each bound
        self._sum_s = 0.0
        self._fresh: list[float] = []
        self.observe = self._fresh.append  # count one duration; whoever calls sees to `FRESH_MAX`

    @property
    def fresh(self) -> int:
        """How many have not been counted yet."""
        return len(self._fresh)

    def count(self) -> None:
        """Count what has come since the last time."""
        values = sorted(self._fresh)
        self._fresh.clear()
        self._sum_s += sum(values)
        for at, bound in enumerate(BUCKETS_S):
            self._counts[at] += bisect_right(values, bound)
        self._counts[-1] += len(values)

    @property
    def sum_s(self) -> float:
        """How long all of them took together."""
        self.count()
        return self._sum_s

    def cumulative(self) -> list[tuple[str, float]]:
        """Return bucket bounds and counts as Prometheus wants them."""
        self.count()
        bounds = [*map(str, BUCKETS_S), "+Inf"]
        return list(zip(bounds, map(float, self._counts), strict=True))


class Latest:
    """The latest requests of all accounts; each has a serial number, the first one 1."""

    def __init__(self) -> None:
        self._kept: deque[tuple[Any, ...]] = deque(maxlen=LATEST_MAX)  # each is the fields of a `Finished`
        self.serial = 0

    def add(self, finished: tuple[Any, ...]) -> None:
        """Remember a request, given as the fields of `Finished`, and forget the oldest one."""
        self._kept.append(finished)
        self.serial += 1

    def refused(self, account: str, since: float) -> int:
        """Return how many requests of an account the queue refused since a wall-clock instant."""
        latest = map(Finished._make, reversed(self._kept))
        recent = itertools.takewhile(lambda finished: finished.at >= since, latest)
        return sum(each.account == account and each.problem.startswith("queue-") for each in recent)

    def after(self, serial: int) -> list[Finished]:
        """Return what came after the one with that number, oldest first, as far as it is remembered."""
        count = min(len(self._kept), max(0, self.serial - serial))
        return [Finished._make(each) for each in itertools.islice(self._kept, len(self._kept) - count, None)]


class Trend:
    """Departures and queue length of one upstream over the last 10 minutes, in steps of 5 s.

    Nobody watches a clock for it: whoever finishes a request takes a sample if the last one is a second
    old, and so does whoever looks. Where no sample was taken nothing happened.

    Args:
        read: the shaper's state; None where it is gone since a reload.
        now: a monotonic clock.
    """

    def __init__(
        self, read: Callable[[], QueueState | None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._now = now
        self._sample_at = -1.0
        self._departures = 0
        # Step number, departures in it, most that waited in it.
        self._steps: deque[list[int]] = deque(maxlen=int(TREND_S / STEP_S))

    def sample(self, *, at_once: bool = False) -> None:
        """Take a sample if one is due, or in any case."""
        now = self._now()
        early, number = now < self._sample_at, int(now / STEP_S)
        begins = not self._steps or self._steps[-1][0] != number
        if early and not begins and not at_once:
            return
        self._sample_at = now + SAMPLE_EVERY_S
        state = self._read()
        if state is None:
            return
        if begins:
            self._steps.append([number, 0, 0])
        # In a steady flow, what was not counted yet when a step begins left in the step before.
        left_before = begins and early and len(self._steps) > 1
        self._steps[-2 if left_before else -1][1] += max(0, state.departures - self._departures)
        self._steps[-1][2] = max(self._steps[-1][2], state.waiting)
        self._departures = state.departures

    def series(self) -> tuple[list[float], list[int]]:
        """Return departures per second and the longest queue of each step, oldest first."""
        self.sample(at_once=True)
        now = self._now()
        last, count = int(now / STEP_S), int(TREND_S / STEP_S)
        rates, waiting = [0.0] * count, [0] * count
        for number, departures, peak in self._steps:
            place = count - 1 - (last - number)
            if place >= 0:
                # The step that is going on counts by what it has lasted, once that is a second.
                lasted_s = STEP_S if number < last else max(1.0, now - last * STEP_S)
                rates[place], waiting[place] = departures / lasted_s, peak
        return rates, waiting


class RequestStats:
    """What the requests of one account came to.

    Args:
        account: its name.
        latest: where its requests are remembered, too.
        trend: its upstream's.
    """

    def __init__(self, account: str, latest: Latest, trend: Trend) -> None:
        self._account = account
        self._latest = latest
        self.trend = trend
        self.requests: dict[tuple[str, int, str], int] = {}  # by method, first digit of status, and problem
        self.total, self.queued, self.token, self.upstream = (Durations() for _ in range(4))
        self.received_bytes = 0
        self.sent_bytes = 0
        self.retries = {"unauthorized": 0, "too_many_requests": 0}

    def record(
        self,
        method: str,
        path: str,
        status: int,
        problem: str,
        total_s: float,
        queued_s: float | None = None,
        token_s: float | None = None,
        upstream_s: float | None = None,
        received_bytes: int = 0,
        sent_bytes: int = 0,
        retried: bool = False,
        postponed: int = 0,
    ) -> None:
        """Take down one finished request.

        Args:
            method: as the client sent it.
            path: without query.
            status: what the client got; 499 when it left before that.
            problem: the slug when the answer, or its end, was ours; empty when it was the upstream's.
            total_s: from the request's head to the answer's last byte.
            queued_s: waiting for slots; None where it did not come to that, likewise below.
            token_s: waiting for tokens.
            upstream_s: from sending to the head of the answer.
            received_bytes: of the request's body.
            sent_bytes: of the answer's body.
            retried: sent again with another token after a 401.
            postponed: how often it was sent again after a 429 or 503.
        """
        known = method if method in METHODS else "other"
        key = (known, status // 100, problem)
        try:
            self.requests[key] += 1
        except KeyError:
            self.requests[key] = 1
        self.total.observe(total_s)
        if queued_s is not None:
            self.queued.observe(queued_s)
        if token_s is not None:
            self.token.observe(token_s)
        if upstream_s is not None:
            self.upstream.observe(upstream_s)
        if self.total.fresh >= FRESH_MAX:
            for durations in (self.total, self.queued, self.token, self.upstream):
                durations.count()
        self.received_bytes += received_bytes
        self.sent_bytes += sent_bytes
        if retried:
            self.retries["unauthorized"] += 1
        if postponed:
            self.retries["too_many_requests"] += postponed
        now, tries = time.time(), 1 + retried + postponed
        path = path[:PATH_MAX_CHARS]
        waits = (queued_s, token_s, upstream_s)
        self._latest.add((now, self._account, known, path, status, problem, total_s, *waits, tries))
        self.trend.sample()


class Activity:
    """All that is known of the requests of one process.

    Args:
        pacing: the shapers' states, by upstream; may change while it is used.
    """

    def __init__(self, pacing: Mapping[str, Callable[[], QueueState]]) -> None:
        self._pacing = pacing
        self.latest = Latest()
        self.accounts: dict[str, RequestStats] = {}
        self.trends: dict[str, Trend] = {}

    def trend(self, upstream: str) -> Trend:
        """Return the trend of an upstream, `scheme://host:port`."""
        if upstream not in self.trends:
            self.trends[upstream] = Trend(lambda: read() if (read := self._pacing.get(upstream)) else None)
        return self.trends[upstream]

    def traffic(self, account: str, upstream: str) -> RequestStats:
        """Return where the requests of an account are taken down; its counts outlive a reload."""
        if account not in self.accounts:
            self.accounts[account] = RequestStats(account, self.latest, self.trend(upstream))
        self.accounts[account].trend = self.trend(upstream)
        return self.accounts[account]
