"""One listener for several accounts, and a Unix socket for the users of this machine."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cfproxy.sandbox import Behaviour, Sandbox
from tests.integration.runtime.test_reload import World, opened
from tests.support.origin import Peer, serving, until

HUB = {"X-Cfproxy-Key": "hub-key"}
ACME = {"X-Cfproxy-Key": "acme-key"}


@asynccontextmanager
async def with_acme(tmp_path: Path, **acme: Any) -> AsyncIterator[tuple[World, Sandbox]]:
    """Start one listener in front of two sandboxes that do not accept each other's tokens."""
    async with Sandbox(Behaviour(limiter="off", client_id="acme-app")) as sandbox:
        account = {
            "client_id": "acme-app",
            "upstream": sandbox.url,
            "token_url": f"{sandbox.url}/connect/token",
            "listen": "off",
            "access": {"keys": []},
        } | acme
        keys = ["hub-key", {"key": "acme-key", "account": "acme"}]
        changes = {"ACCESS__KEYS": json.dumps(keys), "ACCOUNTS__ACME": json.dumps(account)}
        async with opened(tmp_path, None, **changes) as world:
            yield world, sandbox


async def test_an_access_key_selects_its_account(tmp_path: Path) -> None:
    """Each account's requests get its token and go to its API; without a key there is no access."""
    async with with_acme(tmp_path) as (world, acme):
        assert await world.call(**HUB) == 200
        assert (world.sandbox.api_requests, acme.api_requests) == (1, 0)
        assert await world.call(**ACME) == 200
        assert await world.call(**ACME) == 200
        assert (world.sandbox.api_requests, acme.api_requests) == (1, 2)
        assert set(world.sandbox.journal.api_statuses) == set(acme.journal.api_statuses) == {200}
        for nobody in ({}, {"X-Cfproxy-Key": "acme"}):
            assert await world.call(**nobody) == 401
        accounts = [event["account"] for event in world.events("request.forwarded")]
        assert accounts == ["default", "acme", "acme"]
        assert [event["listen"] for event in world.events("proxy.started")][1] == "off"


async def test_accounts_behind_one_listener_have_separate_queues(tmp_path: Path) -> None:
    """An account that has used up its API's rate limit does not slow the other one."""
    pacing = {"rate": 1, "per": "1h", "queue": 0}
    async with with_acme(tmp_path, pacing=pacing) as (world, _):
        assert [await world.call(**ACME) for _ in range(3)] == [200, 503, 503]
        assert await world.call(**HUB) == 200


async def test_the_rules_of_the_selected_account_apply_as_well(tmp_path: Path) -> None:
    """A request must pass the rules of its listener and those of its account."""
    async with with_acme(tmp_path, access={"keys": [], "paths": ["!/v1/jobs"]}) as (world, acme):
        assert await world.call(**ACME) == 403
        assert await world.call(**HUB) == 200
        account = json.loads(world.environ["CFPROXY_ACCOUNTS__ACME"])
        account["access"] = {"keys": [], "methods": ["GET"]}
        await world.reload(ACCESS__METHODS="POST", ACCOUNTS__ACME=json.dumps(account))
        assert await world.call(**ACME) == 403
        assert acme.api_requests == 0


async def test_a_key_follows_its_account_through_a_reload(tmp_path: Path) -> None:
    """Requests on open connections go to the account's new API at once."""
    async with with_acme(tmp_path) as (world, acme):
        assert await world.call(**ACME) == 200
        await world.reload(
            ACCOUNTS__ACME__UPSTREAM=world.sandbox.url,
            ACCOUNTS__ACME__TOKEN_URL=f"{world.sandbox.url}/connect/token",
            ACCOUNTS__ACME__CLIENT_ID=world.sandbox.behaviour.client_id,
            ACCOUNTS__ACME=json.dumps({"listen": "off", "access": {"keys": []}}),
        )
        assert await world.call(**ACME) == 200
        assert (world.sandbox.api_requests, acme.api_requests) == (1, 1)


async def test_new_rules_of_an_account_apply_on_open_connections_of_another_listener(tmp_path: Path) -> None:
    """Although nothing has changed for the listener that the requests come in on."""
    async with with_acme(tmp_path) as (world, acme):
        assert await world.call(**ACME) == 200
        account = json.loads(world.environ["CFPROXY_ACCOUNTS__ACME"])
        account["access"] = {"keys": [], "paths": ["!/v1/jobs"]}
        await world.reload(ACCOUNTS__ACME=json.dumps(account))
        assert await world.call(**ACME) == 403
        assert await world.call(**HUB) == 200
        assert acme.api_requests == 1


async def test_the_key_of_an_account_that_is_not_served_gives_no_access(tmp_path: Path) -> None:
    """`serve --account` does not let clients of other accounts use this account's login."""
    async with with_acme(tmp_path) as (world, acme):
        assert world.service is not None
        world.service._names = ("default",)
        await world.reload(ACCESS__HOSTS="proxy.lan")
        assert await world.call(**ACME) == 403
        assert await world.call(**HUB) == 200
        assert acme.api_requests == 0


async def test_removing_an_account_ends_its_requests_on_other_listeners(tmp_path: Path) -> None:
    """They may take until `timeouts.drain`, whichever listener they came through, and are cut then."""

    async def silent(peer: Peer) -> None:
        await peer.take()
        await asyncio.Event().wait()

    async with (
        serving(silent) as origin,
        with_acme(tmp_path, upstream=origin.url, timeouts={"drain": "50ms"}) as (world, _),
        asyncio.timeout(30),
    ):
        call = asyncio.create_task(world.call(**ACME))
        await until(lambda: origin.requests)
        await world.reload(ACCESS__KEYS="hub-key", ACCOUNTS__ACME=None)
        assert await call == 401  # aiohttp's client retries after its connection was cut
        await until(lambda: world.events("proxy.removed"))
        assert await world.call(**HUB) == 200


async def test_an_account_without_a_listener_is_reported_as_off(tmp_path: Path) -> None:
    """The status lists it without an address."""
    async with with_acme(tmp_path) as (world, _):
        assert world.service is not None
        assert world.client is not None
        async with world.client.get(f"{world.service.admin_url}/status.json") as answer:
            listens = {each["account"]: each["listen"] for each in (await answer.json())["accounts"]}
        assert listens["acme"] == "off"


# --- users of this machine ------------------------------------------------------------------

needs_unix = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peer of a socket")


async def ask_socket(path: Path) -> int:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client,
        client.get("http://whatever/v1/jobs?pageSize=1") as answer,
    ):
        return answer.status


@needs_unix
async def test_a_unix_socket_belongs_to_its_owner(tmp_path: Path) -> None:
    """It has mode 0600, accepts any `Host`, and is removed at the end."""
    path = tmp_path / "s"
    async with opened(tmp_path, LISTEN=f"unix:{path}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await ask_socket(path) == 200
    assert not path.exists()


@needs_unix
async def test_the_kernel_tells_which_user_calls(tmp_path: Path) -> None:
    """Only listed users get access; the file's mode lets them connect."""
    path, me = tmp_path / "s", os.getuid()
    async with opened(tmp_path, LISTEN=f"unix:{path}", ACCESS__USERS=str(me)) as world:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await ask_socket(path) == 200
        await world.reload(ACCESS__USERS="12345")
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert await ask_socket(path) == 403
        assert world.sandbox.api_requests == 1
        await world.reload(ACCESS__USERS=None)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
