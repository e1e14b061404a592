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
async def calling(tmp_path: Path) -> AsyncIterator[Callers]:
    async with opened(tmp_path) as world, asyncio.timeout(30):
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
