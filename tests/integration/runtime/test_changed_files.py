"""Files of the configuration that change while the proxy serves, as orchestrators and editors change them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
import trustme

from cfproxy.cli.run import LOOK_EVERY_S, reload_on_change
from cfproxy.config import FoundConfig, SettingsReader
from cfproxy.errors import ConfigError, Problem
from cfproxy.runtime.service import Service
from cfproxy.sandbox import Behaviour, Sandbox
from tests.support.clock import FakeClock


@dataclass
class World:
    """A proxy whose configuration and secrets are files in a folder that Kubernetes would mount."""

    folder: Path
    config: dict[str, Any]
    clock: FakeClock
    entries: list[Any]
    reader: SettingsReader
    service: Service
    swaps: int = 0

    @property
    def secret(self) -> str:
        value = self.service.settings.accounts["default"].client_secret
        assert value is not None
        return value.reveal()

    def events(self, name: str) -> list[Any]:
        return [entry for entry in self.entries if entry["event"] == name]

    def swap(self, **files: str) -> None:
        """Replace the files as kubelet does: a new folder, then one rename of the link `..data`."""
        self.swaps += 1
        fresh = self.folder / f"..{self.swaps}"
        fresh.mkdir()
        old = self.folder / "..data"
        content = {path.name: path.read_text() for path in old.iterdir()} if old.exists() else {}
        for name, text in (content | files).items():
            (fresh / name).write_text(text)
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
        link = self.folder / "..data_tmp"
        link.symlink_to(fresh.name)
        link.replace(old)

    def write_config(self, **changes: Any) -> None:
        self.config |= changes
        self.swap(**{"cfproxy.yaml": json.dumps(self.config)})

    async def look(self, times: int = 2) -> None:
        """Let the proxy look at its files so often; what it does in threads is waited for."""
        for _ in range(times):
            await self.clock.advance(LOOK_EVERY_S)
            while not self.clock.sleeping:
                await asyncio.sleep(0.001)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A proxy that watches its files."""
    async with Sandbox(Behaviour(limiter="off")) as sandbox:
        config = {
            "client_id": sandbox.behaviour.client_id,
            "client_secret": {"file": "secret"},
            "grant": "client_credentials",
            "upstream": sandbox.url,
            "token_url": f"{sandbox.url}/connect/token",
            "listen": "127.0.0.1:0",
            "admin": "127.0.0.1:0",
            "store": "memory",
        }
        reader = SettingsReader(FoundConfig(tmp_path / "cfproxy.yaml"), {}, None)
        capture = structlog.testing.LogCapture()
        world = World(tmp_path, config, FakeClock(), capture.entries, reader, None)  # type: ignore[arg-type]
        world.swap(secret="one\n")
        world.write_config()
        log = structlog.wrap_logger(None, processors=[capture])
        world.service = Service(reader(), (), log, load=reader)
        async with world.service:
            watch = asyncio.create_task(reload_on_change(world.service, reader, world.clock))
            await world.clock.settle()
            try:
                yield world
            finally:
                watch.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watch


async def test_a_swapped_secret_is_used(world: World) -> None:
    """It is seen through the links, once it has stayed for two looks."""
    await world.look(3)
    assert world.events("config.reloaded") == []
    world.swap(secret="two\n")
    await world.look(1)
    assert world.secret == "one"
    await world.look(1)
    assert world.secret == "two"
    await world.look(5)
    assert [event["changed"] for event in world.events("config.reloaded")] == [["client_secret"]]


async def test_a_file_that_is_being_written_is_not_read(world: World) -> None:
    """As long as each look sees another state."""
    place = world.folder / "..data" / "secret"
    for text in ("t", "tw", "two"):
        place.write_text(text)
        await world.look(1)
        assert world.secret == "one"
    await world.look(1)
    assert world.secret == "two"


async def test_the_configuration_file_is_watched(world: World) -> None:
    """And so is every file that it refers to from then on."""
    (world.folder / "key").write_text("sesame")
    world.write_config(access={"keys": [{"file": "key"}, {"key": {"file": "key2"}}]})
    (world.folder / "key2").write_text("other")
    await world.look()
    (world.folder / "key2").write_text("another")
    await world.look()
    keys = world.service.settings.accounts["default"].access.keys
    assert [key.secret.reveal() for key in keys] == ["sesame", "another"]


