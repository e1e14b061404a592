"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.kit import World, open_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Start a sandbox, and configure a cfproxy for it that is not logged in."""
    async with open_world(tmp_path) as opened:
        yield opened
