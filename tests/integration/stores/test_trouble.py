"""The file store on disks that are full, read-only or failing."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from cfproxy.auth.models import AttemptGone
from cfproxy.errors import StoreUnavailable, StoreUnusable
from cfproxy.stores.file import FileStore
from tests.support.store_examples import NOW, build_attempt, build_login, posix_only, root_only

OLD, NEW = build_login(), build_login(serial=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> FileStore:
    return FileStore(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if sys.platform != "linux" or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def failing(
    monkeypatch: pytest.MonkeyPatch, name: str, error: int, *, when: Callable[..., bool] = lambda *_: True
) -> None:
    """Make `os.NAME` fail with `error` while `when(*args)` is true."""
    real = getattr(os, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            raise OSError(error, os.strerror(error))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, call)


def nth_time(wanted: int) -> Callable[..., bool]:
    calls = count(1)
    return lambda *_: next(calls) == wanted


def creates(_path: object, flags: int, *_: object) -> bool:
    return bool(flags & os.O_CREAT)


def reads(_path: object, flags: int, *_: object) -> bool:
    return not flags & os.O_CREAT


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1024))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("step", ["open", "write", "fsync", "close", "replace"])
async def test_failing_disk_keeps_the_old_record(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch, step: str, error: int
) -> None:
    """Whichever step of a save fails, the old record stands, nothing else is left, and the message fits."""
    await store.save(OLD)
    with monkeypatch.context() as patch:
        failing(patch, step, error, when=creates if step == "open" else nth_time(1))
        with pytest.raises(StoreUnavailable) as caught:
            await store.save(NEW)
    assert str(caught.value).startswith(f"cannot save in {folder}: {os.strerror(error)}; ")
    assert await store.load("default") == OLD
    assert [path.name for path in folder.iterdir()] == ["default.json"]
    await store.save(NEW)
    assert await store.load("default") == NEW


async def test_save_that_may_not_survive_a_power_cut_is_an_error(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If flushing the folder, the last step, fails, the new record is complete but not guaranteed."""
    await store.save(OLD)
    failing(monkeypatch, "fsync", errno.EIO, when=nth_time(2))
    with pytest.raises(StoreUnavailable):
        await store.save(NEW)
    assert await store.load("default") == NEW


async def test_file_system_that_cannot_flush_folders_is_fine(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`EINVAL` for flushing a folder means that there is nothing to flush."""
    await store.save(OLD)
    failing(monkeypatch, "fsync", errno.EINVAL, when=nth_time(2))
    await store.save(NEW)
    assert await store.load("default") == NEW


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.EMFILE])
async def test_read_error_is_no_missing_login(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """A read error is reported as such, and nothing is saved over the record."""
    await store.save(OLD)
    with monkeypatch.context() as patch:
        failing(patch, "open", error, when=reads)
        for refused in (store.load("default"), store.save(NEW)):
            with pytest.raises(StoreUnavailable, match=f"cannot read in .*: {os.strerror(error)}; "):
                await refused
    assert await store.load("default") == OLD


async def test_missing_folder_is_no_logout(folder: Path, store: FileStore) -> None:
    """An unmounted disk still has the login: no new folder takes its place."""
    await store.save(build_login())
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="is gone"):
            await store.load("default")
        with pytest.raises(StoreUnavailable, match="is gone"):
            async with store.lock("default", 1):
                pass
    with pytest.raises(StoreUnavailable, match="is gone"):
        await store.save(build_login(serial=2))
    assert not folder.exists()
    elsewhere.rename(folder)
    assert await store.load("default") == build_login()


async def test_probe_detects_a_full_disk(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that could not save says so before a token is at stake, and leaves nothing behind."""
    with monkeypatch.context() as patch:
        failing(patch, "write", errno.ENOSPC)
        with pytest.raises(StoreUnavailable, match="free some space"):
            await store.probe("default")
    await store.probe("default")
    assert list(folder.iterdir()) == []


@root_only
async def test_really_full_disk(small_disk: Path) -> None:
    """The old record can be read and locked, a new one is refused, and free space is enough to recover."""
    store = FileStore(small_disk / "store")
    async with store.lock("default", 5):
        await store.save(OLD)
    filler = small_disk / "filler"
    fill(filler)
    for refused in (store.save(NEW), store.probe("default"), store.save_attempt(build_attempt())):
        with pytest.raises(StoreUnavailable, match="No space left on device; free some space there"):
            await refused
    async with store.lock("default", 5):
        assert await store.load("default") == OLD
    assert sorted(path.name for path in (small_disk / "store").iterdir()) == ["default.json", "default.lock"]
    filler.unlink()
    await store.save(NEW)
    assert await store.load("default") == NEW


@root_only
async def test_read_only_disk(small_disk: Path) -> None:
    """A record is read; its lock works if the file exists, else the error is reported."""
    store = FileStore(small_disk / "store")
    async with store.lock("default", 5):
        await store.save(OLD)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for refused in (store.save(NEW), store.probe("default"), store.delete("default")):
        with pytest.raises(StoreUnavailable, match="Read-only file system; mount it writable"):
            await refused
    async with store.lock("default", 5):
        assert await store.load("default") == OLD
        with pytest.raises(StoreUnavailable, match="is refreshing"):
            async with store.lock("default", 0):
                pytest.fail("two holders")
    with pytest.raises(StoreUnavailable, match=r"cannot lock in .*Read-only file system"):
        async with store.lock("other", 5):
            pytest.fail("entered")


@posix_only
async def test_folder_without_write_permission(folder: Path, store: FileStore) -> None:
    """Saving fails with a clear error, and the record stays."""
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    await store.save(OLD)
    folder.chmod(0o500)
    try:
        with pytest.raises(StoreUnavailable, match="Permission denied; let this user read and write there"):
            await store.save(NEW)
        assert await store.load("default") == OLD
    finally:
        folder.chmod(0o700)


async def test_lock_that_cannot_be_created_is_an_error(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without space for the lock file nobody gets the lock."""
    failing(monkeypatch, "open", errno.ENOSPC, when=creates)
    with pytest.raises(StoreUnavailable, match=r"cannot lock in .*; free some space"):
        async with store.lock("default", 5):
            pytest.fail("entered")


async def test_attempt_is_used_up_even_on_a_full_disk(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim needs no space: the login goes on, and its replay is refused."""
    attempt = build_attempt()
    await store.save_attempt(attempt)
    with monkeypatch.context() as patch:
        failing(patch, "write", errno.ENOSPC)
        assert await store.claim_attempt("default", "state-1", NOW) == attempt
    for state in ("state-1", None):
        with pytest.raises(AttemptGone, match="used"):
            await store.claim_attempt("default", state, NOW)


def test_name_too_long_for_the_disk_is_a_lasting_error(store: FileStore) -> None:
    """An error that waiting does not solve is not reported as temporary."""
    with pytest.raises(StoreUnusable, match="File name too long"):
        asyncio.run(store.save(build_login("a" * 300)))
