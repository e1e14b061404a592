"""The rate limit: its bound, the use of the rate, bursts, pauses and stepping down."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.pacing.rate import GUARD, SHARE_MIN, RateLimit

RATES = st.one_of(st.integers(1, 60).map(float), st.floats(0.2, 60.0))


def drain(limit: RateLimit, count: int, now: float = 0.0, late_s: float = 0.0) -> list[float]:
    """Take `count` slots, each as early as possible (and `late_s` later, like a timer)."""
    left_at = []
    for _ in range(count):
        if now < limit.ready_at:
            now = limit.ready_at + late_s
        assert limit.try_acquire(now)
        left_at.append(now)
    return left_at


def most_in_window(instants: list[float], window_s: float) -> int:
    """Return how many of the sorted `instants` are in the fullest half-open window."""
    return max(bisect_left(instants, start + window_s) - i for i, start in enumerate(instants))


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0.0, 3.0)),
        st.tuples(st.just("take"), st.integers(1, 50)),
        st.tuples(st.just("hasten"), st.integers(1, 50)),
        st.tuples(st.just("pause"), st.floats(0.0, 3.0)),
        st.tuples(st.just("step_down"), st.none()),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
    ),
    max_size=40,
)


@given(rate=RATES, per_s=st.sampled_from([0.5, 1.0, 60.0]), moves=MOVES)
def test_no_window_ever_holds_more_than_the_rate(
    rate: float, per_s: float, moves: list[tuple[str, Any]]
) -> None:
    """In any sequence, no window of `per` plus the guard has more requests than `rate`."""
    limit, now = RateLimit(rate, per_s), 0.0
    left_at: list[float] = []
    for move, amount in moves:
        if move == "wait":
            now += amount * per_s
        elif move == "pause":
            limit.pause(now + amount * per_s, now)
        elif move == "step_down":
            limit.step_down(now)
        elif move == "cancel" and left_at:
            which = -1 - amount % len(left_at)
            if limit.cancel(left_at[which]):
                del left_at[which]
        elif move == "take":
            left_at += [now for _ in range(amount) if limit.try_acquire(now)]
        elif move == "hasten":
            left_at += drain(limit, amount, now)
            now = left_at[-1]
    assert limit.departures == len(left_at)
    if left_at:
        assert most_in_window(left_at, limit.window_s - 1e-9) <= max(1, math.floor(rate))


@given(
    transit_s=st.lists(st.floats(0.0, 0.03), min_size=200, max_size=200),
    phase=st.floats(0.0, 1.0),
    idle_s=st.floats(0.0, 2.0),
)
def test_a_limiter_behind_network_jitter_sees_no_more_than_the_rate(
    transit_s: list[float], phase: float, idle_s: float
) -> None:
    """With up to 30 ms of random delay no one-second window, sliding or fixed, has a 21st arrival."""
    limit = RateLimit(20, 1.0)
    left_at = drain(limit, 60)
    left_at += drain(limit, 140, left_at[-1] + idle_s)
    arrived_at = sorted(at + delay for at, delay in zip(left_at, transit_s, strict=True))
    assert most_in_window(arrived_at, 1.0) <= 20
    fixed = [math.floor(at + phase) for at in arrived_at]
    assert max(fixed.count(second) for second in set(fixed)) <= 20


@pytest.mark.parametrize("late_s", [0.0, 0.001])
def test_a_thousand_requests_take_within_three_percent_of_the_shortest_time(late_s: float) -> None:
    """1,000 requests at 20 a second take 50 s plus at most 3 %, including late timers."""
    last_at = drain(RateLimit(20, 1.0), 1000, late_s=late_s)[-1]
    assert 48.5 <= last_at <= 51.5


@given(rate=st.integers(1, 200), before=st.lists(st.floats(0.0, 1.5), max_size=40))
def test_a_backlog_uses_the_rate_whatever_came_before(rate: int, before: list[float]) -> None:
    """After any history, a backlog is sent at 97 % of the rate or more, apart from a first window."""
    limit, now = RateLimit(rate, 1.0), 0.0
    for wait_s in before:
        now += wait_s
        limit.try_acquire(now)
    windows = 30
    last_at = drain(limit, rate * windows + 1, now)[-1]
    assert last_at - now <= (windows + 1) / 0.97


def test_a_backlog_is_sent_as_a_steady_flow() -> None:
    """After the first burst, two requests are never sent at once and never far apart."""
    gaps = [after - before for before, after in pairwise(drain(RateLimit(20, 1.0), 400)[9:])]
    assert min(gaps) >= 0.044
    assert max(gaps) <= 0.18


def test_ten_requests_from_idle_are_sent_at_once() -> None:
    """Half a window's worth is sent without a wait, at the start and after an idle second."""
    limit = RateLimit(20, 1.0)
    assert drain(limit, 10, 5.0) == [5.0] * 10
    assert not limit.try_acquire(5.0)
    assert drain(limit, 10, 7.0) == [7.0] * 10


