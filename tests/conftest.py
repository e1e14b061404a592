"""Fixtures of all tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

# Every test is watched for secrets in the open.
pytest_plugins = ("tests.support.leaks", "tests.support.redis_fixtures")


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
