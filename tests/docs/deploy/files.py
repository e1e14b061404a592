"""Read the files of docs/deploy and parse their contents as cfproxy does.

Owns: reading them, and running a command line and an environment through the real parser and loader.
Invariant: nothing is served and no network is asked; secret files that a file names exist for the test only.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from cfproxy.cli.main import cli
from cfproxy.config import Settings, load_settings
from tests.support.paths import ROOT

DEPLOY = ROOT / "docs" / "deploy"


def read_text(name: str) -> str:
    """Return the text of a file."""
    return (DEPLOY / name).read_text("utf-8")


def read_documents(name: str) -> list[dict[str, Any]]:
    """Return the documents of a YAML file."""
    return [dict(document) for document in yaml.safe_load_all(read_text(name))]


def parse_command(words: Sequence[str]) -> tuple[str, dict[str, Any], str | None]:
    """Parse a command line as cfproxy does, without running it.

    Args:
        words: without the program's name.

    Returns:
        the command, its options, and what `-c` says.

    Raises:
        click.UsageError: cfproxy would refuse it.
    """
    with click.Context(cli).scope():
        outer = cli.make_context("cfproxy", list(words))
    name, command, rest = cli.resolve_command(outer, [*outer._protected_args, *outer.args])
    assert name is not None
    assert command is not None
    inner = command.make_context(name, rest, parent=outer)
    return name, inner.params, inner.meta.get("cfproxy.config")


def load_with(
    environ: Mapping[str, str], secrets: Mapping[str, str], folder: Path, config: str | None = None
) -> Settings:
    """Load settings from variables and the text of a file.

    Args:
        environ: the variables.
        secrets: the text of each secret file, under the path that the settings name.
        folder: where the secret files, and the configuration, are put instead.
        config: the text of the configuration file; None for none.

    Raises:
        ConfigError: cfproxy would refuse them.
    """
    moved = {}
    for number, (path, text) in enumerate(secrets.items()):
        place = folder / f"secret-{number}"
        place.write_text(text + "\n")
        moved[path] = str(place)

    def move(text: str) -> str:
        for path, place in moved.items():
            text = re.sub(rf"{re.escape(path)}(?![\w/])", place, text)
        return text

    file = None
    if config is not None:
        file = folder / "config.yaml"
        file.write_text(move(config))
    return load_settings(file, {name: move(value) for name, value in environ.items()})


def words_of(line: str) -> list[str]:
    """Return the arguments of a command line."""
    return shlex.split(line)[1:]
