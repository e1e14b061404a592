"""Output of text: wrapped and coloured on a terminal, unchanged for programs.

There is no colour with NO_COLOR or TERM=dumb.
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
        text: lines; two spaces or more separate columns.
        colors: colours of words at the start of a line, or after a name and a colon there.
    """
    if not sys.stdout.isatty():
        click.echo(text)
        return
    is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    lines = wrap(text, min(WIDTH, shutil.get_terminal_size().columns))
    click.echo(lines if is_plain else paint(lines, colors), color=not is_plain)


def wrap(text: str, width: int) -> str:
    """Return the text with lines of at most `width`; continuation lines start at their column."""
    lines = []
    for line in text.splitlines():
        columns = [match.end() for match in _COLUMNS.finditer(line[:_LAST_COLUMN])]
        indent = " " * max([*columns, 2])
        # A command or an address with a line break can't be copied.
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
    """Return the text with the words of `colors` coloured where they come first."""
    return "\n".join(_painted(line, colors) for line in text.splitlines())


def _painted(line: str, colors: Mapping[str, str]) -> str:
    match = _WORD.match(line)
    if match is None or match[2] not in colors:
        return line
    return match[1] + click.style(match[2], fg=colors[match[2]], bold=True) + line[match.end() :]
