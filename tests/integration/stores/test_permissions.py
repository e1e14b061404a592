"""What the file store requires of its folder and files before it reads or writes them."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from cfproxy.errors import StoreUnusable
from cfproxy.stores.documents import login_to_document
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
@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604, 0o601])
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
@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
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
