"""Statistics of finished requests: counters and histograms, the latest requests, a trend for the page.

`RequestStats.record` runs for every request, so these are plain integers and tuples.

Invariants:
1. Everything is bounded, whatever methods and paths clients send, and however long the process runs.
2. Of a path only its text is stored, without the query and up to `PATH_MAX_CHARS`.
"""

from __future__ import annotations

import itertools
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from cfproxy.pacing.queue import QueueState

# A wait in the queue can last as long as pacing.max_wait, an upstream request as long as timeouts.idle.
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
UNCOUNTED_MAX = 1024
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
LATEST_MAX = 200
PATH_MAX_CHARS = 200
TREND_S = 600.0
STEP_S = 5.0
SAMPLE_EVERY_S = 1.0


class Finished(NamedTuple):
    """One finished request; `at` is wall-clock time, `problem` our slug or empty, `tries` counts sendings."""

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
    """A histogram with the upper bounds `BUCKETS_S`.

    Values are counted when the histogram is read, or once there are `UNCOUNTED_MAX` of them: sorting many
    costs less than searching for the bucket of each.
    """

    __slots__ = ("_counts", "_sum_s", "_uncounted", "observe")

    def __init__(self) -> None:
        self._counts = [0] * (len(BUCKETS_S) + 1)  # cumulative
        self._sum_s = 0.0
        self._uncounted: list[float] = []
        self.observe = self._uncounted.append  # adds one duration; the caller minds `UNCOUNTED_MAX`

    @property
    def uncounted(self) -> int:
        """The number of durations not counted yet."""
        return len(self._uncounted)

    def count(self) -> None:
        """Count the durations added since the last call."""
        values = sorted(self._uncounted)
        self._uncounted.clear()
        self._sum_s += sum(values)
        for at, bound in enumerate(BUCKETS_S):
            self._counts[at] += bisect_right(values, bound)
        self._counts[-1] += len(values)

    @property
    def sum_s(self) -> float:
        """The sum of all durations."""
        self.count()
        return self._sum_s

    def cumulative(self) -> list[tuple[str, float]]:
        """Return upper bounds and cumulative counts, as Prometheus expects them."""
        self.count()
        bounds = [*map(str, BUCKETS_S), "+Inf"]
        return list(zip(bounds, map(float, self._counts), strict=True))


class Latest:
    """The latest requests of all accounts, with serial numbers from 1."""

    def __init__(self) -> None:
        self._requests: deque[tuple[Any, ...]] = deque(
            maxlen=LATEST_MAX
        )  # each is the fields of a `Finished`
        self.serial = 0

    def add(self, finished: tuple[Any, ...]) -> None:
        """Add a request, given as the fields of `Finished`; the oldest one is dropped."""
        self._requests.append(finished)
        self.serial += 1

    def refused(self, account: str, since: float) -> int:
        """Return how many requests of an account the queue has refused since a wall-clock time."""
        latest = map(Finished._make, reversed(self._requests))
        recent = itertools.takewhile(lambda finished: finished.at >= since, latest)
        return sum(each.account == account and each.problem.startswith("queue-") for each in recent)

    def after(self, serial: int) -> list[Finished]:
        """Return the stored requests after a serial number, oldest first."""
        count = min(len(self._requests), max(0, self.serial - serial))
        return [
            Finished._make(each)
            for each in itertools.islice(self._requests, len(self._requests) - count, None)
        ]


class Trend:
    """Departures and queue length of one upstream over the last 10 minutes, in steps of 5 s.

    There is no timer: finishing a request takes a sample if the last one is a second old, and so does
    reading the trend. Without a sample, nothing happened.

    Args:
        read: returns the queue's state; None if a reload has removed it.
        now: a monotonic clock.
    """

    def __init__(
        self, read: Callable[[], QueueState | None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._now = now
        self._sample_at = -1.0
        self._departures = 0
        # Of each step: its number, departures, longest queue.
        self._steps: deque[list[int]] = deque(maxlen=int(TREND_S / STEP_S))

    def sample(self, *, at_once: bool = False) -> None:
        """Take a sample if one is due; with `at_once` in any case."""
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
        # In a steady flow, departures not counted yet when a step begins belong to the step before.
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
                # The current step is divided by its duration so far, but at least 1 s.
                lasted_s = STEP_S if number < last else max(1.0, now - last * STEP_S)
                rates[place], waiting[place] = departures / lasted_s, peak
        return rates, waiting


class RequestStats:
    """Statistics of the requests of one account.

    Args:
        account: the account's name.
        latest: gets every request, too.
        trend: the trend of the account's upstream.
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
        """Record one finished request.

        Args:
            method: as the client sent it.
            path: without query.
            status: of the response; 499 if the client left before.
            problem: the slug if the response, or its end, was ours; empty if it was the upstream's.
            total_s: from the request's head to the response's last byte.
            queued_s: waiting for slots; None if the request did not get that far, likewise below.
            token_s: waiting for tokens.
            upstream_s: from sending to the head of the response.
            received_bytes: size of the request's body.
            sent_bytes: size of the response's body.
            retried: whether it was sent again with another token after a 401.
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
        if self.total.uncounted >= UNCOUNTED_MAX:
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
