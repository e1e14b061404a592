"""Options and look-ups that commands share.

Owns: how `-c`, `--debug` and `--account` are given, completed and read.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cfproxy.auth.interfaces import TokenStore
from cfproxy.config import Account, Settings, account_names, find_config, load_settings
from cfproxy.config.addresses import parse_tcp_address
from cfproxy.errors import ConfigError, UsageError

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


def _remember(ctx: click.Context, option: click.Parameter, value: object) -> None:
    # `meta` is shared by a command and its groups: the option may stand before or after the command's name.
    if value and option.name is not None:
        ctx.meta[f"cfproxy.{option.name}"] = value


def common(function: _F) -> _F:
    """Give a command `-c` and `--debug`; `load` and `is_debug` read them."""
    config = click.option(
        "-c",
        "--config",
        metavar="FILE",
        type=click.Path(),
        expose_value=False,
        callback=_remember,
        help="The configuration file; default: $CFPROXY_CONFIG, ./config.yaml, the user's config folder.",
    )
    return config(debug_option(function))


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_remember, help="Show tracebacks."
)


def complete_account(ctx: click.Context, _option: click.Parameter, incomplete: str) -> list[str]:
    """Return the accounts whose names begin so; what is wrong with the configuration is no matter here."""
    try:
        path = find_config(ctx.meta.get("cfproxy.config"), os.environ, Path.cwd())
    except (ConfigError, OSError):
        return []
    return [name for name in account_names(path, os.environ) if name.startswith(incomplete)]


account_option = click.option(
    "--account",
    metavar="NAME",
    shell_complete=complete_account,
    help="The account, where there are several.",
)


def config_path() -> str | None:
    """Return what `-c` says."""
    path: str | None = click.get_current_context().meta.get("cfproxy.config")
    return path


def refuse_config(command: str) -> None:
    """Refuse a `-c` before a command that reads no configuration.

    Raises:
        UsageError
    """
    if config_path() is not None:
        raise UsageError(f"{command} reads no configuration: leave out -c")


def is_debug() -> bool:
    """Whether `--debug` was given."""
    return bool(click.get_current_context().meta.get("cfproxy.debug"))


def load() -> Settings:
    """Load the configuration.

    Raises:
        ConfigError
    """
    return loader()()


def loader() -> Callable[[], Settings]:
    """Return what loads the configuration each time anew, from the file that is the one now.

    Raises:
        ConfigError: as does what is returned.
    """
    path, named = locate()
    return lambda: load_settings(path, os.environ, named)


def locate() -> tuple[Path | None, str | None]:
    """Return the configuration file, if there is one, and how `-c` named it.

    Raises:
        ConfigError
    """
    named = config_path()
    try:
        here = Path.cwd()
    except OSError:  # it was deleted: what is named from the root is still there
        here = Path()
    return find_config(named, os.environ, here), named


def load_account(name: str | None) -> Account:
    """Load the configuration; return the account of `--account` (see `choose`).

    Raises:
        ConfigError, UsageError
    """
    return choose(load(), name)


def choose(settings: Settings, name: str | None) -> Account:
    """Return the named account; without a name `default`, or the only one there is.

    Raises:
        UsageError
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


def host_and_port(listen: str) -> tuple[str, int]:
    """Read the address that `--listen` gives, as the key `listen` is read.

    Raises:
        UsageError
    """
    try:
        address = parse_tcp_address(listen)
    except ValueError as error:
        raise UsageError(f"--listen {error}") from None
    return address.host, address.port


async def closing(store: TokenStore, work: Awaitable[_T]) -> _T:
    """Return what `work` returns, and let the store's connections go: each command has a loop of its own."""
    try:
        return await work
    finally:
        await store.aclose()
