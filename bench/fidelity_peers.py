"""The proxies that the fidelity cases are played against: how each is configured, started and stopped.

All three add `Authorization: Bearer ...` to every request and send it to the same origin. The peers are configured
as their documentation recommends for an API, and generously: no buffering, room for long headers, no check of names.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from cfproxy import __version__
from tests.e2e.kit import open_world

TOKEN = "a-token"
PATIENCE_S = 20.0

NGINX = """\
daemon off;
user root;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {}
http {
    access_log off;
    underscores_in_headers on;
    ignore_invalid_headers off;
    client_max_body_size 0;
    large_client_header_buffers 4 32k;
    proxy_buffer_size 32k;
    proxy_buffers 8 32k;
    server {
        listen 127.0.0.1:LISTEN;
        location / {
            proxy_pass http://ORIGIN;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "Bearer TOKEN";
            proxy_buffering off;
            proxy_request_buffering off;
        }
    }
}
"""

CADDY = """\
{
    admin off
    auto_https off
}
http://:LISTEN {
    bind 127.0.0.1
    reverse_proxy ORIGIN {
        header_up Host {upstream_hostport}
        header_up Authorization "Bearer TOKEN"
        flush_interval -1
    }
}
"""

# The peers try nothing again and number no requests either.
CFPROXY = {
    "retry": {"unauthorized": False, "too_many_requests": False},
    "log": {"format": "json", "request_id": False},
}


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    port: int
    token: bytes


def versions() -> dict[str, str]:
    """Return the version of each proxy; FileNotFoundError when a peer is not installed."""
    nginx = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
    caddy = subprocess.run(["caddy", "version"], capture_output=True, text=True, check=True).stdout
    return {
        "cfproxy": __version__,
        "nginx": nginx.strip().rpartition("/")[2],
        "caddy": re.split(r"\s", caddy.strip().removeprefix("v"))[0],
    }


@contextlib.asynccontextmanager
async def open_cfproxy(folder: Path, origin: str) -> AsyncIterator[Proxy]:
    """Run `cfproxy serve`, logged in at the sandbox."""
    async with open_world(folder) as world:
        world.write_config(upstream=f"http://{origin}", **CFPROXY)
        await world.log_in()
        async with world.serve() as proxy:
            yield Proxy(int(proxy.url.rpartition(":")[2]), world.document()["access_token"].encode())


@contextlib.asynccontextmanager
async def open_nginx(folder: Path, origin: str) -> AsyncIterator[Proxy]:
    """Run nginx."""
    port = free_port()
    config = filled(NGINX, port, origin)
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
        config = config.replace("http {\n", f"http {{\n    {kind}_temp_path {folder / kind};\n")
    (folder / "nginx.conf").write_text(config)
    with running(["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "error.log"], folder):
        await listening(port)
        yield Proxy(port, TOKEN.encode())


@contextlib.asynccontextmanager
async def open_caddy(folder: Path, origin: str) -> AsyncIterator[Proxy]:
    """Run caddy."""
    port = free_port()
    (folder / "Caddyfile").write_text(filled(CADDY, port, origin))
    with running(["caddy", "run", "--adapter", "caddyfile", "--config", "Caddyfile"], folder):
        await listening(port)
        yield Proxy(port, TOKEN.encode())


PROXIES = {"cfproxy": open_cfproxy, "nginx": open_nginx, "caddy": open_caddy}


def filled(config: str, port: int, origin: str) -> str:
    return config.replace("LISTEN", str(port)).replace("ORIGIN", origin).replace("TOKEN", TOKEN)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(command: list[str], folder: Path) -> Iterator[None]:
    environment = os.environ | {
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }
    with (folder / "output.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        print(
            (folder / "output.log").read_text()[-2000:], file=sys.stderr
        ) if process.returncode > 0 else None


async def listening(port: int) -> None:
    """Wait until somebody listens there."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return
