"""A stored login that others can read or replace is refused and reported, and used once it is repaired."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.kit import World, until

Breach = tuple[Callable[[Path], None], Callable[[Path], None], str]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes and owners are POSIX's")


def link(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def unlink(path: Path) -> None:
    path.with_suffix(".real").replace(path)


def cut_short(path: Path) -> None:
    path.with_suffix(".kept").touch(0o600)
    path.with_suffix(".kept").write_bytes(path.read_bytes())
    path.write_bytes(path.read_bytes()[:100])


def restore(path: Path) -> None:
    path.with_suffix(".kept").replace(path)


OK = {"location": "", "state": "ok", "detail": None, "unsaved": False}
BREACHES: dict[str, Breach] = {
    "link": (link, unlink, "symbolic link"),
    "mode": (lambda path: path.chmod(0o644), lambda path: path.chmod(0o600), "chmod 600"),
    "owner": (lambda path: os.chown(path, 65534, -1), lambda path: os.chown(path, 0, -1), "another user"),
    "cut": (cut_short, restore, "cut short"),
}


@pytest.fixture(params=BREACHES)
def breach(request: pytest.FixtureRequest) -> Breach:
    """A way to make a stored login unusable, a way to repair it, and the message."""
    if request.param == "owner" and os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    return BREACHES[request.param]


async def test_an_unsafe_login_is_refused_with_exit_code_4(world: World, breach: Breach) -> None:
    """status, token, login and logout report it and leave the document alone."""
    spoil, mend, words = breach
    await world.log_in()
    spoil(world.document_path)
    content = world.document_path.read_bytes()
    told = await world.run("status")
    assert told.code == 4
    assert words in told.out
    for args in (["token"], ["login", "--print-url"], ["logout"]):
        ran = await world.run(*args)
        assert (ran.code, ran.out) == (4, "")
        assert words in ran.line
    assert world.document_path.read_bytes() == content
    mend(world.document_path)
    assert (await world.run("token")).code == 0


async def test_a_running_proxy_reports_it_and_recovers(world: World, breach: Breach) -> None:
    """It answers 500 misconfigured while the login is unsafe, and needs no restart."""
    spoil, mend, words = breach
    await world.log_in()
    spoil(world.document_path)
    async with world.serve() as proxy:
        assert await proxy.problem() == ("misconfigured", None)
        assert await proxy.ready() == 503
        report = await proxy.account()
        assert (report["state"], report["store"]["state"]) == ("store-unusable", "store-unusable")
        assert words in report["store"]["detail"]
        assert any(words in event["reason"] for event in proxy.events("store.failed"))
        mend(world.document_path)

        async def served() -> bool:
            return await proxy.status() == 200

        await until(served, "requests are served again")
        assert await proxy.ready() == 200
        assert (await proxy.account())["store"]["state"] == "ok"


async def test_an_app_with_client_credentials_is_served_all_the_same(world: World, breach: Breach) -> None:
    """It needs no stored token; the store's problem is reported, and over once it is repaired."""
    spoil, mend, words = breach
    world.write_config(grant="client_credentials", redirect_uri=None)
    assert (await world.run("login")).code == 0
    spoil(world.document_path)
    ran = await world.run("token")
    assert ran.code == 4
    assert ran.out
    assert "the token above is valid, but it is not saved" in ran.line
    async with world.serve() as proxy:
        assert await proxy.status() == 200
        assert await proxy.ready() == 200
        report = await proxy.account()
        assert (report["state"], report["store"]["state"]) == ("ok", "store-unusable")
        assert words in report["store"]["detail"]
        mend(world.document_path)

        async def saved() -> bool:
            assert await proxy.status() == 200
            return bool((await proxy.account())["store"] | {"location": ""} == OK)

        await until(saved, "the token is saved")


async def test_what_kubelet_opens_at_each_mount_is_closed_again(world: World) -> None:
    """Between two starts and while it runs, every command and request works, and one line tells of it."""
    await world.log_in()

    def open_up() -> None:
        for path in (world.store_dir, *world.store_dir.iterdir()):
            path.chmod(path.stat().st_mode | (0o2070 if path.is_dir() else 0o060))

    open_up()
    ran = await world.run("status")
    assert ran.code == 0
    assert "fsGroup leaves it at each mount; it was closed again" in ran.line
    open_up()
    async with world.serve() as proxy:
        assert await proxy.status() == 200
        (event,) = proxy.events("store.permissions")
        assert "it was closed again" in event["reason"]
        open_up()
        world.age(3600)

        async def refreshed() -> bool:
            return await proxy.status() == 200 and (await proxy.account())["refreshes"] == 1

        await until(refreshed, "the token is refreshed")
        assert len(proxy.events("store.permissions")) == 1
    assert {path.stat().st_mode & 0o7777 for path in world.store_dir.iterdir()} == {0o600}
    assert world.store_dir.stat().st_mode & 0o7777 == 0o700
