"""The Redis store when servers lose data, are demoted or take over, and the rights that it needs."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import redis.asyncio

from cfproxy.auth.models import Token
from cfproxy.config.redis_url import parse_redis_url
from cfproxy.errors import StoreUnavailable, StoreUnusable
from cfproxy.pacing.redis import RedisRate, _ClockOffset
from cfproxy.secret import Secret
from tests.support.paths import ROOT
from tests.support.redis_fixtures import Stores
from tests.support.redis_server import PATIENCE_S, RedisServer, free_port, running_server
from tests.support.store_examples import NOW, build_attempt, build_login

KEY = "cfproxy:{default}:login"


# --- servers that lose data --------------------------------------------------------------


async def test_emptied_server_gets_the_login_back(server: RedisServer, open_redis: Stores) -> None:
    """Only a logout deletes: after a flush or eviction a replica restores the login, and says so once."""
    one, other = open_redis(server.url), open_redis(server.url)
    await one.save(build_login())
    assert await other.load("default") == build_login()
    await server.empty()
    assert await open_redis(server.url).load("default") is None
    with pytest.raises(StoreUnavailable, match="it was put back"):
        await one.load("default")
    for store in (one, other, open_redis(server.url)):
        assert await store.load("default") == build_login()


async def test_restored_record_has_another_version(server: RedisServer, open_redis: Stores) -> None:
    """Whoever read before the server lost the record must not overwrite what came after."""
    stopped, other = open_redis(server.url), open_redis(server.url)
    await stopped.save(build_login())
    async with stopped.lock("default", 1):
        await stopped.load("default")
        await other.load("default")
        await server.empty()
        with pytest.raises(StoreUnavailable, match="it was put back"):
            await other.load("default")
        with pytest.raises(StoreUnavailable, match="another process changed the login"):
            await stopped.save(build_login(serial=7))


async def test_deleted_login_is_not_restored(server: RedisServer, open_redis: Stores) -> None:
    """After a logout nobody restores the login, whatever happens to the server."""
    one, other = open_redis(server.url), open_redis(server.url)
    await one.save(build_login())
    await one.delete("default")
    assert await other.load("default") is None
    await server.empty()
    assert await one.load("default") is None
    assert await other.load("default") is None


async def test_server_that_lost_a_fence_repeats_none(server: RedisServer, open_redis: Stores) -> None:
    """A server that took over without the last lock still numbers above the last writer."""
    store = open_redis(server.url)
    raw = redis.asyncio.Redis(port=server.port)
    async with store.lock("default", 1) as lease:
        await store.save(build_login())
        assert await raw.hget(KEY, "by") == str(lease.fence).encode()  # type: ignore[attr-defined]
    await raw.hset(KEY, "fence", 0)
    async with store.lock("default", 1) as later:
        assert later.fence > lease.fence  # type: ignore[attr-defined]
        await store.save(build_login(serial=2))
    await raw.aclose()


async def test_another_record_of_the_same_version_is_noticed(server: RedisServer, open_redis: Stores) -> None:
    """Two histories with equal versions, as after a failover, are told apart."""
    watcher, writer = open_redis(server.url), open_redis(server.url)
    await writer.save(build_login())
    async with asyncio.timeout(PATIENCE_S):
        while (before := watcher.stamp("default")) is None:
            await asyncio.sleep(0.005)
        raw = redis.asyncio.Redis(port=server.port)
        await raw.hset(KEY, "write", "another")
        await raw.publish("cfproxy:{default}:news", "1 another")
        while watcher.stamp("default") == before:
            await asyncio.sleep(0.005)
    await raw.aclose()


async def test_scripts_are_sent_again_to_a_server_that_does_not_know_them(
    server: RedisServer, open_redis: Stores
) -> None:
    """A server that was restarted or took over has no scripts, and nothing fails."""
    store = open_redis(server.url)
    raw = redis.asyncio.Redis(port=server.port)
    for serial in (1, 2):
        await raw.script_flush()
        async with store.lock("default", 1):
            await raw.script_flush()
            await store.save(build_login(serial=serial))
    await raw.aclose()


@pytest.mark.parametrize("asked", ["", "?replicas=1"])
async def test_connection_to_a_demoted_primary_is_closed(
    tmp_path: Path, open_redis: Stores, asked: str
) -> None:
    """After READONLY a new connection is opened: if a name leads to the primary, it finds the new one."""

    async def save(serial: int) -> None:
        # Without a replica it is saved all the same, and reported.
        thin = pytest.raises(StoreUnavailable, match="only 0 of 1 replicas") if asked else nullcontext()
        with thin:
            await store.save(build_login(serial=serial))

    with running_server(tmp_path) as old:
        await old.ready()
        raw = redis.asyncio.Redis(port=old.port)
        store = open_redis(old.url + asked)
        await save(1)

        async def ours() -> set[str]:
            return {each["id"] for each in await raw.client_list() if each["name"] == "cfproxy"}

        before = await ours()
        await raw.replicaof("127.0.0.1", 1)
        with pytest.raises(StoreUnavailable, match="READONLY"):
            await store.save(build_login(serial=2))
        async with asyncio.timeout(PATIENCE_S):
            while before & await ours():
                await asyncio.sleep(0.005)
        await raw.replicaof("NO", "ONE")
        await save(3)
        await raw.aclose()


async def test_primary_that_is_demoted_during_a_wait_is_a_temporary_error(
    tmp_path: Path, open_redis: Stores
) -> None:
    """The login may be lost with it, and another primary may be there soon."""
    with running_server(tmp_path) as server:
        await server.ready()
        raw = redis.asyncio.Redis(port=server.port)
        store = open_redis(f"{server.url}?replicas=1")
        saving = asyncio.create_task(store.save(build_login()))
        while not saving.done() and not any("b" in each["flags"] for each in await raw.client_list()):
            await asyncio.sleep(0.005)
        await raw.replicaof("127.0.0.1", 1)
        with pytest.raises(StoreUnavailable, match="only 0 of 1 replicas do"):
            await saving
        await raw.aclose()


async def test_primary_without_enough_replicas_is_a_temporary_error(
    tmp_path: Path, open_redis: Stores
) -> None:
    """`min-replicas-to-write` refuses until the replicas are back, with and without `?replicas=`."""
    with running_server(tmp_path, "--min-replicas-to-write", "1") as server:
        await server.ready()
        for asked in ("", "?replicas=1"):
            with pytest.raises(StoreUnavailable, match="NOREPLICAS"):
                await open_redis(server.url + asked).save(build_login())


# --- access rights -----------------------------------------------------------------------


async def test_documented_acl_is_sufficient(tmp_path: Path, open_redis: Stores) -> None:
    """The ACL line in the docs allows all that cfproxy does, including pacing, and no other key."""
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    found = re.search(r"^ACL SETUSER cfproxy (.*)$", page, re.MULTILINE)
    assert found is not None
    with running_server(tmp_path) as server:
        await server.ready()
        raw = redis.asyncio.Redis(port=server.port)
        rights = found[1].replace("PASSWORD", "pw").split()
        await raw.execute_command("ACL", "SETUSER", "cfproxy", *rights)  # type: ignore[no-untyped-call]
        url = server.url.replace("//", "//cfproxy:pw@")
        store, watcher = open_redis(f"{url}?replicas=0"), open_redis(url)
        async with store.lock("default", 1):
            await store.save(build_login())
            await store.load("default")
        async with asyncio.timeout(PATIENCE_S):
            while watcher.stamp("default") is None:
                await asyncio.sleep(0.005)
        await store.probe("default")
        await store.save_attempt(build_attempt())
        await store.claim_attempt("default", None, NOW)
        with pytest.raises(StoreUnavailable, match="only 0 of 1 replicas"):
            await open_redis(f"{url}?replicas=1").save(build_login(serial=2))
        await store.delete("default")
        backend = RedisRate(parse_redis_url(url), "https://api.example:443")
        assert len((await backend.reserve(20, 1.0, 2)).instants) == 2
        await backend.throttle(20, 1.0, 1.0, step_down=True)
        await backend.aclose()
        denied = [entry["object"] for entry in await raw.acl_log()]
        assert denied == []
        mine = redis.asyncio.Redis(port=server.port, username="cfproxy", password="pw")
        with pytest.raises(redis.exceptions.NoPermissionError):
            await mine.get("somebody-else")
        await mine.aclose()
        await raw.aclose()


async def test_node_of_a_cluster_is_reported(tmp_path: Path, open_redis: Stores) -> None:
    """If the keys are on another node, the message says what to configure instead."""
    # By default the nodes' bus port is 10,000 higher, which may not exist.
    bus = ("--cluster-port", str(free_port()))
    with running_server(tmp_path, "--cluster-enabled", "yes", *bus) as server:
        await server.ready()
        raw = redis.asyncio.Redis(port=server.port)
        await raw.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 1)  # type: ignore[no-untyped-call]
        with pytest.raises((StoreUnusable, StoreUnavailable), match=r"Redis Cluster|CLUSTERDOWN"):
            await open_redis(server.url).load("default")
        await raw.aclose()


# --- pacing ------------------------------------------------------------------------------


async def test_lost_rate_state_starts_with_a_pause(server: RedisServer) -> None:
    """Whoever borrowed before waits for a window if the server has lost its state."""
    backend = RedisRate(parse_redis_url(server.url), "https://api.example:443")
    await backend.reserve(20, 1.0, 20)
    await server.empty()
    now = time.monotonic()
    assert (await backend.reserve(20, 1.0, 1)).instants[0] - now >= 1.0
    await backend.aclose()


async def test_server_clock_set_back_causes_neither_pause_nor_burst(server: RedisServer) -> None:
    """Slots that were lent keep their distance from now."""
    backend = RedisRate(parse_redis_url(server.url), "https://api.example:443")
    at_us = 1_700_000_000_000_000
    common: list[str | int] = ["20.0", 1_000_000, "me", 90_000_000]
    _, _, _, *first = await backend._reserve(backend._keys, [*common, at_us, 20, 0])
    hour_us = 3_600_000_000
    _, _, _, *later = await backend._reserve(backend._keys, [*common, at_us - hour_us, 20, 2])
    together = sorted([at - at_us for at in first] + [at - at_us + hour_us for at in later])
    assert together[-1] < 3_000_000
    assert all(together[i + 20] - together[i] > 1_000_000 for i in range(20))
    await backend.aclose()


def test_clock_of_another_server_is_adopted_at_once() -> None:
    """An offset that would place the response before the request is dropped, not waited out."""
    offset = _ClockOffset()
    assert offset.update(100.0, sent_at=10.0, now=10.002) == pytest.approx(-89.998)
    assert offset.update(101.0, sent_at=11.0, now=11.2) == pytest.approx(-89.997, abs=0.001)
    assert offset.update(97.0, sent_at=12.0, now=12.004) == pytest.approx(-84.996)
    assert offset.update(198.0, sent_at=13.0, now=13.004) == pytest.approx(-184.996)


async def test_repeated_write_counts_once(server: RedisServer, open_redis: Stores) -> None:
    """If a write is repeated because its answer was lost, it counts once."""
    store = open_redis(server.url)
    async with store.lock("default", 1):
        await store.save(build_login())
        arguments = ["w", 1, "", "cfproxy:{default}:news", b"{}", ""]
        assert [await store._send(KEY, arguments) for _ in range(2)] == [(1, 2, 1, 0)] * 2
    with pytest.raises(StoreUnusable):
        await store.save(build_login(token=Token(Secret("x"), NOW, 60.0)))
