"""Pacing, as its users can rely on it: the bound, the use of the rate, bursts, pauses and stepping down."""

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


def drain(pace: RateLimit, count: int, now: float = 0.0, late_s: float = 0.0) -> list[float]:
    """Take `count` slots, each as early as may be (and `late_s` later, like a timer)."""
    left_at = []
    for _ in range(count):
        if now < pace.ready_at:
            now = pace.ready_at + late_s
        assert pace.try_acquire(now)
        left_at.append(now)
    return left_at


def most_in_window(instants: list[float], window_s: float) -> int:
    """Return how many of the sorted `instants` the fullest half-open window holds."""
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
    """Whatever comes when, no window of `per` plus the guard holds more departures than `rate`."""
    pace, now = RateLimit(rate, per_s), 0.0
    left_at: list[float] = []
    for move, amount in moves:
        if move == "wait":
            now += amount * per_s
        elif move == "pause":
            pace.pause(now + amount * per_s, now)
        elif move == "step_down":
            pace.step_down(now)
        elif move == "cancel" and left_at:
            which = -1 - amount % len(left_at)
            if pace.cancel(left_at[which]):
                del left_at[which]
        elif move == "take":
            left_at += [now for _ in range(amount) if pace.try_acquire(now)]
        elif move == "hasten":
            left_at += drain(pace, amount, now)
            now = left_at[-1]
    assert pace.departures == len(left_at)
    if left_at:
        assert most_in_window(left_at, pace.window_s - 1e-9) <= max(1, math.floor(rate))


@given(
    transit_s=st.lists(st.floats(0.0, 0.03), min_size=200, max_size=200),
    phase=st.floats(0.0, 1.0),
    idle_s=st.floats(0.0, 2.0),
)
def test_a_limiter_behind_a_jittery_line_sees_no_more_than_the_rate(
    transit_s: list[float], phase: float, idle_s: float
) -> None:
    """With up to 30 ms of random delay no one-second window, sliding or fixed, sees a 21st arrival."""
    pace = RateLimit(20, 1.0)
    left_at = drain(pace, 60)
    left_at += drain(pace, 140, left_at[-1] + idle_s)
    arrived_at = sorted(at + delay for at, delay in zip(left_at, transit_s, strict=True))
    assert most_in_window(arrived_at, 1.0) <= 20
    fixed = [math.floor(at + phase) for at in arrived_at]
    assert max(fixed.count(second) for second in set(fixed)) <= 20


@pytest.mark.parametrize("late_s", [0.0, 0.001])
def test_a_thousand_requests_take_within_three_percent_of_the_shortest_time(late_s: float) -> None:
    """1,000 requests at 20 a second are through in 50 s plus at most 3 %, late timers included."""
    last_at = drain(RateLimit(20, 1.0), 1000, late_s=late_s)[-1]
    assert 48.5 <= last_at <= 51.5


@given(rate=st.integers(1, 200), before=st.lists(st.floats(0.0, 1.5), max_size=40))
def test_a_backlog_uses_the_rate_whatever_came_before(rate: int, before: list[float]) -> None:
    """From any past on, a backlog leaves at 97 % of the rate or better, a first window left aside."""
    pace, now = RateLimit(rate, 1.0), 0.0
    for wait_s in before:
        now += wait_s
        pace.try_acquire(now)
    windows = 30
    last_at = drain(pace, rate * windows + 1, now)[-1]
    assert last_at - now <= (windows + 1) / 0.97


def test_a_backlog_leaves_as_a_steady_flow() -> None:
    """Once the first burst is over, two departures are never at once and never far apart."""
    gaps = [after - before for before, after in pairwise(drain(RateLimit(20, 1.0), 400)[9:])]
    assert min(gaps) >= 0.044
    assert max(gaps) <= 0.18


def test_ten_requests_from_idle_leave_at_once() -> None:
    """Half a window's worth leaves without any wait, at the start as well as after a second of rest."""
    pace = RateLimit(20, 1.0)
    assert drain(pace, 10, 5.0) == [5.0] * 10
    assert not pace.try_acquire(5.0)
    assert drain(pace, 10, 7.0) == [7.0] * 10


