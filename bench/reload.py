"""What reloading costs the callers: 1,000 reloads of the real process under load, and no request may fail.

Runs the sandbox in this process and `cfproxy serve` as one of its own. Callers with kept connections, and
one that opens a new connection for each request, go on while `POST /reload` is sent again and again, each
time with another configuration: timeouts, access rules, pacing, a secret written anew, an account that comes
and goes. Prints how many requests were answered and how long a reload took. Exits 1 when any failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from cfproxy.sandbox import Behaviour
from cfproxy.sandbox import Sandbox

ACTION = {"X-Cfproxy-Admin": "1"}


def settings(sandbox: Sandbox, folder: Path, turn: int) -> dict[str, object]:
    """Return the configuration of one turn, unlike the one before."""
    accounts = {"acme": {"listen": f"unix:{folder}/acme.sock"}} if turn % 4 == 0 else {}
    return {
        "client_id": sandbox.behaviour.client_id,
        "client_secret": {"file": str(folder / "secret")},
        "grant": "client_credentials",
        "upstream": sandbox.url,
        "token_url": f"{sandbox.url}/connect/token",
        "listen": f"unix:{folder}/proxy.sock",
        "admin": "127.0.0.1:0",
        "store": "memory",
        "pacing": {"rate": "off" if turn % 2 else 99_999},
        "timeouts": {"connect": f"{5 + turn % 3}s"},
        "access": {"methods": ["GET"] if turn % 2 else []},
        "log": {"format": "json", "level": "info" if turn % 2 else "warning"},
        "accounts": accounts,
    }


def write(path: Path, text: str) -> None:
    """Replace a file as a whole, as whoever deploys a configuration should."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


async def started(log: Path) -> str:
    """Return where the admin listener is, once it is there."""
    while True:
        for line in log.read_text().splitlines():
            if line.startswith("{") and json.loads(line)["event"] == "admin.started":
                return f"http://{json.loads(line)['listen']}"
        await asyncio.sleep(0.05)


async def call_on(path: str, results: list[object], done: asyncio.Event, *, kept: bool) -> None:
    """Call until `done`; note each status, or what went wrong."""
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path, force_close=not kept)) as client:
        while not done.is_set():
            try:
                async with client.get("http://localhost/v1/jobs?pageSize=1") as answer:
                    await answer.read()
                    results.append(answer.status)
            except (aiohttp.ClientError, OSError) as error:
                results.append(repr(error))


async def measure(reloads: int, callers: int) -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with Sandbox(Behaviour(limiter="off")) as sandbox, aiohttp.ClientSession() as client:
            write(folder / "secret", sandbox.behaviour.client_secret)
            write(folder / "config.yaml", json.dumps(settings(sandbox, folder, 1)))
            environ = {k: v for k, v in os.environ.items() if not k.startswith("CFPROXY_")}
            with (folder / "log").open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "cfproxy", "serve", "-c", str(folder / "config.yaml")],
                    stderr=log,
                    env=environ,
                )
            done = asyncio.Event()
            try:
                admin = await started(folder / "log")
                results: list[object] = []
                path = f"{folder}/proxy.sock"
                calling = [
                    asyncio.create_task(call_on(path, results, done, kept=index > 0))
                    for index in range(callers)
                ]
                took = []
                for turn in range(reloads):
                    write(folder / "config.yaml", json.dumps(settings(sandbox, folder, turn)))
                    write(folder / "secret", sandbox.behaviour.client_secret + "\n" * (turn % 2))
                    begun = time.perf_counter()
                    async with client.post(f"{admin}/reload", headers=ACTION) as answer:
                        assert answer.status == 200, await answer.text()
                    took.append(time.perf_counter() - begun)
                done.set()
                await asyncio.gather(*calling)
                failed = [result for result in results if result != 200]
                print(
                    f"{reloads} reloads under {callers} callers: {len(results)} requests, {len(failed)} failed; "
                    f"a reload took {statistics.median(took) * 1000:.0f} ms (median), "
                    f"{max(took) * 1000:.0f} ms (longest)"
                )
                for result in failed[:10]:
                    print(" ", result)
                return 1 if failed else 0
            finally:
                done.set()
                process.terminate()
                process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reloads", type=int, default=1000)
    parser.add_argument("--callers", type=int, default=16)
    options = parser.parse_args()
    sys.exit(asyncio.run(measure(options.reloads, options.callers)))
