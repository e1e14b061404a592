"""`cfproxy status` and `cfproxy token`."""

from __future__ import annotations

import http.client
import json
from typing import Any

import click

from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.models import Login, Token
from cfproxy.auth.token_source import TokenSource
from cfproxy.cli.admin_client import AdminClient, find_admin
from cfproxy.cli.options import account_option, choose, closing, common, is_debug, load, load_account
from cfproxy.cli.run import run_loop
from cfproxy.cli.status_text import render_text
from cfproxy.cli.terminal import show
from cfproxy.clock import SystemClock
from cfproxy.config import Account, Settings
from cfproxy.errors import CfproxyError, LoginRequired, StoreUnavailable, StoreUnusable, UsageError
from cfproxy.observability.logs import build_logger
from cfproxy.observability.status import report_beside, report_stored
from cfproxy.runtime.factory import build_app, build_endpoint, build_store, build_token_source

BESIDE_S = 1.0
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
@common
@account_option
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status_command(account: str | None, as_json: bool) -> int:
    """Show who is logged in and what expires when; asks no network.

    A proxy that runs here with the same settings adds what keeps it from serving.
    """
    settings = load()
    chosen = [choose(settings, account)] if account else list(settings.accounts.values())
    running = _ask_running(settings)
    reports = [
        report | {"running": running.get((report["account"], report["client_id"], report["upstream"]))}
        for report in run_loop(_report(chosen))
    ]
    if as_json:
        click.echo(json.dumps({"accounts": reports}, indent=2))
    else:
        show(render_text(reports), _COLORS)
    states = {report["state"] for report in reports} | {report["store"]["state"] for report in reports}
    if states & {"store-unusable", "store-unavailable"}:
        return StoreUnavailable.exit_code
    return LoginRequired.exit_code if "login-required" in states else 0


def _ask_running(settings: Settings) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return what a proxy that runs on this machine says, by account, app and upstream."""
    try:
        url, _ = find_admin(settings)  # no key is sent: who has the port now is not known
        status, document = AdminClient(url, None).ask("GET", "/status.json", BESIDE_S)
    except (UsageError, OSError, http.client.HTTPException):
        return {}
    told = document.get("accounts") if status == 200 and isinstance(document, dict) else None
    return {
        (str(each.get("account")), str(each.get("client_id")), str(each.get("upstream"))): report_beside(each)
        for each in (told if isinstance(told, list) else ())
        if isinstance(each, dict)
    }


async def _report(accounts: list[Account]) -> list[dict[str, Any]]:
    reports = []
    for account in accounts:
        store = build_store(account)
        stored, store_error = await closing(store, _stored(account, store))
        now = SystemClock().time()
        report = report_stored(build_app(account), stored, now, store.location, store_error)
        if account.store.url == "memory":
            report["state"] = "unknown"
            report["detail"] = (
                "store: memory is seen by the running proxy only: /status.json of its admin listener"
            )
        report["listen"] = "off" if account.listen is None else str(account.listen)
        report["upstream"] = account.upstream
        report["pacing"] = {
            "rate": account.pacing.rate,
            "per_s": account.pacing.per_s,
            "queue": account.pacing.queue,
            "max_wait_s": account.pacing.max_wait_s,
            "shared": account.pacing.shared,
        }
        reports.append(report)
    return reports


async def _stored(account: Account, store: TokenStore) -> tuple[Login | None, CfproxyError | None]:
    stored = None
    try:
        stored = await store.load(account.name)
        # An app logs in by itself, so its store may be in use though nothing could be saved in it yet.
        if stored is not None or account.grant == "client_credentials":
            await store.probe(account.name)
    except (StoreUnavailable, StoreUnusable) as error:
        return stored, error
    return stored, None


@click.command("token")
@common
@account_option
def token_command(account: str | None) -> int:
    """Print a fresh access token, for scripts."""
    chosen = load_account(account)
    log = build_logger("debug" if is_debug() else "silent", "console")
    store = build_store(chosen)
    token_source = build_token_source(chosen, store, build_endpoint(chosen), log)
    token, unsaved = run_loop(closing(store, _token(token_source, store, chosen.name)))
    click.echo(token.value.reveal())
    if unsaved is not None:
        # Unlike a running proxy, this process has no later chance to save what it got.
        raise StoreUnavailable(f"the token above is good, but it is not saved: {unsaved}")
    return 0


async def _token(
    token_source: TokenSource, store: TokenStore, account: str
) -> tuple[Token, CfproxyError | None]:
    stored = await store.load(account)
    if stored is not None and stored.token.remaining_s(SystemClock().time()) <= 0:
        # A one-time refresh token must not be spent where its successor can't be kept.
        await store.probe(account)
    await token_source.start()
    try:
        token = await token_source.get()
    finally:
        await token_source.aclose()
    state = token_source.state()
    return token, state.store_error if state.unsaved else None
