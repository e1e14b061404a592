"""Output of text: terminals get colour and wrapping."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.cli.terminal import paint, show, wrap

COLORS = {"ok": "green", "fail": "red"}
TEXT = "default: ok: logged in\n  store         file:/somewhere, " + "and more of it " * 8


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def on(*, terminal: bool, **variables: str) -> str:
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
        show(TEXT, COLORS)
        return capsys.readouterr().out

    return on


def test_a_program_gets_the_lines_unchanged(shown: Callable[..., str]) -> None:
    """Without colour and without new line breaks."""
    assert shown(terminal=False) == TEXT + "\n"


def test_a_terminal_gets_colour_and_80_columns(shown: Callable[..., str]) -> None:
    """The state is coloured, and continuation lines start at their column."""
    out = shown(terminal=True)
    assert "default: \x1b[32m\x1b[1mok\x1b[0m: logged in" in out
    lines = re.sub("\x1b[^m]*m", "", out).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith(" " * 16 + "and")


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colour_can_be_turned_off(shown: Callable[..., str], variables: dict[str, str]) -> None:
    """By NO_COLOR (no-color.org), and on terminals without it."""
    assert "\x1b" not in shown(terminal=True, **variables)


def test_a_word_is_coloured_in_its_place_only() -> None:
    """An account may have the name of a state."""
    assert paint("ok then", COLORS).startswith("\x1b")
    assert paint("it is ok", COLORS) == "it is ok"
    assert paint("", COLORS) == ""


@given(st.text(alphabet="ab -/:;", max_size=200), st.integers(40, 100))
def test_wrapping_loses_no_word(text: str, width: int) -> None:
    """Commands and addresses are never broken, however long."""
    assert wrap(text, width).split() == text.split()
