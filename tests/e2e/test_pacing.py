"""Pacing of a real process: clients never see the API's limit, only that of the queue."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from cfproxy.sandbox import Fault
from tests.e2e.kit import World, until
from tests.e2e.processes import Proxy

SLOW = {"rate": 1, "per": "1h", "queue": 2, "max_wait": "5h"}  # after the first request no other one is sent


async def pacing_of(proxy: Proxy) -> dict[str, Any]:
    """Return the queue of the only upstream in /status.json."""
    async with proxy.client.get(f"{proxy.admin_url}/status.json") as answer:
        document = await answer.json()
        (state,) = document["pacing"].values()
        assert isinstance(state, dict)
        return state


@pytest.mark.parametrize("limiter", ["fixed", "sliding"])
async def test_a_burst_beyond_the_limit_succeeds(world: World, limiter: str) -> None:
    """60 requests at once at 20 a second all get 200, however the API counts."""
    world.sandbox.behaviour.update({"limiter": limiter})
    world.write_config(pacing={"rate": 20, "per": "1s"})
    await world.log_in()
    async with world.serve() as proxy:
        assert Counter(await asyncio.gather(*(proxy.status() for _ in range(60)))) == {200: 60}
        assert (await pacing_of(proxy))["departures"] >= 60


async def test_a_429_makes_all_requests_wait(world: World) -> None:
    """No client gets the 429; the pause holds for all, and the rate is lower afterwards."""
    world.write_config(pacing={"rate": 20, "per": "1s"})
    await world.log_in()
    async with world.serve() as proxy:
        world.sandbox.inject("api", Fault("status", status=429, headers={"Retry-After": "1"}, times=2))
        assert await proxy.status() == 200
        state = await pacing_of(proxy)
        assert (state["refusals"], state["departures"]) == (2, 3)
        assert state["rate"] < 20
        assert [event["pause_s"] for event in proxy.events("pacing.backed_off")] == [1.0, 1.0]


async def test_a_full_queue_has_retry_after_and_drops_disconnected_clients(world: World) -> None:
    """A request that finds no place is refused at once, with the time that the others take."""
    world.write_config(pacing=SLOW, timeouts={"drain": "1ms"})
    await world.log_in()
    async with world.serve() as proxy:
        assert await proxy.status() == 200
        waiting = [asyncio.create_task(proxy.status()) for _ in range(2)]

        async def waiting_are(count: int) -> bool:
            state = await pacing_of(proxy)
            # A half-close after the request is no disconnect: such clients wait for their answer.
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
    """A request does not wait for `max_wait` to be refused."""
    world.write_config(pacing=SLOW | {"max_wait": "30m"})
    await world.log_in()
    async with world.serve() as proxy:
        assert await proxy.status() == 200
        slug, retry_after = await proxy.problem()
        assert slug == "queue-timeout"
        assert 3500 < int(retry_after or 0) < 3800