async def test_authorities_are_watched(world: World) -> None:
    """`tls.ca_file` is read again, although its path stays."""
    old, new = (trustme.CA().cert_pem.bytes() for _ in range(2))
    (world.folder / "ca.pem").write_bytes(old)
    world.write_config(tls={"ca_file": "ca.pem"})
    await world.look()
    before = world.service.accounts[0].ca_file
    (world.folder / "ca.pem").write_bytes(new)
    await world.look()
    assert (before, world.service.accounts[0].ca_file) == (old, new)


@pytest.mark.parametrize("broken", ["", "\n", "a\nb\n", None])
async def test_an_invalid_state_is_reported_once(world: World, broken: str | None) -> None:
    """The old one keeps serving, and the next valid one is used."""
    if broken is None:
        (world.folder / "..data" / "secret").unlink()
    else:
        world.swap(secret=broken)
    await world.look(6)
    assert len(world.events("config.refused")) == 1
    assert world.secret == "one"
    world.swap(secret="two\n")
    await world.look()
    assert world.secret == "two"
    assert len(world.events("config.refused")) == 1


async def test_a_file_that_was_missing_is_found_when_it_comes(world: World) -> None:
    """A new configuration may arrive before the secret that it refers to."""
    world.write_config(client_secret={"file": "later"})
    await world.look(3)
    assert len(world.events("config.refused")) == 1
    (world.folder / "later").write_text("two")
    await world.look()
    assert world.secret == "two"


async def test_a_reload_on_request_is_not_repeated(world: World) -> None:
    """What it has read counts as seen."""
    world.swap(secret="two\n")
    await world.look(1)
    await world.service.reload()
    await world.look(3)
    assert len(world.events("config.reloaded")) == 1


@pytest.mark.skipif(os.name != "posix", reason="owners, modes and pipes as POSIX has them")
@pytest.mark.parametrize("trap", ["writable", "pipe"])
async def test_a_file_that_nobody_named_must_stay_trusted(world: World, trap: str) -> None:
    """Else whoever can write to the folder could send the token elsewhere while the proxy runs."""
    found = FoundConfig(world.folder / "cfproxy.yaml", (Problem("x", "", "was read because …"),))
    reader = SettingsReader(found, {}, None)
    reader()
    target = world.folder / "..data" / "cfproxy.yaml"
    if trap == "writable":
        target.chmod(0o666)
    else:
        target.unlink()
        os.mkfifo(target)
    with pytest.raises(
        ConfigError, match="others can write to it" if trap == "writable" else "is not a file"
    ):
        reader()


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
@pytest.mark.parametrize("place", ["client_secret", "the configuration"])
async def test_a_pipe_is_read_once(tmp_path: Path, place: str) -> None:
    """Such as a shell's `<(…)`: reading changes its times, and reading it again would wait for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    path = pipe
    content = "client_id: app\ngrant: client_credentials\nclient_secret: one\n"
    if place == "client_secret":
        path = tmp_path / "cfproxy.yaml"
        path.write_text(content.replace("one", "{file: pipe}"))
        content = "one\n"
    reader = SettingsReader(FoundConfig(path), {}, None)
    settings, _ = await asyncio.gather(asyncio.to_thread(reader), asyncio.to_thread(pipe.write_text, content))
    os.utime(pipe, (1, 1))
    assert reader.look() == reader.stamps
    secret = settings.accounts["default"].client_secret
    assert secret is not None
    assert secret.reread().reveal() == "one"


async def test_reload_off_leaves_it_to_signals(world: World) -> None:
    """And can itself be changed by a reload, in both directions."""
    world.write_config(reload="off")
    await world.look()
    world.swap(secret="two\n")
    await world.look(4)
    assert world.secret == "one"
    world.write_config(reload="auto")
    await world.service.reload()
    assert world.secret == "two"
    world.swap(secret="three\n")
    await world.look(3)
    assert world.secret == "three"
