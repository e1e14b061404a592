"""The sandbox and the proxy as processes of their own, with or without a slow line in between.

Owns: starting and ending them, and what each tells at its end: when every call came, what the log says.
Must not know: which load is put on them.

Run as a script it is the first of these processes: the sandbox, and a relay before it that delays every piece
by a random time and keeps their order. It prints both addresses, and what came when its standard input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from cfproxy.cli.run import run_loop
from cfproxy.sandbox import Behaviour
from cfproxy.sandbox import Sandbox

START_S = 20.0
REPLY_LINE_BYTES = 64 * 1024**2  # a hundred thousand instants
_CREDENTIALS = {"client_id": Behaviour().client_id, "client_secret": Behaviour().client_secret}


@dataclass
class World:
    """Addresses and process ids while it lives; what was seen, once it is over.

    Args:
        upstream: the API's address, behind the slow line if there is one.
        proxy: cfproxy's address; empty without one.
        admin: that of its admin listener.
        proxy_pid: its process.
        token: an access token for whoever calls the API without cfproxy.
        arrivals_at: wall-clock instants at which calls came to the sandbox.
        statuses: how it answered them.
        log: cfproxy's request lines.
    """

    upstream: str
    proxy: str = ""
    admin: str = ""
    proxy_pid: int = 0
    token: str = ""
    arrivals_at: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)


@contextlib.asynccontextmanager
async def open_world(
    limiter: str,
    delay_s: float = 0.0,
    *,
    proxy: bool,
    admin: bool = False,
    settings: dict[str, str] | None = None,
) -> AsyncIterator[World]:
    """Start a sandbox and, if asked for, cfproxy before it.

    Args:
        limiter: how the sandbox counts: `fixed`, `sliding` or `off`.
        delay_s: the longest time that the line holds a piece back, in each direction.
        proxy: whether cfproxy stands before it.
        admin: whether that has an admin listener.
        settings: more of cfproxy's environment.
    """
    origin = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        limiter,
        str(delay_s),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=REPLY_LINE_BYTES,
    )
    assert origin.stdin is not None
    assert origin.stdout is not None
    try:
        addresses = json.loads(await origin.stdout.readline())
        world = World(addresses["line"], token=await _fetch_token(addresses["sandbox"]))
        with tempfile.TemporaryDirectory() as folder:
            if proxy:
                async with _open_proxy(world, Path(folder), addresses["sandbox"], admin, settings or {}):
                    yield world
                world.log = _read_log(Path(folder, "log"))
            else:
                yield world
        origin.stdin.close()
        seen = json.loads(await origin.stdout.readline())
        world.arrivals_at = seen["arrivals_at"]
        world.statuses = {int(status): count for status, count in seen["statuses"].items()}
    finally:
        if origin.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                origin.kill()
        await origin.wait()


@contextlib.asynccontextmanager
async def _open_proxy(
    world: World, folder: Path, sandbox: str, admin: bool, settings: dict[str, str]
) -> AsyncIterator[None]:
    port, admin_port = await _free_port(), await _free_port()
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("CFPROXY_")},
        "CFPROXY_GRANT": "client_credentials",
        **{f"CFPROXY_{name.upper()}": value for name, value in _CREDENTIALS.items()},
        "CFPROXY_TOKEN_URL": f"{sandbox}/connect/token",
        "CFPROXY_UPSTREAM": world.upstream,
        "CFPROXY_LISTEN": f"127.0.0.1:{port}",
        "CFPROXY_ADMIN": f"127.0.0.1:{admin_port}" if admin else "off",
        "CFPROXY_STORE": f"file:{folder / 'state'}",
        "CFPROXY_LOG__FORMAT": "json",
        **settings,
    }
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cfproxy", "serve", env=environ, cwd=folder, stdout=log, stderr=log
        )
    try:
        await _wait_for(port, process, folder / "log")
        world.proxy, world.proxy_pid = f"http://127.0.0.1:{port}", process.pid
        world.admin = f"http://127.0.0.1:{admin_port}"
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def count_waiting(world: World) -> int:
    """Return how many requests wait for their turn, as cfproxy says."""
    async with aiohttp.ClientSession() as session, session.get(f"{world.admin}/status.json") as answer:
        (told,) = (await answer.json())["pacing"].values()
        waiting: int = told["waiting"]
        return waiting


async def _fetch_token(sandbox: str) -> str:
    form = {"grant_type": "client_credentials", "scope": "cfgateway", **_CREDENTIALS}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{sandbox}/connect/token", data=form) as answer,
    ):
        token: str = (await answer.json())["access_token"]
        return token


async def _free_port() -> int:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


async def _wait_for(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(START_S):
        while True:
            if process.returncode is not None:
                raise RuntimeError(f"cfproxy did not start: {log.read_text(encoding='utf-8')}")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


def _read_log(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [event for line in lines if line.startswith("{") and "status" in (event := json.loads(line))]


async def _serve_origin(limiter: str, delay_s: float) -> None:
    behaviour = Behaviour()
    behaviour.update({"limiter": limiter})
    async with Sandbox(behaviour) as sandbox:
        target = int(sandbox.url.rpartition(":")[2])

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
            up, down = _relay(reader, far_writer, delay_s), _relay(far_reader, writer, delay_s)
            await asyncio.gather(up, down)

        line = sandbox.url
        if delay_s:
            relay = await asyncio.start_server(connect, "127.0.0.1", 0, backlog=4096)
            line = f"http://127.0.0.1:{relay.sockets[0].getsockname()[1]}"
        print(json.dumps({"sandbox": sandbox.url, "line": line}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        print(
            json.dumps(
                {"arrivals_at": list(sandbox.journal.api_arrivals), "statuses": sandbox.journal.api_statuses}
            ),
            flush=True,
        )


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65536):
            await asyncio.sleep(random.uniform(0.0, delay_s))
            writer.write(piece)
    writer.close()


if __name__ == "__main__":
    run_loop(_serve_origin(sys.argv[1], float(sys.argv[2])))
