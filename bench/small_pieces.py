"""What four connections that send small pieces cost everybody else: median latency as a ratio.

Starts a raw origin, the real `cfproxy serve` and the attackers as processes of their own. Calm and attacked
rounds take turns; in each, honest clients send 100 requests a second at fixed instants, and their latency
counts from those instants. The attackers send as fast as they can whatever comes in small pieces (see `KINDS`)
and come back when they are cut off. Prints a line for each kind, and exits 1 if a median beside an attack is
`RATIO_MAX` times the calm one, or an honest request failed. Linux only (/proc).

    python bench/small_pieces.py [KIND ...]
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from memory import read_head, start_proxy

from cfproxy.sandbox import Sandbox

ATTACKERS = 4
ROUNDS = 2
ROUND_S = 3.0
RATE_PER_S = 100
CLIENTS = 10
RATIO_MAX = 10.0
BLOB = 64 * 1024

CHUNKS = b"1\r\nx\r\n"
POST = b"POST /v1/swallow HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
MANY = b"".join(b"a%d:\r\n" % number for number in range(120))

# What is sent once on each connection, and what is repeated as often as it can be sent.
KINDS = {
    "chunks": (POST, CHUNKS),
    "larger chunks": (POST, b"14\r\n" + b"x" * 20 + b"\r\n"),
    "extensions": (POST, b"1;" + b"e" * 1000 + b"\r\nx\r\n"),
    "short extensions": (POST, b"40;" + b"e" * 60 + b"\r\n" + b"x" * 64 + b"\r\n"),
    "trailers": (b"", POST + b"0\r\n" + b"a:\r\n" * 120 + b"\r\n"),
    "short bodies": (b"", POST + b"1\r\nx\r\n0\r\n\r\n"),
    "headers": (b"", b"GET /v1/small HTTP/1.1\r\nHost: %b\r\n" + MANY + b"\r\n"),
    "connection names": (
        b"",
        b"GET /v1/small HTTP/1.1\r\nHost: %b\r\nConnection: "
        + b",".join(b"a%d" % n for n in range(5000))
        + b"\r\n\r\n",
    ),
    "pipelined": (b"", b"GET /v1/small HTTP/1.1\r\nHost: %b\r\n\r\n"),
    "pipelined and refused": (b"", b"GET /v1/small HTTP/1.1\r\nHost: elsewhere\r\n\r\n"),
    "empty lines": (b"", b"\r\n"),
    "a long head": (b"GET /v1/small HTTP/1.1\r\n", b"a:\r\n"),
    "segments": (b"POST /v1/swallow HTTP/1.1\r\nHost: %b\r\nContent-Length: 999999999999\r\n\r\n", b""),
    "segments of a head": (b"GET /v1/small HTTP/1.1\r\nHost: %b\r\nX-A: ", b""),
    "answer: segments": (b"", b"GET /v1/segments HTTP/1.1\r\nHost: %b\r\n\r\n"),
    "answer: headers": (b"", b"GET /v1/headers HTTP/1.1\r\nHost: %b\r\n\r\n"),
    "answer: chunks": (b"", b"GET /v1/chunks HTTP/1.1\r\nHost: %b\r\n\r\n"),
    "answer: extensions": (b"", b"GET /v1/extensions HTTP/1.1\r\nHost: %b\r\n\r\n"),
    "answer: trailers": (b"", b"GET /v1/trailers HTTP/1.1\r\nHost: %b\r\n\r\n"),
    "answer: interim": (b"", b"GET /v1/interim HTTP/1.1\r\nHost: %b\r\n\r\n"),
}
ANSWERS = {
    b"/v1/chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNKS, b""),
    b"/v1/extensions": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        KINDS["extensions"][1],
        b"",
    ),
    b"/v1/trailers": (
        b"",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a:\r\n" * 120 + b"\r\n",
        b"once",
    ),
    b"/v1/segments": (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", b"", b"segments"),
    b"/v1/headers": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + b"".join(b"a%d:\r\n" % n for n in range(900)) + b"\r\n",
        b"",
        b"once",
    ),
    b"/v1/interim": (b"HTTP/1.1 102 A\r\n\r\n" * 3000 + b"HTTP/1.1 204 B\r\n\r\n", b"", b"once"),
}


# --- the attackers ------------------------------------------------------------------------


def attack(port: int, kind: str) -> None:
    """Attack until standard input ends; print how often the proxy has ended a connection."""
    host = b"localhost:%d" % port
    once, again = (part.replace(b"%b", host) for part in KINDS[kind])
    cut = 0

    def run() -> None:
        nonlocal cut
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as sock:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=swallow, args=(sock,), daemon=True).start()
                if kind.startswith("answer"):
                    while True:
                        sock.sendall(again)
                        time.sleep(0.05)
                sock.sendall(once)
                blob = again * (BLOB // len(again) + 1) if again else b"x"
                while True:
                    sock.sendall(blob)
            cut += 1

    for _ in range(ATTACKERS):
        threading.Thread(target=run, daemon=True).start()
    sys.stdin.read()
    print(cut, flush=True)
    os._exit(0)


def swallow(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(1 << 18):
            pass


# --- the origin ---------------------------------------------------------------------------


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while head := await read_head(reader):
            target = head.split(b" ")[1]
            if target == b"/v1/swallow":
                tail = b""
                while tail != b"\r\n\r\n" and (piece := await reader.read(BLOB)):
                    tail = (tail + piece)[-4:]
            if target not in ANSWERS:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                continue
            once, again, end = ANSWERS[target]
            writer.write(once + again)
            while end == b"segments" and not writer.transport.is_closing():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0)
            while not end:
                writer.write(again * (BLOB // len(again)))
                await writer.drain()
    writer.close()


def serve_origin() -> None:
    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=1 << 20)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run())


# --- the honest clients -------------------------------------------------------------------


async def ask_steadily(port: int) -> tuple[list[float], int]:
    """Return latencies in milliseconds, and how many requests failed."""
    request = b"GET /v1/small HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port
    latencies: list[float] = []
    failed = 0
    begins_at = time.perf_counter() + 0.1

    async def client(number: int) -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for turn in itertools.count():
            due_at = begins_at + (turn * CLIENTS + number) / RATE_PER_S
            if due_at > begins_at + ROUND_S:
                break
            await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
            writer.write(request)
            try:
                async with asyncio.timeout(30):
                    head = await read_head(reader)
                    await reader.readexactly(2)
                failed += b" 200 " not in head[:20]
            except (OSError, EOFError, TimeoutError):
                failed += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            latencies.append((time.perf_counter() - due_at) * 1000)
        writer.close()

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return latencies, failed


async def start(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, __file__, *arguments, stdin=pipe, stdout=pipe)


async def measure(kind: str, port: int) -> bool:
    """Measure one kind and print the result; return whether it is good."""
    calm: list[float] = []
    beset: list[float] = []
    failed, cut = 0, []
    for _ in range(ROUNDS):
        latencies, lost = await ask_steadily(port)
        calm += latencies
        failed += lost
        attackers = await start("attack", str(port), kind)
        await asyncio.sleep(1.0)
        latencies, lost = await ask_steadily(port)
        beset += latencies
        failed += lost
        out, _ = await attackers.communicate(b"")
        cut.append(int(out))
        await asyncio.sleep(0.5)
    ratio = statistics.median(beset) / statistics.median(calm)
    p99 = [sorted(each)[int(len(each) * 0.99)] for each in (calm, beset)]
    print(
        f"{kind:22} median {statistics.median(calm):6.2f} -> {statistics.median(beset):8.2f} ms (x{ratio:.1f}), "
        f"p99 {p99[0]:.1f} -> {p99[1]:.1f} ms, cut off {sum(cut)} times, {failed} failed",
        flush=True,
    )
    return ratio < RATIO_MAX and not failed


async def main(kinds: list[str]) -> int:
    origin = await start("origin")
    assert origin.stdout is not None
    origin_port = int(await origin.stdout.readline())
    try:
        with tempfile.TemporaryDirectory() as folder:
            async with Sandbox() as sandbox:
                process, port = await start_proxy(
                    Path(folder),
                    sandbox,
                    origin_port,
                    CFPROXY_PACING__RATE="off",
                    CFPROXY_LOG__LEVEL="warning",
                )
                try:
                    return int(not all([await measure(kind, port) for kind in kinds or KINDS]))
                finally:
                    process.terminate()
                    await process.wait()
    finally:
        origin.kill()
        await origin.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["attack"]:
        attack(int(sys.argv[2]), sys.argv[3])
    elif sys.argv[1:2] == ["origin"]:
        serve_origin()
    else:
        sys.exit(asyncio.run(main(sys.argv[1:])))
