"""The fixture of the sandbox's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.integration.sandbox.world import World, open_world


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A sandbox with its defaults, on a manual clock."""
    async with open_world() as opened:
        yield opened
