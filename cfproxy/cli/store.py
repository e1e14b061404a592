"""`cfproxy store`: moves logins from one store to another.

Invariants:
1. A login is refreshed from one place only: unless `--keep` is given, the old record is deleted after the new
   one was saved and read back. Repeating the command completes one that was interrupted at any point.
2. Both stores are locked meanwhile, so neither can refresh the login.
3. No token, password or key is printed.
"""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import ValidationError

from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.models import Login
from cfproxy.cli.options import account_option, choose_accounts, common_options, load_config
from cfproxy.cli.run import run_loop
from cfproxy.config import Account, RedisAddress, Store
from cfproxy.config.conflicts import account_conflicts
from cfproxy.config.references import ValidationContext
from cfproxy.errors import LoginRequired, StoreUnusable, UsageError
from cfproxy.runtime.factory import build_app, build_store

LOCK_SLACK_S = 30.0
_WORDS = "'file', 'file:DIR', 'redis://…' or '{url: …, password: …, key: …}', as for the setting store"
_BOTH = (
    "both stores have the login now, and its refresh token may be valid for one use only: serve from one of "
    "them; the copy in the other one is useless after the next refresh"
)


@click.group("store", no_args_is_help=False)
@common_options
def store_group() -> None:
    """Move logins between stores."""


@store_group.command("copy", short_help="Move the logins from store FROM to store TO.")
@common_options
@account_option
@click.option("--keep", is_flag=True, help="Keep the login in FROM as well.")
@click.option("--force", is_flag=True, help="Replace a newer or different login in TO.")
@click.argument("from_", metavar="FROM")
@click.argument("to", metavar="TO")
def store_copy(account: str | None, from_: str, to: str, *, keep: bool, force: bool) -> int:
    """Move the login of each account from store FROM to store TO.

    FROM and TO have the syntax of the setting store. A plain address uses the configured key, and the
    configured password if it names the configured server.
    """
    settings = load_config()
    chosen = choose_accounts(settings, account)
    pairs = [(each, _account_at(each, from_, "FROM"), _account_at(each, to, "TO")) for each in chosen]
    absent: list[LoginRequired] = []
    for each, source, target in pairs:
        try:
            click.echo(
                run_loop(_copy(each, build_store(source), build_store(target), keep=keep, force=force))
            )
        except LoginRequired as error:
            absent.append(error)
    if len(absent) == len(pairs):
        raise absent[0]
    for missing in absent:
        click.echo(missing.message)
    if keep:
        click.echo(f"cfproxy: {_BOTH}", err=True)
    return 0


async def _copy(account: Account, source: TokenStore, target: TokenStore, *, keep: bool, force: bool) -> str:
    async with AsyncExitStack() as stack:
        stack.push_async_callback(source.aclose)
        stack.push_async_callback(target.aclose)
        if source.location == target.location:
            raise UsageError(f"FROM and TO are the same store: {source.location}")
        timeout_s = account.timeouts.token_s + LOCK_SLACK_S
        await stack.enter_async_context(source.lock(account.name, timeout_s))
        login = await source.load(account.name)
        if login is None:
            raise LoginRequired(
                f"{source.location} has no login of account '{account.name}'; log in with the store that is "
                f"configured: {build_app(account).login_command}"
            )
        await stack.enter_async_context(target.lock(account.name, timeout_s))
        there = await target.load(account.name)
        if there is not None:
            if not force and (reason := _newer(there, login)) is not None:
                raise UsageError(f"{target.location} has {reason} of account '{account.name}'; {_CURE}")
            # Within a store the serial only grows.
            login = replace(login, serial=max(login.serial, there.serial + 1))
        await target.save(login)
        if await target.load(account.name) != login:
            raise StoreUnusable(f"{target.location} does not return what was saved; nothing was deleted")
        if not keep:
            await source.delete(account.name)
        done = "Copied" if keep else "Moved"
        return f"{done} the login of account '{account.name}' from {source.location} to {target.location}."


_CURE = "--force replaces it, and it is lost"


def _newer(there: Login, login: Login) -> str | None:
    """Return why `there` must not be replaced; None if it is older and of the same app."""
    if not there.belongs_to(login):
        return "the login of another app or API"
    if (there.login_at, there.serial) > (login.login_at, login.serial):
        return "a newer login" if there.login_at > login.login_at else "a newer token"
    return None


def _account_at(account: Account, words: str, which: str) -> Account:
    """Return the account with the store that `words` name instead of its own.

    Raises:
        UsageError
    """
    keys: dict[str, Any] = {"url": words, "key": account.store.key}
    if words.startswith("{"):
        try:
            keys = yaml.safe_load(words)
        except yaml.YAMLError:
            raise UsageError(f"{which} must be {_WORDS}") from None
    try:
        store = Store.model_validate(keys, context=ValidationContext(os.environ, Path()))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, problem["loc"]))
        text = str(problem.get("ctx", {}).get("error", f"must be {_WORDS}"))
        raise UsageError(f"{which}: {text}" if key in {"", "url"} else f"{which}: {key}: {text}") from None
    configured = account.store.url
    if isinstance(store.url, RedisAddress) and isinstance(configured, RedisAddress):
        bare = store.url.username is None and store.url.password is None and store.password is None
        if bare and str(store.url) == str(configured):
            store = account.store.model_copy(update={"key": store.key})
    if store.url == "memory":
        raise UsageError(f"{which}: memory ends with each process; use {_WORDS}")
    moved = account.model_copy(update={"store": store})
    for involved, loc, text in account_conflicts(moved):
        if involved == {"store"}:
            raise UsageError(f"{which}: {'.'.join(loc[1:])}: {text}")
    return moved
