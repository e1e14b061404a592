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
    """Let `os.NAME` fail with `error` while `when(*args)` holds."""
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
async def test_a_failing_disk_keeps_the_old_record(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch, step: str, error: int
) -> None:
    """Whichever step of a save fails, the old record stands, nothing is left over, and the words say why."""
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


async def test_a_save_that_may_not_survive_a_power_cut_is_told(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the last step, flushing the folder, fails, the new record is whole but not promised."""
    await store.save(OLD)
    failing(monkeypatch, "fsync", errno.EIO, when=nth_time(2))
    with pytest.raises(StoreUnavailable):
        await store.save(NEW)
    assert await store.load("default") == NEW


async def test_a_file_system_that_flushes_no_folders_is_fine(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """'Invalid argument' for a folder's flush means that there is nothing to flush."""
    await store.save(OLD)
    failing(monkeypatch, "fsync", errno.EINVAL, when=nth_time(2))
    await store.save(NEW)
    assert await store.load("default") == NEW


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.EMFILE])
async def test_a_disk_that_cannot_be_read_is_no_missing_login(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """A read error is told as such; it never looks like 'not logged in', and nothing is saved over it."""
    await store.save(OLD)
    with monkeypatch.context() as patch:
        failing(patch, "open", error, when=reads)
        for refused in (store.load("default"), store.save(NEW)):
            with pytest.raises(StoreUnavailable, match=f"cannot read in .*: {os.strerror(error)}; "):
                await refused
    assert await store.load("default") == OLD


async def test_a_folder_that_is_gone_is_no_logout(folder: Path, store: FileStore) -> None:
    """A disk that is not mounted any more still has the login; no new folder takes its place."""
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


async def test_a_probe_finds_a_full_disk(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that could not save says so before a token is at stake, and keeps nothing of the trial."""
    with monkeypatch.context() as patch:
        failing(patch, "write", errno.ENOSPC)
        with pytest.raises(StoreUnavailable, match="free some space"):
            await store.probe("default")
    await store.probe("default")
    assert list(folder.iterdir()) == []


@root_only
async def test_a_really_full_disk(small_disk: Path) -> None:
    """On a full disk the old record is read and locked on, the new one refused, and space heals it."""
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
async def test_a_read_only_disk(small_disk: Path) -> None:
    """A record on a read-only disk is read; its lock works where there is one, else that is told."""
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
async def test_a_folder_without_write_permission(folder: Path, store: FileStore) -> None:
    """Where this user may only read, saving says so and the record stays."""
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


async def test_a_lock_that_cannot_be_made_is_told(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for the lock file nobody is told that they are alone."""
    failing(monkeypatch, "open", errno.ENOSPC, when=creates)
    with pytest.raises(StoreUnavailable, match=r"cannot lock in .*; free some space"):
        async with store.lock("default", 5):
            pytest.fail("entered")


async def test_an_attempt_is_used_up_even_when_the_disk_is_full(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking an attempt needs no space: the login goes on, and its replay is still refused."""
    attempt = build_attempt()
    await store.save_attempt(attempt)
    with monkeypatch.context() as patch:
        failing(patch, "write", errno.ENOSPC)
        assert await store.claim_attempt("default", "state-1", NOW) == attempt
    for state in ("state-1", None):
        with pytest.raises(AttemptGone, match="used"):
            await store.claim_attempt("default", state, NOW)


def test_a_name_too_long_for_the_disk_is_for_good(store: FileStore) -> None:
    """What no waiting mends is not called temporary."""
    with pytest.raises(StoreUnusable, match="File name too long"):
        asyncio.run(store.save(build_login("a" * 300)))
