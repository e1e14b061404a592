"""What the file store requires of its folder and files before it reads or writes them."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cfproxy.auth.models import AttemptGone
from cfproxy.errors import StoreUnusable
from cfproxy.secret import Secret
from cfproxy.stores.documents import DocumentCodec, login_to_document
from cfproxy.stores.file import FileStore
from tests.support.store_examples import NOW, build_attempt, build_login, posix_only, put, refusal, root_only

DOCUMENT = login_to_document(build_login())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "cfproxy"


@pytest.fixture
def store(folder: Path) -> FileStore:
    return FileStore(folder)


@posix_only
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_everything_is_closed_to_other_users(folder: Path, store: FileStore, umask: int) -> None:
    """Whatever the umask, the folder is 0700 and every file in it 0600."""
    old = os.umask(umask)
    try:
        async with store.lock("default", 5):
            await store.save(build_login())
        await store.save_attempt(build_attempt(state="open"))
        await store.save_attempt(build_attempt(state="used"))
        await store.claim_attempt("default", "used", NOW)
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 4
    assert set(modes.values()) == {0o600}


def create_special_file(path: Path, kind: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if kind == "link":
        target = path.parent / "elsewhere"
        put(target, json.dumps(DOCUMENT).encode())
        path.symlink_to(target)
    elif kind == "dangling link":
        path.symlink_to(path.parent / "nowhere")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        listener = socket.socket(socket.AF_UNIX)
        here = Path.cwd()
        os.chdir(path.parent)  # a socket address holds only some hundred bytes
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)
            listener.close()


KINDS = {
    "link": "a symbolic link",
    "dangling link": "a symbolic link",
    "folder": "a folder",
    "pipe": "a pipe",
    "socket": "socket",
}


@posix_only
@pytest.mark.parametrize("kind", KINDS)
async def test_record_must_be_a_plain_file(folder: Path, store: FileStore, kind: str) -> None:
    """A link, folder, pipe or socket in its place is refused at once, with the command that removes it."""
    path = folder / "default.json"
    create_special_file(path, kind)
    message = await refusal(store)
    assert message.startswith(f"{path} is ")
    assert KINDS[kind] in message
    assert message.endswith(f"move it away: mv {path} {path}.old")
    assert path.is_symlink() or not path.is_file()


@posix_only
@pytest.mark.parametrize("kind", KINDS)
async def test_lock_must_be_a_plain_file(folder: Path, store: FileStore, kind: str) -> None:
    """A link in place of the lock file is not followed, and nothing is created behind it."""
    create_special_file(folder / "default.lock", kind)
    with pytest.raises(StoreUnusable, match=KINDS[kind]):
        async with store.lock("default", 5):
            pytest.fail("entered")
    assert not (folder / "nowhere").exists()


@posix_only
@pytest.mark.parametrize("kind", ["link", "pipe", "loose mode"])
async def test_record_that_is_swapped_at_the_last_moment_is_refused(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The file that was opened is checked, not only the one that was there before."""
    await store.save(build_login())
    path = folder / "default.json"
    real = os.open

    def swap_and_open(opened: Path, flags: int, mode: int = 0o777) -> int:
        if kind == "loose mode":
            path.chmod(0o644)
        else:
            path.unlink()
            create_special_file(path, kind)
        return real(opened, flags, mode)

    monkeypatch.setattr(os, "open", swap_and_open)
    with pytest.raises(StoreUnusable):
        await store.load("default")


@posix_only
@pytest.mark.parametrize("mode", [0o644, 0o666, 0o604, 0o601])
async def test_record_that_others_can_access_is_refused(folder: Path, store: FileStore, mode: int) -> None:
    """The message has the command that corrects the mode; after that the record is accepted."""
    await store.save(build_login())
    path = folder / "default.json"
    path.chmod(mode)
    message = await refusal(store)
    assert message == f"{path} is open to other users (mode {mode:03o}); run: chmod 600 {path}"
    path.chmod(0o600)
    assert await store.load("default") == build_login()


@posix_only
@pytest.mark.parametrize("mode", [0o755, 0o777, 0o701])
async def test_folder_that_others_can_enter_is_refused(folder: Path, store: FileStore, mode: int) -> None:
    """Nothing in it is read, written or locked."""
    await store.save(build_login())
    folder.chmod(mode)
    message = await refusal(store)
    assert f"(mode {mode:03o})" in message
    assert message.endswith(f"run: chmod 700 {folder}")
    for refused in (store.save_attempt(build_attempt()), store.claim_attempt("default", None, NOW)):
        with pytest.raises(StoreUnusable):
            await refused
    with pytest.raises(StoreUnusable):
        async with store.lock("default", 5):
            pytest.fail("entered")


