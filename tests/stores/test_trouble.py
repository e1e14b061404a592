"""The file store on disks that are full, read-only or failing, and in processes that are killed."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cfproxy.errors import StoreUnavailable, StoreUnusable
from cfproxy.stores import disk, locking
from cfproxy.stores.file import FileStore

from .examples import NOW, build_attempt, build_login, posix_only, root_only

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
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


def child(script: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(HERE / script), str(folder)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, **options)


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


def creates(_path: object, flags: int, *_: object) -> bool:
    return bool(flags & os.O_CREAT)


def reads(_path: object, flags: int, *_: object) -> bool:
    return not flags & os.O_CREAT


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("step", ["open", "write", "fsync", "close", "replace"])
async def test_a_failing_disk_keeps_the_old_record(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch, step: str, error: int
) -> None:
    """Whichever step of a save fails, the old record stands, nothing is left over, and the words say why."""
    await store.save(OLD)
    with monkeypatch.context() as patch:
        armed = True

        def once(*args: Any) -> bool:
            nonlocal armed
            fires, armed = armed and (step != "open" or creates(*args)), armed
            # The record's check before the save closes its file through another door: only ours counts.
            armed = armed and not fires
            return fires

        failing(patch, step, error, when=once)
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
    calls: list[object] = []
    failing(monkeypatch, "fsync", errno.EIO, when=lambda fd: bool(calls.append(fd)) or len(calls) == 2)
    with pytest.raises(StoreUnavailable):
        await store.save(NEW)
    assert await store.load("default") == NEW


async def test_a_file_system_that_flushes_no_folders_is_fine(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """'Invalid argument' for a folder's flush means that there is nothing to flush."""
    await store.save(OLD)
    calls: list[object] = []
    failing(monkeypatch, "fsync", errno.EINVAL, when=lambda fd: bool(calls.append(fd)) or len(calls) == 2)
    await store.save(NEW)
    assert len(calls) == 2


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
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    for refused in (store.save(NEW), store.probe("default"), store.put_attempt(build_attempt())):
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
    with pytest.raises(StoreUnavailable, match="cannot lock in .*Read-only file system"):
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
    with pytest.raises(StoreUnavailable, match="cannot lock in .*; free some space"):
        async with store.lock("default", 5):
            pytest.fail("entered")


async def test_an_attempt_is_used_up_even_when_the_disk_is_full(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking an attempt needs no space: the login goes on, and its replay is still refused."""
    attempt = build_attempt()
    await store.put_attempt(attempt)
    with monkeypatch.context() as patch:
        failing(patch, "write", errno.ENOSPC)
        assert await store.take_attempt("default", "state-1", NOW) == attempt
    with pytest.raises(Exception, match="used"):
        await store.take_attempt("default", "state-1", NOW)


async def test_a_cancelled_save_is_still_finished(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelling a save does not undo it: the thread goes on and the record arrives whole."""
    reached, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    real = os.fsync

    def slow(fd: int) -> None:
        loop.call_soon_threadsafe(reached.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(30)
        real(fd)

    monkeypatch.setattr(os, "fsync", slow)
    save = asyncio.create_task(store.save(NEW))
    await reached.wait()
    save.cancel()
    with pytest.raises(asyncio.CancelledError):
        await save
    assert store.stamp("default") is None
    go_on.set()
    await loop.shutdown_default_executor()
    assert FileStore(Path(store.location))._load("default") == NEW


async def test_a_lock_that_comes_too_late_is_given_back(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A waiter that is cancelled at the very moment of success does not keep the lock for ever."""
    reached, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    real = locking.try_lock

    def slow(folder: disk.Folder, name: str) -> int | None:
        fd = real(folder, name)
        loop.call_soon_threadsafe(reached.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(30)
        return fd

    async def wait() -> None:
        async with store.lock("default", 5):
            pytest.fail("entered")

    with monkeypatch.context() as patch:
        patch.setattr(locking, "try_lock", slow)
        waiter = asyncio.create_task(wait())
        await reached.wait()
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    go_on.set()
    async with store.lock("default", 30):
        pass


@posix_only
def test_a_killed_process_leaves_the_lock_free(store: FileStore, folder: Path) -> None:
    """The lock of a process that was killed is free at once; while it lived, it held."""

    async def locked() -> bool:
        try:
            async with store.lock("default", 0):
                return False
        except StoreUnavailable:
            return True

    with child("held_lock.py", folder) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert asyncio.run(locked())
        holder.kill()
    assert not asyncio.run(locked())


@posix_only
def test_a_save_that_is_killed_anywhere_leaves_a_whole_record(store: FileStore, folder: Path) -> None:
    """Kill a save before any of its steps: the old or the new record stands, and the next save works.

    What the killed ones leave behind goes with the first save an hour later.
    """
    with child("killed_save.py", folder) as script:
        assert script.stdout is not None
        *killed, survivor = json.loads(script.stdout.read())
    assert script.returncode == 0
    assert survivor == {"killed": False, "status": 0, "before": "", "stands": 2}
    steps = [step["before"] for step in killed]
    assert {"open", "write", "utime", "fsync", "close", "replace", "unlink"} == set(steps)
    after = steps.index("replace") + 1
    assert [step["stands"] for step in killed] == [1] * after + [2] * (len(killed) - after)

    litter = [path for path in folder.iterdir() if path.name != "default.json"]
    assert litter
    asyncio.run(store.save(OLD))
    assert all(path.exists() for path in litter)
    hour_ago = time.time() - disk.STALE_TEMP_S - 60
    for path in litter:
        os.utime(path, (hour_ago, hour_ago))
    asyncio.run(store.save(NEW))
    assert [path.name for path in folder.iterdir()] == ["default.json"]
    assert asyncio.run(store.load("default")) == NEW


def test_a_name_too_long_for_the_disk_is_for_good(store: FileStore) -> None:
    """What no waiting mends is not called temporary."""
    with pytest.raises(StoreUnusable, match="File name too long"):
        asyncio.run(store.save(build_login("a" * 300)))
