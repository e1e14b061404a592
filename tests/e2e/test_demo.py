"""The commands `demo` and `sandbox`."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys

import pytest

from cfproxy.cli.demo import _free_port
from tests.e2e.kit import World, until
from tests.e2e.processes import PATIENCE_S


@pytest.mark.skipif(sys.platform == "win32", reason="its shell reads the quotes of the lines otherwise")
async def test_the_lines_that_the_demo_prints_work(world: World) -> None:
    """Each curl line that `cfproxy demo` prints gets 200 and JSON, unchanged."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    out = world.folder / "demo.out"
    with out.open("wb") as sink:
        process = world.popen("demo", "--listen", "127.0.0.1:0", stdout=sink, stderr=sink)
    try:
        await until(lambda: b"Status page: " in out.read_bytes(), "the demo runs")
        lines = [line.strip() for line in out.read_text().splitlines() if line.startswith("  curl ")]
        assert len(lines) == 3
        for line in lines:
            answer = await asyncio.to_thread(
                subprocess.run,
                ["sh", "-c", f"{line} -sS --noproxy '*' -w '\\n%{{http_code}}'"],
                check=True,
                capture_output=True,
                timeout=PATIENCE_S,
            )
            body, _, status = answer.stdout.rpartition(b"\n")
            assert status == b"200", answer
            assert json.loads(body)
    finally:
        process.terminate()
        code = await asyncio.to_thread(process.wait, PATIENCE_S)
    assert code == 0
    assert "Traceback" not in out.read_text()
    assert not list(world.folder.glob("**/default.json")), "the demo leaves nothing on disk"


async def test_the_sandbox_command_prints_a_configuration_that_works(world: World) -> None:
    """The output of `cfproxy sandbox` works as a configuration file."""
    out = world.folder / "sandbox.out"
    with out.open("wb") as sink:
        process = world.popen("sandbox", "--listen", "127.0.0.1:0", "--set", "limiter=off", stdout=sink)
    try:
        await until(lambda: b"upstream: " in out.read_bytes(), "the sandbox runs")
        lines = [
            line.strip().partition(": ") for line in out.read_text().splitlines() if line.startswith("  ")
        ]
        printed = {name: value.partition(",")[0] for name, _, value in lines}
        assert set(printed) <= set(world.settings), "every line is a key"
        world.write_config(**printed)
        await world.log_in()
        async with world.serve() as proxy:
            assert await proxy.status() == 200
        assert world.sandbox.api_requests == 0, "it was the command's sandbox that answered"
    finally:
        process.terminate()
        assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_demo_avoids_a_port_that_one_loopback_has(host: str) -> None:
    """It listens on both, so another program on either is in its way."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        theirs = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip("this machine has no such loopback")
    with theirs:
        port = theirs.getsockname()[1]
        assert _free_port("localhost", port) == 0
    assert _free_port("localhost", port) == port
