"""`cfproxy wait`: what a worker beside the proxy starts and ends with."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer as TestServer

from tests.e2e.kit import World, until
from tests.e2e.processes import PATIENCE_S, Proxy


def same_ports(world: World, proxy: Proxy) -> None:
    """Let further commands find the proxy where it is."""
    world.write_config(admin=proxy.admin_url.removeprefix("http://"))


async def test_it_returns_once_the_proxy_is_ready(world: World) -> None:
    """Not while a login is missing; and as soon as there is one."""
    async with world.serve() as proxy:
        same_ports(world, proxy)
        ran = await world.run("wait", "--timeout", "0.5")
        assert ran.code == 1
        assert "not ready after 0.5 s" in ran.line
        assert "run: cfproxy login" in ran.line
        assert (await world.run("wait", "--for", "live")).code == 0
        assert (await world.run("wait", "--for", "started")).code == 0
        waiting = asyncio.create_task(world.run("wait"))
        await world.log_in()
        assert (await waiting).code == 0


async def test_where_nothing_runs_it_says_what_to_start(world: World) -> None:
    """And where it is looked for; without an admin listener nobody can tell."""
    world.write_config(admin="127.0.0.1:1")
    ran = await world.run("wait", "--timeout", "0.3")
    assert (ran.code, "cfproxy serve" in ran.line) == (1, True)
    world.write_config(admin="off")
    assert (await world.run("wait")).code == 2
    world.write_config(admin="127.0.0.1:0")
    assert (await world.run("wait")).code == 2


async def test_the_proxy_ends_with_its_worker(world: World) -> None:
    """The command runs when the proxy is ready, then the proxy ends; the exit code is the command's."""
    await world.log_in()
    world.write_config(access={"keys": ["sesame"]})
    async with world.serve() as proxy:
        same_ports(world, proxy)
        worker = "import sys; print('worked'); sys.exit(7)"
        ran = await world.run("wait", "--", sys.executable, "-c", worker)
        assert (ran.code, ran.out.strip()) == (7, "worked")
        assert await asyncio.to_thread(proxy.process.wait, PATIENCE_S) == 0


async def test_a_worker_that_can_not_be_started_ends_nothing(world: World) -> None:
    """That is a mistake in the command line, not the end of the work."""
    await world.log_in()
    async with world.serve() as proxy:
        same_ports(world, proxy)
        ran = await world.run("wait", "--", str(world.folder / "missing"))
        assert (ran.code, "can't be run" in ran.line) == (2, True)
        assert await proxy.ready() == 200


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
async def test_a_signal_reaches_the_worker_which_decides(world: World) -> None:
    """The orchestrator ends the worker's container: the worker cleans up, then the proxy ends."""
    await world.log_in()
    async with world.serve() as proxy:
        same_ports(world, proxy)
        worker = (
            "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); "
            "open('working', 'w').close(); time.sleep(60)"
        )
        process = world.popen("wait", "--", sys.executable, "-c", worker, stderr=subprocess.DEVNULL)
        try:
            await until((world.folder / "working").exists, "the worker runs")
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, PATIENCE_S) == 9
        finally:
            process.kill()
            process.wait()
        assert await asyncio.to_thread(proxy.process.wait, PATIENCE_S) == 0


async def test_a_worker_without_a_configuration_gives_the_address(world: World) -> None:
    """In a container of its own it knows no client id; a mistaken option is not taken for the command."""
    await world.log_in()
    async with world.serve() as proxy:
        world.config_path.unlink()
        assert (await world.run("wait")).code == 2
        assert (await world.run("wait", "--url", f"{proxy.admin_url}/", "--timout", "5")).code == 2
        assert (await world.run("wait", "--url", f"{proxy.admin_url}/")).code == 0


@pytest.mark.parametrize("url", ["nonsense", "http://", "http://127.0.0.1:port", "ftp://127.0.0.1:8081"])
async def test_what_is_no_address_is_told_at_once(world: World, url: str) -> None:
    """Nobody waits a minute for a misspelt one."""
    ran = await world.run("wait", "--url", url)
    assert (ran.code, "--url must be" in ran.line) == (2, True)


async def test_a_key_is_sent_with_each_question(world: World) -> None:
    """An admin listener that other machines reach asks for one, to look as to act."""

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(status=200 if request.headers.get("X-Cfproxy-Key") == "sesame" else 401)

    async with TestServer(answer) as server:
        world.write_config(admin=f"127.0.0.1:{server.port}", access={"keys": ["sesame"]})
        assert (await world.run("wait")).code == 0
        world.write_config(access={"keys": ["another"]})
        ran = await world.run("wait", "--timeout", "0.5")
        assert (ran.code, "another" in ran.err) == (1, False)


@pytest.mark.parametrize(
    "answer", [b"no JSON", b"[]", b'{"accounts": {"default": 1}}', b'{"accounts": [1, {}]}']
)
async def test_status_is_not_confused_by_another_program_at_the_admin_port(
    world: World, answer: bytes
) -> None:
    """Nor by a proxy for another app: what is not said of this account is left out."""

    async def say(request: web.BaseRequest) -> web.Response:
        assert "X-Cfproxy-Key" not in request.headers  # whoever has the port now
        return web.Response(body=answer, content_type="application/json")

    world.write_config(access={"keys": ["sesame"]})
    alone = await world.run("status")
    async with TestServer(say) as server:
        world.write_config(admin=f"127.0.0.1:{server.port}")
        beside = await world.run("status")
    assert (beside.code, beside.out, beside.err) == (alone.code, alone.out, "")
