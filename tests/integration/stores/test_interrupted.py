"""The file store when a task is cancelled or a process is killed in the middle of its work."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cfproxy.errors import StoreUnavailable
from cfproxy.stores import atomic_files as disk
from cfproxy.stores import file_lock as locking
from cfproxy.stores.file import FileStore
from tests.support.store_examples import build_login, posix_only

HERE = Path(__file__).parent
OLD, NEW = build_login(), build_login(serial=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> FileStore:
    return FileStore(folder)


def child(script: str, folder: Path) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(HERE / script), str(folder)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


async def test_cancelled_save_still_completes(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelling a save does not undo it: the thread goes on and saves the whole record."""
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


async def test_lock_that_arrives_too_late_is_released(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A waiter that is cancelled at the moment of success does not keep the lock."""
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
def test_killed_process_releases_the_lock(store: FileStore, folder: Path) -> None:
    """The lock is held while the process lives, and free as soon as it was killed."""

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
def test_save_that_is_killed_anywhere_leaves_a_whole_record(store: FileStore, folder: Path) -> None:
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