def test_a_late_timer_does_not_slow_the_flow() -> None:
    """A request that is sent a few milliseconds late does not delay the following ones."""
    limit = RateLimit(20, 1.0)
    drain(limit, 12)
    due_at = limit.ready_at
    twin = RateLimit(20, 1.0)
    drain(twin, 12)
    assert limit.try_acquire(due_at + 0.003)
    assert twin.try_acquire(due_at)
    assert limit.ready_at == twin.ready_at


def test_memory_is_bounded_by_the_rate() -> None:
    """However many requests were sent, no more instants are stored than a window can hold."""
    limit = RateLimit(20, 1.0)
    drain(limit, 500)
    assert len(limit._sent) <= 20


def test_nothing_is_sent_in_a_pause_and_no_burst_after_it() -> None:
    """After a pause a waiting flow starts with single intervals."""
    limit = RateLimit(20, 1.0)
    limit.pause(10.0, 0.0)
    assert not limit.try_acquire(9.999)
    left_at = drain(limit, 30)
    assert left_at[0] == 10.0
    assert min(after - before for before, after in pairwise(left_at)) >= 0.045


def test_a_pause_is_never_shortened() -> None:
    """A second, shorter pause does not end the first one."""
    limit = RateLimit(20, 1.0)
    limit.pause(10.0, 0.0)
    limit.pause(5.0, 0.0)
    assert limit.paused_until == limit.ready_at == 10.0


def test_a_cancelled_slot_can_be_used_again() -> None:
    """A cancelled slot is not counted, and is free at once."""
    limit = RateLimit(1, 1.0)
    assert limit.try_acquire(5.0)
    assert not limit.try_acquire(5.1)
    assert limit.cancel(5.0)
    assert limit.departures == 0
    assert limit.try_acquire(5.1)


def test_a_slot_can_be_cancelled_after_later_ones_were_used() -> None:
    """The window counts what was sent: a slot cancelled late still frees capacity."""
    limit = RateLimit(2, 1.0)
    assert drain(limit, 2, 5.0)[0] == 5.0
    full_until = limit.ready_at
    assert limit.cancel(5.0)
    assert limit.departures == 1
    assert limit.ready_at < full_until


def test_a_slot_is_cancelled_once() -> None:
    """A slot that was never used, or was cancelled before, is not undone."""
    limit = RateLimit(20, 1.0)
    drain(limit, 1, 5.0)
    assert not limit.cancel(4.0)
    assert limit.cancel(5.0)
    assert not limit.cancel(5.0)
    assert limit.departures == 0


def test_cancelling_does_not_end_a_pause() -> None:
    """A slot cancelled during a pause is free after the pause, like any other."""
    limit = RateLimit(20, 1.0)
    assert limit.try_acquire(5.0)
    limit.pause(8.0, 5.0)
    assert limit.cancel(5.0)
    assert limit.ready_at == 8.0


def test_a_429_steps_the_rate_down_and_it_recovers_slowly() -> None:
    """A 429 reduces the rate by a fifth; a hundredth of the full rate returns each second."""
    limit = RateLimit(20, 1.0)
    assert limit.step_down(100.0)
    assert limit.rate(100.0) == pytest.approx(16.0)
    assert limit.rate(110.0) == pytest.approx(18.0)
    assert limit.rate(121.0) == 20.0


def test_simultaneous_429s_count_once() -> None:
    """The 429s for requests that were in flight together step the rate down once, later ones again."""
    limit = RateLimit(20, 1.0)
    assert limit.step_down(100.0)
    assert not limit.step_down(100.9)
    assert limit.step_down(101.1)
    assert limit.rate(101.1) == pytest.approx(0.811 * 0.8 * 20)


def test_the_rate_never_falls_below_a_tenth() -> None:
    """After any number of 429s, a tenth of the rate stays in use."""
    limit = RateLimit(20, 1.0)
    for second in range(0, 100, 2):
        limit.step_down(float(second))
    assert limit.rate(98.0) == pytest.approx(SHARE_MIN * 20)


def test_recovery_waits_for_the_end_of_a_pause() -> None:
    """The rate does not recover while nothing is sent."""
    limit = RateLimit(20, 1.0)
    limit.step_down(100.0)
    limit.pause(160.0, 100.0)
    assert limit.rate(160.0) == pytest.approx(16.0)
    assert limit.rate(165.0) == pytest.approx(17.0)


def test_a_step_down_in_a_pause_recovers_after_it() -> None:
    """In either order of the two."""
    limit = RateLimit(20, 1.0)
    limit.pause(160.0, 100.0)
    limit.step_down(101.0)
    assert limit.rate(160.0) == pytest.approx(16.0)


