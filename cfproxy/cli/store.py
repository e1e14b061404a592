"""`cfproxy store`: copies logins from one store to another, and encrypts them.

Invariants:
1. A copy changes nothing in FROM. With `--move` the old record is deleted after the new one was saved and
   read back, and repeating the command completes one that was interrupted at any point.
2. Both stores are locked meanwhile, so neither can refresh the login.
3. No login in TO is replaced by another one unless `--force` says so, and none of another app at all.
4. No token, password or key is printed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import yaml
from pydantic import ValidationError

from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.models import Login, instant, login_problem
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
    "them; the copy in the other one is useless after the next refresh (--move leaves none)"
)


@click.group("store", no_args_is_help=False)
@common_options
def store_group() -> None:
    """Copy logins between stores, or encrypt them."""


@store_group.command("copy", short_help="Copy the logins from store FROM to store TO.")
@common_options
@account_option
@click.option("--move/--keep", help="Delete the login in FROM after it was copied; by default it stays.")
@click.option("--force", is_flag=True, help="Replace another login of this app in TO.")
@click.argument("from_", metavar="FROM")
@click.argument("to", metavar="TO")
def store_copy(account: str | None, from_: str, to: str, *, move: bool, force: bool) -> int:
    """Copy the login of each account from store FROM to store TO.

    FROM and TO have the syntax of the setting store. A plain address uses the configured key, and the
    configured password if it names the configured server.
    """
    settings = load_config()
    chosen = choose_accounts(settings, account)
    pairs = [(each, _account_at(each, from_, "FROM"), _account_at(each, to, "TO")) for each in chosen]
    _report_each(
        [
            partial(_copy, each, build_store(source), build_store(target), move=move, force=force)
            for each, source, target in pairs
        ]
    )
    if not move:
        click.echo(f"cfproxy: {_BOTH}", err=True)
    return 0


def _report_each(works: list[Callable[[], Coroutine[Any, Any, str]]]) -> None:
    """Print the outcome for each account; one without a login is an error only if none has any."""
    absent: list[LoginRequired] = []
    for work in works:
        try:
            click.echo(run_loop(work()))
        except LoginRequired as error:
            absent.append(error)
    if len(absent) == len(works):
        raise absent[0]
    for missing in absent:
        click.echo(missing.message)


async def _copy(account: Account, source: TokenStore, target: TokenStore, *, move: bool, force: bool) -> str:
    app = build_app(account)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(source.aclose)
        stack.push_async_callback(target.aclose)
        if _is_same(source, target):
            raise UsageError(f"FROM and TO are the same store: {source.location}")

        async def find() -> Login:
            login = await source.load(account.name)
            if login is None or not login.belongs_to(app):
                beside = "" if login is None else ", only one of another app or API"
                raise LoginRequired(
                    f"{source.location} has no login of account '{account.name}'{beside}; check FROM, or log "
                    f"in with the store that is configured: {app.login_command}"
                )
            return login

        await find()  # before locking, which creates the folder: FROM may be a slip of the pen
        timeout_s = account.timeouts.token_s + LOCK_SLACK_S
        await stack.enter_async_context(source.lock(account.name, timeout_s))
        login = await find()
        await stack.enter_async_context(target.lock(account.name, timeout_s))
        there = await target.load(account.name)
        if there is None or not there.belongs_to(app):
            await target.save(login)
        elif there != replace(login, serial=there.serial):
            if not force and (reason := _keeps(there, login)) is not None:
                raise UsageError(
                    f"{target.location} has {reason} of account '{account.name}'; "
                    "--force replaces it, and it is lost"
                )
            # Within a store the serial only grows.
            login = replace(login, serial=max(login.serial, there.serial + 1))
            await target.save(login)
        saved = await target.load(account.name)
        if saved is None or saved != replace(login, serial=saved.serial):
            raise StoreUnusable(f"{target.location} does not return what was saved; nothing was deleted")
        if move:
            await source.delete(account.name)
        done = "Moved" if move else "Copied"
        return f"{done} the login of account '{account.name}' from {source.location} to {target.location}."


def _is_same(source: TokenStore, target: TokenStore) -> bool:
    one, other = Path(source.location).resolve(), Path(target.location).resolve()
    with suppress(OSError):  # of Redis, or a folder that is not there yet
        return one.samefile(other)
    return one == other


def _keeps(there: Login, login: Login) -> str | None:
    """Return why `there` must not be replaced; None if it is the same login with an older token."""
    if there.login_at != login.login_at:
        return "a newer login" if there.login_at > login.login_at else "another login"
    return "a newer token" if there.serial > login.serial else None


@store_group.command("encrypt", short_help="Encrypt a login that was stored in the clear.")
@common_options
@account_option
def store_encrypt(account: str | None) -> int:
    """Encrypt a login that was stored in the clear, with the configured store.key.

    A proxy with a key never believes such a login by itself: whoever can write to the store may have put it
    there. Run this only if you know that it is yours.
    """
    chosen = choose_accounts(load_config(), account)
    for each in chosen:
        if each.store.url == "memory":
            raise UsageError("store: memory stores nothing that could be encrypted")
        if each.store.key is None:
            raise UsageError(f"account '{each.name}' has no store.key to encrypt with; set it first")
    _report_each(
        [partial(_encrypt, each, build_store(each, accept_clear=True), build_store(each)) for each in chosen]
    )
    return 0


async def _encrypt(account: Account, store: TokenStore, strict: TokenStore) -> str:
    app, name = build_app(account), account.name
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.aclose)
        stack.push_async_callback(strict.aclose)
        await stack.enter_async_context(store.lock(name, account.timeouts.token_s + LOCK_SLACK_S))
        login = await store.load(name)
        if login is None or not login.belongs_to(app):
            problem = login_problem(login, app)
            raise problem or LoginRequired(f"account '{name}' has no stored token yet")
        with suppress(StoreUnusable):
            await strict.load(name)
            return f"The login of account '{name}' in {store.location} is encrypted already."
        await store.save(login)
        if await strict.load(name) != login:
            raise StoreUnusable(f"{store.location} does not return what was saved; nothing is lost")
        return (
            f"Encrypted the login of account '{name}' in {store.location}; "
            f"it was made at {instant(login.login_at)}."
        )


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
