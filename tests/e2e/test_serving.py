"""`cfproxy serve`: starting and stopping."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess

import aiohttp
import pytest

from cfproxy.sandbox import Fault, approve
from tests.e2e.kit import World, until
from tests.e2e.processes import PATIENCE_S

posix = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")


async def test_each_account_has_its_listener_its_login_and_its_tokens(world: World) -> None:
    """Accounts are served side by side, log in separately, and never use each other's tokens."""
    await world.log_in()
    world.write_config(accounts={"acme": {"listen": "127.0.0.1:0"}, "beta": {"listen": "127.0.0.1:0"}})
    async with world.serve() as proxy:
        assert set(proxy.urls) == {"default", "acme", "beta"}

        async def status(account: str) -> int:
            async with proxy.client.get(f"{proxy.urls[account]}/v1/jobs") as answer:
                return answer.status

        assert [await status(name) for name in ("default", "acme", "beta")] == [200, 503, 503]
        assert await proxy.ready() == 503
        ran = await world.run("login", "--account", "acme", "--print-url")
        address = await approve(ran.out.strip())
        assert (await world.run("login", "--account", "beta", "--finish", address)).code == 1
        assert (await world.run("login", "--account", "acme", "--finish", address)).code == 0

        async def picked_up() -> bool:
            return await status("acme") == 200

        await until(picked_up, "the login is picked up")
        assert await status("beta") == 503
    assert (await world.run("status", "--account", "acme")).code == 0
    told = await world.run("status", "--account", "beta")
    assert told.code == 3
    assert "cfproxy login --account beta" in told.out
    async with world.serve("--account", "acme") as proxy:
        assert set(proxy.urls) == {"acme"}
        assert await proxy.ready() == 200


async def test_the_environment_alone_is_enough(world: World) -> None:
    """A container needs no file, because the environment can have all settings."""
    await world.log_in()
    texts = {name: value for name, value in world.settings.items() if isinstance(value, str)}
    world.environment.update({f"CFPROXY_{name.upper()}": value for name, value in texts.items()})
    world.environment["CFPROXY_PACING__RATE"] = "off"
    world.environment["CFPROXY_LOG__FORMAT"] = "json"
    world.config_path.unlink()
    async with world.serve() as proxy:
        assert await proxy.status() == 200


async def test_serve_is_the_default_command(world: World) -> None:
    """`cfproxy -c FILE` serves."""
    log = world.folder / "default.log"
    with log.open("wb") as sink:
        process = world.popen("-c", str(world.config_path), stdout=sink, stderr=sink)
    try:
        await until(lambda: b"proxy.started" in log.read_bytes(), "it serves")
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


@posix
async def test_a_closed_log_pipe_does_no_harm(world: World) -> None:
    """Requests, refreshes and the shutdown work although the log's reader has ended."""
    await world.log_in()
    process = world.popen("serve", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    try:
        url = ""
        while not url.startswith("http"):
            event = json.loads(await asyncio.to_thread(process.stdout.readline))
            url = f"http://{event['listen']}/v1/jobs" if event["event"] == "proxy.started" else ""
        process.stdout.close()
        async with aiohttp.ClientSession() as client:
            for _ in range(3):
                world.sandbox.revoke_access_tokens()
                for _ in range(3):
                    async with client.get(url) as answer:
                        assert answer.status == 200
        process.terminate()
        assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


async def test_sigterm_lets_requests_in_flight_finish(world: World) -> None:
    """No new connection is accepted, a slow request gets its whole answer, and the exit code is 0."""
    await world.log_in()
    async with world.serve() as proxy:
        call = asyncio.create_task(proxy.client.get(f"{proxy.url}/v1/_sse?events=3&interval_s=0.7"))
        answer = await call
        assert answer.status == 200
        ended = asyncio.create_task(proxy.end(signal.SIGTERM))
        text = await answer.text()
        assert text.count("data:") == 3
        assert await ended == 0
        with pytest.raises(aiohttp.ClientConnectionError):
            await proxy.status()
    assert proxy.events("proxy.stopped")
    assert not proxy.events("proxy.drain_cut")


@posix
async def test_an_idle_connection_does_not_delay_the_end(world: World) -> None:
    """A client that never closes its connection does not keep the process alive."""
    await world.log_in()
    async with world.serve() as proxy:
        host, port = proxy.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /v1/jobs?pageSize=1 HTTP/1.1\r\nHost: localhost:%s\r\n\r\n" % port.encode())
        assert b" 200 " in await reader.readline()
        assert await proxy.end(signal.SIGTERM) == 0
        writer.close()


@posix
async def test_a_request_that_outlasts_the_drain_is_cut(world: World) -> None:
    """A request that runs longer than `timeouts.drain` is cut visibly, and the process ends."""
    world.write_config(timeouts={"drain": "1s"})
    await world.log_in()
    world.sandbox.inject("api", Fault("stall"))
    async with world.serve() as proxy:
        call = asyncio.create_task(proxy.status())
        await until(lambda: world.sandbox.api_requests == 1, "the request is in flight")
        assert await proxy.end(signal.SIGTERM) == 0
        with pytest.raises(aiohttp.ClientError):
            await call
    assert proxy.events("proxy.drain_cut")


@posix
async def test_sigint_ends_with_130(world: World) -> None:
    """Ctrl-C ends the proxy in good order, with the exit code of an interrupt."""
    async with world.serve() as proxy:
        assert await proxy.end(signal.SIGINT) == 130
    assert proxy.events("proxy.stopped")
    assert "Traceback" not in proxy.log()


@posix
async def test_a_second_signal_ends_at_once(world: World) -> None:
    """A second Ctrl-C does not wait for the drain."""
    await world.log_in()
    world.sandbox.inject("api", Fault("stall"))
    async with world.serve() as proxy:
        call = asyncio.create_task(proxy.status())
        await until(lambda: world.sandbox.api_requests == 1, "the request is in flight")
        proxy.process.send_signal(signal.SIGTERM)

        async def refuses() -> bool:
            return await proxy.ready() == 503

        await until(refuses, "it drains")
        assert await proxy.end(signal.SIGTERM) == 128 + signal.SIGTERM
        with pytest.raises(aiohttp.ClientError):
            await call


async def test_shutdown_by_the_admin_listener_needs_a_header(world: World) -> None:
    """POST /shutdown requires a header that no web page's form can send."""
    async with world.serve() as proxy:
        async with proxy.client.post(f"{proxy.admin_url}/shutdown") as answer:
            assert answer.status == 403
        async with proxy.client.post(
            f"{proxy.admin_url}/shutdown", headers={"X-Cfproxy-Admin": "1"}
        ) as answer:
            assert answer.status == 202
        assert await asyncio.to_thread(proxy.process.wait) == 0


@pytest.mark.parametrize("key", ["listen", "admin"])
async def test_a_port_in_use_is_reported_in_one_line(world: World, key: str) -> None:
    """The line has the address and the next step; the exit code is 1."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        world.write_config(**{key: address})
        ran = await world.run("serve")
    assert ran.code == 1
    assert f"cannot listen on {address}" in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err
