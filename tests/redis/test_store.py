"""What the Redis store guarantees beyond the contract: suspended lock holders, unreachable servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import redis.asyncio
import trustme

from cfproxy.auth.models import Token
from cfproxy.config.redis_url import parse_redis_url
from cfproxy.errors import StoreUnavailable, StoreUnusable
from cfproxy.secret import Secret
from cfproxy.stores import open_store
from cfproxy.stores.redis.lock import _ACQUIRE
from tests.support.redis_fixtures import Stores
from tests.support.redis_server import PATIENCE_S, RedisServer, free_port, running_server
from tests.support.store_examples import NOW, build_attempt, build_login

KEY = "cfproxy:{default}:login"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


# --- suspended holders -------------------------------------------------------------------


async def test_holder_that_lost_its_lock_cannot_overwrite_a_newer_login(
    server: RedisServer, open_redis: Stores
) -> None:
    """A replica that was suspended during a refresh finds a newer login, and leaves it alone."""
    stopped, other = open_redis(server.url), open_redis(server.url)
    await other.save(build_login())
    raw = redis.asyncio.Redis(port=server.port)
    async with stopped.lock("default", 1):
        mine = await stopped.load("default")
        assert mine is not None
        await raw.delete("cfproxy:{default}:lock")  # as if it had expired
        async with other.lock("default", 1):
            theirs = await other.load("default")
            assert theirs is not None
            newer = theirs.next(token=Token(Secret("newer"), NOW, 60.0))
            await other.save(newer)
        with pytest.raises(StoreUnavailable, match="another process changed the login"):
            await stopped.save(mine.next(token=Token(Secret("stale"), NOW, 60.0)))
        with pytest.raises(StoreUnavailable, match="another process changed the login"):
            await stopped.delete("default")
    assert await other.load("default") == newer
    await raw.aclose()


async def test_fence_alone_keeps_an_older_holder_out(server: RedisServer, open_redis: Stores) -> None:
    """A holder that lost its lock can't overwrite even what it has not read."""
    stopped, other = open_redis(server.url), open_redis(server.url)
    raw = redis.asyncio.Redis(port=server.port)
    async with stopped.lock("default", 1):
        await raw.delete("cfproxy:{default}:lock")
        async with other.lock("default", 1):
            await other.save(build_login())
        with pytest.raises(StoreUnavailable, match="another process changed the login"):
            await stopped.save(build_login(serial=7))
    await raw.aclose()


async def test_lost_lock_is_not_mistaken_for_a_later_one_of_the_same_process(
    server: RedisServer, open_redis: Stores
) -> None:
    """A refresh that lost its lock during a login in the same process overwrites nothing either."""
    store = open_redis(server.url)
    raw = redis.asyncio.Redis(port=server.port)
    await store.save(build_login())
    refreshing, logged_in = asyncio.Event(), asyncio.Event()

    async def refresh() -> None:
        async with store.lock("default", 1):
            mine = await store.load("default")
            assert mine is not None
            await raw.delete("cfproxy:{default}:lock")
            refreshing.set()
            await logged_in.wait()
            # As `login` does: in a task of its own, which is not cancelled.
            await asyncio.create_task(store.save(mine.next(token=Token(Secret("stale"), NOW, 60.0))))

    stale = asyncio.create_task(refresh())
    await refreshing.wait()
    async with store.lock("default", 1):
        await store.load("default")
        await store.save(build_login(serial=9))
        logged_in.set()
        with pytest.raises(StoreUnavailable, match="another process changed the login"):
            await stale
        await store.save(build_login(serial=10))
    assert await store.load("default") == build_login(serial=10)
    await raw.aclose()


async def test_deleted_login_stays_deleted(server: RedisServer, open_redis: Stores) -> None:
    """A machine that was suspended during a logout does not restore the login."""
    stopped, other = open_redis(server.url), open_redis(server.url)
    await other.save(build_login())
    raw = redis.asyncio.Redis(port=server.port)
    async with stopped.lock("default", 1):
        mine = await stopped.load("default")
        assert mine is not None
        await raw.delete("cfproxy:{default}:lock")
        async with other.lock("default", 1):
            assert await other.delete("default")
        with pytest.raises(StoreUnavailable):
            await stopped.save(mine.next())
    assert await other.load("default") is None
    await raw.aclose()


