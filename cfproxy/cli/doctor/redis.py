"""Checks of a Redis server that stores logins: it must not lose a one-time refresh token."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cfproxy.cli.doctor.findings import Finding, from_error
from cfproxy.config import RedisAddress
from cfproxy.errors import CfproxyError, StoreUnusable

if TYPE_CHECKING:
    import redis.asyncio

_EVERY_WRITE = "redis-cli config set appendonly yes && redis-cli config set appendfsync always"


async def check_cluster(address: RedisAddress, ca_file: Path | None, account: str) -> Finding | None:
    """Check that the server is no node of a Redis Cluster; None if it is not, or does not say.

    cfproxy talks to one server. In a cluster another node may have an account's keys, now or later.
    """
    try:
        async with _connected(address, ca_file) as client:
            if not (await client.info("cluster")).get("cluster_enabled"):
                return None
            state: Mapping[str, str] = await client.cluster("INFO")
    except CfproxyError:
        return None
    nodes = int(state.get("cluster_size", "0"))
    text = f"{address} is a node of a Redis Cluster"
    step = "set store to a server that is not part of a cluster, or to a proxy in front of it"
    if nodes == 1 and state.get("cluster_state") == "ok":
        text += ", which has all keys now; that ends when the cluster gets a second shard"
        return Finding("store", "warn", text, step, account)
    text += f" of {nodes} shards, and cfproxy finds no keys on other nodes"
    return Finding("store", "fail", text, step, account, StoreUnusable.exit_code)


async def check_persistence(address: RedisAddress, ca_file: Path | None, account: str) -> list[Finding]:
    """Check that the server keeps its data over a restart and when memory runs short."""
    settings: dict[str | None, str | None] = {}
    try:
        async with _connected(address, ca_file) as client:
            for name in ("appendonly", "appendfsync", "maxmemory-policy"):
                settings |= dict(await client.config_get(name))
    except CfproxyError as error:
        found = from_error("persistence", error, account)
        text = f"the server's settings can't be read: {found.text}"
        return [Finding("persistence", "warn", text, "ask its operator for appendonly yes", account)]
    return list(judge(settings, account))


@asynccontextmanager
async def _connected(address: RedisAddress, ca_file: Path | None) -> AsyncIterator[redis.asyncio.Redis]:
    """Open a client while the block runs; raises what a store would raise."""
    # redis-py is an optional extra; without it no account has a Redis address.
    from cfproxy.stores.redis.client import close_client, naming_errors, open_client  # noqa: PLC0415

    client = open_client(address, ca_file)
    try:
        with naming_errors(f"the store's server {address.hosts[0][0]}"):
            yield client
    finally:
        with contextlib.suppress(CfproxyError):
            await close_client(client)


def judge(settings: Mapping[str | None, str | None], account: str) -> list[Finding]:
    """Return the findings for the server's settings, as `CONFIG GET` returns them."""
    findings = []
    if settings.get("appendonly") != "yes":
        text = "appendonly is off: a restart of the server loses the newest token, and with it the login"
        findings.append(Finding("persistence", "warn", text, _EVERY_WRITE, account))
    elif settings.get("appendfsync") != "always":
        text = f"appendfsync is {settings.get('appendfsync')}: a power cut can lose the newest token"
        findings.append(Finding("persistence", "warn", text, _EVERY_WRITE, account))
    policy = settings.get("maxmemory-policy") or "noeviction"
    if policy.startswith("allkeys"):
        text = f"maxmemory-policy is {policy}: a server that runs short of memory may delete the login"
        step = "redis-cli config set maxmemory-policy noeviction"
        findings.append(Finding("eviction", "warn", text, step, account))
    return findings or [Finding("persistence", "ok", "every write is kept, none is evicted", "", account)]
