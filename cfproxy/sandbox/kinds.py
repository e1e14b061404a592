"""The kinds of value that a sandbox setting can have.

Owns: for each kind, what is a valid value and how it is written on a command line.
Must not know: which settings there are.
Invariant: `check(parse(render(value))) == value` for every valid value of every kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>[smhd])")
_UNIT_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Kind(Protocol):
    """What a setting accepts."""

    def check(self, value: object) -> object:
        """Return `value` in its kept form; raise ValueError that says what is expected."""

    def parse(self, text: str) -> object:
        """Read a command line's `text`; raise ValueError that says what is expected."""

    def render(self, value: object) -> str:
        """Write `value` as `parse` reads it."""


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def check(self, value: object) -> object:
        """Accept a bool and nothing that merely looks like one."""
        if value is not True and value is not False:
            raise ValueError("expected true or false")
        return value

    def parse(self, text: str) -> object:
        """Read true/false, yes/no or on/off, in any case."""
        if text.lower() not in _FLAGS:
            raise ValueError("expected true or false")
        return _FLAGS[text.lower()]

    def render(self, value: object) -> str:
        """Write true or false."""
        return "true" if value else "false"


@dataclass(frozen=True)
class Text:
    """A text that is not empty."""

    def check(self, value: object) -> object:
        """Accept a str with something in it."""
        if not isinstance(value, str) or not value:
            raise ValueError("expected a text that is not empty")
        return value

    def parse(self, text: str) -> object:
        """Take the text as it is."""
        return self.check(text)

    def render(self, value: object) -> str:
        """Write the text as it is."""
        return str(value)


@dataclass(frozen=True)
class Texts:
    """A sequence of texts, separated by spaces on a command line."""

    options: tuple[str, ...] = ()

    def check(self, value: object) -> object:
        """Accept a sequence of texts without white space, kept as a tuple."""
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError("expected a list of texts")  # noqa: TRY004 - a kind promises ValueError
        for item in value:
            if not isinstance(item, str) or [item] != item.split():
                raise ValueError("expected a list of texts without spaces")
            if self.options and item not in self.options:
                raise ValueError(f"expected any of {', '.join(self.options)}")
        return tuple(value)

    def parse(self, text: str) -> object:
        """Split at white space."""
        return self.check(text.split())

    def render(self, value: object) -> str:
        """Join with spaces."""
        return " ".join(str(item) for item in value) if isinstance(value, Sequence) else ""


@dataclass(frozen=True)
class Choice:
    """One of some words."""

    options: tuple[str, ...]

    def check(self, value: object) -> object:
        """Accept one of the words."""
        if value not in self.options:
            raise ValueError(f"expected one of {', '.join(self.options)}")
        return value

    def parse(self, text: str) -> object:
        """Take the word as it is."""
        return self.check(text)

    def render(self, value: object) -> str:
        """Write the word."""
        return str(value)


@dataclass(frozen=True)
class Whole:
    """A whole number, not below `least`."""

    least: int

    def check(self, value: object) -> object:
        """Accept an int (a bool is none) from `least` to 2**53."""
        if isinstance(value, bool) or not isinstance(value, int) or not self.least <= value <= 2**53:
            raise ValueError(f"expected a whole number, {self.least} or more")
        return value

    def parse(self, text: str) -> object:
        """Read decimal digits."""
        return self.check(int(text) if re.fullmatch(r"[0-9]{1,17}", text) else None)

    def render(self, value: object) -> str:
        """Write decimal digits."""
        return str(value)


@dataclass(frozen=True)
class Seconds:
    """A duration in seconds; on a command line also as 30s, 5m, 1h or 30d."""

    above_zero: bool = False

    def check(self, value: object) -> object:
        """Accept a finite int or float that is not negative."""
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError("expected a number of seconds")
        if value < 0 or (self.above_zero and value == 0):
            raise ValueError("expected a number of seconds above zero")
        return float(value)

    def parse(self, text: str) -> object:
        """Read a plain number of seconds, or a number with a unit."""
        if match := _DURATION.fullmatch(text):
            return self.check(float(match["number"]) * _UNIT_S[match["unit"]])
        try:
            return self.check(float(text))
        except ValueError:
            raise ValueError("expected a duration such as 3600, 90s, 30m, 1h or 30d") from None

    def render(self, value: object) -> str:
        """Write seconds."""
        return repr(value).removesuffix(".0")
