"""Signals that end a serving process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from cfproxy.cli import run as running


async def test_a_second_signal_ends_the_process_after_pending_log_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Log lines are written at the end of an iteration; the last ones are not lost."""
    done: list[object] = []
    handlers: dict[int, Callable[[int], None]] = {}
    monkeypatch.setattr(os, "_exit", done.append)
    monkeypatch.setattr(running, "_on", handlers.__setitem__)
    stopped = asyncio.Event()
    running.watch_signals(stopped)
    handlers[signal.SIGTERM](signal.SIGTERM)
    assert (stopped.is_set(), done) == (True, [])
    asyncio.get_running_loop().call_soon(done.append, "a line")
    handlers[signal.SIGTERM](signal.SIGTERM)
    await asyncio.sleep(0)
    assert done == ["a line", 128 + signal.SIGTERM]
