"""Unix sockets to listen on, and who is at their other end.

Owns: a socket file that only its owner can use, or whoever is let by whom the kernel names, and that goes
away with its owner.
Must not know: what is spoken on it, who may.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import sys
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


def open_to_others(path: str, *, others: bool) -> None:
    """Let other users connect, or nobody but the owner; who they are is then to be asked of `peer_uid`.

    Raises:
        OSError: the file is gone, or not ours.
    """
    # On Linux connecting takes the right to write (unix(7)).
    place = Path(path)
    if stat.S_ISSOCK(place.lstat().st_mode):
        place.chmod(0o666 if others else 0o600)


def peer_uid(connection: socket.socket | None) -> int | None:
    """Return the user who opened a connection to a Unix socket (unix(7), SO_PEERCRED); None off Linux."""
    if sys.platform != "linux" or connection is None or connection.family != socket.AF_UNIX:
        return None
    try:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    except OSError:
        return None  # gone already
    uid: int = struct.unpack("iII", credentials)[1]
    return uid


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
        except ConnectionRefusedError:  # nobody has it open; whatever else goes wrong is no sign of that
            place.unlink()
            return
        except FileNotFoundError:
            return
        except OSError:
            pass
    raise OSError(0, "another process listens there")
