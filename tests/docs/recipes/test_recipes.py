"""Each recipe works with its real client through a real proxy while the API rejects the token."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.docs.recipes.clients import CLIENTS, PATIENCE_S, RECIPES, Client
from tests.e2e.kit import World, open_world
from tests.support.secret_ledger import LEDGER

pytestmark = pytest.mark.slow

KEY = f"a-key-{secrets.token_hex(16)}"
PHOTO = secrets.token_bytes(300_000)
# The fifth call is the change, whose body has to be sent again: three pages, one job, the change.
REJECTED_CALL = 5


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A sandbox and a proxy configuration with an access key."""
    async with open_world(tmp_path) as opened:
        LEDGER.add_secret(KEY, "an access key")
        opened.write_config(access={"keys": [KEY]})
        await opened.log_in()
        (tmp_path / "shoe.jpg").write_bytes(PHOTO)
        yield opened


def reject_in_the_middle(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every access token invalid when the API call `REJECTED_CALL` arrives."""
    journal = world.sandbox.journal
    note = journal.record_api_request

    def note_and_revoke(at: float) -> None:
        note(at)
        if journal.api_requests == REJECTED_CALL:
            world.sandbox.revoke_access_tokens()

    monkeypatch.setattr(journal, "record_api_request", note_and_revoke)


async def run(client: Client, world: World, url: str, key: str) -> tuple[int, str]:
    """Run a recipe with a file to upload; return its exit code and output."""
    words = await asyncio.to_thread(client.words, RECIPES / client.file, world.folder)
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment = kept | {"GATEWAY_URL": url, "HOME": str(world.folder), "LC_ALL": "C.UTF-8"}
    if key:
        environment["GATEWAY_KEY"] = key
    argument = world.folder / "shoe.jpg"
    if client.name == "postman-collection":
        argument = world.folder / "environment.json"
        argument.write_text(postman_environment(url, key), encoding="utf-8")
    try:
        ran = await asyncio.to_thread(
            subprocess.run,
            [*words, str(argument)],
            cwd=world.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as hung:
        pytest.fail(f"{client.name} hangs after {hung.stdout!r}")
    return ran.returncode, ran.stdout.decode("utf-8")


def postman_environment(url: str, key: str) -> str:
    """Return the recipe's environment with these values filled in."""
    environment = json.loads((RECIPES / "postman-environment.json").read_text("utf-8"))
    for variable in environment["values"]:
        variable["value"] = {"gatewayUrl": url, "gatewayKey": key}.get(variable["key"], variable["value"])
    return json.dumps(environment)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
async def test_a_recipe_does_not_notice_a_rejected_token(
    client: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All calls succeed although the API answers the change with 401; there is one refresh."""
    sandbox = world.sandbox
    job = next(iter(sandbox.studio.jobs.values()))
    before = f"{job['code']}: {job['name']}"
    reject_in_the_middle(world, monkeypatch)
    async with world.serve() as proxy:
        code, said = await run(client, world, proxy.url, KEY)
    # Read after the proxy has exited: a request's line may be written after its response.
    answered = [event["status"] for event in proxy.events("request.forwarded")]
    assert code == 0, said
    for line in ("60 jobs", before, f"renamed to {job['name']}", "uploaded shoe.jpg", "no such job"):
        assert line in said
    assert "the API answered 404: {" in said
    assert job["name"].endswith(" é")
    assert [asset["sha256"] for asset in sandbox.studio.assets.values()] == [
        hashlib.sha256(PHOTO).hexdigest()
    ]
    assert sandbox.journal.api_statuses == {200: 6, 401: 1, 404: 1}
    assert [each.outcome for each in sandbox.token_requests if each.grant == "refresh_token"] == ["issued"]
    assert answered == [200] * 6 + [404]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
async def test_a_recipe_tells_cfproxy_s_response_from_the_api_s(client: Client, world: World) -> None:
    """Without the access key a recipe fails and reports cfproxy's reason."""
    async with world.serve() as proxy:
        code, said = await run(client, world, proxy.url, "")
    assert code != 0
    assert "cfproxy answered 401: " in said
    assert "key-required" in said
    assert world.sandbox.api_requests == 0
