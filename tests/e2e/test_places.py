"""Commands of a user without a home folder, an account or a readable working folder."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="user ids are Unix's")

# Root can run commands as a user whom the system does not know, as containers do.
STRANGER: dict[str, Any] = (
    {"user": 12345, "group": 0, "extra_groups": []} if os.name == "posix" and os.geteuid() == 0 else {}
)
APP = {"CFPROXY_CLIENT_ID": "app", "CFPROXY_TOKEN_URL": "http://127.0.0.1:1/t", "CFPROXY_ADMIN": "off"}
PERSON = APP | {"CFPROXY_REDIRECT_URI": "https://example.com/cb"}
SERVICE = APP | {"CFPROXY_GRANT": "client_credentials", "CFPROXY_CLIENT_SECRET": "s"}
COMMANDS = [
    *(["config", "check"], ["config", "show"], ["config", "init"], ["login", "--print-url"], ["status"]),
    *(["token"], ["logout"], ["store", "copy", "file", "file:/nowhere/x"], ["wait", "--timeout", "0"]),
]


@pytest.fixture
def cwd() -> Iterator[Path]:
    """A folder with configuration files that nobody but their owner can look at."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("cfproxy.yaml", "config.yaml"):
            (folder / file).write_text("client_id: of another user\n")
            (folder / file).chmod(0o000)
        yield folder
        folder.chmod(0o700)


PYTHON = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.defpath}


@functools.cache
def _can_run() -> bool:
    """Return whether the stranger may read this Python and this checkout; a home folder may hold them."""
    probe = [sys.executable, "-c", "import cfproxy.cli.main"]
    try:
        return subprocess.run(probe, cwd="/", env=PYTHON, check=False, **STRANGER).returncode == 0
    except PermissionError:
        return False


def _run(cwd: Path, environ: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    if not _can_run():
        pytest.skip("other users can't read this Python or this checkout")
    ran: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-m", "cfproxy", *args],
        cwd=cwd,
        env=PYTHON | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **STRANGER,
    )
    return ran


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(("mode", "home"), [(0o711, "/"), (0o000, "/dev/null")], ids=str)
def test_no_command_fails_inside(cwd: Path, command: list[str], mode: int, home: str) -> None:
    """What can't be looked at is absent, and every message names a next step."""
    cwd.chmod(mode)
    ran = _run(cwd, {**PERSON, "HOME": home}, *command)
    assert "internal error" not in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.returncode in {0, 1, 2, 3, 4, 5}
    assert "of another user" not in ran.stdout


@pytest.mark.skipif(not STRANGER, reason="needs root, to become a user whom the system does not know")
def test_a_login_needs_a_place(cwd: Path) -> None:
    """Without a home folder the settings that give it one are named; an app's own token needs none."""
    for command in (["config", "check"], ["login", "--print-url"], ["serve"], ["doctor"]):
        ran = _run(cwd, PERSON, *command)
        assert ran.returncode == 2
        text = ran.stdout + ran.stderr
        assert (
            "store: needs a place: this user has no home folder; set store: file:DIR, or store: memory"
            in text
        )
    assert _run(cwd, SERVICE, "config", "check").returncode == 0
    assert "token endpoint" in _run(cwd, SERVICE, "token").stderr
    ran = _run(cwd, {**PERSON, "HOME": "/"}, "login", "--print-url")
    assert ran.returncode == 4
    assert "set `store: file:DIR` to a folder of this user's, or `store: memory`" in ran.stderr


def test_a_named_file_that_cannot_be_read_is_an_error(cwd: Path) -> None:
    """It is not passed over."""
    if os.geteuid() == 0 and not STRANGER:
        pytest.skip("root can read everything")
    for environ, args in (({"CFPROXY_CONFIG": "cfproxy.yaml"}, []), ({}, ["-c", "cfproxy.yaml"])):
        cwd.chmod(0o755)
        ran = _run(cwd, {**SERVICE, "HOME": "/", **environ}, "config", "check", *args)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert "cfproxy.yaml: can't be read: Permission denied" in ran.stderr


def test_another_projects_file_does_not_stop_the_start(tmp_path: Path) -> None:
    """It is named only where something is missing."""
    (tmp_path / "config.yaml").write_text("title: x\n")
    home = {"HOME": str(tmp_path)}
    environment = {"PYTHONPATH": str(ROOT), **SERVICE, **home}
    run = [sys.executable, "-m", "cfproxy", "config", "check"]
    ran = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "environment: ok, accounts: default\n")
    note = "was not used, because it has no key of cfproxy at its top level; name the file to read: -c FILE"
    assert note in ran.stderr
    (tmp_path / "config.yaml").write_text("title: x\nlog: {}\n")
    ran = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    problem, note = ran.stderr.splitlines()
    assert "config.yaml: title: is not a known key" in problem
    assert "was read because it is in the working folder and has the key log; to read another" in note
