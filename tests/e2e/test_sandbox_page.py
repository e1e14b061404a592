"""The configuration in docs/sandbox.md works."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from cfproxy.sandbox import Behaviour, approve
from tests.e2e.kit import World, open_world
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Start a sandbox with its own client secret, as on the page."""
    async with open_world(tmp_path, client_secret=Behaviour().client_secret) as opened:
        yield opened


def shown_config(world: World) -> Path:
    """Write the page's configuration to a file with the address of this sandbox."""
    (text,) = re.findall(r"(?s)```yaml\n(.*?)```", PAGE)
    assert yaml.safe_load(text)["upstream"] == "http://127.0.0.1:9400"
    place = world.folder / "sandbox.yaml"
    place.write_text(text.replace("http://127.0.0.1:9400", world.sandbox.url), encoding="utf-8")
    # The page has the default ports, which may be in use here.
    world.environment |= {
        "CFPROXY_LISTEN": "127.0.0.1:0",
        "CFPROXY_ADMIN": "127.0.0.1:0",
        "CFPROXY_LOG__FORMAT": "json",
    }
    return place


async def test_the_page_shows_a_configuration_that_works(world: World) -> None:
    """After a login with it, the page's call returns two jobs."""
    place = shown_config(world)
    begun = await world.run("login", "--print-url", "-c", place.name)
    assert begun.code == 0, begun
    ran = await world.run("login", "-c", place.name, "--finish", await approve(begun.out.strip()))
    assert ran.code == 0, ran
    (target,) = re.findall(r'curl "http://localhost:8080(/[^"]*)"', PAGE)
    async with world.serve("-c", place.name) as proxy, proxy.client.get(proxy.url + target) as answer:
        assert answer.status == 200
        assert len((await answer.json())["pageData"]) == 2
    assert (world.folder / "sandbox-state" / "default.json").exists()


async def test_the_page_is_right_that_an_app_needs_no_login(world: World) -> None:
    """With the other grant instead of the redirect URI it serves at once."""
    place = shown_config(world)
    text = re.sub(r"(?m)^redirect_uri: .*$", "grant: client_credentials", place.read_text(encoding="utf-8"))
    place.write_text(text, encoding="utf-8")
    async with world.serve("-c", place.name) as proxy:
        assert await proxy.status() == 200


@pytest.mark.parametrize("key", ["client_id", "client_secret", "redirect_uri"])
def test_the_page_has_the_sandboxs_own_values(world: World, key: str) -> None:
    """The page has the values that the sandbox starts with."""
    (text,) = re.findall(r"(?s)```yaml\n(.*?)```", PAGE)
    own = {"redirect_uri": world.sandbox.behaviour.redirect_uris[0]}
    assert yaml.safe_load(text)[key] == (own.get(key) or getattr(world.sandbox.behaviour, key))