@posix_only
async def test_linked_folder_is_refused(tmp_path: Path, folder: Path, store: FileStore) -> None:
    """A link in place of the folder is not followed; the message names the folder itself."""
    await store.save(build_login())
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert (await refusal(FileStore(link))).endswith(f"`store: file:{folder}`")


async def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    """A store below a file can't exist, and the message says so."""
    (tmp_path / "file").write_bytes(b"")
    assert "not a folder" in await refusal(FileStore(tmp_path / "file"))
    assert "set `store: file:DIR` to a folder" in await refusal(FileStore(tmp_path / "file" / "below"))


@posix_only
@root_only
@pytest.mark.parametrize("part", ["folder", "record"])
async def test_folder_or_record_of_another_user_is_refused(folder: Path, store: FileStore, part: str) -> None:
    """A folder or record that someone else planted is not used."""
    await store.save(build_login())
    path = folder if part == "folder" else folder / "default.json"
    os.chown(path, 12345, -1)
    message = await refusal(store)
    assert message.startswith(f"{path} belongs to another user")
    assert message.endswith(f"run: sudo chown {os.geteuid()} {path}")


def modes_of(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else is in this process's group, whatever this machine's lists say."""
    monkeypatch.setattr("pwd.getpwall", list)
    monkeypatch.setattr("grp.getgrgid", lambda gid: SimpleNamespace(gr_mem=[]))


async def fill(store: FileStore) -> None:
    async with store.lock("default", 5):
        await store.save(build_login())
    await store.save_attempt(build_attempt(state="open"))
    await store.save_attempt(build_attempt(state="used"))
    await store.claim_attempt("default", "used", NOW)


async def use(store: FileStore) -> None:
    assert await store.load("default") == build_login()
    async with store.lock("default", 5):
        await store.save(build_login())
    for state in ("open", "used"):
        with suppress(AttemptGone):
            await store.claim_attempt("default", state, NOW)


@posix_only
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("files", "folders"), [(0o060, 0o2070), (0o040, 0o050), (0o020, 0o030), (0o010, 0)])
async def test_what_only_the_own_group_got_is_closed_again(folder: Path, files: int, folders: int) -> None:
    """Kubernetes opens everything to the pod's group at each mount; one warning tells of it."""
    await fill(FileStore(folder))
    warnings: list[str] = []
    store = FileStore(folder, warn=warnings.append)
    for _ in range(2):  # between two starts, and while it runs
        for path in folder.iterdir():
            path.chmod(0o600 | files)
        folder.chmod(0o700 | folders)
        if folders:
            await store.load("default")  # closes all at once
        else:
            await use(store)
        assert modes_of(folder) == {0o700, 0o600}
        await use(store)
    assert len(warnings) == 1
    assert "fsGroup leaves it at each mount; it was closed again" in warnings[0]


@posix_only
@pytest.mark.usefixtures("alone")
async def test_parent_folders_do_not_matter(folder: Path, store: FileStore) -> None:
    """Who can write there can hide the store, but not put another one of this user there."""
    folder.parent.mkdir()
    folder.parent.chmod(0o2777)
    await fill(store)
    folder.chmod(0o2700)
    await use(store)
    assert modes_of(folder) == {0o2700, 0o600}


GROUPS: dict[str, Any] = {
    "member": ("grp.getgrgid", lambda gid: SimpleNamespace(gr_mem=["somebody"])),
    "primary": (
        "pwd.getpwall",
        lambda: [SimpleNamespace(pw_name="x", pw_uid=4711, pw_gid=os.getegid(), pw_shell="/bin/sh")],
    ),
    "not in it": ("os.getegid", lambda: 4711),
}


@posix_only
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("part", ["folder", "record"])
@pytest.mark.parametrize("group", GROUPS)
async def test_what_a_group_of_others_got_is_refused(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch, group: str, part: str
) -> None:
    """Whoever is in it may have written there."""
    await store.save(build_login())
    path = folder if part == "folder" else folder / "default.json"
    path.chmod(0o770 if part == "folder" else 0o660)
    monkeypatch.setattr(*GROUPS[group])
    monkeypatch.setattr("os.getgroups", list)
    assert "is open to other users" in await refusal(store)
    assert stat.S_IMODE(path.stat().st_mode) & 0o070


@posix_only
@pytest.mark.usefixtures("alone")
async def test_system_accounts_without_a_shell_are_nobody(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's `nogroup` has `_apt` and `sync` in it; this user and root don't count either."""
    mine = [("me", os.geteuid(), "/bin/sh"), ("root", 0, "/bin/sh")]
    system = [("sync", 4, "/bin/sync"), ("_apt", 42, "/usr/sbin/nologin"), ("x", 4711, "/bin/false")]
    users = [
        SimpleNamespace(pw_name=name, pw_uid=uid, pw_gid=os.getegid(), pw_shell=shell)
        for name, uid, shell in mine + system
    ]
    monkeypatch.setattr("pwd.getpwall", lambda: users)
    monkeypatch.setattr("grp.getgrgid", lambda gid: SimpleNamespace(gr_mem=["me", "root"]))
    await store.save(build_login())
    folder.chmod(0o770)
    assert await store.load("default") == build_login()


@pytest.mark.skipif(sys.platform != "linux", reason="needs POSIX access lists")
@pytest.mark.usefixtures("alone")
async def test_access_list_that_lets_others_in_is_refused(folder: Path, store: FileStore) -> None:
    """The mode shows its mask as the group's rights."""
    await store.save(build_login())
    path = folder / "default.json"
    everyone = 0xFFFFFFFF
    entries = [(1, 6, everyone), (2, 6, 4711), (4, 0, everyone), (16, 6, everyone), (32, 0, everyone)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(path, "system.posix_acl_access", acl)
    except OSError:
        pytest.skip("this file system has no access lists")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert "is open to other users" in await refusal(store)


@pytest.fixture
def modeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system like SMB or vfat: all there has one mode, whatever is set."""
    real_open, real_mkdir = os.open, Path.mkdir

    def open_with(path: Path, flags: int, mode: int = 0o777, **options: Any) -> int:
        fd = real_open(path, flags, mode, **options)
        if flags & os.O_CREAT:
            Path(path).chmod(0o777)
        return fd

    def mkdir(path: Path, *args: Any, **options: Any) -> None:
        real_mkdir(path, *args, **options)
        path.chmod(0o777)

    monkeypatch.setattr(os, "open", open_with)
    monkeypatch.setattr(os, "fchmod", lambda *_: None)
    monkeypatch.setattr(Path, "mkdir", mkdir)


@posix_only
@pytest.mark.usefixtures("modeless")
async def test_where_modes_cannot_be_set_the_advice_is_another_one(folder: Path, store: FileStore) -> None:
    """`chmod` would have no effect there."""
    folder.mkdir(parents=True)
    message = await refusal(store)
    assert "its file system does not let cfproxy change that" in message
    assert message.endswith("encrypt the login with `store.key`, or set `store: memory` or another folder")
    assert list(folder.iterdir()) == []


@posix_only
@pytest.mark.usefixtures("modeless")
async def test_where_modes_cannot_be_set_an_encrypted_login_is_accepted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can read or forge it; one warning tells what others can still do."""
    monkeypatch.setattr("cfproxy.stores.encryption.SCRYPT_N", 2)
    warnings: list[str] = []
    store = FileStore(folder, DocumentCodec(Secret("a key")), warnings.append)
    await fill(store)
    await use(store)
    assert len(warnings) == 1
    assert "the login there is encrypted (store.key)" in warnings[0]
    (folder / "default.json").write_text(json.dumps(DOCUMENT))
    with pytest.raises(StoreUnusable, match="is not encrypted"):
        await store.load("default")


@posix_only
@root_only
@pytest.mark.parametrize("mode", [0o644, 0o666])
async def test_a_key_does_not_excuse_what_can_be_closed(folder: Path, mode: int) -> None:
    """Where `chmod` and `chown` work, they are the advice as before."""
    store = FileStore(folder, DocumentCodec(Secret("a key")))
    await store.save(build_login())
    path = folder / "default.json"
    path.chmod(mode)
    assert (await refusal(store)).endswith(f"run: chmod 600 {path}")
    path.chmod(0o600)
    os.chown(path, 12345, -1)
    assert "belongs to another user" in await refusal(store)


@posix_only
async def test_folder_of_root_is_named_as_such(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The top folder of a volume is root's, and only its group is the pod's."""
    await store.save(build_login())
    real = os.lstat

    def of_root(path: Path, **options: Any) -> os.stat_result:
        status = real(path, **options)
        return os.stat_result([*status[:4], 0, *status[5:]]) if path == folder else status

    monkeypatch.setattr(os, "lstat", of_root)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    message = await refusal(store)
    assert message.startswith(f"{folder} belongs to root; ")
    assert message.endswith("encrypt the login with `store.key`, or set `store: memory` or another folder")
