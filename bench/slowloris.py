"""What other clients notice of 2,000 connections that send as little as possible, and what memory they take.

Starts a raw origin, the real `cfproxy serve` and the attackers as processes of their own. Calm and attacked
rounds take turns; in each, 200 requests a second leave at fixed instants on 20 connections of honest clients,
and their latency counts from those instants. Attackers come in four kinds: a head that comes byte by byte, one
that does so after its first 60 KB, a body that does, and a connection that says nothing after its first
request; whoever is cut off comes back at once.
Prints a line for each round and a summary. Exits 1 when an honest request was not answered, or when the proxy
grew by 64 MiB or more. Linux only (/proc).
"""

from __future__ import annotations

import asyncio
import contextlib
import resource  # noqa: PLC0415 - not on Windows
import statistics
import sys
import tempfile
import time
from pathlib import Path

from memory import peak_bytes, read_head, reset_peak, start_proxy

from cfproxy.sandbox import Sandbox

ATTACKERS = 2_000
KINDS = ("head", "fat", "body", "idle")
ROUNDS = 3
RATE_PER_S = 200
CLIENTS = 20
ROUND_S = 8.0
SETTLE_S = 3.0  # for the attackers to be there, and over the age at which heads may be ended
DRIP_S = 1.0
LIMIT_BYTES = 64 * 1024**2


def raise_open_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# --- the attackers: a process of their own, which tells how often they were cut off ---------


async def attack(port: int, kind: str) -> None:
    raise_open_files()
    cut = 0
    connected = 0
    host = b"Host: 127.0.0.1:%d\r\n" % port
    first = {
        "head": b"GET /v1/x HTTP/1.1\r\n" + host,
        "fat": b"GET /v1/x HTTP/1.1\r\n" + host + (b"X-A: " + b"a" * 30_000 + b"\r\n") * 2,
        "body": b"POST /v1/x HTTP/1.1\r\n" + host + b"Content-Length: 1000000\r\n\r\n",
        "idle": b"GET /v1/small HTTP/1.1\r\n" + host + b"\r\n",
    }[kind]

    async def one(number: int) -> None:
        nonlocal cut, connected
        await asyncio.sleep(number / ATTACKERS * DRIP_S)
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                connected += 1
                writer.write(first)
                drip = b"X-%d: a\r\n" % number
                position = 0
                while True:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(DRIP_S):
                            if not await reader.read(65536):
                                break
                            await asyncio.sleep(DRIP_S)
                    if kind != "idle":
                        writer.write(drip[position : position + 1])
                        position = (position + 1) % len(drip)
                writer.close()
            except OSError:
                await asyncio.sleep(0.01)
            cut += 1

    tasks = [asyncio.create_task(one(number)) for number in range(ATTACKERS)]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in tasks:
        task.cancel()
    print(f"{connected} {cut}")


@contextlib.asynccontextmanager
async def attacked_by(kind: str | None, port: int, told: list[str]):
    if kind is None:
        yield
        return
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, kind, str(port), stdin=pipe, stdout=pipe
    )
    try:
        await asyncio.sleep(SETTLE_S)
        yield
    finally:
        out, _ = await process.communicate(b"")
        told.append(out.decode().strip())


# --- the honest clients ---------------------------------------------------------------------


async def ask_steadily(port: int) -> tuple[list[float], int]:
    """Return the latencies in milliseconds, and how many requests were not answered with 200."""
    request = b"GET /v1/small HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port
    latencies: list[float] = []
    failed = 0
    begins_at = time.perf_counter() + 0.1

    async def client(number: int) -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for turn in range(int(ROUND_S * RATE_PER_S / CLIENTS)):
            due_at = begins_at + (turn * CLIENTS + number) / RATE_PER_S
            await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
            try:
                writer.write(request)
                async with asyncio.timeout(10):
                    head = await read_head(reader)
                    await reader.readexactly(2)
                if b" 200 " not in head[:20]:
                    raise ConnectionError(head[:20])
                latencies.append((time.perf_counter() - due_at) * 1000)
            except (OSError, EOFError, TimeoutError):
                failed += 1
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return latencies, failed


async def answer_small(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer two bytes; a body is read as it comes."""
    with contextlib.suppress(ConnectionError):  # the proxy gives up what its client gave up
        while head := await read_head(reader):
            if head.startswith(b"POST"):
                while await reader.read(65536):
                    pass
                break
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
    writer.close()


async def serve_origin() -> None:
    raise_open_files()
    server = await asyncio.start_server(answer_small, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


@contextlib.asynccontextmanager
async def origin_process():
    """Run the origin, so that what comes of the attack there is not in the honest clients' figures."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "origin", stdin=pipe, stdout=pipe
    )
    try:
        yield int(await process.stdout.readline())
    finally:
        await process.communicate(b"")


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def measure(port: int, pid: int) -> int:
    worst_growth = all_failed = 0
    figures: dict[str, list[float]] = {}
    baseline = peak_bytes(pid)
    for number in range(ROUNDS):
        for kind in (None, *KINDS):
            told: list[str] = []
            reset_peak(pid)
            async with attacked_by(kind, port, told):
                latencies, failed = await ask_steadily(port)
            grown = peak_bytes(pid) - baseline
            worst_growth, all_failed = max(worst_growth, grown), all_failed + failed
            name = kind or "calm"
            p50, p99 = percentile(latencies, 0.5), percentile(latencies, 0.99)
            figures.setdefault(f"{name} p50", []).append(p50)
            figures.setdefault(f"{name} p99", []).append(p99)
            print(
                f"round {number + 1} {name:5}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {max(latencies):.1f} ms, "
                f"{failed} failed, grown {grown / 2**20:.1f} MiB"
                + (f", attackers connected and were cut off: {told[0]}" if told else ""),
                flush=True,
            )
            await asyncio.sleep(1)
    for name, values in figures.items():
        calm = statistics.median(figures[f"calm {name.split()[1]}"])
        print(
            f"median {name}: {statistics.median(values):.2f} ms, {statistics.median(values) / calm:.2f} of calm"
        )
    print(
        f"most memory beyond {baseline / 2**20:.1f} MiB: {worst_growth / 2**20:.1f} MiB; {all_failed} failed"
    )
    return int(all_failed > 0 or worst_growth >= LIMIT_BYTES)


async def main() -> int:
    raise_open_files()
    async with Sandbox() as sandbox, origin_process() as origin_port:
        with tempfile.TemporaryDirectory() as folder:
            process, port = await start_proxy(Path(folder), sandbox, origin_port, CFPROXY_PACING__RATE="off")
            try:
                return await measure(port, process.pid)
            finally:
                process.terminate()
                await process.wait()


if __name__ == "__main__":
    if sys.argv[1:] == ["origin"]:
        asyncio.run(serve_origin())
    elif len(sys.argv) == 3:
        asyncio.run(attack(int(sys.argv[2]), sys.argv[1]))
    else:
        sys.exit(asyncio.run(main()))
