"""The help of every command fits a terminal of 80 columns and explains all options."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from cfproxy.cli.main import cli
from tests.support.paths import ROOT


def _walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _walk(below, (*path, name))


COMMANDS = dict(_walk(cli, ()))


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "cfproxy")
def test_each_help_fits_80_columns_and_explains_every_option(path: tuple[str, ...]) -> None:
    """The terminal wraps no line, no sentence is cut off, and every option has a text."""
    shown = CliRunner().invoke(cli, [*path, "--help"], prog_name="cfproxy", terminal_width=80)
    assert shown.exit_code == 0
    assert max(map(len, shown.output.splitlines())) <= 80
    assert not re.search(r"\w\.\.\.\s*$", shown.output, re.MULTILINE)
    for option in COMMANDS[path].params:
        assert not isinstance(option, click.Option) or option.help, option.name


def test_the_readme_names_every_command() -> None:
    """Its table has each command, and no other."""
    match = re.search(r"(?ms)^## Commands$(.*?)(?=^## )", (ROOT / "README.md").read_text("utf-8"))
    assert match
    cells = "".join(re.findall(r"(?m)^\|([^|]*)\|", match[1]))
    named = set(re.findall(r"`cfproxy ([a-z]+)", cells))
    assert named == {path[0] for path in COMMANDS if path}
