"""The file store: what it reads, what it refuses, and what it never overwrites."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cfproxy.auth.models import AttemptGone, Login, Token
from cfproxy.errors import StoreUnavailable, StoreUnusable
from cfproxy.secret import Secret
from cfproxy.stores.documents import DOCUMENT_VERSION, attempt_to_document, login_to_document
from cfproxy.stores.file import FileStore
from tests.support.store_examples import NOW, build_attempt, build_login, put, refusal

DOCUMENT = login_to_document(build_login())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "cfproxy"


@pytest.fixture
def store(folder: Path) -> FileStore:
    return FileStore(folder)


async def test_reading_creates_nothing(folder: Path, store: FileStore) -> None:
    """Reading a store that does not exist leaves the disk as it was."""
    assert await store.load("default") is None
    assert store.stamp("default") is None
    assert await store.delete("default") is False
    with pytest.raises(AttemptGone):
        await store.claim_attempt("default", None, NOW)
    assert not folder.parent.exists()


async def test_used_attempt_leaves_no_verifier_on_disk(folder: Path, store: FileStore) -> None:
    """What could finish the login again is removed from the disk."""
    await store.save_attempt(build_attempt(verifier="marker"))
    await store.claim_attempt("default", "state-1", NOW)
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
        (b"[]", "is not a cfproxy document"),
        (b"x" * (64 * 1024 + 1), "too large"),
        (json.dumps(DOCUMENT | {"serial": "1"}).encode(), "damaged at 'serial'"),
        (json.dumps(DOCUMENT | {"version": DOCUMENT_VERSION + 1}).encode(), "newer cfproxy"),
        (json.dumps(DOCUMENT | {"account": "other"}).encode(), "not the login of account 'default'"),
    ],
)
async def test_unreadable_record_is_refused_and_kept(
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


async def test_login_that_could_not_be_read_back_is_not_saved(store: FileStore) -> None:
    """A record that `load` would refuse never replaces one that it accepts."""
    await store.save(build_login())
    for bad in (
        build_login(token=Token(Secret("a"), NOW, float("inf"))),
        build_login(token=Token(Secret("a" * 70_000), NOW, 60.0)),
    ):
        with pytest.raises(StoreUnusable):
            await store.save(bad)
    assert await store.load("default") == build_login()


async def test_stamp_never_raises(tmp_path: Path) -> None:
    """If the store can't be accessed, the stamp differs from that of an account without a login."""
    (tmp_path / "file").write_bytes(b"")
    assert FileStore(tmp_path / "file" / "below").stamp("default") is not None


async def test_damaged_attempt_affects_no_other_login(folder: Path, store: FileStore) -> None:
    """An unreadable attempt is reported when it is needed, kept, and does not affect other attempts."""
    damaged = folder / f"default.login-{Secret('damaged').fingerprint()}.json"
    put(damaged, b"{")
    attempt = build_attempt()
    await store.save_attempt(attempt)
    assert await store.claim_attempt("default", "state-1", NOW) == attempt
    for state in ("damaged", None):
        with pytest.raises(StoreUnusable, match=damaged.name):
            await store.claim_attempt("default", state, NOW)
    assert damaged.read_bytes() == b"{"


async def test_planted_link_affects_no_other_login(tmp_path: Path, folder: Path, store: FileStore) -> None:
    """A file that is not even read is passed over as well."""
    attempt = build_attempt()
    await store.save_attempt(attempt)
    (folder / "default.login-0.json").symlink_to(tmp_path / "elsewhere")
    assert await store.claim_attempt("default", None, NOW) == attempt


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
def test_any_content_is_a_login_or_a_known_error(one_folder: Path, content: bytes) -> None:
    """Whatever the file of a login holds, loading returns a login or raises one of two errors."""
    put(one_folder / "default.json", content)
    with suppress(StoreUnusable, StoreUnavailable):
        assert isinstance(FileStore(one_folder)._load("default"), Login)


@given(content=st.binary() | changed(attempt_to_document(build_attempt())))
def test_any_content_is_an_attempt_or_a_known_error(one_folder: Path, content: bytes) -> None:
    """Whatever the file of an attempt holds, it is claimed, gone or one of two errors."""
    name = f"default.login-{build_attempt().state.fingerprint()}"
    put(one_folder / f"{name}.json", content)
    (one_folder / f"{name}.used.json").unlink(missing_ok=True)
    with suppress(StoreUnusable, StoreUnavailable, AttemptGone):
        assert FileStore(one_folder)._claim_attempt("default", "state-1", NOW).account == "default"
