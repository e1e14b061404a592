"""The shared rate in Redis follows the same rules as the rate limit of one process."""

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


def sent_alone(rate: float, plan: list[Step]) -> list[float]:
    """Return when the rate limit of one process allows the same steps; seconds from the start."""
    limit, now, instants = RateLimit(rate, 1.0, SHARED_GUARD), 0.0, []
    for what, wait_ms in plan:
        now += wait_ms / 1000
        if what == "lend":
            for _ in range(3):
                at = max(now, limit.ready_at)
                assert limit.try_acquire(at)
                instants.append(at)
            now = instants[-1]  # `RateLimit` does not look ahead
        elif what == "slower":
            limit.step_down(now)
            limit.pause(now + 0.2, now)
        else:
            limit.pause(now + 0.7, now)
    return instants


async def reserved_in_redis(backend: RedisRate, rate: float, plan: list[Step]) -> list[float]:
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
async def test_reserved_slots_are_those_of_one_process(
    server: RedisServer, backend: RedisRate, rate: float, plan: list[Step]
) -> None:
    """Step by step the script and `RateLimit` agree, including bursts, pauses and steps down."""
    await server.empty()
    alone = sent_alone(rate, plan)
    lent = await reserved_in_redis(backend, rate, plan)
    assert lent == pytest.approx(alone, abs=0.0005)


async def test_a_limiter_sees_no_more_than_the_rate_from_late_replicas(backend: RedisRate) -> None:
    """With requests up to 36 ms late, as on a busy machine, no second has a 21st arrival."""
    chance = random.Random(1)
    reservations = [await backend.reserve(20, 1.0, 5) for _ in range(200)]
    instants = [instant for reserved in reservations for instant in reserved.instants]
    assert most_in_window(sorted(at + chance.uniform(0.0, 0.036) for at in instants), 1.0) <= 20
    assert len(instants) / (instants[-1] - instants[0]) >= 0.95 * 20


async def test_replicas_of_one_origin_share_one_rate(server: RedisServer, backend: RedisRate) -> None:
    """Two replicas never get the same slots, and each counts the other."""
    other = RedisRate(parse_redis_url(server.url), "https://api.example:443")
    reservations = [await each.reserve(20, 1.0, 5) for _ in range(10) for each in (backend, other)]
    instants = [instant for reserved in reservations for instant in reserved.instants]
    assert len(instants) == 100
    window_s = RateLimit(20, 1.0, SHARED_GUARD).window_s
    ordered = sorted(instants)
    # The two clocks are read at different moments, hence a few milliseconds.
    assert all(ordered[i + 20] - ordered[i] > window_s - 0.01 for i in range(80))
    assert reservations[-1].replicas == 2
    await other.aclose()
    assert (await backend.reserve(20, 1.0, 0)).replicas == 1


async def test_another_origin_has_its_own_rate(server: RedisServer, backend: RedisRate) -> None:
    """The requests to one upstream do not affect another upstream's rate."""
    await backend.reserve(20, 1.0, 40)
    other = RedisRate(parse_redis_url(server.url), "https://other.example:443")
    now = asyncio.get_running_loop().time()
    assert (await other.reserve(20, 1.0, 1)).instants[0] - now < 1.0
    await other.aclose()


async def test_a_rejoining_replica_waits_for_one_window(backend: RedisRate) -> None:
    """The server does not know what it sent alone, so it waits until that no longer counts."""
    now = asyncio.get_running_loop().time()
    reserved = await backend.reserve(20, 1.0, 1, rejoining=True)
    assert reserved.instants[0] - now >= RateLimit(20, 1.0, SHARED_GUARD).window_s - 0.001


async def test_registering_uses_no_slot(server: RedisServer, backend: RedisRate) -> None:
    """Registering a replica leaves the rate's state unchanged."""
    await backend.reserve(20, 1.0, 0)
    raw = redis.asyncio.Redis(port=server.port)
    assert await raw.exists("cfproxy:pace:{https://api.example:443}") == 0
    await raw.aclose()


async def test_the_stored_slots_are_those_of_one_window(server: RedisServer, backend: RedisRate) -> None:
    """However many slots were reserved, the server stores no more of them than the rate."""
    for _ in range(20):
        await backend.reserve(20, 1.0, 5)
    raw = redis.asyncio.Redis(port=server.port)
    assert await raw.llen("cfproxy:pace:{https://api.example:443}:log") <= 20
    await raw.aclose()


async def test_an_unreachable_server_is_unavailable() -> None:
    """The error is that of the store, which is on the same server."""
    backend = RedisRate(parse_redis_url(f"redis://127.0.0.1:{free_port()}"), "https://api.example:443")
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await backend.reserve(20, 1.0, 1)
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await backend.throttle(20, 1.0, 1.0, step_down=True)
    await backend._client.aclose()
