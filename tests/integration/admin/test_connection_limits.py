"""The connections of the admin listener: limited, so that probes always get through."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from yarl import URL

from tests.integration.runtime.test_reload import opened
from tests.support.origin import Wire


@dataclass
class Callers:
    """Connections to an admin listener."""

    port: int
    wires: list[Wire] = field(default_factory=list)

    async def connect(self, data: bytes = b"GET /livez HTTP/1.1\r\n") -> Wire:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.port))
        self.wires.append(wire)
        with contextlib.suppress(ConnectionError):
            await wire.send(data)
        return wire

    async def live(self, wire: Wire) -> int:
        await wire.send(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % self.port)
        return (await wire.read_answer()).status


@contextlib.asynccontextmanager
async def calling(tmp_path: Path, **changes: str) -> AsyncIterator[Callers]:
    async with opened(tmp_path, None, **changes) as world, asyncio.timeout(30):
        assert world.service is not None
        port = URL(str(world.service.admin_url)).port
        assert port is not None
        callers = Callers(port)
        try:
            yield callers
        finally:
            for wire in callers.wires:
                wire.abort()


async def ended(wire: Wire) -> bool:
    with contextlib.suppress(ConnectionError):
        return await wire.reader.read() == b""
    return True


async def test_silent_connections_make_room_for_a_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest is closed first; one with a recent request stays."""
    monkeypatch.setattr("cfproxy.admin.server.CONNECTIONS_MAX", 8)
    async with calling(tmp_path) as callers:
        silent = [await callers.connect() for _ in range(30)]
        probe = await callers.connect(b"")
        assert await callers.live(probe) == 200
        assert all([await ended(wire) for wire in silent[:20]])
        assert await callers.live(probe) == 200


async def test_a_first_request_has_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections without a request are closed; those with one may stay open."""
    monkeypatch.setattr("cfproxy.admin.server.HEAD_S", 0.05)
    async with calling(tmp_path) as callers:
        active = await callers.connect(b"")
        assert await callers.live(active) == 200
        for data in (b"", b"GET /livez HTTP/1.1\r\n"):
            assert await ended(await callers.connect(data))
        assert await callers.live(active) == 200


FORM = (
    b"POST /login HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"%bContent-Length: 1000\r\n\r\ntoken="
)
STALLED = {
    "a form": FORM,
    "a form with our header": FORM.replace(b"%b", b"X-Cfproxy-Admin: 1\r\n"),
    "an action": b"POST /reload HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 9\r\n\r\n",
    "a page with a body": b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 9\r\n\r\n",
    "unread responses": b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" * 400,
}


def fill_in(request: bytes, port: int) -> bytes:
    return request.replace(b"%d", b"%d" % port).replace(b"%b", b"")


@pytest.mark.parametrize("name", STALLED)
async def test_stalled_requests_make_room_for_a_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever a client leaves unfinished or unread; there may be more of them than connections."""
    monkeypatch.setattr("cfproxy.admin.server.CONNECTIONS_MAX", 8)
    async with calling(tmp_path) as callers:
        for _ in range(20):
            await callers.connect(fill_in(STALLED[name], callers.port))
            await asyncio.sleep(0.01)  # until the connection has its request
        for _ in range(3):
            assert await callers.live(await callers.connect(b"")) == 200


@pytest.mark.parametrize("drips", [False, True])
async def test_a_form_has_a_limited_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drips: bool
) -> None:
    """A byte now and then does not prolong it."""
    monkeypatch.setattr("cfproxy.admin.messages.BODY_S", 0.1)
    async with calling(tmp_path) as callers:
        wire = await callers.connect(fill_in(FORM, callers.port))

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await wire.send(b"x")
                    await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip() if drips else asyncio.sleep(0))
        assert (await wire.read_answer()).status == 400
        dripping.cancel()


@pytest.mark.parametrize("name", [name for name in STALLED if "response" not in name])
async def test_nothing_is_read_without_a_key(tmp_path: Path, name: str) -> None:
    """Where access keys are set: the refusal comes before the body, and ends the connection."""
    async with calling(tmp_path, ACCESS__KEYS="an-access-key-of-some-length") as callers:
        wire = await callers.connect(fill_in(STALLED[name], callers.port))
        answer = await wire.read_answer()
        assert answer.status == (200 if name.startswith("a page") else 401)
        assert answer.all(b"Connection") == [b"close"]


async def test_a_form_is_read_with_a_key(tmp_path: Path) -> None:
    """It is judged by its token."""
    key = b"an-access-key-of-some-length"
    async with calling(tmp_path, ACCESS__KEYS=key.decode()) as callers:
        form = FORM.replace(b"%b", b"X-Cfproxy-Key: " + key + b"\r\n").replace(b"1000", b"6")
        wire = await callers.connect(fill_in(form, callers.port))
        assert (await wire.read_answer()).status == 403
