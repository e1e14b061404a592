"""Commands that serve, while nobody reads their output."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator

import aiohttp
import pytest

from tests.e2e.kit import World, until
from tests.e2e.processes import PATIENCE_S

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and signals as POSIX has them")


def free_ports() -> list[int]:
    """Return two ports that are free now."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return [one.getsockname()[1], other.getsockname()[1]]


@contextlib.contextmanager
def unread_pipe(*, full: bool) -> Iterator[int]:
    """Return the writing end of a pipe that stays open and is not read."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while full:
            os.write(writing, b"x" * 1024)
    os.set_blocking(writing, True)
    yield writing
    os.close(reading)
    os.close(writing)


async def end(process: subprocess.Popen[bytes]) -> int:
    """Stop it as a service manager does; return its exit code."""
    process.send_signal(signal.SIGTERM)
    return await asyncio.to_thread(process.wait, PATIENCE_S)


async def test_a_log_that_nobody_reads_stops_nothing(world: World) -> None:
    """Requests, health checks and the shutdown work, and the lost lines are counted."""
    await world.log_in()
    listen, admin = (f"127.0.0.1:{port}" for port in free_ports())
    world.write_config(listen=listen, admin=admin)
    with unread_pipe(full=False) as sink:
        process = world.popen("serve", stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
        try:
            async with aiohttp.ClientSession() as client:

                async def status(url: str) -> int:
                    try:
                        async with client.get(url, timeout=aiohttp.ClientTimeout(PATIENCE_S)) as answer:
                            return answer.status
                    except aiohttp.ClientConnectionError:
                        return 0

                async def ready() -> bool:
                    return await status(f"http://{admin}/readyz") == 200

                async def metric() -> bool:
                    async with client.get(f"http://{admin}/metrics") as answer:
                        return "cfproxy_log_lines_dropped_total 0.0" not in await answer.text()

                await until(ready, "the proxy starts")
                for _ in range(1000):  # each line has its path, so they are too much for the buffer
                    assert await status(f"http://{listen}/v1/jobs/{'x' * 700}") == 400
                await until(metric, "lines are dropped")
                assert await status(f"http://{admin}/livez") == 200
            assert await end(process) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("command", ["demo", "sandbox"])
async def test_consoles_that_nobody_reads_stop_nothing(world: World, command: str) -> None:
    """Even if they are full from the start."""
    port, _ = free_ports()
    path = {"demo": "/v1/jobs", "sandbox": "/_sandbox/state"}[command]
    with unread_pipe(full=True) as sink:
        process = world.popen(command, "--listen", f"localhost:{port}", stdout=sink, stderr=sink)
        try:
            async with aiohttp.ClientSession() as client:

                async def serves() -> bool:
                    try:
                        async with client.get(f"http://127.0.0.1:{port}{path}") as answer:
                            return answer.status == 200
                    except aiohttp.ClientConnectionError:
                        return False

                await until(serves, f"the {command} serves")
            assert await end(process) == 0
        finally:
            process.kill()
