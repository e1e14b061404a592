"""Shutdown, reload and the service manager, with real processes and signals."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from cfproxy.sandbox import Fault
from tests.e2e.kit import World, until
from tests.e2e.processes import PATIENCE_S, Proxy
from tests.e2e.test_refresh import newest, refreshes
from tests.support.secret_ledger import LEDGER

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
ACTION = {"X-Cfproxy-Admin": "1"}
IN_FLIGHT = 200


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/net/tcp is Linux's")
@pytest.mark.parametrize("age_s", [3500, 7200], ids=["token-due", "token-expired"])
async def test_sigterm_loses_no_request_and_no_token(world: World, age_s: int) -> None:
    """With 200 requests and a refresh in flight, all are answered, the token is saved, and the code is 0."""
    await world.log_in()
    world.age(age_s)
    world.sandbox.inject("token", Fault("slow", delay_s=2))
    async with world.serve() as proxy:

        async def call() -> tuple[int, int]:
            async with proxy.client.get(f"{proxy.url}/v1/_sse?events=3&interval_s=1") as answer:
                return answer.status, (await answer.text()).count("data:")

        calls = [asyncio.create_task(call()) for _ in range(IN_FLIGHT)]
        await until(lambda: in_flight(proxy) == IN_FLIGHT, "all requests are in flight")
        assert world.document()["presented_at"] is not None  # the refresh is under way
        code = await proxy.end(signal.SIGTERM)
        assert await asyncio.gather(*calls) == [(200, 3)] * IN_FLIGHT
    assert code == 0
    assert refreshes(world) == ["issued"]
    assert world.document()["access_token"] == newest(world)
    assert not proxy.events("proxy.drain_cut")


def in_flight(proxy: Proxy) -> int:
    """Return the established connections to the proxy's listener."""
    port = f"{int(proxy.url.rpartition(':')[2]):04X}"
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return sum(line.split()[1].endswith(f":{port}") and line.split()[3] == "01" for line in lines)


async def test_the_shutdown_waits_for_a_refresh_in_flight(world: World) -> None:
    """Although no request waits for it and the drain is over at once."""
    await world.log_in()
    world.age(3500)
    async with world.serve() as proxy:
        world.sandbox.inject("token", Fault("slow", delay_s=2))
        assert await proxy.status() == 200
        assert await proxy.end(signal.SIGTERM) == 0
    assert refreshes(world) == ["issued"]
    assert world.document()["access_token"] == newest(world)


async def test_a_signal_after_post_shutdown_does_not_cut_it_short(world: World) -> None:
    """A worker asks for the shutdown, then the orchestrator sends SIGTERM; nothing is lost."""
    await world.log_in()
    world.sandbox.inject("api", Fault("slow", delay_s=1.5))
    async with world.serve() as proxy:
        call = asyncio.create_task(proxy.status())
        await until(lambda: world.sandbox.api_requests == 1, "the request is in flight")
        async with proxy.client.post(f"{proxy.admin_url}/shutdown", headers=ACTION) as answer:
            assert answer.status == 202
        assert await proxy.end(signal.SIGTERM) == 0
        assert await call == 200


async def test_readiness_changes_before_the_end(world: World) -> None:
    """Load balancers learn of it first; the admin listener answers until the last request is done."""
    await world.log_in()
    world.sandbox.inject("api", Fault("slow", delay_s=1.5))
    async with world.serve() as proxy:
        call = asyncio.create_task(proxy.status())
        await until(lambda: world.sandbox.api_requests == 1, "the request is in flight")
        proxy.process.send_signal(signal.SIGTERM)

        async def flipped() -> bool:
            return await proxy.ready() == 503

        await until(flipped, "it is not ready any more")
        # Else the log is silent for as long as the last request takes.
        assert [event["requests"] for event in proxy.events("proxy.stopping")] == [1]
        assert await call == 200
        assert await asyncio.to_thread(proxy.process.wait) == 0


