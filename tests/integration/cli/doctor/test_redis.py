"""The doctor's checks of a Redis server."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfproxy.cli.doctor.redis import check_persistence, judge
from cfproxy.config import RedisAddress
from tests.support.redis_server import RedisServer

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
