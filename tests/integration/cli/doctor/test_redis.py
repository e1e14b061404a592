"""The doctor's checks of a Redis server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis.asyncio

from cfproxy.cli.doctor.redis import check_cluster, check_persistence, judge
from cfproxy.config import RedisAddress
from tests.support.redis_server import PATIENCE_S, RedisServer, free_port, running_server

KEPT: dict[str | None, str | None] = {
    "appendonly": "yes",
    "appendfsync": "always",
    "maxmemory-policy": "noeviction",
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, []),
        ({"appendonly": "no"}, ["persistence"]),
        ({"appendfsync": "everysec"}, ["persistence"]),
        ({"maxmemory-policy": "allkeys-lru"}, ["eviction"]),
        ({"appendonly": "no", "maxmemory-policy": "allkeys-random"}, ["persistence", "eviction"]),
    ],
)
def test_settings_that_can_lose_a_token_are_reported_with_the_command(
    changes: dict[str | None, str | None], told: list[str]
) -> None:
    """A server that loses its data causes a logout."""
    warnings = [each for each in judge({**KEPT, **changes}, "default") if each.level == "warn"]
    assert [each.check for each in warnings] == told
    assert all(each.next.startswith("redis-cli config set") for each in warnings)


async def test_a_real_servers_settings_are_read(tmp_path: Path) -> None:
    """By default a server keeps nothing over a restart."""
    server = RedisServer(tmp_path / "server", "--appendonly", "yes", "--appendfsync", "always")
    server.start()
    try:
        await server.ready()
        address = RedisAddress((("127.0.0.1", server.port),))
        (finding,) = await check_persistence(address, None, "default")
        assert finding.level == "ok"
    finally:
        server.kill()
    (finding,) = await check_persistence(address, None, "default")
    assert (finding.level, "can't be read" in finding.text) == ("warn", True)


@pytest.mark.parametrize(("slots", "level"), [((0, 16383), "warn"), ((0, 99), "fail"), (None, "fail")])
async def test_a_node_of_a_cluster_is_no_good_store(
    tmp_path: Path, slots: tuple[int, int] | None, level: str
) -> None:
    """Another node may have the login, now or after the next change of the cluster."""
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    with running_server(tmp_path / "node", *options) as server:
        await server.ready()
        raw = redis.asyncio.Redis(port=server.port)
        if slots is not None:
            await raw.execute_command("CLUSTER ADDSLOTSRANGE", *slots)  # type: ignore[no-untyped-call]
        states = {"warn": "ok", "fail": "fail"}
        async with asyncio.timeout(PATIENCE_S):
            while (await raw.cluster("INFO"))["cluster_state"] != states[level]:
                await asyncio.sleep(0.05)
        await raw.aclose()
        finding = await check_cluster(RedisAddress((("127.0.0.1", server.port),)), None, "default")
        assert finding is not None
        assert (finding.check, finding.level) == ("store", level)
        assert "Redis Cluster" in finding.text
        assert "not part of a cluster" in finding.next


async def test_a_server_of_its_own_is_no_cluster(tmp_path: Path) -> None:
    """Nothing is reported, and nothing if the server can't be asked."""
    with running_server(tmp_path / "server") as server:
        await server.ready()
        address = RedisAddress((("127.0.0.1", server.port),))
        assert await check_cluster(address, None, "default") is None
    assert await check_cluster(address, None, "default") is None
