"""`cfproxy doctor`: checks what a proxy depends on, and prints the command that fixes each problem.

Each check is a function that returns findings. None of them changes a login, or uses up a refresh token.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable

import click
from yarl import URL

from cfproxy.cli.doctor.accounts import check_account, servers_of
from cfproxy.cli.doctor.findings import Finding, from_error, render_findings
from cfproxy.cli.doctor.machine import check_configuration, check_environment, check_port, check_secrets
from cfproxy.cli.doctor.redis import check_persistence
from cfproxy.cli.doctor.servers import check_server
from cfproxy.cli.options import account_option, choose_accounts, common_options, config_option, locate_config
from cfproxy.cli.run import run_loop
from cfproxy.cli.terminal import show
from cfproxy.clock import SystemClock
from cfproxy.config import Account, FoundConfig, RedisAddress, Settings, load_settings
from cfproxy.config.conflicts import placeholder_warnings
from cfproxy.errors import CfproxyError, ConfigError, Problem

_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor", short_help="Check settings, store, network, token and API; print fixes.")
@common_options
@account_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor_command(account: str | None, as_json: bool) -> int:
    """Check configuration, store, DNS, TLS, clock, token and API; print fixes."""
    found = FoundConfig(None)
    try:
        found, named = locate_config()
        settings = load_settings(found.path, os.environ, named)
    except ConfigError as error:
        findings = _config_findings(error, found)
    else:
        findings = run_loop(_examine(settings, choose_accounts(settings, account), found))
    if as_json:
        click.echo(json.dumps({"findings": [each.to_document() for each in findings]}, indent=2))
    else:
        show(render_findings(findings), _COLORS)
    return next((each.code for each in findings if each.level == "fail"), 0)


async def _examine(settings: Settings, accounts: list[Account], found: FoundConfig) -> list[Finding]:
    """Run all checks, each after those it depends on.

    Args:
        settings: the whole configuration.
        accounts: the accounts to check.
        found: the configuration file.
    """
    findings = [check_configuration(settings)]
    if found.path is None:
        findings += _warnings("configuration", found.notes)
    findings += [*check_secrets(found.path), *_warnings("secret", placeholder_warnings(settings))]
    findings.append(check_environment(os.environ))
    findings += check_port("admin", settings.admin)
    checked: set[URL] = set()
    for account in accounts:
        findings += check_port("listen", account.listen, account.name)
        try:
            servers = servers_of(account)
        except CfproxyError as error:
            findings.append(from_error("tls", error, account.name))
            continue
        for server in servers:
            if server.url not in checked:
                checked.add(server.url)
                findings += await check_server(server)
        findings += await check_account(account, SystemClock().time())
        if isinstance(account.store_url, RedisAddress):
            findings += await check_persistence(account.store_url, account.tls.ca_file, account.name)
    return findings


def _config_findings(error: ConfigError, found: FoundConfig) -> list[Finding]:
    """Return the problems of a configuration that can't be used; nothing else can be checked then."""
    named = config_option()
    check = shlex.join(["cfproxy", "config", "check", *(() if named is None else ("-c", named))])
    findings = []
    for problem in [str(problem) for problem in error.problems] or [error.message]:
        text, _, step = problem.partition("; run: ")  # some messages include a fix
        step = step or f"correct it, then: {check}"
        findings.append(Finding("configuration", "fail", text, step, code=error.exit_code))
    return findings + _warnings("configuration", found.notes)


def _warnings(check: str, problems: Iterable[Problem]) -> list[Finding]:
    parts = [str(problem).rpartition("; ") for problem in problems]
    return [Finding(check, "warn", text, step) for text, _, step in parts]
