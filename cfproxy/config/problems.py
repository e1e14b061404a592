"""What is wrong in the configuration, each thing at the place where somebody can mend it.

Owns: collecting the problems, and how a key is named in them.
Must not know: what is checked.
Invariant: no problem holds a value, and a key that is not known shows only if it looks like a word.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from cfproxy.config.settings import ACCOUNT_NAME, SECRET_KEYS
from cfproxy.config.tree import Keys
from cfproxy.errors import ConfigError, Problem

ENVIRONMENT = "environment"

_SHOWABLE = re.compile(r"[A-Za-z][A-Za-z_-]{0,31}|[0-9]{1,4}")


@dataclass(slots=True)
class Problems:
    """The problems found so far, each at the place where somebody can mend it.

    Args:
        source: the file's name.
        variables: which variable set which key.
        short: sections in whose place a value stands, which is one of their keys.
    """

    source: str
    variables: dict[Keys, str] = field(default_factory=dict)
    short: set[Keys] = field(default_factory=set)
    found: dict[Problem, None] = field(default_factory=dict)

    def add(self, path: Keys, text: str) -> None:
        """Tell that the key at `path` is wrong, naming the variable if one has set it."""
        variable = self._variable(path)
        if path[:-1] in self.short:
            path = path[:-1]
        self._put(self.source if variable is None else ENVIRONMENT, variable or shown(path), text)

    def add_variable(self, name: str, text: str) -> None:
        """Tell that a variable is wrong."""
        self._put(ENVIRONMENT, name, text)

    def error(self) -> ConfigError:
        """Return everything that was found as one error."""
        return ConfigError(f"the configuration has problems: {len(self.found)}", tuple(self.found))

    def _put(self, source: str, path: str, text: str) -> None:
        self.found[Problem(source, path, text)] = None

    def _variable(self, path: Keys) -> str | None:
        for length in range(len(path), 0, -1):
            if path[:length] in self.variables:
                return self.variables[path[:length]]
        return next((name for leaf, name in self.variables.items() if leaf[: len(path)] == path), None)


def shown(path: Keys) -> str:
    """Return the dotted path; a part that may be a misplaced secret is shown as `?`."""
    parts = []
    for index, part in enumerate(path):
        is_name = index == 1 and path[0] == "accounts" and ACCOUNT_NAME.fullmatch(part)
        in_secret = not part.isdecimal() and SECRET_KEYS & set(path[:index])
        parts.append(part if is_name or (_SHOWABLE.fullmatch(part) and not in_secret) else "?")
    return ".".join(parts)


def hint(word: str, known: Iterable[str]) -> str:
    """Return a question after the known word that is closest; empty when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
