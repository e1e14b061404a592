"""What the proxies are put under, each returning one figure for one running proxy.

Owns: the loads. wrk for rates, curl for one large transfer, a client of our own where neither can do it.
Must not know: which proxy it is.
Invariant: every answer counts only as 200; one that is not ends the bench.
"""

from __future__ import annotations

import asyncio
import re
import socket
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench.speed_peers import BIG_BYTES, Cores

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1000.0}


@dataclass(frozen=True)
class Rate:
    """What wrk measured.

    Attributes:
        per_s: requests per second.
        p99_ms: the 99th percentile of their latency.
        requests: how many were answered.
    """

    per_s: float
    p99_ms: float
    requests: int


def rate(url: str, connections: int, seconds: float, cores: Cores, *, close: bool = False) -> Rate:
    """Measure requests on keep-alive connections, or with `close` on one connection each."""
    command = [
        "taskset",
        "-c",
        cores.load,
        "wrk",
        "-t",
        "1" if connections < 16 else "2",
        "-c",
        str(connections),
    ]
    command += ["-d", f"{seconds:g}s", "--latency", "--timeout", "30s", f"{url}/small.json"]
    if close:
        command += ["-H", "Connection: close"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out:
        raise SystemExit(f"an answer was not 200:\n{out}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", out)
    slow = re.search(r"99%\s+([\d.]+)(us|ms|s)\b", out)
    total = re.search(r"(\d+) requests in ", out)
    assert found is not None
    assert slow is not None
    assert total is not None
    return Rate(float(found[1]), float(slow[1]) * _UNITS[slow[2]], int(total[1]))


def transfer(url: str, cores: Cores, up: Path | None = None) -> float:
    """Return MB/s of 100 MB through one connection, down, or up with a file: the median of three."""
    return statistics.median(_transfer(url, cores, up) for _ in range(3))


def _transfer(url: str, cores: Cores, up: Path | None) -> float:
    field = "%{http_code} %{speed_upload}" if up else "%{http_code} %{speed_download}"
    command = ["taskset", "-c", cores.load.split(",")[0], "curl", "-sS", "-o", "/dev/null", "-w", field]
    command += ["-T", str(up), f"{url}/upload", "-H", "Expect:"] if up else [f"{url}/big.bin"]
    status, speed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    if status != "200":
        raise SystemExit(f"the transfer was answered with {status}")
    return float(speed) / 1e6


def steady(url: str, per_s: float, seconds: float) -> tuple[float, float]:
    """Return p50 and p99, ms, of requests that begin at a fixed low rate on one kept connection.

    A plain blocking client: an event loop's own jitter would be a good part of such a p99.
    """
    address = urlsplit(url)
    request = b"GET /small.json HTTP/1.1\r\nHost: %s\r\n\r\n" % address.netloc.encode()
    took_ms = []
    with socket.create_connection((address.hostname, address.port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began_at = time.perf_counter()
        for number in range(int(per_s * seconds)):
            time.sleep(max(0.0, began_at + number / per_s - time.perf_counter()))
            sent_at = time.perf_counter()
            client.sendall(request)
            _receive_answer(client)
            took_ms.append((time.perf_counter() - sent_at) * 1000)
    took_ms = sorted(took_ms[20:])  # the first ones warm it up
    return statistics.median(took_ms), took_ms[int(len(took_ms) * 0.99)]


def _receive_answer(client: socket.socket) -> None:
    came = b""
    while not _is_whole(came):
        came = _joined(came, client.recv(65536))


async def _answer(reader: asyncio.StreamReader) -> None:
    came = b""
    while not _is_whole(came):
        came = _joined(came, await reader.read(65536))


def _joined(came: bytes, data: bytes) -> bytes:
    if not data:
        raise SystemExit("the connection ended before the answer")
    return came + data


def _is_whole(came: bytes) -> bool:
    head, end, body = came.partition(b"\r\n\r\n")
    if not end:
        return False
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"an answer was not 200: {head[:80]!r}")
    length = _LENGTH.search(head)
    if length is None:  # in chunks, as some proxies send it
        return body.endswith(b"0\r\n\r\n")
    return len(body) == int(length[1])


def many_slow(url: str, count: int = 1000) -> float:
    """Return the seconds until that many answers that take two seconds each have come, asked for at once."""
    return asyncio.run(_many_slow(url, count))


async def _many_slow(url: str, count: int) -> float:
    address = urlsplit(url)
    request = b"GET /slow.json HTTP/1.1\r\nHost: %s\r\n\r\n" % address.netloc.encode()

    async def one() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(request)
        await _answer(reader)
        writer.close()

    began_at = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return time.perf_counter() - began_at


def build_upload(folder: Path) -> Path:
    """Return a file of 100 MB."""
    path = folder / "upload.bin"
    with path.open("wb") as file:
        file.truncate(BIG_BYTES)
    return path