@given(steps=st.integers(1, 12), rate=st.integers(2, 60))
def test_the_reduced_rate_bounds_every_window(steps: int, rate: int) -> None:
    """After stepping down no window has more requests than the rate in use at its end."""
    limit, now = RateLimit(rate, 1.0), 0.0
    for _ in range(steps):
        now = drain(limit, 2 * rate, now)[-1] + 2 * limit.window_s
        limit.step_down(now)
    left_at = drain(limit, rate, now)
    for last in left_at:
        inside = [at for at in left_at if last - limit.window_s + 1e-9 < at <= last]
        assert len(inside) <= max(1, math.floor(limit.rate(last) or 0))


def test_without_a_rate_everything_is_sent_at_once_except_in_a_pause() -> None:
    """`rate: off` limits nothing, but a pause requested by the upstream applies."""
    limit = RateLimit(None, 1.0)
    assert drain(limit, 1000, 5.0) == [5.0] * 1000
    assert limit.rate(5.0) is None
    assert not limit.step_down(5.0)
    assert not limit.cancel(5.0)
    limit.pause(9.0, 5.0)
    assert not limit.try_acquire(8.9)
    assert limit.eta(100, 8.0) == 9.0
    assert limit.try_acquire(9.0)


@given(rate=RATES, taken=st.integers(0, 80), ahead=st.integers(0, 300), slow=st.booleans())
def test_the_estimate_is_never_later_than_the_truth(rate: float, taken: int, ahead: int, slow: bool) -> None:
    """A wait is never overestimated, nor much underestimated at the full rate."""
    limit = RateLimit(rate, 1.0)
    # The window is full, as whenever a request waits.
    now = ([0.0, *drain(limit, taken)])[-1]
    if slow:
        limit.step_down(now)
    if limit.ready_at <= now:
        limit.pause(now + 0.1, now)
    estimate = limit.eta(ahead, now)
    truth = drain(limit, ahead + 1, now)[-1]
    assert estimate <= truth + 1e-6
    if not slow:
        assert truth - estimate <= limit.window_s * max(1.0, 1.0 / rate)


def test_a_whole_number_of_requests_fits_a_window() -> None:
    """2.5 in one second allows 2, and a rate below 1 lengthens the window to hold one."""
    left_at = drain(RateLimit(2.5, 1.0), 20)
    assert most_in_window(left_at, 1.0) == 2
    left_at = drain(RateLimit(0.5, 1.0), 5)
    assert min(after - before for before, after in pairwise(left_at)) == pytest.approx(2 * (1 + GUARD))


@pytest.mark.parametrize(
    ("rate", "per_s"), [(0, 1), (-1, 1), (1, 0), (math.inf, 1), (math.nan, 1), (1, math.nan)]
)
def test_a_rate_must_be_a_positive_number(rate: float, per_s: float) -> None:
    """Zero, negative, infinite and undefined rates and windows are refused."""
    with pytest.raises(ValueError, match="positive"):
        RateLimit(rate, per_s)


@given(old=st.integers(1, 60), new=st.integers(1, 60), before=st.integers(0, 80), wait_s=st.floats(0.0, 1.5))
def test_a_new_rate_counts_earlier_requests(old: int, new: int, before: int, wait_s: float) -> None:
    """After the change no window has more requests than the new rate."""
    limit = RateLimit(old, 1.0)
    earlier = drain(limit, before)
    limit.reconfigure(new, 1.0)
    later = drain(limit, 80, now=(earlier[-1] if earlier else 0.0) + wait_s)
    left_at = [*earlier, *later]
    for index in range(before, len(left_at)):
        since = left_at[index] - limit.window_s + 1e-9
        assert sum(since < at <= left_at[index] for at in left_at) <= new


def test_a_restored_rate_counts_earlier_requests() -> None:
    """Two reloads in one second create no extra capacity."""
    limit = RateLimit(20, 1.0)
    left_at = drain(limit, 30)
    limit.reconfigure(2, 1.0)
    limit.reconfigure(20, 1.0)
    left_at += drain(limit, 30, left_at[-1])
    assert most_in_window(left_at, limit.window_s - 1e-9) <= 20


def test_the_same_rate_again_changes_nothing() -> None:
    """A reload without a change to pacing does not disturb the flow."""
    limit = RateLimit(20.0, 1.0)
    drain(limit, 30)
    ready_at = limit.ready_at
    limit.reconfigure(20.0, 1.0)
    assert limit.ready_at == ready_at


def test_pacing_that_is_switched_off_limits_nothing() -> None:
    """Switched on again it starts afresh."""
    limit = RateLimit(1.0, 1.0)
    assert limit.try_acquire(0.0)
    assert not limit.try_acquire(0.1)
    limit.reconfigure(None, 1.0)
    assert limit.ready_at <= 1.0
    limit.reconfigure(None, 2.0)
    with pytest.raises(ValueError, match="positive"):
        limit.reconfigure(0.0, 1.0)
