"""`cfproxy status` and `cfproxy token`."""

from __future__ import annotations

import http.client
import json
from typing import Any

import click

from cfproxy.auth.expiry import span_text
from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.models import Login, Token
from cfproxy.auth.token_source import TokenSource
from cfproxy.cli.admin_client import AdminClient, find_admin
from cfproxy.cli.options import (
    account_option,
    choose_account,
    choose_accounts,
    closing_store,
    common_options,
    is_debug,
    load_config,
)
from cfproxy.cli.run import run_loop
from cfproxy.cli.terminal import show
from cfproxy.clock import SystemClock
from cfproxy.config import Account, Settings
from cfproxy.errors import CfproxyError, LoginRequired, StoreUnavailable, StoreUnusable, UsageError
from cfproxy.observability.logs import build_logger
from cfproxy.observability.status import report_beside, report_stored
from cfproxy.runtime.factory import build_app, build_endpoint, build_store, build_token_source

RUNNING_PROXY_S = 1.0
_COLORS = {
    "ok": "green",
    "unknown": "yellow",
    "warning": "yellow",
    "store-unavailable": "yellow",
    "token-endpoint-unavailable": "yellow",
    "login-required": "red",
    "misconfigured": "red",
    "store-unusable": "red",
}


@click.command("status")
@common_options
@account_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status_command(account: str | None, as_json: bool) -> int:
    """Show logins and expiry times.

    Makes no network calls except to a proxy on this machine, whose problems it repeats.
    """
    settings = load_config()
    running = _fetch_running(settings)
    reports = [
        report | {"running": running.get((report["account"], report["client_id"], report["upstream"]))}
        for report in run_loop(_report(choose_accounts(settings, account)))
    ]
    if as_json:
        click.echo(json.dumps({"accounts": reports}, indent=2))
    else:
        show(render_text(reports), _COLORS)
    states = {report["state"] for report in reports} | {report["store"]["state"] for report in reports}
    if states & {"store-unusable", "store-unavailable"}:
        return StoreUnavailable.exit_code
    return LoginRequired.exit_code if "login-required" in states else 0


def _fetch_running(settings: Settings) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return the reports of a proxy on this machine, by account, app and upstream."""
    try:
        url, _ = find_admin(settings)  # no key is sent, because any program may have the port now
        status, document = AdminClient(url, None).request("GET", "/status.json", RUNNING_PROXY_S)
    except (UsageError, OSError, http.client.HTTPException):
        return {}
    accounts = document.get("accounts") if status == 200 and isinstance(document, dict) else None
    return {
        (str(each.get("account")), str(each.get("client_id")), str(each.get("upstream"))): report_beside(each)
        for each in (accounts if isinstance(accounts, list) else ())
        if isinstance(each, dict)
    }


async def _report(accounts: list[Account]) -> list[dict[str, Any]]:
    reports = []
    for account in accounts:
        store = build_store(account)
        stored, store_error = await closing_store(store, _stored(account, store))
        now = SystemClock().time()
        report = report_stored(build_app(account), stored, now, store.location, store_error)
        if account.store.url == "memory":
            report["state"] = "unknown"
            report["detail"] = (
                "store: memory is visible to the running proxy only: /status.json of its admin listener"
            )
        report["listen"] = "off" if account.listen is None else str(account.listen)
        report["upstream"] = account.upstream
        report["pacing"] = dict(account.pacing)
        reports.append(report)
    return reports


async def _stored(account: Account, store: TokenStore) -> tuple[Login | None, CfproxyError | None]:
    stored = None
    try:
        stored = await store.load(account.name)
        # With client credentials the store may be in use although nothing could be saved in it yet.
        if stored is not None or account.grant == "client_credentials":
            await store.probe(account.name)
    except (StoreUnavailable, StoreUnusable) as error:
        return stored, error
    return stored, None


def render_text(reports: list[dict[str, Any]]) -> str:
    """Return the reports as text, a few lines for each account; two spaces or more separate columns."""
    lines: list[str] = []
    for report in reports:
        lines.append(f"{report['account']}: {report['state']}: {report['detail']}")
        # A line of its own, because a command that was wrapped can't be copied.
        if report["command"] is not None:
            lines.append(f"  next          {report['command']}")
        if report["warning"] is not None and report["state"] == "ok":
            lines.append(f"  warning       {report['warning']}")
        lines.append(f"  app           {report['client_id']} ({report['grant']})")
        if report["login"] is not None:
            lines.append(f"  logged in     {report['login']['logged_in_at']}")
            if report["login"]["ended_at"] is not None:
                lines.append(f"  login ended   {report['login']['ended_at']}")
            elif report["login"]["expires_at"] is not None:
                left_s = report["login"]["expires_in_s"]
                left = "overdue" if left_s <= 0 else f"in {span_text(left_s)}"
                lines.append(f"  login ends    {report['login']['expires_at']} ({left})")
        if report["access_token"] is not None:
            at, left_s = report["access_token"]["expires_at"], report["access_token"]["usable_s"]
            expiry = f"expires {at} (in {span_text(left_s)})" if left_s > 0 else f"expired {at}"
            lines.append(f"  access token  {expiry}")
        lines += _running_lines(report)
        pacing = report["pacing"]
        rate = "off" if pacing["rate"] is None else f"{pacing['rate']:g} requests in {pacing['per_s']:g} s"
        rate += ", shared by all replicas" if pacing.get("shared") else ""
        lines.append(f"  pacing        {rate} (queue: /status.json of the admin listener)")
        store = report["store"]
        problem = "" if store["detail"] is None else f": {store['state']}"  # the first line has the detail
        lines.append(f"  store         {store['location']}{problem}")
    return "\n".join(lines)


def _running_lines(report: dict[str, Any]) -> list[str]:
    running = report.get("running")
    if running is None:
        return []
    if running["state"] == "ok" or running["detail"] == report["detail"]:
        return ["  proxy         runs"]
    lines = [f"  proxy         runs, but {': '.join(filter(None, (running['state'], running['detail'])))}"]
    known = running["command"] in {None, report["command"]}
    return lines if known else [*lines, f"  next          {running['command']}"]


@click.command("token")
@common_options
@account_option
def token_command(account: str | None) -> int:
    """Print a valid access token, for scripts."""
    chosen = choose_account(load_config(), account)
    log = build_logger("debug" if is_debug() else "silent", "console")
    store = build_store(chosen)
    token_source = build_token_source(chosen, store, build_endpoint(chosen), log)
    token, unsaved = run_loop(closing_store(store, _token(token_source, store, chosen)))
    click.echo(token.value.reveal())
    if unsaved is not None:
        # Unlike a running proxy, this process has no later chance to save the token.
        raise StoreUnavailable(f"the token above is valid, but it is not saved: {unsaved}")
    return 0


async def _token(
    token_source: TokenSource, store: TokenStore, account: Account
) -> tuple[Token, CfproxyError | None]:
    # With client credentials the store is not needed, and nothing in it is used up.
    needs_store = account.grant != "client_credentials"
    stored = await store.load(account.name) if needs_store else None
    if stored is not None and stored.token.remaining_s(SystemClock().time()) <= 0:
        # A one-time refresh token must not be used up if its successor can't be saved.
        await store.probe(account.name)
    await token_source.start()
    try:
        token = await token_source.get()
    finally:
        await token_source.aclose()
    state = token_source.state()
    return token, state.store_error if state.unsaved else None
