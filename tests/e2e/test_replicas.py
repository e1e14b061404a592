"""Several replicas on one Redis store share one login, and no token is used twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from tests.e2e.kit import World, open_world, until
from tests.e2e.processes import Proxy
from tests.support.redis_server import RedisServer, running_installation, running_server

REPLICAS = 8
LIFETIME_S = 3.0
EARLY_S = 0.25 * LIFETIME_S

posix_only = pytest.mark.skipif(os.name != "posix", reason="stops and kills processes")


@asynccontextmanager
async def open_replicas(
    folder: Path, count: int, *options: str, lifetime_s: float = LIFETIME_S, store: str = "", **settings: Any
) -> AsyncIterator[tuple[World, RedisServer, list[Proxy]]]:
    """Start a sandbox, a Redis server and replicas that are logged in."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(running_server(folder / "redis", *options))
        await server.ready()
        world = await stack.enter_async_context(open_world(folder, access_lifetime_s=lifetime_s))
        world.write_config(store=store or server.url, **settings)
        await world.log_in()
        proxies = list(
            await asyncio.gather(*(stack.enter_async_context(world.serve()) for _ in range(count)))
        )
        yield world, server, proxies


def refreshes(world: World) -> int:
    """Return the number of refreshes of the server."""
    requests = world.sandbox.token_requests
    return sum(each.grant == "refresh_token" and each.outcome == "issued" for each in requests)


async def test_replicas_share_each_refresh(tmp_path: Path) -> None:
    """2,000 requests over many token lifetimes: all answered, one refresh for each, no token used twice."""
    async with open_replicas(tmp_path, REPLICAS) as (world, _, proxies):
        statuses: Counter[int] = Counter()
        before, began_at = refreshes(world), time.monotonic()

        async def call_often(proxy: Proxy) -> None:
            # Spread over several lifetimes; the counts do not depend on the speed.
            for _ in range(2000 // REPLICAS):
                statuses[await proxy.status()] += 1
                await asyncio.sleep(0.015)

        await asyncio.gather(*map(call_often, proxies))
        passed_s = time.monotonic() - began_at
        assert statuses == {200: 2000}
        assert world.sandbox.reuse_seen == 0
        lifetimes = (passed_s / LIFETIME_S, passed_s / (LIFETIME_S - EARLY_S))
        assert lifetimes[0] - 1 <= refreshes(world) - before <= lifetimes[1] + 1


@posix_only
async def test_replicas_survive_a_kill_during_a_refresh(tmp_path: Path) -> None:
    """Kill -9 during refreshes: the others keep serving, and no token is used twice."""
    async with open_replicas(tmp_path, 4) as (world, _, proxies):
        *doomed, survivor = proxies
        for victim in doomed:
            before = refreshes(world)
            await until(lambda seen=before: refreshes(world) > seen, "a refresh")  # type: ignore[misc]
            victim.process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(victim.process.wait)
            assert await survivor.status() == 200
        assert world.sandbox.reuse_seen == 0


@posix_only
async def test_a_replica_that_was_stopped_uses_no_old_token(tmp_path: Path) -> None:
    """SIGSTOP for two token lifetimes at any moment leads to no second use of a token."""
    chance = random.Random(1)
    async with open_replicas(tmp_path, 3) as (world, _, proxies):
        stopped, *others = proxies
        await asyncio.sleep(chance.random() * LIFETIME_S)
        stopped.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2 * LIFETIME_S)  # meanwhile the others refresh
        assert {await proxy.status() for proxy in others} == {200}
        stopped.process.send_signal(signal.SIGCONT)
        assert {await proxy.status() for proxy in proxies} == {200}
        assert world.sandbox.reuse_seen == 0


