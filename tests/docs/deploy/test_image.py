"""The Dockerfile agrees with the repository and with cfproxy."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath

import pytest

from tests.docs.deploy.files import load_with, parse_command
from tests.support.paths import ROOT

TEXT = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text("utf-8"))
FINAL = TEXT[TEXT.rindex("\nFROM") :]


def _instructions(name: str, text: str) -> list[str]:
    return re.findall(rf"(?m)^{name} (.*)$", text)


def test_copied_files_exist_and_reach_the_build() -> None:
    """Each source is in the repository, and .dockerignore lets it through."""
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")
    }
    copied = [words for words in _instructions("COPY", TEXT) if "--from" not in words]
    sources = {source for words in copied for source in words.split()[:-1]}
    assert sources
    assert all((ROOT / source).exists() for source in sources)
    assert sources == allowed


def test_its_variables_are_settings(tmp_path: Path) -> None:
    """With the client's settings added, cfproxy starts without a file."""
    (line,) = _instructions("ENV", FINAL)
    variables = dict(word.split("=", 1) for word in line.split())
    ours = {name: value for name, value in variables.items() if name.startswith("CFPROXY_")}
    client = {"CFPROXY_CLIENT_ID": "a", "CFPROXY_CLIENT_SECRET": "b", "CFPROXY_GRANT": "client_credentials"}
    store = load_with(ours | client, {}, tmp_path).accounts["default"].store
    (volume,) = _instructions("VOLUME", FINAL)
    # A folder below it, because the mode of the volume itself is outside our control.
    assert PurePosixPath(volume) in PurePosixPath(str(store.url).removeprefix("file:")).parents


def test_its_commands_are_valid() -> None:
    """The default command and the health check are command lines of cfproxy, without a shell."""
    (entry,), (command,) = _instructions("ENTRYPOINT", FINAL), _instructions("CMD", FINAL)
    assert json.loads(entry) == ["cfproxy"]
    assert parse_command(json.loads(command))[0] == "serve"
    (health,) = _instructions("HEALTHCHECK", FINAL)
    timeout = re.search(r"--timeout=(\d+)s", health)
    program, *words = json.loads(health[health.index("[") :])
    name, options, _ = parse_command(words)
    assert (program, name, options["state"]) == ("cfproxy", "wait", "live")
    assert timeout
    assert options["timeout_s"] < int(timeout[1])


def test_it_runs_as_an_unprivileged_user() -> None:
    """The user is numeric, so that Kubernetes can check it, and owns the volume's folder."""
    assert _instructions("USER", FINAL) == ["65532:65532"]
    assert "--chown=65532:0 /var/lib/cfproxy /var/lib/cfproxy" in FINAL


@pytest.mark.parametrize("lock", ["requirements.lock", ".ci/requirements-build.lock"])
def test_dependencies_are_locked_wheels(lock: str) -> None:
    """Each lock file is installed from wheels only, with hashes."""
    (line,) = [line for line in _instructions("RUN", TEXT) if f"-r {lock}" in line]
    assert "--require-hashes" in line
    assert "--only-binary :all:" in line
