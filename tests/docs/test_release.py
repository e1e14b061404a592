"""The parts of a release agree: one version, a well-formed changelog, complete lock files."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import metadata, requires, version
from importlib.resources import files

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cfproxy
from tests.support.paths import ROOT

SECTIONS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]  # of Keep a Changelog 1.1.0
SEMVER = r"\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?"


def _changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text("utf-8")


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.partition("-")[0].split("."))


def test_the_version_is_defined_once() -> None:
    """The package defines it, the metadata reads it from there, and no other file repeats it."""
    assert version("cfproxy") == cfproxy.__version__
    assert re.fullmatch(SEMVER, cfproxy.__version__)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "cfproxy/__init__.py"
    for name in ("Dockerfile", "Makefile", "pyproject.toml"):
        assert cfproxy.__version__ not in (ROOT / name).read_text("utf-8"), name


def test_the_changelog_starts_with_unreleased_changes() -> None:
    """Releases follow with their dates, newest first; the current version is not older than any."""
    headings = re.findall(r"(?m)^## (.*)$", _changelog())
    assert headings[0] == "[Unreleased]"
    released = []
    for heading in headings[1:]:
        match = re.fullmatch(rf"\[({SEMVER})\] - \d{{4}}-\d{{2}}-\d{{2}}(?: \[YANKED\])?", heading)
        assert match, heading
        released.append(match[1])
    assert released == sorted(released, key=_number, reverse=True)
    assert all(_number(cfproxy.__version__) >= _number(number) for number in released)


def test_the_changelog_describes_the_version_that_the_program_prints() -> None:
    """A version is not released without its section."""
    assert re.search(rf"(?m)^## \[{re.escape(cfproxy.__version__)}\] - ", _changelog())


def test_the_package_is_marked_as_typed() -> None:
    """Type checkers use the hints of a package with `py.typed` (PEP 561), as the classifier promises."""
    assert files("cfproxy").joinpath("py.typed").is_file()
    assert "Typing :: Typed" in (metadata("cfproxy").get_all("Classifier") or [])


def test_the_changelog_has_only_standard_sections() -> None:
    """Each occurs at most once per release and is not empty."""
    for release in re.split(r"(?m)^## .*$", _changelog())[1:]:
        titles = re.findall(r"(?m)^### (.*)$", release)
        assert set(titles) <= set(SECTIONS)
        assert len(set(titles)) == len(titles)
        for part in re.split(r"(?m)^### .*$", release)[1:]:
            assert re.match(r"\s*- \S", part)


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("requirements.lock", {"encrypt", "fast", "redis"}),
        (".ci/requirements-test.lock", {"encrypt", "fast", "redis", "test"}),
    ],
)
def test_a_lock_file_is_complete(lock: str, extras: set[str]) -> None:
    """It pins every requirement under the name that pip looks for, including extras."""
    pinned = set(re.findall(r"(?m)^(\S+)==", (ROOT / lock).read_text("utf-8")))
    todo, done = {("cfproxy", frozenset(extras))}, set()
    while todo:
        name, chosen = package = todo.pop()
        done.add(package)
        for text in requires(name) or ():
            one = Requirement(text)
            if any(one.marker is None or one.marker.evaluate({"extra": extra}) for extra in chosen | {""}):
                todo |= {(canonicalize_name(one.name), frozenset(one.extras))} - done
    wanted = {name + (f"[{','.join(sorted(chosen))}]" if chosen else "") for name, chosen in done}
    assert {one for one in wanted - pinned if not one.startswith("cfproxy[")} == set()
