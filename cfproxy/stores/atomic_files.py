"""One private folder on disk: safe reads, atomic and durable writes.

Everything here blocks; callers use threads.

Invariants:
1. At any instant, and after any crash, a file is its old or its new content as a whole.
2. Nothing is read or replaced that `permissions.py` refuses; a read creates nothing.
"""

from __future__ import annotations

import errno
import os
import secrets
import sys
import time
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cfproxy.errors import StoreUnavailable, StoreUnusable
from cfproxy.stores.permissions import POSIX, TEMP_PREFIX, TEMP_SUFFIX, Permissions, move_command

if sys.platform == "darwin":
    import fcntl

FILE_MAX_BYTES = 64 * 1024
REHEARSAL_BYTES = 4096
STALE_TEMP_S = 3600.0

# Windows lacks the first two, and opens in text mode by default.
SAFE_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# On Windows, replacing a file fails while another process reads it, which is over in an instant.
_REPLACE_TRIES = 1 if POSIX else 20
_REPLACE_PAUSE_S = 0.02

_LASTING = {errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR}
_ELSEWHERE = "set `store: file:DIR` to a folder of this user's, or `store: memory`"
_NEXT_STEP = {
    errno.ENOSPC: "free some space there",
    getattr(errno, "EDQUOT", -1): "free some space there, or request a larger quota",
    errno.ENOENT: _ELSEWHERE,
    errno.ENOLCK: f"let its file system have locks (NFS: the lock service), or {_ELSEWHERE}",
    errno.ENOSYS: f"use a file system that has locks: {_ELSEWHERE}",
    errno.EOPNOTSUPP: f"use a file system that has locks: {_ELSEWHERE}",
    errno.EROFS: f"mount it writable, or {_ELSEWHERE}",
    errno.EACCES: f"let this user read and write there, or {_ELSEWHERE}",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.EPERM: f"let this user read and write there, or {_ELSEWHERE}",
}


