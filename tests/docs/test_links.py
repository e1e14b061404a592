"""Every link inside the project has a target."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


def _prose(page: Path) -> str:
    fences = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4}.*$|`[^`\n]*`(?!\])", "", fences, flags=re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts and Sphinx generate them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_have_a_target(page: Path) -> None:
    """A link to a file finds the file, and a link to an anchor finds its heading."""
    broken = []
    for target, anchor in _LINK.findall(_prose(page)):
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in _anchors(path)):
            broken.append(f"{target}#{anchor}")
    assert not broken


def test_every_page_is_reachable_from_the_index() -> None:
    """Links from docs/index.md lead to every page."""
    index = ROOT / "docs" / "index.md"
    seen, waiting = {index}, [index]
    while waiting:
        page = waiting.pop()
        for target, _ in _LINK.findall(_prose(page)):
            path = (page.parent / target).resolve()
            if path.suffix == ".md" and path.is_file() and path not in seen:
                seen.add(path)
                waiting.append(path)
    assert not set((ROOT / "docs").rglob("*.md")) - seen
