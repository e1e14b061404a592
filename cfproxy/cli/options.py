"""Options that commands share, and the settings and accounts that they select."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cfproxy.auth.interfaces import TokenStore
from cfproxy.config import Account, FoundConfig, Settings, SettingsReader, account_names, find_config
from cfproxy.config.addresses import parse_tcp_address
from cfproxy.errors import ConfigError, UsageError

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


def _remember(ctx: click.Context, option: click.Parameter, value: object) -> None:
    # A command and its groups share `meta`, so the option may come before or after the command's name.
    if value and option.name is not None:
        ctx.meta[f"cfproxy.{option.name}"] = value


def common_options(function: _F) -> _F:
    """Give a command `-c` and `--debug`; `config_option` and `is_debug` return their values."""
    config = click.option(
        "-c",
        "--config",
        metavar="FILE",
        type=click.Path(readable=False),  # not checked here: a problem of the file is reported like any other
        expose_value=False,
        callback=_remember,
        help="Configuration file; default: $CFPROXY_CONFIG, ./cfproxy.yaml, ./config.yaml, "
        "the user's config folder.",
    )
    return config(debug_option(function))


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_remember, help="Show tracebacks."
)


def complete_account(ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """Return the accounts whose names start with `incomplete`; problems of the configuration are ignored."""
    try:
        path = find_config(ctx.meta.get("cfproxy.config"), os.environ, Path.cwd()).path
    except (ConfigError, OSError):
        return []
    return [name for name in account_names(path, os.environ) if name.startswith(incomplete)]


account_option = click.option(
    "--account", metavar="NAME", shell_complete=complete_account, help="The account, if there are several."
)


def config_option() -> str | None:
    """Return the value of `-c`."""
    path: str | None = click.get_current_context().meta.get("cfproxy.config")
    return path


def reject_config_option(command: str) -> None:
    """Refuse `-c` for a command that reads no configuration.

    Raises:
        UsageError: `-c` was given before the command's name.
    """
    if config_option() is not None:
        raise UsageError(f"{command} reads no configuration: leave out -c")


def is_debug() -> bool:
    """Whether `--debug` was given."""
    return bool(click.get_current_context().meta.get("cfproxy.debug"))


def locate_config() -> tuple[FoundConfig, str | None]:
    """Return the configuration file, and the value of `-c`.

    Raises:
        ConfigError: the file that was named does not exist.
    """
    named = config_option()
    try:
        here = Path.cwd()
    except OSError:  # it was deleted; absolute paths still work
        here = Path()
    return find_config(named, os.environ, here), named


def settings_reader() -> SettingsReader:
    """Return what reads the configuration each time it is called, always from the same file.

    Raises:
        ConfigError: the file that was named does not exist. Calling it raises it for any other problem.
    """
    found, named = locate_config()
    return SettingsReader(found, os.environ, named)


def load_config() -> Settings:
    """Read the configuration.

    Raises:
        ConfigError: with all its problems.
    """
    return settings_reader()()


def choose_account(settings: Settings, name: str | None) -> Account:
    """Return the named account; without a name `default`, or the only one.

    Raises:
        UsageError: there is no such account, or the choice is not clear.
    """
    known = ", ".join(settings.accounts)
    if name is None:
        if "default" in settings.accounts:
            return settings.accounts["default"]
        if len(settings.accounts) == 1:
            return next(iter(settings.accounts.values()))
        raise UsageError(f"there are several accounts; choose one with --account: {known}")
    if name not in settings.accounts:
        raise UsageError(f"there is no account '{name}'; there are: {known}")
    return settings.accounts[name]


def choose_accounts(settings: Settings, name: str | None) -> list[Account]:
    """Return the named account; without a name all of them.

    Raises:
        UsageError: there is no such account.
    """
    return [choose_account(settings, name)] if name else list(settings.accounts.values())


def parse_listen_option(listen: str) -> tuple[str, int]:
    """Return host and port of `--listen`, which has the syntax of the setting `listen`.

    Raises:
        UsageError: it is no such address.
    """
    try:
        address = parse_tcp_address(listen)
    except ValueError as error:
        raise UsageError(f"--listen {error}") from None
    return address.host, address.port


async def closing_store(store: TokenStore, work: Awaitable[_T]) -> _T:
    """Return the result of `work`, and close the store's connections: each command has its own event loop."""
    try:
        return await work
    finally:
        await store.aclose()
