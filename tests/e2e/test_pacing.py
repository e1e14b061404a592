"""A real process that paces: nobody hears of the API's limit, and who can't be served hears of ours."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from cfproxy.sandbox import Fault
from tests.e2e.kit import World, until
from tests.e2e.processes import Proxy

SLOW = {"rate": 1, "per": "1h", "queue": 2, "max_wait": "5h"}  # after the first one nobody leaves


async def pacing_of(proxy: Proxy) -> dict[str, Any]:
    """What /status.json says of the only upstream's queue."""
    async with proxy.client.get(f"{proxy.admin_url}/status.json") as answer:
        document = await answer.json()
        (state,) = document["pacing"].values()
        assert isinstance(state, dict)
        return state


@pytest.mark.parametrize("limiter", ["fixed", "sliding"])
async def test_a_burst_beyond_the_limit_succeeds(world: World, limiter: str) -> None:
    """60 requests at once where 20 a second are allowed: all 200, whichever way the API counts."""
    world.sandbox.behaviour.update({"limiter": limiter})
    world.write_config(pacing={"rate": 20, "per": "1s"})
    await world.log_in()
    async with world.serve() as proxy:
        assert Counter(await asyncio.gather(*(proxy.status() for _ in range(60)))) == {200: 60}
        assert (await pacing_of(proxy))["departures"] >= 60


async def test_a_limit_that_others_use_up_is_waited_out(world: World) -> None:
    """Twice 429 reaches nobody; the pause is for all, and what follows is slower."""
    world.write_config(pacing={"rate": 20, "per": "1s"})
    await world.log_in()
    async with world.serve() as proxy:
        world.sandbox.inject("api", Fault("status", status=429, headers={"Retry-After": "1"}, times=2))
        assert await proxy.status() == 200
        state = await pacing_of(proxy)
        assert (state["refusals"], state["departures"]) == (2, 3)
        assert state["rate"] < 20
        assert [event["pause_s"] for event in proxy.events("pacing.backed_off")] == [1.0, 1.0]


async def test_a_full_queue_says_when_to_return_and_who_hangs_up_leaves_it(world: World) -> None:
    """Who finds no place is told so at once, with the time that the others take."""
    world.write_config(pacing=SLOW, timeouts={"drain": "1ms"})
    await world.log_in()
    async with world.serve() as proxy:
        assert await proxy.status() == 200
        waiting = [asyncio.create_task(proxy.status()) for _ in range(2)]

        async def waiting_are(count: int) -> bool:
            state = await pacing_of(proxy)
            # An end right behind the request is no hang-up: such clients wait for their answer.
            return bool(state["waiting"] == count and state["oldest_wait_s"] > 0.5)

        await until(lambda: waiting_are(2), "the queue is full")
        slug, retry_after = await proxy.problem()
        assert slug == "queue-full"
        assert int(retry_after or 0) > 2 * 3600
        waiting[0].cancel()
        await until(lambda: waiting_are(1), "who hangs up leaves")
        waiting[1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_wait_that_is_too_long_is_refused_on_arrival(world: World) -> None:
    """Nobody waits for `max_wait` to hear what is known at once."""
    world.write_config(pacing=SLOW | {"max_wait": "30m"})
    await world.log_in()
    async with world.serve() as proxy:
        assert await proxy.status() == 200
        slug, retry_after = await proxy.problem()
        assert slug == "queue-timeout"
        assert 3500 < int(retry_after or 0) < 3800