def test_a_late_timer_does_not_slow_the_flow() -> None:
    """A departure that comes a few milliseconds late leaves the following ones where they were."""
    pace = RateLimit(20, 1.0)
    drain(pace, 12)
    due_at = pace.ready_at
    twin = RateLimit(20, 1.0)
    drain(twin, 12)
    assert pace.try_acquire(due_at + 0.003)
    assert twin.try_acquire(due_at)
    assert pace.ready_at == twin.ready_at


def test_memory_is_bounded_by_the_rate() -> None:
    """However many have left, no more instants are kept than a window can hold."""
    pace = RateLimit(20, 1.0)
    drain(pace, 500)
    assert len(pace._sent) <= 20


def test_nothing_leaves_before_a_pause_ends_and_then_no_burst() -> None:
    """A pause holds everything, and a flow that waited for its end begins beat by beat."""
    pace = RateLimit(20, 1.0)
    pace.pause(10.0, 0.0)
    assert not pace.try_acquire(9.999)
    left_at = drain(pace, 30)
    assert left_at[0] == 10.0
    assert min(after - before for before, after in pairwise(left_at)) >= 0.045


def test_a_pause_is_never_shortened() -> None:
    """A second, shorter pause leaves the first one's end where it is."""
    pace = RateLimit(20, 1.0)
    pace.pause(10.0, 0.0)
    pace.pause(5.0, 0.0)
    assert pace.paused_until == pace.ready_at == 10.0


def test_a_slot_given_back_can_be_taken_again() -> None:
    """A departure that did not happen leaves no trace in the count and makes room at once."""
    pace = RateLimit(1, 1.0)
    assert pace.try_acquire(5.0)
    assert not pace.try_acquire(5.1)
    assert pace.cancel(5.0)
    assert pace.departures == 0
    assert pace.try_acquire(5.1)


def test_a_slot_can_be_given_back_after_others_have_left() -> None:
    """The window counts what did leave: a slot that comes back late makes room all the same."""
    pace = RateLimit(2, 1.0)
    assert drain(pace, 2, 5.0)[0] == 5.0
    full_until = pace.ready_at
    assert pace.cancel(5.0)
    assert pace.departures == 1
    assert pace.ready_at < full_until


def test_a_slot_is_given_back_once() -> None:
    """What never left, or came back before, is not undone."""
    pace = RateLimit(20, 1.0)
    drain(pace, 1, 5.0)
    assert not pace.cancel(4.0)
    assert pace.cancel(5.0)
    assert not pace.cancel(5.0)
    assert pace.departures == 0


def test_giving_back_does_not_end_a_pause() -> None:
    """A slot that comes back during a pause waits for the pause's end like any other."""
    pace = RateLimit(20, 1.0)
    assert pace.try_acquire(5.0)
    pace.pause(8.0, 5.0)
    assert pace.cancel(5.0)
    assert pace.ready_at == 8.0


def test_a_refusal_steps_the_rate_down_and_it_recovers_slowly() -> None:
    """A 429 takes a fifth off the rate; a hundredth of the full rate comes back each second."""
    pace = RateLimit(20, 1.0)
    assert pace.step_down(100.0)
    assert pace.rate(100.0) == pytest.approx(16.0)
    assert pace.rate(110.0) == pytest.approx(18.0)
    assert pace.rate(121.0) == 20.0


def test_refusals_of_one_moment_count_once() -> None:
    """The 429s of requests that were under way together step the rate down once, later ones again."""
    pace = RateLimit(20, 1.0)
    assert pace.step_down(100.0)
    assert not pace.step_down(100.9)
    assert pace.step_down(101.1)
    assert pace.rate(101.1) == pytest.approx(0.811 * 0.8 * 20)


def test_the_rate_never_falls_below_a_tenth() -> None:
    """However many refusals come, a tenth of the rate stays in use."""
    pace = RateLimit(20, 1.0)
    for second in range(0, 100, 2):
        pace.step_down(float(second))
    assert pace.rate(98.0) == pytest.approx(SHARE_MIN * 20)


def test_recovery_waits_for_the_end_of_a_pause() -> None:
    """The rate does not grow back while nothing is tried."""
    pace = RateLimit(20, 1.0)
    pace.step_down(100.0)
    pace.pause(160.0, 100.0)
    assert pace.rate(160.0) == pytest.approx(16.0)
    assert pace.rate(165.0) == pytest.approx(17.0)


