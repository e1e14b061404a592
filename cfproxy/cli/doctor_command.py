"""`cfproxy doctor`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from cfproxy.cli.doctor.examination import examine, refuse
from cfproxy.cli.doctor.findings import Finding, render_findings
from cfproxy.cli.options import account_option, choose, common, config_path, locate
from cfproxy.cli.run import run_loop
from cfproxy.cli.terminal import show
from cfproxy.config import Account, Settings, load_settings
from cfproxy.errors import ConfigError

_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor", short_help="Check settings, store, network, token and API; print the fix.")
@common
@account_option
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def doctor_command(account: str | None, as_json: bool) -> int:
    """Check config, store, DNS, TLS, clock, token and API; print the fix."""
    findings = _examine(account)
    if as_json:
        click.echo(json.dumps({"findings": [each.to_document() for each in findings]}, indent=2))
    else:
        show(render_findings(findings), _COLORS)
    first = next((each for each in findings if each.level == "fail"), None)
    return 0 if first is None else first.code


def _examine(account: str | None) -> list[Finding]:
    try:
        path, named = locate()
        settings = load_settings(path, os.environ, named)
    except ConfigError as error:
        return refuse(error, config_path())
    accounts = [choose(settings, account)] if account else list(settings.accounts.values())
    return run_loop(_collect(settings, accounts, path))


async def _collect(settings: Settings, accounts: list[Account], path: Path | None) -> list[Finding]:
    return [finding async for finding in examine(settings, accounts, path, os.environ)]
