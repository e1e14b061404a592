"""What a running proxy sends after somebody else has logged in, logged out or copied a login."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cfproxy.sandbox import approve
from tests.e2e.kit import World
from tests.e2e.processes import Proxy
from tests.support.redis_server import running_server


class Recorder:
    """An API that accepts every token and remembers which ones came."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers["Authorization"].removeprefix("Bearer "))
        return web.Response(text="ok")


@contextlib.asynccontextmanager
async def recording() -> AsyncIterator[Recorder]:
    recorder = Recorder()
    runner = web.ServerRunner(web.Server(recorder.answer))  # type: ignore[arg-type]
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    recorder.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield recorder
    finally:
        await runner.cleanup()


@pytest.fixture
async def api(world: World) -> AsyncIterator[Recorder]:
    async with recording() as recorder:
        world.write_config(upstream=recorder.url)
        yield recorder


@pytest.fixture(params=["file", pytest.param("redis", marks=pytest.mark.redis)])
async def store(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> AsyncIterator[str]:
    """Where the logins are; each kind of store that processes can share."""
    if request.param == "file":
        yield request.param
        return
    with running_server(tmp_path / "redis") as server:
        await server.ready()
        world.write_config(store=server.url)
        yield request.param


async def status(proxy: Proxy, account: str = "default") -> int:
    async with proxy.client.get(f"{proxy.urls[account]}/v1/jobs") as answer:
        await answer.read()
        return answer.status


def newest(world: World) -> str:
    return world.sandbox.access_tokens[-1].value


async def test_a_logout_counts_from_the_next_request_on(world: World, api: Recorder, store: str) -> None:
    """`cfproxy logout && curl` gets 503, and the API never sees the former token again."""
    async with world.serve() as proxy:
        for _ in range(3):
            await world.log_in()
            assert await status(proxy) == 200
            for _ in range(5):
                assert await status(proxy) == 200
            assert set(api.tokens) == {newest(world)}
            assert (await world.run("logout")).code == 0
            api.tokens.clear()
            assert await status(proxy) == 503
            assert api.tokens == []


async def test_another_login_counts_from_the_next_request_on(world: World, api: Recorder, store: str) -> None:
    """`cfproxy login && curl` carries the new person's token, whether or not somebody was logged in."""
    async with world.serve() as proxy:
        for _ in range(5):
            await status(proxy)
            ran = await world.run("login", "--print-url")
            address = await approve(ran.out.strip())
            await status(proxy)
            assert (await world.run("login", "--finish", address)).code == 0
            api.tokens.clear()
            assert await status(proxy) == 200
            assert api.tokens == [newest(world)]


async def test_client_credentials_are_fetched_again_after_a_logout(
    world: World, api: Recorder, store: str
) -> None:
    """`logout` deletes the stored token, and no later request carries it."""
    world.write_config(grant="client_credentials", redirect_uri=None)
    async with world.serve() as proxy:
        for _ in range(3):
            assert await status(proxy) == 200
            former = newest(world)
            assert (await world.run("logout")).code == 0
            api.tokens.clear()
            assert await status(proxy) == 200
            assert api.tokens == [newest(world)] != [former]


async def test_accounts_notice_their_own_changes(world: World, api: Recorder, store: str) -> None:
    """The logout of one account ends that account's requests, and no others'."""
    world.write_config(accounts={"acme": {"listen": "127.0.0.1:0"}})
    for account in ("default", "acme"):
        await log_in(world, account)
    async with world.serve() as proxy:
        assert [await status(proxy, each) for each in ("default", "acme")] == [200, 200]
        assert (await world.run("logout", "--account", "acme")).code == 0
        api.tokens.clear()
        assert [await status(proxy, each) for each in ("acme", "default")] == [503, 200]
        assert len(api.tokens) == 1


async def log_in(world: World, account: str) -> None:
    ran = await world.run("login", "--print-url", "--account", account)
    ran = await world.run("login", "--account", account, "--finish", await approve(ran.out.strip()))
    assert ran.code == 0


async def test_a_copied_login_counts_from_the_next_request_on(world: World, api: Recorder) -> None:
    """`store copy` into the store of a running proxy is a login as well."""
    settings: dict[str, Any] = dict(world.settings)
    elsewhere = world.folder / "elsewhere"
    await world.log_in()
    former = newest(world)
    async with world.serve() as proxy:
        assert await status(proxy) == 200
        world.write_config(store=f"file:{elsewhere}")
        await world.log_in()
        world.write_config(store=settings["store"])
        ran = await world.run("store", "copy", f"file:{elsewhere}", settings["store"], "--force")
        assert ran.code == 0, ran
        api.tokens.clear()
        assert await status(proxy) == 200
        assert api.tokens == [newest(world)] != [former]
        assert json.loads(world.document_path.read_text())["access_token"] == newest(world)