async def test_sighup_reloads_the_file_and_reports_mistakes(world: World) -> None:
    """A wrong configuration is refused as a whole, in the log and to the caller."""
    await world.log_in()
    async with world.serve() as proxy:
        world.write_config(access={"keys": ["sesame"]})
        proxy.process.send_signal(signal.SIGHUP)
        await until(lambda: bool(proxy.events("config.reloaded")), "it has reloaded")
        assert proxy.events("config.reloaded")[0]["changed"] == ["access.keys"]
        assert await proxy.status() == 401
        assert await proxy.status(headers={"X-Cfproxy-Key": "sesame"}) == 200
        world.write_config(access={"keys": ["marker-secret"]}, timeouts={"idle": "soon"})
        proxy.process.send_signal(signal.SIGHUP)
        await until(lambda: bool(proxy.events("config.refused")), "it has refused")
        assert "timeouts.idle" in proxy.events("config.refused")[0]["reason"]
        assert await proxy.status(headers={"X-Cfproxy-Key": "sesame"}) == 200
        headers = ACTION | {"X-Cfproxy-Key": "sesame"}
        async with proxy.client.post(f"{proxy.admin_url}/reload", headers=headers) as answer:
            assert answer.status == 500
            text = await answer.text()
        assert "timeouts.idle" in text
        assert "marker-secret" not in text + proxy.log()


async def test_a_rotated_secret_is_used_without_a_signal(world: World) -> None:
    """At once where the token endpoint asks for it, and in the settings after the next looks at the file."""
    place, rotated = world.folder / "secret", f"client-secret-{secrets.token_hex(16)}"
    LEDGER.add_secret(rotated, "the rotated client secret")
    place.write_text(world.sandbox.behaviour.client_secret)
    world.write_config(client_secret={"file": "secret"}, reload="auto")
    await world.log_in()
    async with world.serve() as proxy:
        assert await proxy.status() == 200
        world.sandbox.behaviour.client_secret = rotated
        place.write_text(rotated)
        world.sandbox.revoke_access_tokens()
        assert await proxy.status() == 200
        await until(lambda: bool(proxy.events("config.reloaded")), "it has reloaded")
        assert [event["changed"] for event in proxy.events("config.reloaded")] == [["client_secret"]]
        assert await proxy.status() == 200


async def test_reloads_of_a_busy_process_fail_no_request(world: World) -> None:
    """Signals and POSTs with changes under load: every request is answered."""
    await world.log_in()
    statuses: list[int] = []
    done = asyncio.Event()
    async with world.serve() as proxy:

        async def caller() -> None:
            while not done.is_set():
                statuses.append(await proxy.status())

        callers = [asyncio.create_task(caller()) for _ in range(8)]
        for turn in range(30):
            world.write_config(timeouts={"connect": f"{5 + turn % 2}s"})
            if turn % 2:
                proxy.process.send_signal(signal.SIGHUP)
            async with proxy.client.post(f"{proxy.admin_url}/reload", headers=ACTION) as answer:
                assert answer.status == 200
        done.set()
        await asyncio.gather(*callers)
    assert set(statuses) == {200}
    assert len(statuses) > 30


async def test_the_service_managers_sockets_are_used_and_states_reported(world: World) -> None:
    """As with systemd: sockets from number 3 on, and a datagram socket for the states."""
    await world.log_in()
    with socket.socket() as listening, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        manager.bind(str(world.folder / "notify"))
        manager.setblocking(False)
        world.environment |= {
            "NOTIFY_SOCKET": str(world.folder / "notify"),
            "WATCHDOG_USEC": "200000",
            "LISTEN_FDS": "1",
            "LISTEN_FDNAMES": "default",
        }
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); "
            "os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.argv[2], sys.argv[2:])"
        )
        with (world.folder / "managed.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", script, str(listening.fileno()), *world.command("serve")],
                cwd=world.folder,
                env=world.full_environment(),
                pass_fds=[listening.fileno()],
                stderr=log,
            )
        try:
            said = hearing(manager)
            assert await said("READY=1")
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            async with aiohttp.ClientSession() as client, client.get(f"{url}/v1/jobs") as answer:
                assert answer.status == 200
            assert await said("WATCHDOG=1")
            process.send_signal(signal.SIGHUP)
            assert await said("RELOADING=1\nMONOTONIC_USEC=")
            assert await said("READY=1")
            process.send_signal(signal.SIGTERM)
            assert await said("STOPPING=1")
            assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0
        finally:
            process.kill()
            process.wait()


def hearing(manager: socket.socket) -> Callable[[str], Awaitable[bool]]:
    """Return a function that waits for a message with that prefix and ignores others."""

    async def said(beginning: str) -> bool:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if (await loop.sock_recv(manager, 256)).decode().startswith(beginning):
                    return True

    return said
