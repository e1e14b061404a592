"""Fixtures: a Redis server, and stores on it as several replicas would open them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cfproxy.config.redis_url import parse_redis_url
from cfproxy.stores.redis.store import RedisStore
from tests.support.redis_server import RedisServer, running_server


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def server(shared_server: RedisServer) -> RedisServer:
    await shared_server.ready()
    await shared_server.empty()
    return shared_server


class Stores:
    """Opens stores as replicas would, and closes them."""

    def __init__(self) -> None:
        self.opened: list[RedisStore] = []

    def __call__(self, url: str, life_s: float = 10.0, ca_file: Path | None = None) -> RedisStore:
        self.opened.append(RedisStore(parse_redis_url(url), ca_file=ca_file, life_s=life_s))
        return self.opened[-1]


@pytest.fixture
async def open_redis() -> AsyncIterator[Stores]:
    stores = Stores()
    yield stores
    for store in stores.opened:
        await store.aclose()
