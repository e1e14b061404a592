"""What a folder and a file must be before a secret is read from or written to them.

They must be plain, owned by this user and closed to others. Each refusal names the place, what is wrong and
the command or setting that corrects it. On Windows the folder's inherited access list replaces modes and
owners.

Two exceptions, each with one warning:
1. Permissions of a group in which no other user is known are removed again: Kubernetes opens all files of a
   volume to the pod's `fsGroup` at each mount.
2. Where the file system does not keep modes or owners (SMB, vfat, folders of another system), or only root
   could change them, encrypted documents are accepted: nobody can read or forge those.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shlex
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from cfproxy.errors import StoreUnusable

POSIX = os.name == "posix"
TEMP_PREFIX, TEMP_SUFFIX = ".cfproxy-", ".tmp"

_ACL = "system.posix_acl_access"  # only there if the list says more than the mode (acl(5))
_NO_SHELLS = {"nologin", "false", "sync"}
_ELSEWHERE = "encrypt the login with `store.key`, or set `store: memory` or another folder"


class Permissions:
    """Checks one folder and its files.

    Args:
        encrypted: only encrypted documents are read and written there.
        warn: called once with what was corrected or accepted.
    """

    def __init__(self, *, encrypted: bool = False, warn: Callable[[str], None] = lambda _: None) -> None:
        self._encrypted = encrypted
        self._warn: Callable[[str], None] | None = warn
        self._keeps_modes: bool | None = None

    def check_file(self, path: Path, status: os.stat_result, fd: int | None = None) -> None:
        """Accept a plain file that only this user can access.

        Args:
            path: the file.
            status: of it.
            fd: the file, if it was opened; its mode is then judged, and corrected.

        Raises:
            StoreUnusable
        """
        if not stat.S_ISREG(status.st_mode):
            raise StoreUnusable(
                f"{path} is {_kind(status)}, not a plain file; move it away: {move_command(path)}"
            )
        if POSIX and status.st_uid != os.geteuid():
            advice = f"run: sudo chown {os.geteuid()} {_quoted(path)}"
            self._accept_other(path, "belongs to another user", path.parent, advice)
        elif POSIX and fd is not None and status.st_mode & 0o077 and not self._close(path, fd, 0o600):
            self._accept_other(path, _open_to(status), path.parent, f"run: chmod 600 {_quoted(path)}")

    def check_folder(self, path: Path, status: os.stat_result) -> None:
        """Accept a real folder that only this user can access.

        Raises:
            StoreUnusable
        """
        if stat.S_ISLNK(status.st_mode):
            raise StoreUnusable(
                f"{path} is a symbolic link; name the folder itself: `store: file:{os.path.realpath(path)}`"
            )
        if not stat.S_ISDIR(status.st_mode):
            raise StoreUnusable(f"{path} is {_kind(status)}, not a folder; set `store` to a folder")
        if not POSIX:
            return
        # Closing a shared folder such as /tmp would hurt everyone: a folder inside it is the first advice.
        own = f"use a folder of cfproxy's own, such as `store: file:{path / 'cfproxy'}`"
        if status.st_uid != os.geteuid():
            if (
                status.st_uid == 0
            ):  # as the top folder of a volume; whoever is root can read everything anyway
                advice = f"{own}, or {_ELSEWHERE}" if self._keeps(path) else _ELSEWHERE
                self._accept(path, "belongs to root", advice)
                return
            advice = f"{own}, or run: sudo chown {os.geteuid()} {_quoted(path)}"
            self._accept_other(path, "belongs to another user", path, advice)
        elif status.st_mode & 0o077:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if closed := self._close(path, fd, 0o700):
                    self._close_files(path)
            finally:
                os.close(fd)
            if not closed:
                advice = f"{own}, or run: chmod 700 {_quoted(path)}"
                self._accept_other(path, _open_to(status), path, advice)

    def _close(self, path: Path, fd: int, mode: int) -> bool:
        """Remove a group's permissions if no other user is in it; return whether the file is closed then."""
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o007:
            return False
        if _has_acl(fd) or not _is_own_group(status.st_gid):
            return False
        try:
            os.fchmod(fd, mode)
        except OSError:
            return False
        if os.fstat(fd).st_mode & 0o077:
            return False
        self._warn_once(
            f"{path} was open to its group (mode {status.st_mode & 0o777:03o}), as Kubernetes' fsGroup leaves"
            " it at each mount; it was closed again, and so was all else that was open to this group"
        )
        return True

    def _close_files(self, folder: Path) -> None:
        """Close the files that were opened with their folder; what stays open is refused when it is used."""
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if stat.S_ISREG(os.lstat(path).st_mode):
                    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                    try:
                        self._close(path, fd, 0o600)
                    finally:
                        os.close(fd)

    def _accept_other(self, path: Path, what: str, folder: Path, advice: str) -> None:
        """Raise the advice where it helps; elsewhere accept only what is encrypted."""
        if self._keeps(folder):
            raise StoreUnusable(f"{path} {what}; {advice}")
        self._accept(path, f"{what}, and its file system does not let cfproxy change that", _ELSEWHERE)

    def _accept(self, path: Path, what: str, advice: str) -> None:
        if not self._encrypted:
            raise StoreUnusable(f"{path} {what}; {advice}")
        self._warn_once(
            f"{path} {what}; the login there is encrypted (store.key), but others may be able to delete it "
            "or to put an older one back"
        )

    def _keeps(self, folder: Path) -> bool:
        """Return whether a new file in `folder` has the owner and the mode that it should; found out once."""
        if self._keeps_modes is None:
            temp = folder / f"{TEMP_PREFIX}{secrets.token_hex(8)}{TEMP_SUFFIX}"
            try:
                fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                return error.errno != errno.EROFS
            status = os.fstat(fd)
            os.close(fd)
            temp.unlink(missing_ok=True)
            self._keeps_modes = status.st_uid == os.geteuid() and not status.st_mode & 0o077
        return self._keeps_modes

    def _warn_once(self, text: str) -> None:
        warn, self._warn = self._warn, None
        if warn is not None:
            warn(text)


def _open_to(status: os.stat_result) -> str:
    return f"is open to other users (mode {status.st_mode & 0o777:03o})"


def _has_acl(fd: int) -> bool:
    """Whether an access list may let others in; its mask is what the mode shows for the group."""
    if sys.platform != "linux":
        return False
    try:
        return bool(os.getxattr(fd, _ACL))
    except OSError:
        return False


def _is_own_group(gid: int) -> bool:
    """Whether this process is in the group, and no other person that this system knows of is."""
    import grp  # noqa: PLC0415 - not on Windows
    import pwd  # noqa: PLC0415 - likewise

    if gid not in {os.getegid(), *os.getgroups()}:
        return False
    try:
        members = set(grp.getgrgid(gid).gr_mem)
    except KeyError:  # only a number, as in most containers
        members = set()
    for user in pwd.getpwall():
        if user.pw_uid in {0, os.geteuid()}:
            members.discard(user.pw_name)
        elif user.pw_gid == gid and Path(user.pw_shell).name not in _NO_SHELLS:
            return False
    return not members


def _kind(status: os.stat_result) -> str:
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}
    return kinds.get(stat.S_IFMT(status.st_mode), "a file, device or socket")


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def move_command(path: Path) -> str:
    """Return the command that moves a file out of the way."""
    return f"mv {_quoted(path)} {_quoted(path.with_name(path.name + '.old'))}"
