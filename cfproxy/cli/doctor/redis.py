"""Checks of a Redis server that stores logins: it must not lose a one-time refresh token."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cfproxy.cli.doctor.findings import Finding, from_error
from cfproxy.config import RedisAddress
from cfproxy.errors import CfproxyError

_EVERY_WRITE = "redis-cli config set appendonly yes && redis-cli config set appendfsync always"


async def check_persistence(address: RedisAddress, ca_file: Path | None, account: str) -> list[Finding]:
    """Check that the server keeps its data over a restart and when memory runs short."""
    # redis-py is an optional extra; without it no account has a Redis address.
    from cfproxy.stores.redis.client import naming_errors, open_client  # noqa: PLC0415

    client = open_client(address, ca_file)
    try:
        with naming_errors(f"the store's server {address.hosts[0][0]}"):
            settings: dict[str | None, str | None] = {}
            for name in ("appendonly", "appendfsync", "maxmemory-policy"):
                settings |= dict(await client.config_get(name))
    except CfproxyError as error:
        found = from_error("persistence", error, account)
        text = f"the server's settings can't be read: {found.text}"
        return [Finding("persistence", "warn", text, "ask its operator for appendonly yes", account)]
    finally:
        await client.aclose()
    return list(judge(settings, account))


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
