"""Fixtures: a world for each grant."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.fakes import APP, CREDENTIALS_APP, World, open_world


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A world whose app has the authorization code grant."""
    async with open_world() as opened:
        yield opened


@pytest.fixture
async def credentials_world() -> AsyncIterator[World]:
    """A world whose app has client credentials."""
    async with open_world(CREDENTIALS_APP) as opened:
        yield opened


@pytest.fixture(params=[APP, CREDENTIALS_APP], ids=lambda app: app.grant)
async def any_world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Either of them in turn."""
    async with open_world(request.param) as opened:
        yield opened
