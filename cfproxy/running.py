"""Running things until they are told to stop.

Owns: the event loop's choice, signals, and how a proxy or a sandbox is kept up by a command.
Must not know: options and messages (`commands/`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from structlog.typing import FilteringBoundLogger

from cfproxy import exits
from cfproxy.config import Settings
from cfproxy.service import Service

_T = TypeVar("_T")


def run_loop(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work` in a new event loop: uvloop's where the extra `fast` is installed."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415 - optional

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


async def wait_for_signal(stopped: asyncio.Event) -> int:
    """Wait for SIGTERM, SIGINT or `stopped`; return the exit code that goes with it.

    A second signal ends the process at once.
    """
    loop = asyncio.get_running_loop()
    code = exits.DONE

    def on_signal(number: int) -> None:
        nonlocal code
        if stopped.is_set():
            os._exit(128 + number)
        code = exits.INTERRUPTED if number == signal.SIGINT else exits.DONE
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, on_signal, number)
        except NotImplementedError:  # Windows' loop has none; the plain handler wakes the loop by a callback
            signal.signal(number, lambda n, _: loop.call_soon_threadsafe(on_signal, n))
    await stopped.wait()
    return code


async def serve(settings: Settings, names: tuple[str, ...], log: FilteringBoundLogger) -> int:
    """Run the proxy until a signal or `POST /shutdown`; return the exit code."""
    async with Service(settings, names, log) as service:
        # What is alive now stays alive: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        return await wait_for_signal(service.stopped)
