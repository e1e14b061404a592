"""What a release is made of agrees with itself: one version, a changelog of the known form, whole locks."""

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


def test_the_version_stands_in_one_place() -> None:
    """The package's own; the metadata has it from there, and nothing else says one."""
    assert version("cfproxy") == cfproxy.__version__
    assert re.fullmatch(SEMVER, cfproxy.__version__)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["hatch"]["version"]["path"] == "cfproxy/__init__.py"
    for name in ("Dockerfile", "Makefile", "pyproject.toml"):
        assert cfproxy.__version__ not in (ROOT / name).read_text("utf-8"), name


def test_the_changelog_begins_with_what_is_not_released() -> None:
    """Then come the releases, the newest first, each with its day; the version in work is newer than all."""
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


def test_the_changelog_has_only_the_sections_that_readers_know() -> None:
    """Each at most once in a release, with something in it."""
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
def test_a_lock_is_whole(lock: str, extras: set[str]) -> None:
    """It pins all that is asked for here, under the name that pip looks for: with the extra, where one is."""
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
