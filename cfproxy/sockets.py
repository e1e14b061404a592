"""Unix sockets to listen on.

Owns: a socket file that only its owner can use, and that goes away with its owner.
Must not know: what is spoken on it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def bound_unix_socket(path: str) -> Iterator[socket.socket]:
    """Bind `path` with mode 0600; a dead socket there is replaced, anything else refused.

    Raises:
        OSError: with a text that says what is in the way.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(0, "this system has no Unix sockets")
    place = Path(path)
    _remove_dead(place)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.closing(bound):
        before = os.umask(0o177)  # the mode must be right from the first instant
        try:
            bound.bind(path)
        finally:
            os.umask(before)
        inode = place.stat().st_ino
        try:
            yield bound
        finally:
            with contextlib.suppress(OSError):
                if place.stat().st_ino == inode:  # unless a successor has taken the place
                    place.unlink()


def _remove_dead(place: Path) -> None:
    try:
        mode = place.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(0, "something else than a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(place))
        except OSError:
            place.unlink()
            return
    raise OSError(0, "another process listens there")
