"""A page whose name was rebound to this machine can't use the sandbox: `Host` is judged outside the API."""

from __future__ import annotations

import asyncio

import pytest
from yarl import URL

from cfproxy.sandbox import Behaviour, Sandbox
from tests.integration.sandbox.world import World
from tests.support.names import resolve_by

PATHS = (
    "GET /_sandbox/state",
    "PATCH /_sandbox/behaviour",
    "POST /_sandbox/faults",
    "POST /_sandbox/revoke-access-tokens",
    "POST /_sandbox/reset",
    "GET /_sandbox/style.css",
    "GET /connect/authorize",
    "POST /connect/authorize",
    "POST /connect/token",
    "POST /connect/revocation",
    "GET /.well-known/openid-configuration",
    "GET /paste?code=1",
    "PUT /_objects/x",
    "GET /nothing",
)


async def status_of(sandbox: Sandbox, line: str, *headers: str, version: str = "1.1") -> int:
    """Send one request as it is."""
    url = URL(sandbox.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    lines = [f"{line} HTTP/{version}", *headers, "Connection: close", "Content-Length: 0", "", ""]
    writer.write("\r\n".join(lines).encode())
    status = int((await reader.read()).split()[1])
    writer.close()
    return status


@pytest.mark.parametrize("line", PATHS)
async def test_a_foreign_host_is_refused(world: World, line: str) -> None:
    """Whatever the path outside the API; nothing is recorded and nothing changes."""
    before = world.sandbox.to_document()
    for host in ("evil.example", "evil.example:{port}", "localhost.evil.example", "a.localhost", "192.0.2.7"):
        named = host.format(port=URL(world.sandbox.url).port)
        assert await status_of(world.sandbox, line, f"Host: {named}") == 421
    assert world.sandbox.to_document() == before


@pytest.mark.parametrize(
    "host", ["127.0.0.1:{port}", "localhost:{port}", "localhost", "LocalHost.:9999", "[::1]:1", "127.8.8.8"]
)
async def test_localhost_is_accepted_with_any_port(world: World, host: str) -> None:
    """DNS can't rebind it, and the port may be a forwarded one; a page of ours has that origin."""
    named = host.format(port=URL(world.sandbox.url).port)
    for origin in ((), (f"Origin: http://{named}",)):
        assert await status_of(world.sandbox, "GET /_sandbox/state", f"Host: {named}", *origin) == 200
    foreign = ("Host: localhost:1", "Origin: http://localhost:2")
    assert await status_of(world.sandbox, "GET /_sandbox/state", *foreign) == 403


async def test_a_name_below_localhost_is_accepted_if_it_resolves_here(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the proxy."""
    resolve_by(monkeypatch, here__localhost=["127.0.0.1"], there__localhost=["127.0.0.1", "192.0.2.7"])
    for host, status in {"here.localhost:1": 200, "there.localhost:1": 421, "x.localhost": 421}.items():
        assert await status_of(world.sandbox, "GET /_sandbox/state", f"Host: {host}") == status


async def test_the_api_asks_for_a_token_instead(world: World) -> None:
    """A client may call it by any name, as it may call the real one through a gateway of its own."""
    assert await status_of(world.sandbox, "GET /v1/jobs", "Host: other") == 401
    token = f"Authorization: {world.bearer()['Authorization']}"
    assert await status_of(world.sandbox, "GET /v1/jobs", "Host: other", token) == 200
    assert await status_of(world.sandbox, "GET /v1/../_sandbox/state", "Host: other", token) == 404


async def test_clients_without_host_are_no_browsers(world: World) -> None:
    """HTTP/1.0 may omit it."""
    assert await status_of(world.sandbox, "GET /_sandbox/state", version="1.0") == 200


async def test_the_name_to_listen_at_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the address at which the client has connected."""
    sandbox = Sandbox(Behaviour())
    await sandbox.start("0.0.0.0")
    try:
        port = URL(sandbox.url).port
        sandbox.grants.issuer = f"http://127.0.0.1:{port}"
        assert await status_of(sandbox, "GET /_sandbox/state", "Host: 0.0.0.0:1") == 200
        monkeypatch.setattr(sandbox, "_host", "studio.example")
        assert await status_of(sandbox, "GET /_sandbox/state", "Host: Studio.Example:80") == 200
        assert await status_of(sandbox, "GET /_sandbox/state", "Host: 0.0.0.0:1") == 421
    finally:
        await sandbox.close()
