"""How much the proxy grows while a gigabyte goes down, a gigabyte goes up, and 1,000 downloads are not read.

Starts a raw origin and the real `cfproxy serve` as processes of their own, sends 1 GiB each way through one
connection, and prints the proxy's peak resident memory before and after (VmHWM of /proc, so Linux only).
Then 1,000 clients ask for 1 GiB each and read nothing, and leave. Exits 1 when a transfer makes the proxy
grow by 32 MiB or more, or the unread downloads by 256 MiB or more while they last or 64 MiB afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import sys
import tempfile
from pathlib import Path

from cfproxy.sandbox import Sandbox

GIB = 1024**3
PIECE = b"\xa5" * 65536
LIMIT_BYTES = 32 * 1024**2
UNREAD = 1000
SETTLE_S = 15.0
UNREAD_LIMIT_BYTES, UNREAD_AFTER_BYTES = 256 * 1024**2, 64 * 1024**2


async def answer_origin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Swallow any body, then answer a GET with 1 GiB and a POST with the count of what came."""
    while head := await read_head(reader):
        length = content_length(head)
        left = length
        while left:
            left -= len(await reader.read(min(left, 1 << 20))) or left
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % GIB)
            with contextlib.suppress(ConnectionError):
                for _ in range(GIB // len(PIECE)):
                    writer.write(PIECE)
                    await writer.drain()
        else:
            text = b"%d" % length
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
            await writer.drain()
    writer.close()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def peak_bytes(pid: int) -> int:
    """Return the process's peak resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc: this measurement needs Linux")


def reset_peak(pid: int) -> None:
    """Make VmHWM start anew from what is resident now (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def transfer(port: int, method: bytes) -> int:
    """Move 1 GiB and return how many bytes arrived at the far side."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    size = GIB if method == b"POST" else 0
    writer.write(
        b"%s /v1/x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: %d\r\n\r\n" % (method, port, size)
    )
    for _ in range(size // len(PIECE)):
        writer.write(PIECE)
        await writer.drain()
    head = await read_head(reader)
    assert b" 200 " in head.split(b"\r\n")[0], head
    left = content_length(head)
    if method == b"POST":
        arrived = int(await reader.readexactly(left))
    else:
        arrived = 0
        while arrived < left and (piece := await reader.read(1 << 20)):
            arrived += len(piece)
    writer.close()
    return arrived


def resident_bytes(pid: int) -> int:
    """Return the process's resident memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


async def leave_unread(pid: int, port: int) -> tuple[int, int]:
    """Return by how much the process grows while 1,000 downloads are not read, and has grown afterwards."""
    before = resident_bytes(pid)
    request = b"GET /v1/x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port
    sockets = []
    for _ in range(UNREAD):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(request)
        sockets.append(client)
        await asyncio.sleep(0.002)  # the origin runs in this process
    during = last = 0
    for _ in range(60):
        await asyncio.sleep(0.5)
        last, during = during, resident_bytes(pid) - before
        if during - last < 1024**2 and during > 16 * 1024**2:
            break
    for client in sockets:
        client.close()
    await asyncio.sleep(SETTLE_S)
    return during, resident_bytes(pid) - before


async def start_proxy(
    folder: Path, sandbox: Sandbox, origin_port: int, **more: str
) -> tuple[asyncio.subprocess.Process, int]:
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    environ = {
        **os.environ,
        "CFPROXY_GRANT": "client_credentials",
        "CFPROXY_CLIENT_ID": sandbox.behaviour.client_id,
        "CFPROXY_CLIENT_SECRET": sandbox.behaviour.client_secret,
        "CFPROXY_TOKEN_URL": f"{sandbox.url}/connect/token",
        "CFPROXY_UPSTREAM": f"http://127.0.0.1:{origin_port}",
        "CFPROXY_LISTEN": f"127.0.0.1:{port}",
        "CFPROXY_ADMIN": "off",
        "CFPROXY_STORE": f"file:{folder / 'state'}",
        **more,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cfproxy", "serve", env=environ, cwd=folder, stderr=asyncio.subprocess.DEVNULL
    )
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return process, port
    raise RuntimeError("the proxy did not start")


async def main() -> int:
    worst = 0
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    async with Sandbox() as sandbox:
        origin = await asyncio.start_server(answer_origin, "127.0.0.1", 0)
        with tempfile.TemporaryDirectory() as folder:
            process, port = await start_proxy(Path(folder), sandbox, origin.sockets[0].getsockname()[1])
            try:
                for name, method in (("down", b"GET"), ("up", b"POST")):
                    reset_peak(process.pid)
                    before = peak_bytes(process.pid)
                    arrived = await transfer(port, method)
                    grown = peak_bytes(process.pid) - before
                    worst = max(worst, grown)
                    print(
                        f"1 GiB {name:4}: {arrived} bytes arrived, "
                        f"resident {before / 2**20:.1f} MiB, grew by {grown / 2**20:.1f} MiB at its peak"
                    )
                    assert arrived == GIB
                during, after = await leave_unread(process.pid, port)
                print(
                    f"{UNREAD} unread downloads: grew by {during / 2**20:.1f} MiB, "
                    f"and by {after / 2**20:.1f} MiB after they ended"
                )
            finally:
                process.terminate()
                await process.wait()
        origin.close()
    return int(worst >= LIMIT_BYTES or during >= UNREAD_LIMIT_BYTES or after >= UNREAD_AFTER_BYTES)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
