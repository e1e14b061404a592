"""Running things until they are told to stop.

Owns: the event loop's choice, signals, what the service manager is told and hands over, and how a proxy or
a sandbox is kept up by a command.
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

from cfproxy.config import Settings
from cfproxy.errors import CfproxyError
from cfproxy.observability.logs import LogOutput
from cfproxy.runtime.service import Service
from cfproxy.runtime.systemd import Notifier, take_sockets

_T = TypeVar("_T")

GC_YOUNG = 10_000  # new objects, more than went, before the collector looks at them; Python's own is 700


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
    exit_code = watch_signals(stopped)
    await stopped.wait()
    return exit_code()


def watch_signals(stopped: asyncio.Event) -> Callable[[], int]:
    """Set `stopped` on SIGTERM and SIGINT; return what tells the exit code that goes with it."""
    code, seen = 0, False

    def on_signal(number: int) -> None:
        nonlocal code, seen
        # A first signal while the end is under way is an orchestrator's, who does not know of that.
        if seen:
            # Behind the log lines of this turn, which are written at its end.
            asyncio.get_running_loop().call_soon(os._exit, 128 + number)
        seen = True
        if not stopped.is_set():
            code = 128 + number if number == signal.SIGINT else 0
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        _on(number, on_signal)
    return lambda: code


def _on(number: int, handler: Callable[[int], None]) -> None:
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(number, handler, number)
    except NotImplementedError:  # Windows' loop has none; the plain handler wakes the loop by a callback
        signal.signal(number, lambda n, _: loop.call_soon_threadsafe(handler, n))


async def serve(
    settings: Settings, names: tuple[str, ...], logs: LogOutput, load: Callable[[], Settings]
) -> int:
    """Run the proxy until a signal or `POST /shutdown`; return the exit code.

    Args:
        settings: to begin with.
        names: accounts to serve; all when empty.
        logs: the log's output.
        load: reads the configuration again, on SIGHUP and `POST /reload`.
    """
    notifier = Notifier.from_environment(os.environ)
    given = take_sockets(os.environ)
    service = Service(settings, names, logs.log, load=load, logs=logs, given=given, tell=notifier.tell)
    # Before the start, which may take a while: an unhandled SIGHUP would end the process.
    exit_code = watch_signals(service.stopped)
    reload_asked = asyncio.Event()
    if hasattr(signal, "SIGHUP"):
        _on(signal.SIGHUP, lambda _: reload_asked.set())
    async with service, asyncio.TaskGroup() as beside:
        tasks = [beside.create_task(_reload_when_asked(service, reload_asked))]
        if notifier.watchdog_s is not None:
            tasks.append(beside.create_task(_say_alive(notifier, notifier.watchdog_s)))
        # What is alive now stays alive: the collector need not look at it again and again. Requests and
        # connections leave no cycles behind, so that it may look at the rest less often, too.
        gc.freeze()
        gc.set_threshold(GC_YOUNG)
        await service.stopped.wait()
        for task in tasks:
            task.cancel()
    return exit_code()


async def _reload_when_asked(service: Service, asked: asyncio.Event) -> None:
    """Reload each time; whatever is asked during a reload is one more reload."""
    while True:
        await asked.wait()
        asked.clear()
        with contextlib.suppress(CfproxyError):  # the log has told why, and the old configuration serves on
            await service.reload()


async def _say_alive(notifier: Notifier, watchdog_s: float) -> None:
    while True:
        notifier.tell("alive")
        await asyncio.sleep(watchdog_s / 2)
