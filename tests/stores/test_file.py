"""The file store: what it believes, what it refuses, and what it never overwrites."""

from __future__ import annotations

import json
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cfproxy.errors import StoreUnavailable, StoreUnusable
from cfproxy.ports import AttemptGone
from cfproxy.secret import Secret
from cfproxy.stores.attempts import Entry, to_document
from cfproxy.stores.file import FileStore
from cfproxy.token import DOCUMENT_VERSION, Login, Token

from .examples import NOW, build_attempt, build_login, posix_only, root_only

DOCUMENT = build_login().to_document()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "cfproxy"


@pytest.fixture
def store(folder: Path) -> FileStore:
    return FileStore(folder)


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o600)


async def refusal(store: FileStore) -> str:
    """Return the words with which load, save and probe all refuse the record."""
    words = []
    for refused in (store.load("default"), store.save(build_login(serial=2)), store.probe("default")):
        with pytest.raises(StoreUnusable) as caught:
            await refused
        words.append(str(caught.value))
    assert len(set(words)) == 1
    assert "\n" not in words[0]
    return words[0]


@posix_only
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_everything_is_closed_to_other_users(folder: Path, store: FileStore, umask: int) -> None:
    """Whatever the umask, the folder is 0700 and every file in it 0600."""
    old = os.umask(umask)
    try:
        async with store.lock("default", 5):
            await store.save(build_login())
        await store.put_attempt(build_attempt(state="open"))
        await store.put_attempt(build_attempt(state="used"))
        await store.take_attempt("default", "used", NOW)
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 4
    assert set(modes.values()) == {0o600}


async def test_reading_creates_nothing(folder: Path, store: FileStore) -> None:
    """Asking a store that does not exist leaves the disk as it was."""
    assert await store.load("default") is None
    assert store.stamp("default") is None
    assert await store.delete("default") is False
    with pytest.raises(AttemptGone):
        await store.take_attempt("default", None, NOW)
    assert not folder.parent.exists()


async def test_a_used_attempt_leaves_no_verifier_on_disk(folder: Path, store: FileStore) -> None:
    """Once a login came back, what could finish it again is gone from the disk."""
    await store.put_attempt(build_attempt(verifier="marker"))
    await store.take_attempt("default", "state-1", NOW)
    contents = [path.read_text() for path in folder.iterdir()]
    assert len(contents) == 1
    assert "marker" not in contents[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not JSON"),
        (json.dumps(DOCUMENT).encode()[:-9], "cut short"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 60_000, "is not JSON"),
        (b"[]", "is not a token document"),
        (b"x" * (64 * 1024 + 1), "too large"),
        (json.dumps(DOCUMENT | {"serial": "1"}).encode(), "damaged at 'serial'"),
        (json.dumps(DOCUMENT | {"version": DOCUMENT_VERSION + 1}).encode(), "newer cfproxy"),
        (json.dumps(DOCUMENT | {"account": "other"}).encode(), "not the login of account 'default'"),
    ],
)
async def test_what_we_cannot_read_as_ours_is_refused_and_kept(
    folder: Path, store: FileStore, content: bytes, words: str
) -> None:
    """A damaged, foreign or newer document is named, and no save ever replaces it."""
    path = folder / "default.json"
    put(path, content)
    told = await refusal(store)
    assert str(path) in told
    assert words in told
    assert path.read_bytes() == content
    assert [found.name for found in folder.iterdir()] == ["default.json"]


async def test_a_login_that_could_not_be_read_back_is_not_saved(store: FileStore) -> None:
    """A good record is never replaced by one that the next load would refuse."""
    await store.save(build_login())
    for bad in (
        build_login(token=Token(Secret("a"), NOW, float("inf"))),
        build_login(token=Token(Secret("a" * 70_000), NOW, 60.0)),
    ):
        with pytest.raises(StoreUnusable):
            await store.save(bad)
    assert await store.load("default") == build_login()


def in_place_of(path: Path, kind: str) -> None:
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
        os.chdir(path.parent)  # a socket's address holds some hundred bytes only
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
async def test_only_a_plain_file_is_a_record(folder: Path, store: FileStore, kind: str) -> None:
    """A link, folder, pipe or socket in the record's place is refused at once, with the way out."""
    path = folder / "default.json"
    in_place_of(path, kind)
    told = await refusal(store)
    assert told.startswith(f"{path} is ")
    assert KINDS[kind] in told
    assert told.endswith(f"move it away: mv {path} {path}.old")
    assert path.is_symlink() or not path.is_file()


@posix_only
@pytest.mark.parametrize("kind", KINDS)
async def test_only_a_plain_file_is_a_lock(folder: Path, store: FileStore, kind: str) -> None:
    """The lock file is not followed elsewhere either, and nothing is made behind it."""
    in_place_of(folder / "default.lock", kind)
    with pytest.raises(StoreUnusable, match=KINDS[kind]):
        async with store.lock("default", 5):
            pytest.fail("entered")
    assert not (folder / "nowhere").exists()