async def test_lock_lasts_as_long_as_its_holder_works(server: RedisServer, open_redis: Stores) -> None:
    """It is extended while the work goes on, so it can be short; busy machines delay an extension."""
    store, other = open_redis(server.url, life_s=4), open_redis(server.url)
    raw = redis.asyncio.Redis(port=server.port)
    async with store.lock("default", 1) as lease, asyncio.timeout(PATIENCE_S):
        left_ms = before_ms = await raw.pttl("cfproxy:{default}:lock")
        while left_ms <= before_ms:
            before_ms = left_ms
            await asyncio.sleep(0.05)
            left_ms = await raw.pttl("cfproxy:{default}:lock")
        assert lease.is_held()
        with pytest.raises(StoreUnavailable):
            async with other.lock("default", 0):
                pytest.fail("two holders")
    await raw.aclose()


async def test_lock_expires_soon_after_its_holder_is_suspended(
    server: RedisServer, open_redis: Stores
) -> None:
    """The holder knows first, the next one gets the lock after that, and keeps it."""
    store, other = open_redis(server.url, life_s=0.3), open_redis(server.url, life_s=5)
    async with store.lock("default", 1) as lease:
        assert lease.is_held()
        time.sleep(0.35)  # as in a suspend
        assert not lease.is_held()
        async with other.lock("default", 1) as next_lease:
            await asyncio.sleep(0.2)  # time for the first one to try to extend it
            assert not lease.is_held()
            assert next_lease.is_held()
    async with store.lock("default", 0) as lease:
        assert lease.is_held()


async def test_lock_on_an_unreachable_server_expires_for_its_holder(
    tmp_path: Path, open_redis: Stores
) -> None:
    """A lock that can't be extended ends by the holder's own clock."""
    with running_server(tmp_path) as server:
        await server.ready()
        store = open_redis(server.url, life_s=0.5)
        async with store.lock("default", 1) as lease:
            assert lease.is_held()
            server.kill()
            await until(lambda: not lease.is_held())


# --- noticing changes --------------------------------------------------------------------


async def test_check_for_changes_sends_no_command(server: RedisServer, open_redis: Stores) -> None:
    """However often the stamp is read, the server receives nothing."""
    store = open_redis(server.url)
    await store.save(build_login())
    await store.load("default")
    raw = redis.asyncio.Redis(port=server.port)
    await until(lambda: store.stamp("default") is not None)

    async def settled() -> int:
        while True:
            before = (await raw.info("stats"))["total_commands_processed"]
            await asyncio.sleep(0.05)
            after = (await raw.info("stats"))["total_commands_processed"]
            if after == before + 1:
                return int(after)

    before = await settled()
    for _ in range(1000):
        store.stamp("default")
    await asyncio.sleep(0.05)
    assert (await raw.info("stats"))["total_commands_processed"] == before + 1
    await raw.aclose()


async def test_foreign_messages_do_not_end_the_subscription(server: RedisServer, open_redis: Stores) -> None:
    """Whatever is published on the channel, the next change is noticed at once."""
    watcher, writer = open_redis(server.url), open_redis(server.url)
    await writer.save(build_login())
    await until(lambda: watcher.stamp("default") is not None)
    raw = redis.asyncio.Redis(port=server.port)
    assert await raw.publish("cfproxy:{default}:news", b"\xff\x00") == 1
    await raw.aclose()
    await until(lambda: "\x00" in str(watcher.stamp("default")))
    before = watcher.stamp("default")
    await writer.save(build_login(serial=2))
    await until(lambda: watcher.stamp("default") != before)


async def test_change_is_noticed_after_a_restart_of_the_server(tmp_path: Path, open_redis: Stores) -> None:
    """A change that was made while nobody could listen is noticed when the server is back."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with running_server(tmp_path, *options) as server:
        await server.ready()
        watcher, writer = open_redis(server.url), open_redis(server.url)
        await writer.save(build_login())
        await until(lambda: watcher.stamp("default") is not None)
        first = watcher.stamp("default")
        server.kill()
        server.start()
        await server.ready()
        await writer.save(build_login(serial=2))
        await until(lambda: watcher.stamp("default") != first)
        assert await watcher.load("default") == build_login(serial=2)


# --- the server --------------------------------------------------------------------------


async def test_unreachable_server_is_unavailable(open_redis: Stores) -> None:
    """Every call reports it in the same words, with the server's name."""
    port = free_port()
    store = open_redis(f"redis://user:marker-password@127.0.0.1:{port}/0")
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.load("default"),
        lambda: store.save(build_login()),
        lambda: store.delete("default"),
        lambda: store.probe("default"),
        lambda: store.save_attempt(build_attempt()),
        lambda: store.claim_attempt("default", None, NOW),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable) as caught:
            await call()
        assert f"redis://user@127.0.0.1:{port}/0 cannot be reached" in str(caught.value)
        assert "marker" not in str(caught.value)
    with pytest.raises(StoreUnavailable):
        async with store.lock("default", 0):
            pytest.fail("entered")


