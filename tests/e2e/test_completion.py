"""Completion: the shells run the script that `cfproxy completion` prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the shells of Unix")

CONFIG = "client_secret: {env: NOBODY_HAS_SET_IT}\naccounts: {acme: {client_id: a}, ajax: {client_id: b}}\n"
BASH = """
eval "$(cfproxy completion bash)"
COMP_WORDS=(cfproxy @WORDS@) COMP_CWORD=@COUNT@
_cfproxy_completion cfproxy && printf '%s\\n' "${COMPREPLY[@]}"
"""
# Only the part that needs a line editor is replaced.
ZSH = """
compdef() { : }
compadd() { shift 4; print -l -- ${(P)1} }
_describe() { print -l -- ${completions_with_descriptions%%:*} }
eval "$(cfproxy completion zsh)"
words=(cfproxy @WORDS@) CURRENT=$((@COUNT@ + 1))
_cfproxy_completion
"""
FISH = """
cfproxy completion fish | source
complete -C "cfproxy @WORDS@"
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def _completed(shell: str, folder: Path, words: str) -> list[str]:
    """Return what a shell offers for `words`, of which the last one is incomplete."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = folder / "bin" / "cfproxy"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cfproxy "$@"\n')
    program.chmod(0o755)
    script = SCRIPTS[shell].replace("@WORDS@", words).replace("@COUNT@", str(len(words.split(" "))))
    environment = {
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
    }
    options = {"zsh": ["-f"], "bash": ["--norc"], "fish": ["--no-config"]}[shell]
    ran = subprocess.run(
        [shell, *options, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stderr == ""
    return [line.partition("\t")[0] for line in ran.stdout.splitlines() if line]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_shells_complete_commands_and_accounts(shell: str, tmp_path: Path) -> None:
    """Commands, options and accounts, even if the configuration's secrets are missing."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert _completed(shell, tmp_path, "lo") == ["login", "logout"]
    assert _completed(shell, tmp_path, "wait --for li") == ["live"]
    assert _completed(shell, tmp_path, "serve --account a") == ["acme", "ajax"]
    assert _completed(shell, tmp_path, "status --account ac") == ["acme"]


def test_a_broken_configuration_completes_nothing(tmp_path: Path) -> None:
    """And prints nothing into the command line."""
    (tmp_path / "config.yaml").write_text("accounts: [")
    assert _completed("bash", tmp_path, "serve --account a") == []
    assert _completed("bash", tmp_path, "serve -c missing.yaml --account a") == []
