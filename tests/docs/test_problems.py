"""docs/problems.md lists the slugs, statuses and exit codes of the error classes."""

from __future__ import annotations

import re

from cfproxy.errors import error_kinds
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "problems.md").read_text("utf-8")


def _rows(heading: str) -> list[list[str]]:
    section = re.search(rf"(?ms)^## {heading}$(.*?)(?=^## |\Z)", PAGE)
    assert section is not None, heading
    rows = re.findall(r"(?m)^\| (.*) \|$", section[1])
    return [[cell.strip() for cell in row.split("|")] for row in rows[1:]]


def test_every_slug_is_listed_with_its_status() -> None:
    """Each problem type has a row with its HTTP status, and there is no row for anything else."""
    listed = {
        (slug, int(status.split()[0]))
        for slugs, status, _ in _rows("How to tell cfproxy's answers from the API's")
        for slug in re.findall(r"`([a-z-]+)`", slugs)
    }
    assert listed == {(kind.slug, kind.status) for kind in error_kinds()}


def test_every_exit_code_is_listed() -> None:
    """Success, interruption and the exit code of every error have a row."""
    listed = {int(code) for code, _ in _rows("Exit codes")}
    assert listed == {0, 130, *(kind.exit_code for kind in error_kinds())}