async def test_a_rotated_password_is_read_for_each_connection(tmp_path: Path) -> None:
    """A proxy that runs while its password is changed at the server and in its file stays connected."""
    place = tmp_path / "password"
    place.write_text("old")
    with running_server(tmp_path / "redis", "--requirepass", "old") as server:
        await server.ready()
        address = parse_redis_url(server.url)
        store = open_store(replace(address, password=Secret("old", place.read_text)), None)
        try:
            await store.probe("acme")
            admin = redis.asyncio.Redis(port=server.port, password="old")
            await admin.config_set("requirepass", "new")
            place.write_text("new")
            await admin.client_kill_filter(_type="normal")
            await admin.aclose()
            await store.probe("acme")
        finally:
            await store.aclose()


async def test_wrong_password_is_a_lasting_error(tmp_path: Path, open_redis: Stores) -> None:
    """Waiting does not help: the configuration or the ACL has to change."""
    with running_server(tmp_path, "--requirepass", "right-marker") as server:
        await server.ready()
        for credentials in ("", ":wrong-marker@"):
            store = open_redis(server.url.replace("//", f"//{credentials}"))
            with pytest.raises(StoreUnusable, match="refuses this user or password") as caught:
                await store.load("default")
            assert "marker" not in str(caught.value)
        store = open_redis(server.url.replace("//", "//:right-marker@"))
        await store.save(build_login())
        assert await store.load("default") == build_login()


async def test_full_server_is_unavailable(tmp_path: Path, open_redis: Stores) -> None:
    """With noeviction a full server refuses writes: the record stands, and the message has the error code."""
    with running_server(tmp_path, "--maxmemory-policy", "noeviction") as server:
        await server.ready()
        store = open_redis(server.url)
        await store.save(build_login())
        raw = redis.asyncio.Redis(port=server.port)
        await raw.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="OOM"):
            await store.probe("default")
        with pytest.raises(StoreUnavailable, match="OOM"):
            await store.save(build_login(serial=2))
        assert await store.load("default") == build_login()
        await raw.config_set("maxmemory", "0")
        await store.save(build_login(serial=2))
        await raw.aclose()


async def test_foreign_content_is_left_alone(server: RedisServer, open_redis: Stores) -> None:
    """What cfproxy can't read as its own is refused and stays as it is."""
    raw = redis.asyncio.Redis(port=server.port)
    store = open_redis(server.url)
    for content, words in (
        (b"not json", "is not JSON"),
        (b'{"version": 99}', "newer cfproxy"),
        (b'{"version": 1}', "damaged at 'account'"),
    ):
        await raw.hset(KEY, "document", content)
        with pytest.raises(StoreUnusable, match=words):
            await store.load("default")
        with pytest.raises(StoreUnusable, match=words):
            await store.save(build_login())
        assert await raw.hget(KEY, "document") == content
    await raw.delete(KEY)
    await raw.set(KEY, b"a string")
    with pytest.raises(StoreUnusable, match="other data under cfproxy's keys"):
        await store.load("default")
    await raw.aclose()


async def test_save_waits_for_the_configured_replicas(tmp_path: Path, open_redis: Stores) -> None:
    """With `?replicas=1` a login is saved once a replica has it; without a replica that is an error."""
    with running_server(tmp_path / "primary", "--repl-diskless-sync-delay", "0") as primary:
        await primary.ready()
        store = open_redis(f"{primary.url}?replicas=1")
        with pytest.raises(StoreUnavailable, match="only 0 of 1 replicas do"):
            await store.save(build_login())
        replica_of = ("--replicaof", f"127.0.0.1 {primary.port}")
        with running_server(tmp_path / "replica", *replica_of) as replica:
            await replica.ready()
            raw = redis.asyncio.Redis(port=replica.port)
            async with asyncio.timeout(PATIENCE_S):
                while (await raw.info("replication"))["master_link_status"] != "up":
                    await asyncio.sleep(0.02)
            await store.save(build_login(serial=2))
            assert b'"serial": 2' in (await raw.hget(KEY, "document") or b"")
            await raw.aclose()


