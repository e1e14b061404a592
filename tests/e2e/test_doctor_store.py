"""What the doctor says of stores that can be written, but not used."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.kit import World
from tests.support.redis_server import running_server
from tests.support.secret_ledger import LEDGER

# Stands for a file system without locks, such as NFS whose lock service does not run.
NO_LOCKS = "#include <errno.h>\nint flock(int fd, int op) { errno = ENOLCK; return -1; }\n"


async def findings(world: World, check: str) -> list[dict[str, Any]]:
    document = json.loads((await world.run("doctor", "--json")).out)
    return [each for each in document["findings"] if each["check"] == check]


async def test_store_that_cannot_be_locked_is_not_ok(world: World, tmp_path: Path) -> None:
    """A refresh needs the lock, so the doctor takes it."""
    source, library = tmp_path / "nolocks.c", tmp_path / "nolocks.so"
    source.write_text(NO_LOCKS, encoding="ascii")
    built = os.name == "posix" and subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=False, capture_output=True
    )
    if not built or built.returncode != 0:
        pytest.skip("needs a C compiler")
    await world.log_in()
    (finding,) = await findings(world, "store")
    assert (finding["level"], "can be locked" in finding["text"]) == ("ok", True)
    world.environment["LD_PRELOAD"] = str(library)
    (finding,) = await findings(world, "store")
    assert (finding["level"], "cannot lock" in finding["text"]) == ("fail", True)
    assert "NFS" in finding["next"]


async def test_password_beside_the_address_is_used_by_every_check(world: World, tmp_path: Path) -> None:
    """`store.password` counts like one in the URL."""
    password = f"redis-password-{os.urandom(8).hex()}"
    LEDGER.add_secret(password, "the store's password")
    with running_server(tmp_path / "redis", "--requirepass", password) as server:
        await server.ready()
        world.write_config(store={"url": server.url, "password": password})
        (finding,) = await findings(world, "store")
        assert finding["level"] == "ok"
        (finding,) = await findings(world, "persistence")
        assert "appendonly is off" in finding["text"]
