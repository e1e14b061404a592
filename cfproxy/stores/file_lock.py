"""Mutual exclusion of processes by a lock file that the operating system guards.

Owns: opening the lock file safely, waiting for it without blocking the event loop, giving it back.
Must not know: what the lock protects.
Invariants: the lock lies on an open descriptor, so it excludes other descriptors of this process too,
has no time limit, and falls when its process ends, however it ends; the file is never written, and
never removed: that would split those who wait over two files.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from cfproxy.auth.interfaces import Lease
from cfproxy.errors import StoreUnavailable
from cfproxy.stores.atomic_files import SAFE_FLAGS, Folder
from cfproxy.stores.permissions import check_file

FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 0.1


@asynccontextmanager
async def hold(folder: Folder, name: str, timeout_s: float, busy: str) -> AsyncIterator[Lease]:
    """Hold the lock file `name`, waiting `timeout_s` at most.

    Raises:
        StoreUnavailable: another one still holds it (`busy` says so), or it cannot be made.
        StoreUnusable: the folder or the lock file is not safe.
    """
    loop = asyncio.get_running_loop()
    idle_timeout = loop.time() + timeout_s
    pause_s = FIRST_PAUSE_S
    while (fd := await _try_in_thread(folder, name)) is None:
        left_s = idle_timeout - loop.time()
        if left_s <= 0:
            raise StoreUnavailable(busy)
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    try:
        yield Lease()
    finally:
        unlock(fd)


async def _try_in_thread(folder: Folder, name: str) -> int | None:
    # A bare future, and `wait`: a cancelled waiter leaves the thread's answer reachable, so a lock
    # that it gets too late can be given back.
    attempt = asyncio.get_running_loop().run_in_executor(None, try_lock, folder, name)
    try:
        await asyncio.wait({attempt})
    except asyncio.CancelledError:
        attempt.add_done_callback(_give_back)
        raise
    return attempt.result()


def _give_back(attempt: asyncio.Future[int | None]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        fd = attempt.result()
        if fd is not None:
            unlock(fd)


def try_lock(folder: Folder, name: str) -> int | None:
    """Return a descriptor that holds the lock, None when another one holds it.

    Raises:
        StoreUnavailable, StoreUnusable
    """
    from filelock import lock_descriptor  # noqa: PLC0415 - a start with a valid token locks nothing

    path = folder.path / name
    with folder.naming_errors("lock"):
        folder.make()
        fd = _open_lock(path)
        held = False
        try:
            check_file(path, os.fstat(fd))
            # Somebody may have removed the file since it was opened: then the next try makes a new one.
            with suppress(FileNotFoundError):
                held = lock_descriptor(fd, blocking=False) and os.path.samestat(os.fstat(fd), os.lstat(path))
        finally:
            if not held:
                unlock(fd)
        return fd if held else None


def unlock(fd: int) -> None:
    """Give a lock of `try_lock` back; never raises, never blocks."""
    from filelock import unlock_descriptor  # noqa: PLC0415 - imported already

    with suppress(OSError):
        # Closing alone is not enough where a forked child still has the descriptor.
        unlock_descriptor(fd)
    with suppress(OSError):
        os.close(fd)


def _open_lock(path: Path) -> int:
    with suppress(FileNotFoundError):
        check_file(path, os.lstat(path))
    try:
        # Never truncated or written: an existing lock file can be locked on a full disk.
        return os.open(path, os.O_RDWR | os.O_CREAT | SAFE_FLAGS, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        # A read-only file system still locks. Where there is no file yet, or no room to make one,
        # there is nothing to lock: that is reported, and the engine decides.
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY | SAFE_FLAGS)
        raise
