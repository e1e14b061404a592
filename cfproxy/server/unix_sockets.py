"""Unix sockets: files that only their owner can use unless opened to others, and the users of peers."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def bound_unix_socket(path: str) -> Iterator[socket.socket]:
    """Bind `path` with mode 0600 and remove the file afterwards; replace only a stale socket.

    Raises:
        OSError: its message says what is in the way.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(0, "this system has no Unix sockets")
    file = Path(path)
    _remove_stale(file)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.closing(bound):
        umask = os.umask(0o177)  # the mode must be right from the start
        try:
            bound.bind(path)
        finally:
            os.umask(umask)
        inode = file.stat().st_ino
        try:
            yield bound
        finally:
            with contextlib.suppress(OSError):
                if file.stat().st_ino == inode:  # a new process may have replaced it
                    file.unlink()


def open_to_others(path: str, *, others: bool) -> None:
    """Let other users connect (to be checked with `peer_uid`), or only the owner.

    Raises:
        OSError: the file is gone, or belongs to another user.
    """
    # On Linux, connecting requires write permission (unix(7)).
    file = Path(path)
    if stat.S_ISSOCK(file.lstat().st_mode):
        file.chmod(0o666 if others else 0o600)


def peer_uid(connection: socket.socket | None) -> int | None:
    """Return the user who opened a connection to a Unix socket (unix(7), SO_PEERCRED); None off Linux."""
    if sys.platform != "linux" or connection is None or connection.family != socket.AF_UNIX:
        return None
    try:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    except OSError:
        return None  # the connection has ended
    uid: int = struct.unpack("iII", credentials)[1]
    return uid


def _remove_stale(file: Path) -> None:
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(0, "the path exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(file))
        except ConnectionRefusedError:  # no process has it open; no other error proves that
            file.unlink()
            return
        except FileNotFoundError:
            return
        except OSError:
            pass
    raise OSError(errno.EADDRINUSE, "another process listens on it")