@posix_only
@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604, 0o601])
async def test_a_record_that_others_may_touch_is_refused(folder: Path, store: FileStore, mode: int) -> None:
    """A loose mode is told with the command that closes it, after which the record is good."""
    await store.save(build_login())
    path = folder / "default.json"
    path.chmod(mode)
    told = await refusal(store)
    assert told == f"{path} is open to other users (mode {mode:03o}); run: chmod 600 {path}"
    path.chmod(0o600)
    assert await store.load("default") == build_login()


@posix_only
@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
async def test_a_folder_that_others_may_enter_is_refused(folder: Path, store: FileStore, mode: int) -> None:
    """Nothing is read from or written to a folder that is not this user's alone; a lock neither."""
    await store.save(build_login())
    folder.chmod(mode)
    told = await refusal(store)
    assert f"(mode {mode:03o})" in told
    assert told.endswith(f"run: chmod 700 {folder}")
    for refused in (store.put_attempt(build_attempt()), store.take_attempt("default", None, NOW)):
        with pytest.raises(StoreUnusable):
            await refused
    with pytest.raises(StoreUnusable):
        async with store.lock("default", 5):
            pytest.fail("entered")


@posix_only
async def test_a_linked_folder_is_refused(tmp_path: Path, folder: Path, store: FileStore) -> None:
    """A link in the folder's place is not followed; the message names the folder itself."""
    await store.save(build_login())
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert (await refusal(FileStore(link))).endswith(f"`store: file:{folder}`")


async def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    """A store below a file cannot exist, and says so."""
    (tmp_path / "file").write_bytes(b"")
    assert "not a folder" in await refusal(FileStore(tmp_path / "file"))
    assert "set `store` to another folder" in await refusal(FileStore(tmp_path / "file" / "below"))


@posix_only
@root_only
@pytest.mark.parametrize("part", ["folder", "record"])
async def test_what_belongs_to_another_user_is_refused(folder: Path, store: FileStore, part: str) -> None:
    """A folder or record that somebody else planted is not believed."""
    await store.save(build_login())
    path = folder if part == "folder" else folder / "default.json"
    os.chown(path, 12345, -1)
    told = await refusal(store)
    assert told.startswith(f"{path} belongs to another user")
    assert told.endswith(f"run: sudo chown {os.geteuid()} {path}")


async def test_the_stamp_never_raises(tmp_path: Path) -> None:
    """A store that cannot be looked at has a stamp that is not the one of 'no record'."""
    (tmp_path / "file").write_bytes(b"")
    assert FileStore(tmp_path / "file" / "below").stamp("default") is not None


async def test_a_damaged_attempt_stops_no_other_login(folder: Path, store: FileStore) -> None:
    """An attempt file that cannot be read is named when it is needed, kept, and in nobody's way."""
    damaged = folder / f"default.login-{Secret('damaged').fingerprint()}.json"
    put(damaged, b"{")
    attempt = build_attempt()
    await store.put_attempt(attempt)
    assert await store.take_attempt("default", "state-1", NOW) == attempt
    for state in ("damaged", None):
        with pytest.raises(StoreUnusable, match=damaged.name):
            await store.take_attempt("default", state, NOW)
    assert damaged.read_bytes() == b"{"


def changed(document: dict[str, Any]) -> st.SearchStrategy[bytes]:
    values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())
    changes = st.dictionaries(st.sampled_from(sorted(document)), values, max_size=3)
    return changes.map(lambda change: json.dumps(document | change).encode())


@pytest.fixture(scope="module")
def one_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("any") / "store"
    folder.mkdir(mode=0o700)
    return folder


@given(content=st.binary() | changed(DOCUMENT))
@example(content=b'{"version": 1e999}')
@example(content=b"1" * 5000)
@example(content=json.dumps(DOCUMENT | {"account": "\ud800"}).encode())
@settings(deadline=None)
def test_no_bytes_break_the_store(one_folder: Path, content: bytes) -> None:
    """Whatever a record's file holds, the answer is a login or one of our two errors."""
    put(one_folder / "default.json", content)
    with suppress(StoreUnusable, StoreUnavailable):
        assert isinstance(FileStore(one_folder)._load("default"), Login)


@given(content=st.binary() | changed(to_document(Entry(build_attempt()))))
@settings(deadline=None)
def test_no_bytes_break_an_attempt(one_folder: Path, content: bytes) -> None:
    """Whatever an attempt's file holds, it is taken, gone or one of our two errors."""
    name = f"default.login-{build_attempt().state.fingerprint()}"
    put(one_folder / f"{name}.json", content)
    (one_folder / f"{name}.used.json").unlink(missing_ok=True)
    with suppress(StoreUnusable, StoreUnavailable, AttemptGone):
        assert FileStore(one_folder)._take("default", "state-1", NOW).account == "default"
