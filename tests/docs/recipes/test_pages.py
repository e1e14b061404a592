"""The recipes' pages show the files that the tests run."""

from __future__ import annotations

import re

import pytest
import tree_sitter_powershell
from tree_sitter import Language, Parser

from tests.docs.recipes.clients import CLIENTS, RECIPES

FILES = sorted({client.file for client in CLIENTS} | {"postman-environment.json"})
_BLOCK = re.compile(r"^```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("file", FILES)
def test_a_page_shows_its_runnable_file(file: str) -> None:
    """The page contains the file's text and links to it."""
    stem = file.partition(".")[0]
    page = RECIPES / f"{'postman' if stem.startswith('postman') else stem.lower()}.md"
    text = page.read_text("utf-8")
    assert (RECIPES / file).read_text("utf-8") in _BLOCK.findall(text), f"copy {file} into {page.name}"
    assert f"[{file}]({file})" in text


def test_every_recipe_is_listed_and_every_file_is_run() -> None:
    """The overview links to every page, and the tests run every file."""
    pages = {path.name for path in RECIPES.glob("*.md")} - {"index.md"}
    linked = set(re.findall(r"\]\(([a-z-]+\.md)\)", (RECIPES / "index.md").read_text("utf-8")))
    assert linked == pages
    assert {path.name for path in RECIPES.iterdir() if path.suffix != ".md"} == set(FILES)


def test_the_powershell_recipe_is_powershell() -> None:
    """Its syntax is checked even without PowerShell."""
    parser = Parser(Language(tree_sitter_powershell.language()))
    text = (RECIPES / "powershell.ps1").read_bytes()
    assert not parser.parse(text).root_node.has_error
    assert parser.parse(text.replace(b"($Json)", b"($Json")).root_node.has_error
