"""Two configuration files with the account `default` and one store: each has its own login, everywhere."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis.asyncio

from cfproxy.sandbox import approve
from tests.e2e.kit import World, open_world, until
from tests.support.redis_server import RedisServer, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@dataclass
class Pair:
    """Two worlds, a and b, with servers of their own, an account of the same name and one store."""

    a: World
    b: World
    store: str
    folders: list[Path] = field(default_factory=list)


@asynccontextmanager
async def opened(tmp_path: Path, store: str) -> AsyncIterator[Pair]:
    for name in "ab":
        (tmp_path / name).mkdir()
    async with open_world(tmp_path / "a") as a, open_world(tmp_path / "b", client_id="app-b") as b:
        a.write_config(store=store)
        b.write_config(store=store)
        yield Pair(a, b, store)


@pytest.fixture(params=["file", "redis"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    store = f"file:{tmp_path / 'store'}"
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("server")
        await server.ready()
        store = server.url
        raw = redis.asyncio.Redis(port=server.port)
        await raw.flushall()
        await raw.aclose()
    async with opened(tmp_path, store) as pair:
        yield pair


async def token(world: World) -> str:
    ran = await world.run("token")
    assert ran.code == 0, ran.err
    return ran.out


async def test_login_and_logout_touch_one_login_only(pair: Pair) -> None:
    """B logs in beside a, and its logout leaves a's login as it was; then the other way round."""
    await pair.a.log_in()
    of_a = await token(pair.a)
    for args in (["token"], ["status"]):
        ran = await pair.b.run(*args)
        assert ran.code == 3
        assert "the store has the login of another app or API" in ran.out + ran.err
        assert "run: cfproxy login" in ran.out + ran.err
    doctor = await pair.b.run("doctor")
    assert doctor.code == 3
    assert "the store has the login of another app or API" in doctor.out
    ran = await pair.b.run("logout")
    assert (ran.code, ran.err) == (0, "")
    assert "was not logged in. The store has the login of another app or API, which stays" in ran.out
    assert await token(pair.a) == of_a
    await pair.b.log_in()
    of_b = await token(pair.b)
    assert (await token(pair.a), await token(pair.b)) == (of_a, of_b)
    async with pair.a.serve() as a, pair.b.serve() as b:
        assert (await a.status(), await b.status()) == (200, 200)
        assert "is logged out" in (await pair.a.run("logout")).out

        async def logged_out() -> bool:
            return (await a.problem())[0] == "login-required"

        await until(logged_out, "a is logged out")
        assert await b.status() == 200
        await pair.a.log_in()
        assert "is logged out" in (await pair.b.run("logout")).out

        async def logged_in() -> bool:
            return await a.status() == 200 and (await b.problem())[0] == "login-required"

        await until(logged_in, "a is logged in and b is not")
    assert (await pair.a.run("status")).code == 0


async def test_a_login_in_two_steps_is_finished_by_its_own_configuration(pair: Pair) -> None:
    """The wrong one uses nothing up; with a bare code each takes what it has started."""
    urls = {}
    for world in (pair.a, pair.b):
        ran = await world.run("login", "--print-url")
        assert ran.code == 0
        urls[world is pair.a] = await approve(ran.out.strip())
    assert (await pair.b.run("login", "--finish", urls[True])).code == 1
    code = urls[False].partition("code=")[2].partition("&")[0]
    assert (await pair.b.run("login", "--finish", code)).code == 0
    assert (await pair.a.run("login", "--finish", urls[True])).code == 0
    assert await token(pair.a) != await token(pair.b)


async def test_a_copy_comes_beside_the_other_app_s_login(tmp_path: Path) -> None:
    """`store copy` copies its own app's login only, and replaces no other one."""
    async with opened(tmp_path, f"file:{tmp_path / 'one'}") as pair:
        await pair.a.log_in()
        pair.b.write_config(store=f"file:{tmp_path / 'two'}")
        none = await pair.b.run("store", "copy", f"file:{tmp_path / 'one'}", f"file:{tmp_path / 'two'}")
        assert none.code == 3
        assert "only one of another app or API" in none.line
        await pair.b.log_in()
        ran = await pair.b.run("store", "copy", f"file:{tmp_path / 'two'}", f"file:{tmp_path / 'one'}")
        assert ran.code == 0
        pair.b.write_config(store=f"file:{tmp_path / 'one'}")
        assert (await token(pair.a)) != (await token(pair.b))


async def test_a_reload_with_another_app_keeps_both_logins(tmp_path: Path) -> None:
    """A running proxy whose app or API changes uses the new one's login, and leaves the old one."""
    async with opened(tmp_path, f"file:{tmp_path / 'one'}") as pair:
        await pair.a.log_in()
        old = pair.a.settings
        async with pair.a.serve() as proxy:
            assert await proxy.status() == 200
            changes = {
                k: v for k, v in pair.b.settings.items() if k not in {"listen", "admin", "log", "store"}
            }
            pair.a.write_config(**changes)

            async def reload() -> None:
                headers = {"X-Cfproxy-Admin": "1"}
                async with proxy.client.post(f"{proxy.admin_url}/reload", headers=headers) as answer:
                    assert answer.status < 300, await answer.text()

            await reload()
            assert (await proxy.problem())[0] == "login-required"
            await pair.a.log_in()

            async def served() -> bool:
                return await proxy.status() == 200

            await until(served, "the new app is logged in")
            pair.a.settings = old
            pair.a.write_config()
            await reload()
            await until(served, "the old app is still logged in")
        names = sorted(path.name for path in (tmp_path / "one").glob("default*.json"))
        names = [name for name in names if ".login-" not in name]
        documents = [json.loads((tmp_path / "one" / name).read_text("utf-8")) for name in names]
        assert [document["client_id"] for document in documents] == [old["client_id"], "app-b"]
