"""Replicas that share a rate through Redis keep to the rate of one process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator

import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfproxy.config.redis_url import parse_redis_url
from cfproxy.errors import StoreUnavailable
from cfproxy.pacing.rate import SHARED_GUARD, RateLimit
from cfproxy.pacing.redis import RedisRate
from tests.support.examples import examples
from tests.support.redis_server import RedisServer, free_port, running_server
from tests.unit.pacing.test_rate import most_in_window

START_US = 1_700_000_000_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def backend(server: RedisServer) -> AsyncIterator[RedisRate]:
    await server.ready()
    await server.empty()
    backend = RedisRate(parse_redis_url(server.url), "https://api.example:443")
    yield backend
    await backend.aclose()


Step = tuple[str, int]
steps = st.lists(
    st.tuples(st.sampled_from(["lend", "lend", "lend", "pause", "slower"]), st.integers(0, 3000)), max_size=25
)


def lent_alone(rate: float, plan: list[Step]) -> list[float]:
    """Return what one process's own rate limit allows, in the same steps; ms from the start."""
    pace, now, instants = RateLimit(rate, 1.0, SHARED_GUARD), 0.0, []
    for what, wait_ms in plan:
        now += wait_ms / 1000
        if what == "lend":
            for _ in range(3):
                at = max(now, pace.ready_at)
                assert pace.try_acquire(at)
                instants.append(at)
            now = instants[-1]  # `RateLimit` knows no future
        elif what == "slower":
            pace.step_down(now)
            pace.pause(now + 0.2, now)
        else:
            pace.pause(now + 0.7, now)
    return instants


async def lent_by_redis(backend: RedisRate, rate: float, plan: list[Step]) -> list[float]:
    now_us, instants = START_US, []
    for what, wait_ms in plan:
        now_us += wait_ms * 1000
        common: list[str | int] = [repr(rate), 1_000_000, "me", 90_000_000, now_us]
        if what == "lend":
            _, _, _, *lent = await backend._reserve(backend._keys, [*common, 3, 0])
            instants += [(at - START_US) / 1e6 for at in lent]
            now_us = lent[-1]
        else:
            slower = what == "slower"
            await backend._throttle(backend._keys, [*common, 200_000 if slower else 700_000, int(slower)])
    return instants


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(40))
@given(rate=st.sampled_from([0.5, 1.0, 2.5, 20.0, 50.0]), plan=steps)
async def test_script_lends_what_one_process_would_allow(
    server: RedisServer, backend: RedisRate, rate: float, plan: list[Step]
) -> None:
    """Step by step the script and `RateLimit` agree, including bursts, pauses and reductions."""
    await server.empty()
    alone = lent_alone(rate, plan)
    lent = await lent_by_redis(backend, rate, plan)
    assert lent == pytest.approx(alone, abs=0.0005)


async def test_late_replicas_do_not_exceed_the_rate(backend: RedisRate) -> None:
    """With departures up to 36 ms late, as on a busy machine, no second has a 21st arrival."""
    chance = random.Random(1)
    loans = [await backend.reserve(20, 1.0, 5) for _ in range(200)]
    instants = [instant for loan in loans for instant in loan.instants]
    assert most_in_window(sorted(at + chance.uniform(0.0, 0.036) for at in instants), 1.0) <= 20
    assert len(instants) / (instants[-1] - instants[0]) >= 0.95 * 20


async def test_replicas_of_one_origin_share_one_rate(server: RedisServer, backend: RedisRate) -> None:
    """Two replicas never get the same slots, and each counts the other."""
    other = RedisRate(parse_redis_url(server.url), "https://api.example:443")
    loans = [await each.reserve(20, 1.0, 5) for _ in range(10) for each in (backend, other)]
    instants = [instant for loan in loans for instant in loan.instants]
    assert len(instants) == 100
    window_s = RateLimit(20, 1.0, SHARED_GUARD).window_s
    ordered = sorted(instants)
    # Two clocks are read at different moments: hence a few milliseconds.
    assert all(ordered[i + 20] - ordered[i] > window_s - 0.01 for i in range(80))
    assert loans[-1].replicas == 2
    await other.aclose()
    assert (await backend.reserve(20, 1.0, 0)).replicas == 1


async def test_other_origin_has_a_rate_of_its_own(server: RedisServer, backend: RedisRate) -> None:
    """What the replicas of one upstream use leaves another upstream's rate untouched."""
    await backend.reserve(20, 1.0, 40)
    other = RedisRate(parse_redis_url(server.url), "https://other.example:443")
    now = asyncio.get_running_loop().time()
    assert (await other.reserve(20, 1.0, 1)).instants[0] - now < 1.0
    await other.aclose()


async def test_replica_that_comes_back_waits_for_one_window(backend: RedisRate) -> None:
    """What it sent without the server is unknown, so nothing is lent for as long as that counts."""
    now = asyncio.get_running_loop().time()
    loan = await backend.reserve(20, 1.0, 1, rejoining=True)
    assert loan.instants[0] - now >= RateLimit(20, 1.0, SHARED_GUARD).window_s - 0.001


async def test_asking_for_no_slots_uses_none(server: RedisServer, backend: RedisRate) -> None:
    """Being counted as a replica does not change the rate."""
    await backend.reserve(20, 1.0, 0)
    raw = redis.asyncio.Redis(port=server.port)
    assert await raw.exists("cfproxy:pace:{https://api.example:443}") == 0
    await raw.aclose()


async def test_server_keeps_one_window(server: RedisServer, backend: RedisRate) -> None:
    """However many slots were lent, the server keeps no more of them than the rate."""
    for _ in range(20):
        await backend.reserve(20, 1.0, 5)
    raw = redis.asyncio.Redis(port=server.port)
    assert await raw.llen("cfproxy:pace:{https://api.example:443}:log") <= 20
    await raw.aclose()


async def test_unreachable_rate_server_is_unavailable() -> None:
    """The error is that of the store: it is the same server."""
    backend = RedisRate(parse_redis_url(f"redis://127.0.0.1:{free_port()}"), "https://api.example:443")
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await backend.reserve(20, 1.0, 1)
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await backend.throttle(20, 1.0, 1.0, step_down=True)
    await backend._client.aclose()
