"""A store behind Sentinels: the primary is found, also after a failover."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cfproxy.errors import StoreUnavailable
from tests.support.redis_fixtures import Stores
from tests.support.redis_server import PATIENCE_S, running_installation
from tests.support.store_examples import build_login

OPTIONS = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")


async def test_login_survives_its_primary(tmp_path: Path, open_redis: Stores) -> None:
    """A login that a replica has acknowledged is there after the failover, and can be saved again."""
    async with running_installation(tmp_path, *OPTIONS) as redises:
        store, watcher = open_redis(f"{redises.url}?replicas=1"), open_redis(redises.url)
        await store.save(build_login())
        assert await watcher.load("default") == build_login()
        before = await redises.primary()
        before.kill()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    async with store.lock("default", 1) as lease:
                        assert await store.load("default") == build_login()
                        await store.save(build_login(serial=2))
                        assert lease.is_held()
                        break
                except StoreUnavailable:
                    await asyncio.sleep(0.1)
        assert await redises.primary() is not before
        assert await watcher.load("default") == build_login(serial=2)


async def test_sentinels_may_have_no_password(tmp_path: Path, open_redis: Stores) -> None:
    """The usual setup: `requirepass` on the servers, open Sentinels, one password in the URL."""
    async with running_installation(tmp_path, *OPTIONS, replicas=0, password="pw") as redises:
        store = open_redis(redises.url.replace("//", "//:pw@"))
        await store.save(build_login())
        assert await store.load("default") == build_login()
