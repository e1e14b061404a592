"""Statistics of finished requests: counters, the latest requests, trends."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from cfproxy.observability.metrics import Metrics
from cfproxy.observability.request_stats import BUCKETS_S, LATEST_MAX, Durations, Latest, Trend
from cfproxy.pacing.queue import FairQueue
from cfproxy.pacing.rate import RateLimit
from tests.support.clock import FakeClock


def build_metrics() -> Metrics:
    metrics = Metrics()
    metrics.pacing["https://api:443"] = FairQueue(RateLimit(None, 1.0), FakeClock(), 10, 60.0).state
    return metrics


def test_only_the_latest_requests_are_stored() -> None:
    """A new page shows the latest 200; an open page gets those since its last one."""
    metrics = build_metrics()
    stats = metrics.request_stats("default", "https://api:443")
    for number in range(LATEST_MAX + 50):
        stats.record("GET", f"/v1/{number}", 200, "", total_s=0.1)
    latest = metrics.latest
    assert len(latest.after(0)) == LATEST_MAX
    assert [finished.path for finished in latest.after(latest.serial - 2)] == ["/v1/248", "/v1/249"]
    assert latest.after(latest.serial) == latest.after(latest.serial + 5) == Latest().after(0) == []


def test_invented_methods_and_long_paths_are_bounded() -> None:
    """A method creates no new series, and a path is cut."""
    metrics = build_metrics()
    stats = metrics.request_stats("default", "https://api:443")
    for number in range(100):
        stats.record(f"BREW{number}", "/" * 10_000, 200, "", total_s=0.1)
    assert stats.requests == {("other", 2, ""): 100}
    assert {len(finished.path) for finished in metrics.latest.after(0)} == {200}


def test_a_retried_request_shows_its_attempts() -> None:
    """Retries are counted by their cause, and each request has its number of attempts."""
    metrics = build_metrics()
    stats = metrics.request_stats("default", "https://api:443")
    stats.record("GET", "/", 200, "", total_s=3.0, queued_s=1.0, retried=True, postponed=2)
    assert stats.retries == {"unauthorized": 1, "too_many_requests": 2}
    assert metrics.latest.after(0)[0].tries == 4
    assert stats.queued.sum_s == 1.0
    assert stats.upstream.cumulative()[-1] == ("+Inf", 0.0)


def test_recent_refusals_of_the_queue_are_counted() -> None:
    """By account, and only since a given time."""
    metrics = build_metrics()
    stats = metrics.request_stats("default", "https://api:443")
    stats.record("GET", "/", 503, "queue-full", total_s=0.1)
    stats.record("GET", "/", 504, "upstream-timeout", total_s=0.1)
    assert metrics.latest.refused("default", 0.0) == 1
    assert metrics.latest.refused("another", 0.0) == metrics.latest.refused("default", 1e12) == 0


def test_counters_outlive_a_reload() -> None:
    """An account with a new upstream keeps its counters, and feeds another trend."""
    metrics = build_metrics()
    before = metrics.request_stats("default", "https://api:443")
    assert metrics.request_stats("default", "https://other:443") is before
    assert before.trend is metrics.trend("https://other:443")
    before.record("GET", "/", 200, "", total_s=0.1)  # for an upstream without a queue
    assert sum(before.trend.series()[0]) == 0


@given(st.lists(st.floats(min_value=0.0, max_value=1000.0)))
def test_a_histogram_loses_nothing(durations: list[float]) -> None:
    """Buckets are cumulative, the last one counts everything, and the sum is right."""
    histogram = Durations()
    for seconds in durations:
        histogram.observe(seconds)
    buckets = histogram.cumulative()
    for bound, count in zip(BUCKETS_S, buckets, strict=False):
        assert count == (str(bound), sum(seconds <= bound for seconds in durations))
    assert buckets[-1] == ("+Inf", len(durations))
    assert math.isclose(histogram.sum_s, sum(durations), abs_tol=1e-9)


async def test_a_trend_shows_rate_and_queue_of_ten_minutes() -> None:
    """Steps of 5 s; without a sample nothing happened; older steps are dropped."""
    clock = FakeClock(monotonic_at=1000.0)
    fair_queue = FairQueue(RateLimit(None, 1.0), clock, 10, 60.0)
    trend = Trend(fair_queue.state, clock.monotonic)
    for _ in range(10):
        await fair_queue.acquire("a")
    trend.sample()
    await clock.advance(100.0)
    for _ in range(20):
        await fair_queue.acquire("a")
    trend.sample()
    trend.sample()  # too early, and nothing is counted twice
    rates, waiting = trend.series()
    assert len(rates) == len(waiting) == 120
    assert rates[-21] == 2.0
    assert rates[-1] == 20.0  # the step is at most a second old, which counts as one second
    assert sum(rates) == 22.0
    await clock.advance(2.5)
    assert trend.series()[0][-1] == 8.0
    await clock.advance(700.0)
    assert sum(trend.series()[0]) == 0.0


async def test_a_steady_flow_shows_a_steady_rate() -> None:
    """Samples and steps are not aligned; departures are not counted to the following step."""
    clock = FakeClock(monotonic_at=1000.0)
    fair_queue = FairQueue(RateLimit(None, 1.0), clock, 10, 60.0)
    trend = Trend(fair_queue.state, clock.monotonic)
    for _ in range(400):
        await fair_queue.acquire("a")
        await clock.advance(0.05)
        trend.sample()
    rates = trend.series()[0]
    assert sum(rates) * 5 >= 380
    assert all(19.6 <= rate <= 20.4 for rate in rates[-4:-1])


async def test_a_trend_remembers_the_longest_queue_of_a_step() -> None:
    """Even if it was gone before the trend was read."""
    clock, waiting = FakeClock(), [3, 7, 0]

    class State:
        departures = 0

        @property
        def waiting(self) -> int:
            return waiting.pop(0)

    trend = Trend(lambda: State(), clock.monotonic)  # type: ignore[arg-type, return-value]  # noqa: PLW0108
    trend.sample()
    trend.sample(at_once=True)
    assert trend.series()[1][-1] == 7