async def test_tls_verifies_the_server(tmp_path: Path, open_redis: Stores) -> None:
    """`rediss://` trusts the authorities in `tls.ca_file`, and by default no private ones."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    port = free_port()
    options = ["--tls-port", str(port), "--tls-cert-file", str(tmp_path / "cert.pem")]
    options += ["--tls-key-file", str(tmp_path / "key.pem"), "--tls-auth-clients", "no"]
    options += ["--tls-ca-cert-file", str(tmp_path / "ca.pem")]
    with running_server(tmp_path / "server", *options) as server:
        await server.ready()
        url = f"rediss://127.0.0.1:{port}/0"
        await open_redis(url, ca_file=tmp_path / "ca.pem").save(build_login())
        with pytest.raises(StoreUnavailable, match=r"a certificate that is not trusted; .* tls\.ca_file"):
            await open_redis(url).load("default")


async def test_confirmed_stamp_knows_of_news_that_were_lost(server: RedisServer, open_redis: Stores) -> None:
    """While a subscription is interrupted, whoever needs to know asks the server."""
    watcher, writer = open_redis(server.url), open_redis(server.url)
    await writer.save(build_login())
    watcher.stamp("default")
    await watcher.confirm("default")
    before = watcher.stamp("default")
    raw = redis.asyncio.Redis(port=server.port)
    while not (await raw.pubsub_numsub("cfproxy:{default}:news"))[0][1]:
        await asyncio.sleep(0.005)
    await raw.client_kill_filter(_type="pubsub")
    await raw.aclose()
    await writer.delete("default")
    await watcher.confirm("default")
    assert watcher.stamp("default") != before


async def test_confirming_gives_up_soon(server: RedisServer, open_redis: Stores) -> None:
    """A valid token must not wait for a server that is stalled."""
    store = open_redis(server.url)
    await store.confirm("default")
    with server.stalled(), pytest.raises(StoreUnavailable, match="does not answer"):
        await store.confirm("default")
    await store.confirm("default")


@asynccontextmanager
async def unresponsive(server: RedisServer, how: str) -> AsyncIterator[None]:
    if how == "stopped":
        with server.stalled():
            yield
    else:
        async with server.paused():
            yield


@pytest.mark.parametrize("how", ["stopped", "paused"])
async def test_lock_is_given_back_once_the_server_responds_again(
    server: RedisServer, open_redis: Stores, how: str
) -> None:
    """Otherwise it would keep everybody out for the rest of its life, here a minute."""
    holder, other = open_redis(server.url, life_s=60), open_redis(server.url)
    async with AsyncExitStack() as stall, holder.lock("default", 1):
        await stall.enter_async_context(unresponsive(server, how))
    async with other.lock("default", PATIENCE_S):
        pass


@pytest.mark.parametrize("how", ["stopped", "paused"])
async def test_lock_that_was_granted_too_late_is_given_back(
    server: RedisServer, open_redis: Stores, how: str
) -> None:
    """The server carries out what it has received after whoever asked has given up."""
    late, other = open_redis(server.url, life_s=60), open_redis(server.url)
    keys = "cfproxy:{default}:lock", "cfproxy:{default}:login"
    async with unresponsive(server, how):
        with pytest.raises(StoreUnavailable):
            async with late._lock.acquire(*keys, 1, "busy"):
                pass
    raw = redis.asyncio.Redis(port=server.port)
    # As a server does that executes the release before the request for the lock.
    (holder,) = late._lock._owed[keys[0]]
    await raw.eval(_ACQUIRE, 2, *keys, holder, 60_000)
    async with other.lock("default", PATIENCE_S):
        pass
    await until(lambda: not late._lock._owed)
    await raw.aclose()


async def test_lock_of_somebody_else_is_not_given_back(server: RedisServer, open_redis: Stores) -> None:
    """Repeated releases concern the lost holder only."""
    holder, other = open_redis(server.url, life_s=60), open_redis(server.url)
    async with AsyncExitStack() as stall, holder.lock("default", 1):
        await stall.enter_async_context(unresponsive(server, "paused"))
    async with other.lock("default", PATIENCE_S) as lease:
        await until(lambda: not holder._lock._owed)
        raw = redis.asyncio.Redis(port=server.port)
        assert await raw.exists("cfproxy:{default}:lock")
        assert lease.is_held()
        await raw.aclose()


async def test_closed_store_gives_nothing_back_any_more(server: RedisServer, open_redis: Stores) -> None:
    """A process that ends does not wait for a server that does not respond; the lock expires."""
    store = open_redis(server.url, life_s=60)
    async with unresponsive(server, "paused"):
        with pytest.raises(StoreUnavailable):
            async with store.lock("default", 1):
                pass
        await store.aclose()