class Folder:
    """A folder that only this user can access; the first write creates it, once, with mode 0700.

    Every method raises `StoreUnavailable` (may pass) or `StoreUnusable` (will not).
    """

    def __init__(self, path: Path, permissions: Permissions | None = None) -> None:
        self.path = path
        self.permissions = permissions or Permissions()
        self._existed = False

    def read(self, name: str) -> bytes | None:
        """Return a file's content, None if there is none; at most `FILE_MAX_BYTES`."""
        path = self.path / name
        with self.naming_errors("read"):
            try:
                # Checked before opening, because opening a device can have effects, and after it, because
                # only the descriptor shows what was opened.
                if not self._is_present():
                    return None
                self.permissions.check_file(path, os.lstat(path))
                fd = os.open(path, os.O_RDONLY | SAFE_FLAGS)
            except FileNotFoundError:
                return None
            with os.fdopen(fd, "rb") as file:
                self.permissions.check_file(path, os.fstat(fd), fd)
                content = file.read(FILE_MAX_BYTES + 1)
        if len(content) > FILE_MAX_BYTES:
            raise StoreUnusable(
                f"{path} is too large for what it should hold; move it away: {move_command(path)}"
            )
        return content

    def write(self, name: str, content: bytes) -> None:
        """Replace a file, with mode 0600; the new content survives a power cut once this returns."""
        with self.naming_errors("save"):
            self.make()
            self._sweep()
            with self._flushed(content) as temp:
                _replace(temp, self.path / name)
            self._sync()

    def rehearse(self) -> None:
        """Write, flush and remove a small file."""
        with self.naming_errors("save"):
            self.make()
            with self._flushed(secrets.token_bytes(REHEARSAL_BYTES)):
                pass

    def claim(self, name: str, new_name: str) -> bool:
        """Rename a file; return False if it is gone.

        A rename has one winner among threads and processes: only one caller gets True.
        """
        with self.naming_errors("save"):
            try:
                _replace(self.path / name, self.path / new_name)
            except FileNotFoundError:
                return False
        return True

    def remove(self, names: Iterable[str]) -> None:
        """Remove files durably; missing ones are ignored."""
        with self.naming_errors("delete"):
            for name in names:
                (self.path / name).unlink(missing_ok=True)
            self._sweep()
            self._sync()

    def names(self) -> list[str]:
        """Return the names of all files, none if there is no folder."""
        with self.naming_errors("read"):
            return sorted(path.name for path in self.path.iterdir()) if self._is_present() else []

    def stamp(self, name: str) -> Hashable:
        """Return a value that differs between versions of a file, None for no file; never raises."""
        try:
            status = (self.path / name).stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            return ("error", error.errno)
        return (status.st_mtime_ns, status.st_ino, status.st_size)

    def make(self) -> None:
        """Create a missing folder with mode 0700; its parents get the usual mode."""
        if self._is_present():
            return
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._is_present()
        # We may not be allowed to open the parent; most file systems keep the entry anyway.
        with suppress(OSError):
            _sync_folder(self.path.parent)

    @contextmanager
    def naming_errors(self, doing: str) -> Iterator[None]:
        """Turn an `OSError` into the store's errors; `doing` is a verb."""
        try:
            yield
        except OSError as error:
            words = error.strerror or type(error).__name__
            if error.errno in _LASTING:
                raise StoreUnusable(f"cannot {doing} in {self.path}: {words}; {_ELSEWHERE}") from error
            step = _NEXT_STEP.get(error.errno or 0, "check that disk")
            raise StoreUnavailable(f"cannot {doing} in {self.path}: {words}; {step}") from error

    def _is_present(self) -> bool:
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            if self._existed:  # that is no logout, and a new folder would hide the login in the old one
                raise StoreUnavailable(
                    f"{self.path} is gone; bring it back (is its disk mounted?), or run: cfproxy login"
                ) from None
            return False
        self.permissions.check_folder(self.path, status)
        self._existed = True
        return True

    @contextmanager
    def _flushed(self, content: bytes) -> Iterator[Path]:
        temp = self.path / f"{TEMP_PREFIX}{secrets.token_hex(8)}{TEMP_SUFFIX}"
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE_FLAGS, 0o600)
        try:
            try:
                _write_all(fd, content)
                _distinguish(temp)
                _flush(fd)
            finally:
                os.close(fd)
            yield temp
        finally:
            with suppress(OSError):
                temp.unlink()

    def _sweep(self) -> None:
        """Remove what killed writers left behind; a running one is done long before `STALE_TEMP_S`."""
        for temp in self.path.glob(f"{TEMP_PREFIX}*{TEMP_SUFFIX}"):
            with suppress(OSError):
                if time.time() - temp.lstat().st_mtime > STALE_TEMP_S:
                    temp.unlink()

    def _sync(self) -> None:
        try:
            _sync_folder(self.path)
        except OSError as error:
            # Some network and FUSE file systems answer EINVAL where folders need no flushing.
            if error.errno != errno.EINVAL:
                raise


def _write_all(fd: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def _distinguish(path: Path) -> None:
    """Give a new file an exact modification time.

    The kernel's file clock ticks in milliseconds and inode numbers are reused: two versions could otherwise
    have the same stamp.
    """
    now_ns = time.time_ns()
    with suppress(OSError):
        os.utime(path, ns=(now_ns, now_ns))


def _flush(fd: int) -> None:
    os.fsync(fd)
    if sys.platform == "darwin":
        # fsync leaves the bytes in the drive's cache there (fsync(2)); not all file systems support this.
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)


def _sync_folder(path: Path) -> None:
    if not POSIX:
        return  # Windows can't open a folder as a file; NTFS journals the rename
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        _flush(fd)
    finally:
        os.close(fd)


def _replace(source: Path, target: Path) -> None:
    for _ in range(_REPLACE_TRIES - 1):
        try:
            source.replace(target)
        except PermissionError:
            time.sleep(_REPLACE_PAUSE_S)
        else:
            return
    source.replace(target)
