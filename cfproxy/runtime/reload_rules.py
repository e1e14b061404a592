"""Compares the configuration in use with its replacement: what may not change, and what has changed.

Only keys are named, never values. `service.py` applies the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from cfproxy.config import Account, Settings, Store
from cfproxy.errors import ConfigError, Problem

STORE_STAYS = (
    "can't change while the account is served, because only the old store may have its newest token; "
    "restart cfproxy to change it"
)
SHARED_STAYS = (
    "can't change while the upstream is served, because its requests are counted in one place; "
    "restart cfproxy to change it"
)
GONE = "is missing, but cfproxy was started to serve it (--account); restore it, or restart cfproxy"
PACE_STAYS = (
    "can't change while the account is served, because waiting requests can't move to another queue; "
    "restart cfproxy to change it"
)
UNSAVED = (
    "can't change now: the account's newest token is not saved yet and would be lost; "
    "repair the store first (run: cfproxy doctor)"
)


def check_reload(
    old: Settings, new: Settings, names: tuple[str, ...], is_unsaved: Callable[[str], bool]
) -> None:
    """Check that no setting has changed that needs a restart.

    Args:
        old: the settings in use.
        new: their replacement.
        names: the accounts that `serve --account` asked for.
        is_unsaved: whether an account's newest token is in memory only.

    Raises:
        ConfigError: with all such settings.
    """
    problems = [Problem(new.source, f"accounts.{name}", GONE) for name in names if name not in new.accounts]
    for name, account in old.accounts.items():
        successor = new.accounts.get(name)
        if successor is not None and not _is_same_store(account.store, successor.store):
            problems.append(Problem(new.source, _path(name, "store"), STORE_STAYS))
        if successor is not None and _shares_rate(account) != _shares_rate(successor):
            problems.append(Problem(new.source, _path(name, "pacing.shared"), PACE_STAYS))
        if (successor is None or _identity(successor) != _identity(account)) and is_unsaved(name):
            problems.append(Problem(new.source, _path(name, "client_id"), UNSAVED))
    shared = {account.upstream_origin: account.pacing.shared for account in old.accounts.values()}
    for name, account in new.accounts.items():
        if account.pacing.shared != shared.get(account.upstream_origin, account.pacing.shared):
            problems.append(Problem(new.source, _path(name, "pacing", "shared"), SHARED_STAYS))
    if problems:
        raise ConfigError("the configuration can't be used without a restart", tuple(problems))


def _is_same_store(old: Store, new: Store) -> bool:
    """Whether the open store is the new one, too: it reads a password from a file for each connection."""
    password = None if old.password is None else old.password.reread()
    return new in (old, old.model_copy(update={"password": password}))


def _shares_rate(account: Account) -> bool:
    """Whether other replicas count against the same rate."""
    return account.pacing.shared and account.pacing.rate is not None


def _identity(account: Account) -> tuple[str, str, str]:
    """Return what a stored token belongs to."""
    return account.client_id, account.token_url, account.upstream_origin


def list_changes(old: Settings, new: Settings) -> list[str]:
    """Return the keys whose values differ, as the file has them, sorted."""
    # The objects are compared, because all secrets look the same when they are rendered.
    return sorted(_differences(old, new, ()))


def _differences(old: Any, new: Any, path: tuple[str, ...]) -> Iterator[str]:
    before, after = _items(old), _items(new)
    if before is not None and after is not None:
        for key in {**before, **after}:
            if path or key != "source":
                yield from _differences(before.get(key), after.get(key), (*path, key))
    elif old != new:
        yield _path(path[1], *path[2:]) if path[0] == "accounts" else ".".join(path)


def _items(value: Any) -> dict[str, Any] | None:
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return {field.serialization_alias or name: getattr(value, name) for name, field in fields}
    return value if isinstance(value, dict) else None


def _path(account: str, *keys: str) -> str:
    return ".".join(keys if account == "default" and keys else ("accounts", account, *keys))
