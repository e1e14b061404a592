"""What a request's log line costs: by itself, and in processor time per request of the real process.

By itself: a line written to a file, and a line that the sample leaves out. In the process: a raw origin here
and one `cfproxy serve` for each setting; the same requests go to them in turn, and /proc tells what each
process used (Linux only). The best rounds count, since a busy machine only adds. Ratios are told against no
line at all; they travel between machines, the microseconds do not. Exits 1 when the line costs more than half
of what a request costs without it: then something is wrong with it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

from cfproxy.observability.logs import LogOutput
from cfproxy.sandbox import Sandbox

RATIO_MAX = 1.5
SETTINGS = {
    "no line": {"level": "warning"},
    "1 in 100": {"level": "info", "sample": 0.01},
    "every line": {"level": "info"},
}
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000
CONNECTIONS = 8
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request alike."""
    try:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ANSWER)
    except (asyncio.IncompleteReadError, OSError):
        writer.close()


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used (proc(5), /proc/pid/stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def start(folder: Path, name: str, sandbox: Sandbox, origin: int) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a proxy that logs as `name` says, into a file."""
    place = folder / name.replace(" ", "-")
    place.mkdir()
    settings = {
        "client_id": sandbox.behaviour.client_id,
        "client_secret": sandbox.behaviour.client_secret,
        "grant": "client_credentials",
        "token_url": f"{sandbox.url}/connect/token",
        "upstream": f"http://127.0.0.1:{origin}",
        "listen": f"unix:{place}/sock",
        "admin": "off",
        "store": "memory",
        "pacing": {"rate": "off"},
        "log": {"format": "json", **SETTINGS[name]},
    }
    (place / "config.yaml").write_text(json.dumps(settings))
    with (place / "log").open("wb") as log:
        command = [sys.executable, "-m", "cfproxy", "serve", "-c", str(place / "config.yaml")]
        return subprocess.Popen(command, stderr=log), place


async def call(place: Path, count: int) -> None:
    """Send `count` requests, one after the other, on a connection of their own."""
    reader, writer = await asyncio.open_unix_connection(place / "sock")
    for _ in range(count):
        writer.write(b"GET /v1/jobs?pageSize=10 HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.partition(b"\r\n")[0], head
        await reader.readexactly(1000)
    writer.close()


async def listening(place: Path) -> None:
    while not (place / "sock").exists():
        await asyncio.sleep(0.05)


async def measure(rounds: int, requests: int) -> int:
    used: dict[str, list[float]] = {name: [] for name in SETTINGS}
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as name:
        async with Sandbox() as sandbox, server:
            try:
                proxies = {}
                for each in SETTINGS:
                    process, place = start(Path(name), each, sandbox, server.sockets[0].getsockname()[1])
                    processes.append(process)
                    proxies[each] = (process, place)
                    await listening(place)
                    await call(place, 500)
                for _ in range(rounds):
                    for each, (process, place) in proxies.items():
                        before = cpu_s(process.pid)
                        share = requests // CONNECTIONS
                        await asyncio.gather(*(call(place, share) for _ in range(CONNECTIONS)))
                        used[each].append((cpu_s(process.pid) - before) / (share * CONNECTIONS))
                lines = {
                    each: (place / "log").read_text().count("\n") for each, (_, place) in proxies.items()
                }
            finally:
                for process in processes:
                    process.terminate()
                for process in processes:
                    process.wait()
    least = min(used["no line"])
    for each, seconds in used.items():
        best = min(seconds)
        print(
            f"{each:>12}: {best * 1e6:6.1f} us a request, {best / least:.2f} of no line ({lines[each]} lines)"
        )
    return 1 if min(used["every line"]) > RATIO_MAX * least else 0


def line_alone() -> None:
    """Print what a line costs by itself, written and left out."""
    with tempfile.TemporaryFile("w") as stream:
        log = LogOutput("info", "json", 1.0, stream).log.bind(account="default")
        fields = {"method": "GET", "path": "/v1/jobs", "status": 200, "bytes": 1000, "ms": 12.3}

        def written() -> None:
            log.info("request.forwarded", request_id="0fbd3d8a-27", **fields)

        left_out = LogOutput("info", "json", 0.0, stream).keeps_request
        for name, work in (("left out", left_out), ("written", written)):
            LogOutput("info", "json", 1.0, stream)
            best = min(timeit.repeat(work, number=10_000, repeat=9)) / 10_000
            print(f"{name:>12}: {best * 1e6:6.2f} us a line")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    line_alone()
    sys.exit(asyncio.run(measure(options.rounds, options.requests)))
