"""Names and paths with characters that the output's encoding, or the file system's, lacks."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.e2e.kit import World
from tests.e2e.processes import PATIENCE_S

STREAMS = [
    {"PYTHONIOENCODING": "cp1252"},  # a pipe on Windows
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "utf-8"},  # lacks the bytes of a path that are not UTF-8
]
COMMANDS: list[tuple[int | str, ...]] = [
    (0, "config", "check"),
    (0, "config", "show"),
    (0, "status"),
    (0, "doctor"),
    (0, "logout"),
    (0, "token"),
    (2, "login", "--finish", "\u0141"),
    (1, "wait", "--timeout", "0"),
    (3, "store", "copy", "file:\u0141", "file:\u0142"),
    (2, "serve", "--account", "\u0141"),
]


async def run(world: World, folder: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a folder; what it prints stays bytes."""
    return await asyncio.to_thread(
        subprocess.run,
        world.command(*args),
        cwd=folder,
        env=world.full_environment() | {"CFPROXY_ADMIN": "127.0.0.1:1", **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture
def odd_folder(world: World) -> Path:
    """A folder with a configuration whose paths have characters that most encodings lack."""
    name = "\u0141\u00f3d\u017a-\U0001f600" + ("-\udcff" if os.name == "posix" else "")
    folder = world.folder / name
    try:
        folder.mkdir()
    except OSError:  # APFS takes UTF-8 only
        folder = world.folder / name.replace("\udcff", "")
        folder.mkdir()
    # Relative to the file, as a YAML file can't have a name that is not UTF-8.
    world.write_config(store="file:st\u00f3re-\u0141", grant="client_credentials", redirect_uri=None)
    shutil.copy(world.config_path, folder / "cf-\u0141.yaml")
    return folder


@pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream["PYTHONIOENCODING"])
async def test_what_cannot_be_encoded_is_escaped(
    world: World, odd_folder: Path, stream: dict[str, str]
) -> None:
    """It makes no command fail."""
    for code, *command in COMMANDS:
        words = [*map(str, command), "-c", str(odd_folder / "cf-\u0141.yaml")]
        ran = await run(world, odd_folder, *words, **stream)
        assert b"internal error" not in ran.stdout + ran.stderr, command
        assert b"Traceback" not in ran.stdout + ran.stderr, command
        assert ran.returncode == code, (command, ran)
        if command == ["config", "show"]:
            shown = yaml.safe_load(ran.stdout.decode(stream["PYTHONIOENCODING"]))
            assert shown["store"] == f"file:{odd_folder}/st\u00f3re-\u0141"
    ran = await run(world, odd_folder, "config", "init", "-c", str(odd_folder / "new-\u0141.yaml"), **stream)
    assert ran.returncode == 0, ran.stderr
    ran = await run(world, odd_folder, "config", "check", "-c", str(odd_folder / "missing-\u0141"), **stream)
    assert ran.returncode == 2, ran.stderr
    assert b"internal error" not in ran.stderr


@pytest.mark.skipif(os.name != "posix", reason="elsewhere every path can be encoded")
async def test_a_path_that_the_system_cannot_encode_is_reported(world: World) -> None:
    """With an old locale; the configuration is UTF-8 in any case."""
    world.write_config(store=f"file:{world.folder}/\u0141", grant="client_credentials", redirect_uri=None)
    environ = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = await run(world, world.folder, "status", "-c", str(world.config_path), **environ)
    assert ran.returncode == 2
    assert b"a path has characters that ascii, this system's encoding, lacks; use UTF-8" in ran.stderr


async def test_bytes_that_are_not_text_can_be_pasted(world: World) -> None:
    """Where a login's address is expected, they are a wrong address."""
    await world.run("login", "--print-url")
    ran = await asyncio.to_thread(
        subprocess.run,
        world.command("login", "--finish", "-"),
        cwd=world.folder,
        env=world.full_environment() | {"PYTHONIOENCODING": "cp1252"},
        input=b"https://example.com/?code=\x81\xff\n",
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ran.returncode == 1
    assert b"internal error" not in ran.stderr
