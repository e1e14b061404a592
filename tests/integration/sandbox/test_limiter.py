"""The API's rate limit: 20 calls per second and IP address, counted in either of two ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.sandbox import Behaviour
from cfproxy.sandbox.limiter import Limiter
from tests.integration.sandbox.world import World

# Multiples of 1/64 s, which floats add without rounding.
TICKS = st.integers(0, 45).map(lambda ticks: ticks / 64)


def test_a_fixed_window_starts_with_its_first_call() -> None:
    """Twenty calls pass, the rest of that second is refused, the next window starts with the next call."""
    limiter = Limiter(Behaviour(limiter="fixed"))
    assert [limiter.admit("a", 100.5) for _ in range(20)] == [None] * 20
    assert limiter.admit("a", 101.25) == pytest.approx(0.25)
    assert limiter.admit("a", 101.5) is None
    assert [limiter.admit("a", 102.25) for _ in range(19)] == [None] * 19
    assert limiter.admit("a", 102.25) == pytest.approx(0.25)


def test_a_fixed_window_admits_a_double_burst_at_its_boundary() -> None:
    """Around a boundary, twice the rate passes in far less than a second: the flaw of fixed windows."""
    limiter = Limiter(Behaviour(limiter="fixed"))
    limiter.admit("a", 0.0)
    late = [limiter.admit("a", 0.99) for _ in range(19)]
    early = [limiter.admit("a", 1.0) for _ in range(20)]
    assert late + early == [None] * 39


def test_a_sliding_window_has_no_boundary() -> None:
    """A call passes if fewer than twenty counted calls are younger than a second."""
    limiter = Limiter(Behaviour(limiter="sliding"))
    assert [limiter.admit("a", 0.99) for _ in range(20)] == [None] * 20
    assert limiter.admit("a", 1.5) == pytest.approx(0.49)


def test_blocked_calls_prolong_the_block_if_they_count() -> None:
    """A client that keeps calling a sliding limit that counts blocked calls stays blocked."""
    counting = Limiter(Behaviour(limiter="sliding", limit_rate=1))
    assert [counting.admit("a", at) for at in (0.0, 0.9)] == [None, pytest.approx(1.0)]
    assert counting.admit("a", 1.0) is not None
    forgiving = Limiter(Behaviour(limiter="sliding", limit_rate=1, blocked_calls_count=False))
    assert [forgiving.admit("a", at) for at in (0.0, 0.9)] == [None, pytest.approx(0.1)]
    assert forgiving.admit("a", 1.0) is None


@pytest.mark.parametrize("mode", ["fixed", "sliding"])
def test_each_address_has_its_own_limit(mode: str) -> None:
    """One machine's burst does not affect another's."""
    behaviour = Behaviour(limit_rate=1)
    behaviour.update({"limiter": mode})
    limiter = Limiter(behaviour)
    assert limiter.admit("a", 0.0) is None
    assert limiter.admit("a", 0.0) is not None
    assert limiter.admit("b", 0.0) is None


@pytest.mark.parametrize("mode", ["fixed", "sliding"])
def test_a_clock_that_is_set_back_blocks_no_calls(mode: str) -> None:
    """Calls counted in what is now the future are forgotten."""
    behaviour = Behaviour(limit_rate=1)
    behaviour.update({"limiter": mode})
    limiter = Limiter(behaviour)
    assert limiter.admit("a", 1000.0) is None
    assert limiter.admit("a", 10.0) is None


def test_a_limiter_that_is_off_admits_everything() -> None:
    """With `off` there is no limit."""
    limiter = Limiter(Behaviour(limiter="off", limit_rate=1))
    assert {limiter.admit("a", 0.0) for _ in range(100)} == {None}


@given(st.lists(TICKS, max_size=60), st.integers(1, 5), st.integers(1, 128), st.booleans())
def test_a_sliding_limit_is_never_exceeded(gaps: list[float], rate: int, per: int, count: bool) -> None:
    """No span of `limit_per_s` has more admitted calls than `limit_rate`, in any sequence of calls."""
    per_s = per / 64
    behaviour = Behaviour(limiter="sliding", limit_rate=rate, limit_per_s=per_s, blocked_calls_count=count)
    limiter, now, admitted = Limiter(behaviour), 0.0, []
    for gap in gaps:
        now += gap
        wait_s = limiter.admit("a", now)
        if wait_s is None:
            admitted.append(now)
        else:
            assert 0 < wait_s <= per_s
    assert all(later - first >= per_s for first, later in zip(admitted, admitted[rate:], strict=False))


@given(st.integers(1, 5), st.integers(1, 30), st.booleans(), st.sampled_from(["fixed", "sliding"]))
def test_waiting_for_retry_after_is_enough(rate: int, calls: int, count: bool, mode: str) -> None:
    """A caller that waits for the time it was given passes at the next call."""
    behaviour = Behaviour(limit_rate=rate, blocked_calls_count=count)
    behaviour.update({"limiter": mode})
    limiter, now = Limiter(behaviour), 0.0
    for _ in range(calls):
        wait_s = limiter.admit("a", now)
        now += wait_s or 0.0
        assert wait_s is None or limiter.admit("a", now) is None


async def test_a_call_over_the_limit_gets_429(world: World) -> None:
    """The response is plain text that names the limit, with `Retry-After` in whole seconds."""
    statuses = [await world.status("GET", "/v1/productiontypes") for _ in range(20)]
    assert statuses == [200] * 20
    async with world.call("GET", "/v1/productiontypes") as response:
        assert response.status == 429
        assert response.content_type == "text/plain"
        assert await response.text() == "API calls quota exceeded! maximum admitted 20 per 1s."
        assert response.headers["Retry-After"] == "1"
    world.clock.now += 1.0
    assert await world.status("GET", "/v1/productiontypes") == 200
    assert world.sandbox.journal.api_statuses == {200: 21, 429: 1}


async def test_a_429_can_omit_retry_after(world: World) -> None:
    """Some gateways do not say when to retry."""
    world.behaviour.update({"retry_after": False, "limit_rate": 1, "limit_per_s": 90})
    await world.status("GET", "/v1/productiontypes")
    async with world.call("GET", "/v1/productiontypes") as response:
        assert response.status == 429
        assert "Retry-After" not in response.headers
        assert await response.text() == "API calls quota exceeded! maximum admitted 1 per 90s."


async def test_the_limit_counts_calls_without_a_token_too(world: World) -> None:
    """The limit is checked before the token: an anonymous call counts."""
    world.behaviour.limit_rate = 1
    assert await world.status("GET", "/v1/jobs", headers={}) == 401
    assert await world.status("GET", "/v1/jobs") == 429
