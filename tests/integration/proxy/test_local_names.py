"""Names below `localhost` in `Host`: believed if they resolve to this machine, on both listeners."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import pytest

from cfproxy.proxy.exchange import build_connection
from cfproxy.server import local_names
from tests.integration.admin.test_app import serving
from tests.support.names import resolve_by
from tests.support.origin import Message, answering
from tests.support.proxied import Client, Proxied, proxied

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ELSEWHERE = "192.0.2.7"


async def ask_as(client: Client, host: bytes, line: bytes = b"GET /a HTTP/1.1") -> Message:
    await client.send(b"%b\r\nHost: %b\r\n\r\n" % (line, host))
    return await client.read_answer()


async def status_as(world: Proxied, host: bytes) -> int:
    return (await ask_as(await world.client(), host)).status


@pytest.mark.parametrize("warm", [False, True])
async def test_a_name_that_resolves_to_loopback_is_believed(
    monkeypatch: pytest.MonkeyPatch, warm: bool
) -> None:
    """With any port, in any case, with a final dot, and as a URL; whether or not a request needs a task."""
    async with proxied(answering(OK), warm=warm) as world:
        resolve_by(monkeypatch, app__localhost=["127.0.0.1", "::1"], a__b__localhost=["127.8.8.8"])
        for host in (
            b"app.localhost",
            b"App.LocalHost.:%d" % world.port,
            b"app.localhost:9",
            b"a.b.localhost",
        ):
            assert await status_as(world, host) == 200
        client = await world.client()
        assert (await ask_as(client, b"x", b"GET http://app.localhost:1/a HTTP/1.1")).status == 200


@pytest.mark.parametrize("addresses", [[ELSEWHERE], ["127.0.0.1", ELSEWHERE], [ELSEWHERE, "::1"], ["::"], []])
async def test_a_name_that_resolves_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    """One foreign address among others is enough: that is how rebinding begins. So is no address at all."""
    async with proxied(answering(OK)) as world:
        resolve_by(monkeypatch, evil__localhost=addresses)
        assert await status_as(world, b"evil.localhost:%d" % world.port) == 421
        assert await status_as(world, b"unknown.localhost:%d" % world.port) == 421
        assert world.origin.requests == []


async def test_only_names_below_localhost_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a client sends makes us resolve a public name, nor one that is no name."""
    async with proxied(answering(OK)) as world:
        names = resolve_by(monkeypatch, **{"evil.example": ["127.0.0.1"], "localhost": [ELSEWHERE]})
        for host in (
            b"evil.example",
            b"x.localhost.evil.example",
            b"a..localhost",
            b"-.localhost",
            b"x_\xe4.localhost",
        ):
            assert await status_as(world, host) == 421
        for host in (b"localhost", b"127.0.0.1:1"):
            assert await status_as(world, host) == 200
        assert names.asked == []


async def test_a_name_is_believed_for_its_connection_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later connection looks again, since the name may be somebody else's by then."""
    async with proxied(answering(OK)) as world:
        names = resolve_by(monkeypatch, app__localhost=["127.0.0.1"])
        client = await world.client()
        assert (await ask_as(client, b"app.localhost")).status == 200
        names.addresses["app.localhost"] = [ELSEWHERE]
        assert (await ask_as(client, b"app.localhost")).status == 200
        assert await status_as(world, b"app.localhost") == 421
        assert await status_as(world, b"localhost") == 200


async def test_a_resolver_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One name is looked up at a time, few may wait, and others' requests are served meanwhile."""
    monkeypatch.setattr(local_names, "LOOK_UP_S", 0.05)
    async with proxied(answering(OK)) as world:
        names = resolve_by(monkeypatch)
        names.gate.clear()
        asking = [
            asyncio.create_task(status_as(world, b"n%d.localhost" % number))
            for number in range(2 * local_names.NAMES_MAX)
        ]
        assert await status_as(world, b"localhost") == 200
        assert set(await asyncio.gather(*asking)) == {421}
        assert len(names.asked) == 1
        names.gate.set()


async def test_the_admin_listener_asks_the_resolver_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same names are believed there, with any port."""
    async with serving() as service:
        port = int((service.admin_url or "").rpartition(":")[2])
        resolve_by(monkeypatch, app__localhost=["127.0.0.1"], evil__localhost=[ELSEWHERE])
        for host, status in {
            "app.localhost": 200,
            "localhost": 200,
            "localhost:9999": 200,
            "127.0.0.1:1": 200,
            "[::1]": 200,
            "evil.localhost": 421,
            "unknown.localhost": 421,
            "evil.example": 421,
        }.items():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET /livez HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert (await reader.read()).split()[1] == b"%d" % status, host
            writer.close()


async def test_a_unix_socket_has_any_name(tmp_path: Path) -> None:
    """No web page can reach it; clients give a made-up host, also in a URL."""
    async with proxied(answering(OK)) as world:
        world.listener.port = None
        path = str(tmp_path / "s")
        build = functools.partial(build_connection, world.listener)
        async with await asyncio.get_running_loop().create_unix_server(build, path):
            for line, host, status in (
                (b"GET /a HTTP/1.1", b"localhost", 200),
                (b"GET /a HTTP/1.1", b"anything.example:1", 200),
                (b"GET /a HTTP/1.1", b"a.localhost", 200),
                (b"GET http://anything/a?b HTTP/1.1", b"x", 200),
                (b"GET https://anything/a HTTP/1.1", b"x", 421),
                (b"GET http://u@anything/a HTTP/1.1", b"x", 400),
                (b"GET /a HTTP/1.1", b"", 400),
            ):
                reader, writer = await asyncio.open_unix_connection(path)
                answer = await ask_as(Client(reader, writer), host, line)
                assert answer.status == status, (line, host)
                writer.transport.abort()
        assert [request.target for request in world.origin.requests] == [b"/a", b"/a", b"/a", b"/a?b"]
