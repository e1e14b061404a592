"""`cfproxy login` and `cfproxy logout`."""

from __future__ import annotations

import os
import sys
import time
import webbrowser

import click

from cfproxy.auth import login
from cfproxy.auth.login import LoggedOut, LoginPlan
from cfproxy.auth.models import ATTEMPT_LIFETIME_S, Login
from cfproxy.cli.options import account_option, choose_account, closing_store, common_options, load_config
from cfproxy.cli.run import run_loop
from cfproxy.errors import LoginFailed, UsageError
from cfproxy.runtime.factory import build_login_plan, build_store

PASTES_MAX = 3


@click.command("login")
@common_options
@account_option
@click.option("--no-browser", is_flag=True, help="Print the address, but open no browser.")
@click.option("--print-url", is_flag=True, help="Print the authorize URL, store the attempt and exit.")
@click.option("--finish", metavar="URL_OR_CODE", help="Finish that attempt; '-' reads standard input.")
def login_command(account: str | None, no_browser: bool, print_url: bool, finish: str | None) -> int:
    """Log in; a running proxy uses the new login at once."""
    if print_url and finish is not None:
        raise UsageError("--print-url and --finish are two steps: use one at a time")
    chosen = choose_account(load_config(), account)
    if chosen.store.url == "memory":
        raise UsageError(
            "store: memory ends with each process, so no proxy would get this login; set store: file"
        )
    if finish == "-":
        finish = sys.stdin.read()
    plan = build_login_plan(chosen, build_store(chosen))
    if chosen.grant == "client_credentials":
        if print_url or finish is not None:
            raise UsageError(f"client_credentials has no login in a browser; run: {plan.app.login_command}")
        run_loop(closing_store(plan.store, login.login_app(plan)))
        click.echo(f"Account '{chosen.name}' got a token: client_id and client_secret are right.")
        return 0
    if finish is None:
        url, _ = run_loop(closing_store(plan.store, login.start(plan)))
        if print_url:
            click.echo(url)
            return 0
        _show_authorize_url(url, browser=not no_browser)
        done = _finish_at_prompt(plan)
    else:
        done = run_loop(closing_store(plan.store, login.finish(plan, finish)))
    click.echo(f"Logged in as account '{chosen.name}' ({done.scope}).")
    return 0


def _show_authorize_url(url: str, *, browser: bool) -> None:
    click.echo("Open this address, log in to Creative Force and click 'Yes, Allow':\n", err=True)
    click.echo(url)
    if browser and _has_desktop():
        webbrowser.open(url)
    click.echo(
        "\nThe browser then goes to your redirect URI. That page need not load.\n"
        "Copy the whole address from the address bar and paste it here (the code alone works too).\n"
        "If Creative Force shows an error page, redirect_uri differs from the registered one.",
        err=True,
    )
    until = time.strftime("%H:%M", time.localtime(time.time() + ATTEMPT_LIFETIME_S))
    click.echo(f"Waiting for it until {until} ({ATTEMPT_LIFETIME_S / 60:.0f} minutes).", err=True)


def _finish_at_prompt(plan: LoginPlan) -> Login:
    pasted = ""
    for left in reversed(range(PASTES_MAX)):
        click.echo("> ", err=True, nl=False)
        # Outside an event loop, which can't be interrupted while a thread waits at a prompt.
        line = sys.stdin.readline()
        if not line:
            raise LoginFailed("no address was pasted; without a terminal use --print-url, then --finish URL")
        # An address may have been wrapped: a line without a beginning continues it.
        pasted = pasted + line if "://" in pasted and "://" not in line else line
        click.echo("Requesting tokens from the token endpoint ...", err=True)
        try:
            return run_loop(closing_store(plan.store, login.finish(plan, pasted)))
        except LoginFailed as error:
            if not error.curable:
                raise
            if not left:
                text = f"{error}; this login can still be finished within half an hour"
                raise LoginFailed(f"{text}: {login.finish_command(plan)}") from None
            click.echo(f"cfproxy: {error}", err=True)
    raise AssertionError("the last paste returns or raises")


def _has_desktop() -> bool:
    """Whether a browser opens a window of its own; a text browser would take over the terminal."""
    return sys.platform in {"win32", "darwin"} or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


@click.command("logout")
@common_options
@account_option
def logout_command(account: str | None) -> int:
    """Revoke the tokens if the server supports it, and delete them."""
    chosen = choose_account(load_config(), account)
    plan = build_login_plan(chosen, build_store(chosen))
    done = run_loop(closing_store(plan.store, login.logout(plan)))
    if chosen.grant == "client_credentials":
        click.echo(
            f"Account '{chosen.name}' uses client credentials: it has no login to end{_deleted_token(done)}"
        )
        return 0
    if not done.found:
        others = (
            " The store has the login of another app or API, which stays as it is." if done.others else ""
        )
        click.echo(f"Account '{chosen.name}' was not logged in.{others}")
        return 0
    revoked = _REVOKED[done.revoked].format("them", "they expire")
    click.echo(f"Account '{chosen.name}' is logged out. Its tokens are deleted; {revoked}.")
    return 0


_REVOKED = {
    True: "the server has revoked {0}",
    False: "the server does not revoke tokens; {1} by age",
    None: "the server could not be reached to revoke {0}; {1} by age",
}


def _deleted_token(done: LoggedOut) -> str:
    if not done.found:
        return ", and no token was stored."
    revoked = _REVOKED[done.revoked].format("it", "it expires")
    return f". Its stored token is deleted; {revoked}. The next request fetches a new one."
