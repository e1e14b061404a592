"""A lock file that the operating system guards: mutual exclusion of processes.

Invariants:
1. The lock belongs to an open descriptor: it excludes other descriptors of this process too, never times
   out, and is released when its process ends, however that happens.
2. The file is never written, and never removed: removing it would split the waiters over two files.
3. Waiting does not block the event loop.
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

FIRST_PAUSE_S = 0.01
LONGEST_PAUSE_S = 0.1


@asynccontextmanager
async def acquire(folder: Folder, name: str, timeout_s: float, busy: str) -> AsyncIterator[Lease]:
    """Hold the lock file `name` while the context lasts.

    Raises:
        StoreUnavailable: still locked after `timeout_s` (`busy` is the message), or it can't be created.
        StoreUnusable: the folder or the lock file is not safe.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    pause_s = FIRST_PAUSE_S
    while (fd := await _try_in_thread(folder, name)) is None:
        left_s = deadline - loop.time()
        if left_s <= 0:
            raise StoreUnavailable(busy)
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    try:
        yield Lease()
    finally:
        unlock(fd)


async def _try_in_thread(folder: Folder, name: str) -> int | None:
    # A bare future, and `wait`: after a cancellation the thread's result stays reachable, so a lock that
    # arrives too late can be released.
    attempt = asyncio.get_running_loop().run_in_executor(None, try_lock, folder, name)
    try:
        await asyncio.wait({attempt})
    except asyncio.CancelledError:
        attempt.add_done_callback(_release_late)
        raise
    return attempt.result()


def _release_late(attempt: asyncio.Future[int | None]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        fd = attempt.result()
        if fd is not None:
            unlock(fd)


def try_lock(folder: Folder, name: str) -> int | None:
    """Return a descriptor that holds the lock, None if someone else holds it.

    Raises:
        StoreUnavailable, StoreUnusable
    """
    from filelock import lock_descriptor  # noqa: PLC0415 - a start with a valid token needs no lock

    path = folder.path / name
    with folder.naming_errors("lock"):
        folder.make()
        fd = _open_lock(folder, path)
        held = False
        try:
            folder.permissions.check_file(path, os.fstat(fd), fd)
            # The file may have been removed since it was opened: then the next try creates a new one.
            with suppress(FileNotFoundError):
                held = lock_descriptor(fd, blocking=False) and os.path.samestat(os.fstat(fd), os.lstat(path))
        finally:
            if not held:
                unlock(fd)
        return fd if held else None


def unlock(fd: int) -> None:
    """Release a lock of `try_lock`; never raises, never blocks."""
    from filelock import unlock_descriptor  # noqa: PLC0415 - imported already

    with suppress(OSError):
        # Closing alone is not enough where a forked child still has the descriptor.
        unlock_descriptor(fd)
    with suppress(OSError):
        os.close(fd)


def _open_lock(folder: Folder, path: Path) -> int:
    with suppress(FileNotFoundError):
        folder.permissions.check_file(path, os.lstat(path))
    try:
        # Never truncated or written: an existing lock file can be locked on a full disk.
        return os.open(path, os.O_RDWR | os.O_CREAT | SAFE_FLAGS, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        # A file on a read-only file system can be locked. If there is none, the error is reported and the
        # token source decides.
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY | SAFE_FLAGS)
        raise
