"""`cfproxy wait`, with which a worker beside the proxy starts and ends."""

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
    """Let further commands find the proxy at its ports."""
    world.write_config(admin=proxy.admin_url.removeprefix("http://"))


async def test_it_returns_once_the_proxy_is_ready(world: World) -> None:
    """Not while a login is missing, but as soon as there is one."""
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


async def test_without_a_proxy_it_names_the_command_to_start(world: World) -> None:
    """And the address; without an admin listener nothing can tell."""
    world.write_config(admin="127.0.0.1:1")
    ran = await world.run("wait", "--timeout", "0.3")
    assert (ran.code, "cfproxy serve" in ran.line) == (1, True)
    world.write_config(admin="off")
    assert (await world.run("wait")).code == 2
    world.write_config(admin="127.0.0.1:0")
    assert (await world.run("wait")).code == 2


async def test_the_proxy_ends_with_its_worker(world: World) -> None:
    """The command runs once the proxy is ready, then the proxy ends; the exit code is the command's."""
    await world.log_in()
    world.write_config(access={"keys": ["sesame"]})
    async with world.serve() as proxy:
        same_ports(world, proxy)
        worker = "import sys; print('worked'); sys.exit(7)"
        ran = await world.run("wait", "--", sys.executable, "-c", worker)
        assert (ran.code, ran.out.strip()) == (7, "worked")
        assert await asyncio.to_thread(proxy.process.wait, PATIENCE_S) == 0


async def test_a_worker_that_can_not_start_does_not_stop_the_proxy(world: World) -> None:
    """It is a mistake in the command line, not the end of the work."""
    await world.log_in()
    async with world.serve() as proxy:
        same_ports(world, proxy)
        ran = await world.run("wait", "--", str(world.folder / "missing"))
        assert (ran.code, "can't be run" in ran.line) == (2, True)
        assert await proxy.ready() == 200


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
async def test_a_signal_is_passed_to_the_worker(world: World) -> None:
    """The worker cleans up, then the proxy ends."""
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


async def test_a_worker_without_a_configuration_uses_url(world: World) -> None:
    """Its container has no client ID; a misspelt option is not taken for the command."""
    await world.log_in()
    async with world.serve() as proxy:
        world.config_path.unlink()
        assert (await world.run("wait")).code == 2
        assert (await world.run("wait", "--url", f"{proxy.admin_url}/", "--timout", "5")).code == 2
        assert (await world.run("wait", "--url", f"{proxy.admin_url}/")).code == 0


@pytest.mark.parametrize(
    "url",
    [
        *("nonsense", "http://", "http://127.0.0.1:port", "ftp://127.0.0.1:8081", "http://[::1"),
        *("http://a..b:8081", f"http://{'a' * 64}:8081"),
    ],
)
async def test_an_invalid_url_is_reported_at_once(world: World, url: str) -> None:
    """Without waiting for the timeout."""
    ran = await world.run("wait", "--url", url)
    assert (ran.code, "--url must be" in ran.line) == (2, True)


async def test_the_access_key_is_sent_with_each_request(world: World) -> None:
    """An admin listener that other machines can reach requires one for every request."""

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
    """Nor by a proxy for another app: only reports of the same account are used."""

    async def say(request: web.BaseRequest) -> web.Response:
        assert "X-Cfproxy-Key" not in request.headers  # any program may have the port
        return web.Response(body=answer, content_type="application/json")

    world.write_config(access={"keys": ["sesame"]})
    alone = await world.run("status")
    async with TestServer(say) as server:
        world.write_config(admin=f"127.0.0.1:{server.port}")
        beside = await world.run("status")
    assert (beside.code, beside.out, beside.err) == (alone.code, alone.out, "")
