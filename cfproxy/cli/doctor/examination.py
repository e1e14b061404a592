"""The whole examination, in the order in which things depend on each other.

Owns: which checks are made for which configuration.
Must not know: how findings are shown.
"""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from cfproxy.cli.doctor.accounts import check_account, servers_of
from cfproxy.cli.doctor.findings import Finding, from_error
from cfproxy.cli.doctor.machine import check_configuration, check_environment, check_port, check_secrets
from cfproxy.cli.doctor.redis import check_persistence
from cfproxy.cli.doctor.servers import check_server
from cfproxy.clock import SystemClock
from cfproxy.config import Account, RedisAddress, Settings
from cfproxy.errors import CfproxyError, ConfigError


async def examine(
    settings: Settings, accounts: list[Account], path: Path | None, environ: Mapping[str, str]
) -> AsyncIterator[Finding]:
    """Yield every finding as it is made.

    Args:
        settings: all of them.
        accounts: those to look at.
        path: the configuration file; None when there is none.
        environ: the process's.
    """
    yield check_configuration(settings)
    for finding in check_secrets(path):
        yield finding
    yield check_environment(environ)
    yield check_port("admin", settings.admin)
    seen = set()
    for account in accounts:
        yield check_port("listen", account.listen, account.name)
        try:
            servers = servers_of(account)
        except CfproxyError as error:
            yield from_error("tls", error, account.name)
            continue
        for server in servers:
            if server.url in seen:
                continue
            seen.add(server.url)
            for finding in await check_server(server):
                yield finding
        async for finding in check_account(account, SystemClock().time()):
            yield finding
        if isinstance(account.store.url, RedisAddress):
            for finding in await check_persistence(account.store.url, account.tls.ca_file, account.name):
                yield finding


def refuse(error: ConfigError, named: str | None) -> list[Finding]:
    """Return what is wrong with a configuration that can't be used; nothing else can be checked then.

    Args:
        error: all of it.
        named: the file as `-c` named it.
    """
    check = shlex.join(["cfproxy", "config", "check", *(() if named is None else ("-c", named))])
    found = []
    for told in [str(problem) for problem in error.problems] or [error.message]:
        text, _, step = told.partition("; run: ")  # some problems have a cure of their own
        step = step or f"correct it, then: {check}"
        found.append(Finding("configuration", "fail", text, step, code=error.exit_code))
    return found
