"""A store that can't be written: requests go on, every report shows it, and it recovers."""

from __future__ import annotations

import json

from tests.e2e.conftest import Disk
from tests.e2e.kit import World, until
from tests.e2e.processes import Proxy

# Long enough to start a proxy and fill a disk, short enough to wait for.
LIFETIME_S = 6


async def log_in_on(disk: Disk, world: World) -> None:
    world.sandbox.behaviour.access_lifetime_s = LIFETIME_S
    world.write_config(store=f"file:{disk.path / 'store'}")
    await world.log_in()


async def serve_past_a_refresh(world: World, proxy: Proxy) -> None:
    """Call the API until a refresh could not be saved; no call may fail."""
    unsaved = False
    while not unsaved:
        assert [await proxy.status() for _ in range(20)] == [200] * 20
        unsaved = (await proxy.account())["store"]["unsaved"]
    assert [await proxy.status() for _ in range(20)] == [200] * 20


async def assert_trouble_shows(world: World, proxy: Proxy, words: str) -> None:
    store = (await proxy.account())["store"]
    assert (store["state"], store["unsaved"]) == ("store-unavailable", True)
    assert words in store["detail"]
    assert any(words in event["reason"] for event in proxy.events("store.failed"))
    told = await world.run("status")
    assert told.code == 4
    assert words in told.out
    told = await world.run("status", "--json")
    assert told.code == 4
    assert json.loads(told.out)["accounts"][0]["store"]["state"] == "store-unavailable"


async def assert_healed(world: World, proxy: Proxy) -> None:
    async def is_saved() -> bool:
        report = await proxy.account()
        return bool(report["store"]["state"] == "ok" and not report["store"]["unsaved"])

    await until(is_saved, "the token is saved")
    newest = [token.value for token in world.sandbox.access_tokens[-2:]]
    assert world.document()["access_token"] in newest
    assert await proxy.status() == 200
    assert (await world.run("status")).code == 0
    assert world.sandbox.reuse_seen == 0


async def test_a_full_disk_costs_no_request_and_no_login(disk: Disk, world: World) -> None:
    """Requests go on across refreshes; the token is saved once there is space."""
    await log_in_on(disk, world)
    async with world.serve() as proxy:
        assert await proxy.status() == 200
        disk.fill()
        await serve_past_a_refresh(world, proxy)
        await assert_trouble_shows(world, proxy, "No space left")
        disk.free()
        await assert_healed(world, proxy)
    async with world.serve() as proxy:
        assert await proxy.status() == 200


async def test_a_read_only_store_costs_no_request_and_no_login(disk: Disk, world: World) -> None:
    """Requests go on, and the token is saved once the disk is writable again."""
    await log_in_on(disk, world)
    async with world.serve() as proxy:
        assert await proxy.status() == 200
        disk.remount("ro")
        await serve_past_a_refresh(world, proxy)
        await assert_trouble_shows(world, proxy, "Read-only")
        disk.remount("rw")
        await assert_healed(world, proxy)


async def test_client_credentials_need_no_writable_store(disk: Disk, world: World) -> None:
    """They use up nothing, so a store that was never writable costs no request."""
    world.write_config(
        grant="client_credentials", redirect_uri=None, scope=None, store=f"file:{disk.path / 'store'}"
    )
    disk.remount("ro")
    async with world.serve() as proxy:
        assert [await proxy.status() for _ in range(5)] == [200] * 5
        assert await proxy.ready() == 200
        world.sandbox.revoke_access_tokens()
        assert await proxy.status() == 200
        await assert_trouble_shows(world, proxy, "Read-only")
        disk.remount("rw")
        await assert_healed(world, proxy)


async def test_a_rejected_token_is_replaced_on_a_full_disk(disk: Disk, world: World) -> None:
    """A token that the API rejects is refreshed although the new one can't be saved yet."""
    await log_in_on(disk, world)
    world.sandbox.behaviour.access_lifetime_s = 3600
    await world.log_in()
    async with world.serve() as proxy:
        disk.fill()
        world.sandbox.revoke_access_tokens()
        assert await proxy.status() == 200
        disk.free()
        await assert_healed(world, proxy)


async def test_a_command_uses_no_refresh_token_that_it_can_not_replace(disk: Disk, world: World) -> None:
    """`cfproxy token` can't save later: on a full disk it refuses, and the login stays valid."""
    await log_in_on(disk, world)
    world.age(7200)
    disk.fill()
    requests = len(world.sandbox.token_requests)
    ran = await world.run("token")
    assert (ran.code, ran.out) == (4, "")
    assert "No space left" in ran.line
    assert len(world.sandbox.token_requests) == requests
    disk.free()
    assert (await world.run("token")).code == 0


async def test_a_login_is_not_started_if_it_can_not_be_saved(disk: Disk, world: World) -> None:
    """A full disk stops a login before its code is used."""
    await log_in_on(disk, world)
    disk.fill()
    ran = await world.run("login", "--print-url")
    assert (ran.code, ran.out) == (4, "")
    assert "No space left" in ran.line