def test_a_step_down_in_a_pause_recovers_after_it() -> None:
    """Whichever of the two comes first."""
    pace = RateLimit(20, 1.0)
    pace.pause(160.0, 100.0)
    pace.step_down(101.0)
    assert pace.rate(160.0) == pytest.approx(16.0)


@given(steps=st.integers(1, 12), rate=st.integers(2, 60))
def test_the_stepped_down_rate_binds_every_window(steps: int, rate: int) -> None:
    """After stepping down no window holds more than the rate in use at its end."""
    pace, now = RateLimit(rate, 1.0), 0.0
    for _ in range(steps):
        now = drain(pace, 2 * rate, now)[-1] + 2 * pace.window_s
        pace.step_down(now)
    left_at = drain(pace, rate, now)
    for last in left_at:
        inside = [at for at in left_at if last - pace.window_s + 1e-9 < at <= last]
        assert len(inside) <= max(1, math.floor(pace.rate(last) or 0))


def test_without_a_rate_everything_leaves_at_once_except_in_a_pause() -> None:
    """`rate: off` holds nothing back, but a pause that the upstream asked for is kept."""
    pace = RateLimit(None, 1.0)
    assert drain(pace, 1000, 5.0) == [5.0] * 1000
    assert pace.rate(5.0) is None
    assert not pace.step_down(5.0)
    assert not pace.cancel(5.0)
    pace.pause(9.0, 5.0)
    assert not pace.try_acquire(8.9)
    assert pace.eta(100, 8.0) == 9.0
    assert pace.try_acquire(9.0)


@given(rate=RATES, taken=st.integers(0, 80), ahead=st.integers(0, 300), slow=st.booleans())
def test_the_estimate_is_never_later_than_the_truth(rate: float, taken: int, ahead: int, slow: bool) -> None:
    """A wait is never estimated longer than it turns out to be, nor much shorter at the full rate."""
    pace = RateLimit(rate, 1.0)
    # The last one found no room, as whenever somebody waits.
    now = ([0.0, *drain(pace, taken)])[-1]
    if slow:
        pace.step_down(now)
    if pace.ready_at <= now:
        pace.pause(now + 0.1, now)
    estimate = pace.eta(ahead, now)
    truth = drain(pace, ahead + 1, now)[-1]
    assert estimate <= truth + 1e-6
    if not slow:
        assert truth - estimate <= pace.window_s * max(1.0, 1.0 / rate)


def test_a_whole_number_of_requests_fits_a_window() -> None:
    """2.5 in one second allows 2, and less than one in a second lengthens the window to hold one."""
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
def test_another_rate_counts_what_left_before_it(old: int, new: int, before: int, wait_s: float) -> None:
    """From the change on nobody leaves who would make a window hold more than the new rate."""
    pace = RateLimit(old, 1.0)
    earlier = drain(pace, before)
    pace.reconfigure(new, 1.0)
    later = drain(pace, 80, now=(earlier[-1] if earlier else 0.0) + wait_s)
    left_at = [*earlier, *later]
    for index in range(before, len(left_at)):
        since = left_at[index] - pace.window_s + 1e-9
        assert sum(since < at <= left_at[index] for at in left_at) <= new


def test_a_rate_that_comes_back_finds_what_left_before() -> None:
    """Two reloads in one second make no room that was not there."""
    pace = RateLimit(20, 1.0)
    left_at = drain(pace, 30)
    pace.reconfigure(2, 1.0)
    pace.reconfigure(20, 1.0)
    left_at += drain(pace, 30, left_at[-1])
    assert most_in_window(left_at, pace.window_s - 1e-9) <= 20


def test_the_same_rate_again_changes_nothing() -> None:
    """A reload that leaves the pacing alone does not disturb the flow."""
    pace = RateLimit(20.0, 1.0)
    drain(pace, 30)
    ready_at = pace.ready_at
    pace.reconfigure(20.0, 1.0)
    assert pace.ready_at == ready_at


def test_pacing_that_is_switched_off_lets_everything_leave() -> None:
    """And switched on again it begins anew."""
    pace = RateLimit(1.0, 1.0)
    assert pace.try_acquire(0.0)
    assert not pace.try_acquire(0.1)
    pace.reconfigure(None, 1.0)
    assert pace.ready_at <= 1.0
    pace.reconfigure(None, 2.0)
    with pytest.raises(ValueError, match="positive"):
        pace.reconfigure(0.0, 1.0)