@posix_only
async def test_valid_tokens_are_used_while_redis_is_down(tmp_path: Path) -> None:
    """Requests go on until the token expires, then get `store-unavailable`, then recover."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    async with open_replicas(tmp_path, 2, *options, lifetime_s=8.0) as (world, server, proxies):
        server.kill()
        assert [await proxy.status() for proxy in proxies] == [200, 200]

        async def ended(proxy: Proxy) -> bool:
            return (await proxy.problem())[0] == "store-unavailable"

        for proxy in proxies:
            await until(lambda proxy=proxy: ended(proxy), "the token's end")  # type: ignore[misc]
        server.start()
        await server.ready()

        async def works(proxy: Proxy) -> bool:
            return await proxy.status() == 200

        for proxy in proxies:
            await until(lambda proxy=proxy: works(proxy), "the store's return")  # type: ignore[misc]
        assert world.sandbox.reuse_seen == 0


async def test_login_status_and_logout_work_on_the_shared_store(tmp_path: Path) -> None:
    """A replica sees what was done on the machine of another one."""
    async with open_replicas(tmp_path, 1, lifetime_s=3600.0) as (world, server, (proxy,)):
        assert await proxy.status() == 200
        told = await world.run("status")
        assert (told.code, f"redis://127.0.0.1:{server.port}/0" in told.out) == (0, True)
        assert (await world.run("logout")).code == 0

        async def slug_is(slug: str) -> bool:
            return (await proxy.problem())[0] == slug

        await until(lambda: slug_is("login-required"), "the logout")
        assert (await world.run("status")).code == 3
        await world.log_in()
        await until(lambda: slug_is("none"), "the login")


# --- what it costs ------------------------------------------------------------------------


async def test_a_request_with_a_cached_token_needs_no_redis(tmp_path: Path) -> None:
    """300 requests send Redis nothing, except for the slow poll of the subscription."""
    async with open_replicas(tmp_path, 1, lifetime_s=3600.0) as (_, server, (proxy,)):
        raw = redis.asyncio.Redis(port=server.port)
        assert await proxy.status() == 200
        await raw.config_resetstat()
        for _ in range(300):
            assert await proxy.status() == 200
        heard: dict[str, Any] = await raw.info("commandstats")
        await raw.aclose()
        ours = {name: told["calls"] for name, told in heard.items() if name != "cmdstat_info"}
        assert set(ours) <= {"cmdstat_hmget", "cmdstat_config|resetstat", "cmdstat_config"}
        assert ours.get("cmdstat_hmget", 0) <= 5


async def test_replicas_share_one_rate(tmp_path: Path) -> None:
    """Three replicas with 50 clients each do not exceed one rate, and rarely ask for it."""
    pacing = {"rate": 20, "per": "1s", "queue": 1000, "shared": True}
    replicas = open_replicas(tmp_path, 3, lifetime_s=3600.0, pacing=pacing)
    async with replicas as (world, server, proxies):
        raw = redis.asyncio.Redis(port=server.port)
        await until(lambda: all(proxy.events("pacing.shared") for proxy in proxies), "they are counted")
        await raw.config_resetstat()
        statuses = await asyncio.gather(*(proxy.status() for proxy in proxies for _ in range(50)))
        assert set(statuses) == {200}
        arrivals = list(world.sandbox.journal.api_arrivals)
        # The lowest rate that is too fast; the actual one depends on the machine.
        assert arrivals[-1] - arrivals[0] >= (150 - 20) / 20
        heard: dict[str, Any] = await raw.info("commandstats")
        await raw.aclose()
        assert heard["cmdstat_evalsha"]["calls"] <= 0.5 * 150
        async with proxies[0].client.get(f"{proxies[0].admin_url}/status.json") as answer:
            (told,) = (await answer.json())["pacing"].values()
        assert (told["shared"], told["replicas"]) == ("on", 3)


@posix_only
async def test_a_failover_under_traffic_reaches_no_client(tmp_path: Path) -> None:
    """After the primary dies, Sentinels promote a replica, where tokens are refreshed; requests go on.

    The tokens live longer than Sentinels take that have to vote twice (twice their failover-timeout of 3 s).
    """
    options = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
    async with running_installation(tmp_path / "redises", *options) as redises:
        url = f"{redises.url}?replicas=1"
        async with open_replicas(tmp_path, 2, lifetime_s=30.0, store=url) as (world, _, proxies):
            before = await redises.primary()
            before.kill()
            seen = refreshes(world)
            statuses: Counter[int] = Counter()

            async def refreshed() -> bool:
                statuses.update([await proxy.status() for proxy in proxies])
                return refreshes(world) > seen

            await until(refreshed, "a refresh that the new primary keeps")
            assert set(statuses) == {200}
            assert await redises.primary() is not before
            assert world.sandbox.reuse_seen == 0
