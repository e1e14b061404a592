"""Shared by the sandbox's tests: a sandbox on loopback, a client, a manual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from cfproxy.sandbox import Behaviour, Sandbox

CALLBACK = "https://integration.example/callback"
APP = {"client_id": "sandbox-client", "client_secret": "sandbox-secret"}


class ManualClock:
    """A wall clock that moves only when it is set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    """A running sandbox and a client for it."""

    sandbox: Sandbox
    client: aiohttp.ClientSession
    clock: ManualClock

    @property
    def behaviour(self) -> Behaviour:
        return self.sandbox.behaviour

    async def token(self, grant: str, **fields: str) -> tuple[int, dict[str, Any]]:
        """Call the token endpoint as the registered app; return status and response."""
        form = {"grant_type": grant, **APP, **fields}
        async with self.client.post(f"{self.sandbox.url}/connect/token", data=form) as response:
            return response.status, await response.json()

    async def refresh(self, refresh_token: str, **fields: str) -> tuple[int, dict[str, Any]]:
        return await self.token("refresh_token", refresh_token=refresh_token, **fields)

    async def exchange(self, code: str, **fields: str) -> tuple[int, dict[str, Any]]:
        return await self.token("authorization_code", **{"code": code, "redirect_uri": CALLBACK, **fields})

    def authorize_url(self, **changes: str) -> str:
        """Return a valid authorization URL with some parameters changed; an empty one is omitted."""
        query = {
            "client_id": "sandbox-client",
            "redirect_uri": CALLBACK,
            "response_type": "code",
            "scope": "cfgateway offline_access",
            "state": "st&te=1",
        } | changes
        kept = {name: value for name, value in query.items() if value}
        return f"{self.sandbox.url}/connect/authorize?{urlencode(kept)}"

    def bearer(self) -> dict[str, str]:
        """Return the headers of a caller with a new token."""
        return {"Authorization": f"Bearer {self.sandbox.issue_login()['access_token']}"}

    @asynccontextmanager
    async def call(self, method: str, target: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """Call the sandbox with the target unchanged, with a valid token unless headers are given."""
        if "headers" not in options:
            options["headers"] = self.bearer()
        address = URL(self.sandbox.url + target, encoded=True)
        async with self.client.request(method, address, allow_redirects=False, **options) as response:
            yield response

    async def get(self, target: str) -> Any:
        """Return the JSON of a successful API response."""
        async with self.call("GET", target) as response:
            assert response.status == 200
            return await response.json()

    async def status(self, method: str, target: str, **options: Any) -> int:
        async with self.call(method, target, **options) as response:
            await response.read()
            return response.status


@asynccontextmanager
async def open_world(behaviour: Behaviour | None = None) -> AsyncIterator[World]:
    """Start a sandbox and a client that opens a connection for every call."""
    clock = ManualClock()
    sandbox = Sandbox(behaviour, clock)
    await sandbox.start()
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    try:
        async with aiohttp.ClientSession(connector=connector) as client:
            yield World(sandbox, client, clock)
    finally:
        await sandbox.close()
