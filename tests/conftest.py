"""Fixtures, markers and Hypothesis profiles of all tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.support.examples import load_profiles

# Every test is watched for secrets in its output.
pytest_plugins = ("tests.support.leaks", "tests.support.redis_fixtures")

HERE = Path(__file__).parent
FOLDER_MARKERS = {"browser", "e2e", "redis"}
REDIS_FIXTURES = {"redis_url", "server", "shared_server"}

load_profiles()


@pytest.hookimpl(tryfirst=True)  # before xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder, and keep tests that share a fixture in one worker of pytest-xdist."""
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        if folder in FOLDER_MARKERS:
            item.add_marker(folder)
        if REDIS_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("redis")
        if _shares_a_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def _shares_a_fixture(item: pytest.Item) -> bool:
    """Return whether a fixture of ours outlives the test: a server, or a run of pytest."""
    info: Any = getattr(item, "_fixtureinfo", None)
    definitions = info.name2fixturedefs.values() if info else ()
    return any(
        one.scope != "function" and one.func.__module__.startswith("tests.")
        for each in definitions
        for one in each
    )


def pytest_xdist_auto_num_workers() -> int:
    """Return the workers of `-n auto`: one more than cores, because many tests mostly wait."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture
def _own_logging() -> Iterator[None]:
    """Let a test configure the process's logging, and undo it."""
    root = logging.getLogger()
    handlers, level, before = root.handlers, root.level, structlog.get_config()
    try:
        yield
    finally:
        root.handlers, root.level = handlers, level
        structlog.configure(**before)
