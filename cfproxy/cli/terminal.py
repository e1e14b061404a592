"""Text for people: wrapped and coloured where somebody looks at it, plain where a program reads it.

Owns: when there is colour (a terminal, no NO_COLOR, no dumb one), and how lines are wrapped.
Must not know: what the text says; which word has which colour is the caller's.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping

import click

WIDTH = 80
_WORD = re.compile(r"(\s*(?:[\w-]+: )?)([\w-]+)")
_COLUMNS = re.compile(r" {2,}")
_LAST_COLUMN = 30


def show(text: str, colors: Mapping[str, str]) -> None:
    """Write text to standard output.

    Args:
        text: lines, whose columns are parted by two spaces or more.
        colors: the colour of each word that may stand first in a line, or after a name and a colon.
    """
    if not sys.stdout.isatty():
        click.echo(text)
        return
    is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    lines = wrap(text, min(WIDTH, shutil.get_terminal_size().columns))
    click.echo(lines if is_plain else paint(lines, colors), color=not is_plain)


def wrap(text: str, width: int) -> str:
    """Return the text with lines of `width` at most; what goes on stands under its own column."""
    lines = []
    for line in text.splitlines():
        columns = [match.end() for match in _COLUMNS.finditer(line[:_LAST_COLUMN])]
        indent = " " * max([*columns, 2])
        # A command or an address that is broken can't be copied.
        lines += textwrap.wrap(
            line,
            max(width, len(indent) + 20),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        ) or [""]
    return "\n".join(lines)


def paint(text: str, colors: Mapping[str, str]) -> str:
    """Return the text with the words of `colors` coloured where they stand first."""
    return "\n".join(_painted(line, colors) for line in text.splitlines())


def _painted(line: str, colors: Mapping[str, str]) -> str:
    match = _WORD.match(line)
    if match is None or match[2] not in colors:
        return line
    return match[1] + click.style(match[2], fg=colors[match[2]], bold=True) + line[match.end() :]
