"""docs/fidelity.md contains what bench/fidelity.py wrote about these cases."""

from __future__ import annotations

import re

from tests.conformance.suite import GROUPS
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "fidelity.md"
_AGAIN = "run `python bench/fidelity.py docs/fidelity.md`"


def _told() -> dict[tuple[str, str], list[str]]:
    """Return the page's rows: group and case, and the result for each proxy."""
    rows: dict[tuple[str, str], list[str]] = {}
    group = ""
    for line in PAGE.read_text("utf-8").partition("\n## The cases\n")[2].splitlines():
        if line.startswith("### "):
            group = line.removeprefix("### ")
        elif line.startswith("| ") and not line.startswith("| |"):
            name, *verdicts = (
                cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]
            )
            rows[group, name] = verdicts
    return rows


def test_the_page_has_the_cases_of_the_suite() -> None:
    """Each case has a row, and there are no other rows."""
    cases = [(group.name, case.name) for group in GROUPS for case in group.cases]
    assert list(_told()) == cases, _AGAIN


def test_the_page_claims_no_more_than_the_suite_shows() -> None:
    """A case that is marked as failing in the suite is not shown as kept."""
    marked = [(group.name, case.name) for group in GROUPS for case in group.cases if case.fails]
    rows = _told()
    assert [key for key in marked if rows[key][0] == "kept"] == [], _AGAIN


def test_the_totals_are_those_of_the_rows() -> None:
    """The summary was not edited by hand."""
    rows = _told()
    totals = [sum(row[column] == "kept" for row in rows.values()) for column in range(3)]
    expected = " | ".join(f"**{number}**" for number in totals)
    assert f"| **all** | {len(rows)} | {expected} |" in PAGE.read_text("utf-8"), _AGAIN


def test_case_names_are_unique() -> None:
    """Each row names one case."""
    cases = [(group.name, case.name) for group in GROUPS for case in group.cases]
    assert len(set(cases)) == len(cases)
