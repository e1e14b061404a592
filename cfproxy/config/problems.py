"""Collects what is wrong in the configuration, each problem at the key or variable that has to change.

No problem contains a value, and an unknown key is shown only if it looks like a word.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cfproxy.config.settings import ACCOUNT_NAME, SECRET_KEYS
from cfproxy.errors import ConfigError, Problem

Keys = tuple[str, ...]
Tree = dict[str, Any]

ENVIRONMENT = "environment"

_SHOWABLE = re.compile(r"[A-Za-z][A-Za-z_-]{0,31}|[0-9]{1,4}")


class BadYaml(Exception):
    """The text can't be read. The message is our own: PyYAML's messages quote the text."""


@dataclass(slots=True)
class Problems:
    """The problems found so far.

    Args:
        source: the file's name.
        variables: the environment variable that set each key.
        shorthands: the sections that were given as a single value, which stands for one of their keys.
    """

    source: str
    variables: dict[Keys, str] = field(default_factory=dict)
    shorthands: set[Keys] = field(default_factory=set)
    found: dict[Problem, None] = field(default_factory=dict)  # without duplicates, in order

    def add(self, path: Keys, text: str) -> None:
        """Report a problem with the key at `path`; if a variable set it, name the variable."""
        variable = self._variable(path)
        if path[:-1] in self.shorthands:
            path = path[:-1]
        if variable is None:
            self.found[Problem(self.source, render_path(path), text)] = None
        else:
            self.add_variable(variable, text)

    def add_variable(self, name: str, text: str) -> None:
        """Report a problem with an environment variable."""
        self.found[Problem(ENVIRONMENT, name, text)] = None

    def error(self) -> ConfigError:
        """Return all problems as one error."""
        return ConfigError(f"the configuration has problems: {len(self.found)}", tuple(self.found))

    def _variable(self, path: Keys) -> str | None:
        for length in range(len(path), 0, -1):
            if path[:length] in self.variables:
                return self.variables[path[:length]]
        return next((name for leaf, name in self.variables.items() if leaf[: len(path)] == path), None)


def render_path(path: Keys) -> str:
    """Return the dotted path, with `?` for every part that may be a misplaced secret."""
    parts = []
    for index, part in enumerate(path):
        is_name = index == 1 and path[0] == "accounts" and ACCOUNT_NAME.fullmatch(part)
        in_secret = not part.isdecimal() and SECRET_KEYS & set(path[:index])
        parts.append(part if is_name or (_SHOWABLE.fullmatch(part) and not in_secret) else "?")
    return ".".join(parts)


def suggest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a suggestion of the closest known word; empty if none is close.

    `prefix` comes before all of them. It is not compared, since it would make any two words alike.
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""
