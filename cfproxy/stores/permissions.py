"""What a folder and a file must be before a secret is read from or written to them.

They must be plain, owned by this user and closed to others. Each refusal names the place, what is wrong and
the command that corrects it. On Windows the folder's inherited access list replaces modes and owners.
"""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from cfproxy.errors import StoreUnusable

POSIX = os.name == "posix"


def check_file(path: Path, status: os.stat_result) -> None:
    """Accept a plain file that only this user can access.

    Raises:
        StoreUnusable: with the command that corrects it.
    """
    if not stat.S_ISREG(status.st_mode):
        raise StoreUnusable(
            f"{path} is {_kind(status)}, not a plain file; move it away: {move_command(path)}"
        )
    if POSIX and status.st_uid != os.geteuid():
        raise StoreUnusable(f"{path} belongs to another user; run: sudo chown {os.geteuid()} {_quoted(path)}")
    if POSIX and status.st_mode & 0o077:
        raise StoreUnusable(
            f"{path} is open to other users (mode {status.st_mode & 0o777:03o}); "
            f"run: chmod 600 {_quoted(path)}"
        )


def check_folder(path: Path, status: os.stat_result) -> None:
    """Accept a real folder that only this user can access.

    Raises:
        StoreUnusable: with the command, or the setting, that corrects it.
    """
    if stat.S_ISLNK(status.st_mode):
        raise StoreUnusable(
            f"{path} is a symbolic link; name the folder itself: `store: file:{os.path.realpath(path)}`"
        )
    if not stat.S_ISDIR(status.st_mode):
        raise StoreUnusable(f"{path} is {_kind(status)}, not a folder; set `store` to a folder")
    # Closing a shared folder such as /tmp would hurt everyone: a folder inside it is the first advice.
    own = f"use a folder of cfproxy's own, such as `store: file:{path / 'cfproxy'}`"
    if POSIX and status.st_uid != os.geteuid():
        raise StoreUnusable(
            f"{path} belongs to another user; {own}, or run: sudo chown {os.geteuid()} {_quoted(path)}"
        )
    if POSIX and status.st_mode & 0o077:
        raise StoreUnusable(
            f"{path} is open to other users (mode {status.st_mode & 0o777:03o}); {own}, "
            f"or run: chmod 700 {_quoted(path)}"
        )


def _kind(status: os.stat_result) -> str:
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}
    return kinds.get(stat.S_IFMT(status.st_mode), "a file, device or socket")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def move_command(path: Path) -> str:
    """Return the command that moves a file out of the way."""
    return f"mv {_quoted(path)} {_quoted(path.with_name(path.name + '.old'))}"
