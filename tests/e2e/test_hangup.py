"""SIGHUP: the end for a program whose terminal was closed, a reload for everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.kit import World, until
from tests.e2e.processes import PATIENCE_S

pytestmark = pytest.mark.skipif(os.name != "posix", reason="terminals and signals as POSIX has them")

# Gives the program a terminal, as a shell does; its output goes to a file, which can be read afterwards.
LAUNCHER = """
import os, signal, sys
os.login_tty(int(sys.argv[1]))
if sys.argv[2] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
log = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT)
os.dup2(log, 1)
os.dup2(log, 2)
os.execv(sys.argv[4], sys.argv[4:])
"""


class Terminal:
    """A terminal, and `cfproxy serve` in it."""

    def __init__(self, world: World, how: str) -> None:
        self._ours, theirs = os.openpty()
        self.log_path: Path = world.folder / "terminal.log"
        self.log_path.touch()
        words = [sys.executable, "-c", LAUNCHER, str(theirs), how, str(self.log_path)]
        self.process = subprocess.Popen(
            [*words, *world.command("serve")],
            cwd=world.folder,
            env=world.full_environment(),
            pass_fds=[theirs],
        )
        os.close(theirs)

    def close(self) -> None:
        """Close it, as a window is closed."""
        if self._ours >= 0:
            os.close(self._ours)
        self._ours = -1

    async def logs(self, event: str) -> None:
        """Wait for an event."""
        await until(lambda: f'"event": "{event}"' in self.log_path.read_text(encoding="utf-8"), event)


@contextlib.contextmanager
def terminal(world: World, how: str = "") -> Iterator[Terminal]:
    """Run it until the block ends."""
    running = Terminal(world, how)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        running.close()


async def test_closing_its_terminal_ends_the_program(world: World) -> None:
    """In order, like SIGTERM: otherwise it would go on where nobody sees it."""
    await world.log_in()
    with terminal(world) as running:
        await running.logs("admin.started")
        running.close()
        assert await asyncio.to_thread(running.process.wait, PATIENCE_S) == 0
        await running.logs("proxy.stopped")


@pytest.mark.parametrize("how", ["the terminal stays", "nohup", "a service manager"])
async def test_other_hangups_reload(world: World, how: str) -> None:
    """`kill -HUP` beside an open terminal, and what is to outlast its terminal."""
    await world.log_in()
    if how == "a service manager":
        world.environment["NOTIFY_SOCKET"] = str(world.folder / "nobody-listens")
    with terminal(world, how) as running:
        await running.logs("admin.started")
        if how != "the terminal stays":
            running.close()
        running.process.send_signal(signal.SIGHUP)
        await running.logs("config.reloaded")
        running.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(running.process.wait, PATIENCE_S) == 0
