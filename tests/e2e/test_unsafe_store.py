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
