"""One listener for several accounts, and one for the users of this machine: from settings to requests."""

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
    """Two sandboxes that know nothing of each other's tokens, and one listener before both."""
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


async def test_a_key_leads_to_its_account(tmp_path: Path) -> None:
    """Each account's requests get its own token and go to its own API; no key opens nothing."""
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


async def test_accounts_behind_one_listener_wait_in_queues_of_their_own(tmp_path: Path) -> None:
    """What one has used up of its API's limit costs the other nothing."""
    pacing = {"rate": 1, "per": "1h", "queue": 0}
    async with with_acme(tmp_path, pacing=pacing) as (world, _):
        assert [await world.call(**ACME) for _ in range(3)] == [200, 503, 503]
        assert await world.call(**HUB) == 200


async def test_the_account_s_own_rules_hold_as_well(tmp_path: Path) -> None:
    """The listener's rules judge whoever comes through it, the account's whoever it serves."""
    async with with_acme(tmp_path, access={"keys": [], "paths": ["!/v1/jobs"]}) as (world, acme):
        assert await world.call(**ACME) == 403
        assert await world.call(**HUB) == 200
        account = json.loads(world.environ["CFPROXY_ACCOUNTS__ACME"])
        account["access"] = {"keys": [], "methods": ["GET"]}
        await world.reload(ACCESS__METHODS="POST", ACCOUNTS__ACME=json.dumps(account))
        assert await world.call(**ACME) == 403
        assert acme.api_requests == 0


async def test_a_key_follows_its_account_through_a_reload(tmp_path: Path) -> None:
    """An account that gets another API is served by that one at once, on connections that are open."""
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


async def test_a_key_of_an_account_that_is_not_served_opens_nothing(tmp_path: Path) -> None:
    """`serve --account` with fewer accounts does not let the others' callers use another login."""
    async with with_acme(tmp_path) as (world, acme):
        assert world.service is not None
        world.service._names = ("default",)
        await world.reload(ACCESS__HOSTS="proxy.lan")
        assert await world.call(**ACME) == 403
        assert await world.call(**HUB) == 200
        assert acme.api_requests == 0


async def test_an_account_that_goes_takes_what_it_serves_through_others_along(tmp_path: Path) -> None:
    """Its requests have until `timeouts.drain`, whichever listener they came in at; then they are cut."""

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
        assert await call == 401  # aiohttp's client asks again once its connection is cut
        await until(lambda: world.events("proxy.removed"))
        assert await world.call(**HUB) == 200


async def test_an_account_without_a_listener_is_shown_as_such(tmp_path: Path) -> None:
    """The status tells that it is served, and has no address."""
    async with with_acme(tmp_path) as (world, _):
        assert world.service is not None
        assert world.client is not None
        async with world.client.get(f"{world.service.admin_url}/status.json") as answer:
            listens = {each["account"]: each["listen"] for each in (await answer.json())["accounts"]}
        assert listens["acme"] == "off"


# --- users of this machine ------------------------------------------------------------------

needs_unix = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a socket's peer")


async def ask_socket(path: Path) -> int:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client,
        client.get("http://whatever/v1/jobs?pageSize=1") as answer,
    ):
        return answer.status


@needs_unix
async def test_a_unix_socket_is_for_its_owner(tmp_path: Path) -> None:
    """Mode 0600, any `Host`, and gone when the proxy is."""
    path = tmp_path / "s"
    async with opened(tmp_path, LISTEN=f"unix:{path}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await ask_socket(path) == 200
    assert not path.exists()


@needs_unix
async def test_the_users_who_may_call_are_asked_of_the_kernel(tmp_path: Path) -> None:
    """A listed user's calls pass, another one's don't; the file is opened for users who are listed."""
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
