"""Runs a command's work in an event loop, and a proxy or sandbox until a signal stops it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from cfproxy.clock import Clock, SystemClock
from cfproxy.config import Settings, SettingsReader
from cfproxy.errors import CfproxyError
from cfproxy.observability.logs import LogOutput
from cfproxy.observability.output import release_output
from cfproxy.runtime.service import Service
from cfproxy.runtime.systemd import Notifier, take_sockets

_T = TypeVar("_T")

LOOK_EVERY_S = 2.0
GC_YOUNG = 10_000  # net new objects before a collection of the youngest generation; Python's default is 700


def run_loop(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work` in a new event loop, uvloop's if the extra `fast` is installed."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415 - optional

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


async def wait_for_signal(stopped: asyncio.Event) -> int:
    """Wait for SIGTERM, SIGINT or `stopped`; return the exit code.

    A second signal ends the process at once.
    """
    exit_code = watch_signals(stopped)
    await stopped.wait()
    return exit_code()


def watch_signals(stopped: asyncio.Event) -> Callable[[], int]:
    """Set `stopped` on SIGTERM and SIGINT; return a function that returns the exit code."""
    code, seen = 0, False

    def on_signal(number: int) -> None:
        nonlocal code, seen
        # The first signal during a shutdown comes from an orchestrator that does not know of it.
        if seen:
            # After this iteration's log lines, which are written at its end.
            asyncio.get_running_loop().call_soon(_exit_now, 128 + number)
        seen = True
        if not stopped.is_set():
            code = 128 + number if number == signal.SIGINT else 0
        stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        _on(number, on_signal)
    return lambda: code


def _exit_now(code: int) -> None:
    release_output()
    os._exit(code)


def _on(number: int, handler: Callable[[int], None]) -> None:
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(number, handler, number)
    except NotImplementedError:  # Windows' loop has no signal handlers; this one wakes the loop
        signal.signal(number, lambda n, _: loop.call_soon_threadsafe(handler, n))


async def serve(settings: Settings, names: tuple[str, ...], logs: LogOutput, read: SettingsReader) -> int:
    """Run the proxy until a signal or `POST /shutdown`; return the exit code.

    Args:
        settings: the configuration at the start.
        names: accounts to serve; all if empty.
        logs: output of the log.
        read: reads the configuration again, on `POST /reload`, when its files have changed, and on SIGHUP
            unless the terminal that started us was closed.
    """
    notifier = Notifier.from_environment(os.environ)
    inherited = take_sockets(os.environ)
    service = Service(
        settings, names, logs.log, load=read, logs=logs, inherited=inherited, notify=notifier.notify
    )
    # Before the start, which may take a while; an unhandled SIGHUP would end the process.
    exit_code = watch_signals(service.stopped)
    reload_requested = asyncio.Event()
    if hasattr(signal, "SIGHUP"):
        # nohup ignores the signal, and a service manager ends its services in other ways.
        is_ours = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and not notifier.is_managed
        ends = is_ours and has_terminal()
        _on(
            signal.SIGHUP,
            lambda _: service.stop() if ends and not has_terminal() else reload_requested.set(),
        )
    async with service, asyncio.TaskGroup() as beside:
        tasks = [beside.create_task(_reload_on_request(service, reload_requested))]
        tasks.append(beside.create_task(reload_on_change(service, read, SystemClock())))
        if notifier.watchdog_s is not None:
            tasks.append(beside.create_task(_feed_watchdog(notifier, notifier.watchdog_s)))
        # Objects that exist now stay, so the collector can ignore them. Requests and connections leave no
        # reference cycles, so it can run less often.
        gc.freeze()
        gc.set_threshold(GC_YOUNG)
        await service.stopped.wait()
        for task in tasks:
            task.cancel()
    return exit_code()


def has_terminal() -> bool:
    """Return whether the process has a controlling terminal that is still open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


async def _reload_on_request(service: Service, requested: asyncio.Event) -> None:
    """Reload whenever `requested` is set; any number of requests during a reload makes one more."""
    while True:
        await requested.wait()
        requested.clear()
        with contextlib.suppress(CfproxyError):  # logged; the old configuration stays in use
            await service.reload()


async def reload_on_change(service: Service, read: SettingsReader, clock: Clock) -> None:
    """Reload when a file of the configuration has changed, unless `reload` is off, until cancelled.

    A change counts once two looks in a row agree, because it may take several writes. A content that was
    refused is not read again before it changes.
    """
    before = read.stamps
    while True:
        await clock.sleep(LOOK_EVERY_S)
        if not service.settings.reload:
            continue
        now = await asyncio.to_thread(read.look)  # a network file system may be slow
        if now == before and now != read.stamps:
            with contextlib.suppress(CfproxyError):  # logged; the old configuration stays in use
                await service.reload()
        before = now


async def _feed_watchdog(notifier: Notifier, watchdog_s: float) -> None:
    while True:
        notifier.notify("alive")
        await asyncio.sleep(watchdog_s / 2)
