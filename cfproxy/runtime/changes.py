"""What may change while the proxy runs, and what did.

Owns: the comparison of the configuration in use with the one that is to take its place.
Must not know: how a change is carried out (`service.py`).
Invariant: names keys, never values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from cfproxy.config import Account, Settings
from cfproxy.errors import ConfigError, Problem

STORE_STAYS = (
    "can't change while the account is served: its newest token may be in the old store only; "
    "restart cfproxy to change it"
)
SHARED_STAYS = (
    "can't change while the upstream is served: what left in the last second is counted in one place; "
    "restart cfproxy to change it"
)
GONE = "is gone, and cfproxy was started to serve it (--account); put it back, or restart cfproxy"
PACE_STAYS = (
    "can't change while the account is served: who waits in one queue can't be moved to the other; "
    "restart cfproxy to change it"
)
UNSAVED = (
    "can't change now: the account's newest token is not saved yet and would be lost; "
    "mend the store first (cfproxy doctor)"
)


def check_live(old: Settings, new: Settings, named: tuple[str, ...], unsaved: set[str]) -> None:
    """Refuse what can't change without a restart.

    Args:
        old: in use.
        new: to take its place.
        named: the accounts that `serve --account` asked for.
        unsaved: the accounts whose newest token is in memory only.

    Raises:
        ConfigError: with everything that keeps `new` from being used.
    """
    problems = [Problem(new.source, f"accounts.{name}", GONE) for name in named if name not in new.accounts]
    for name, account in old.accounts.items():
        successor = new.accounts.get(name)
        if successor is not None and successor.store != account.store:
            problems.append(Problem(new.source, _path(name, "store"), STORE_STAYS))
        if successor is not None and _paced_by(account) != _paced_by(successor):
            problems.append(Problem(new.source, _path(name, "pacing.shared"), PACE_STAYS))
        if name in unsaved and (
            successor is None
            or (successor.client_id, successor.token_url, successor.upstream_origin)
            != (account.client_id, account.token_url, account.upstream_origin)
        ):
            problems.append(Problem(new.source, _path(name, "client_id"), UNSAVED))
    shared = {account.upstream_origin: account.pacing.shared for account in old.accounts.values()}
    for name, account in new.accounts.items():
        if account.pacing.shared != shared.get(account.upstream_origin, account.pacing.shared):
            problems.append(Problem(new.source, _path(name, "pacing", "shared"), SHARED_STAYS))
    if problems:
        raise ConfigError("the configuration can't be used without a restart", tuple(problems))


def _paced_by(account: Account) -> bool:
    """Whether its rate is kept together with other replicas."""
    return account.pacing.shared and account.pacing.rate is not None


def list_changes(old: Settings, new: Settings) -> list[str]:
    """Return the keys whose values differ, as they are written in the file, sorted."""
    # Compared as the program holds them: written out, one secret looks like any other.
    return sorted(_differences(old, new, ()))


def _differences(old: Any, new: Any, path: tuple[str, ...]) -> Iterator[str]:
    before, after = _parts(old), _parts(new)
    if before is not None and after is not None:
        for key in {**before, **after}:
            if path or key != "source":
                yield from _differences(before.get(key), after.get(key), (*path, key))
    elif old != new:
        yield _path(path[1], *path[2:]) if path[0] == "accounts" else ".".join(path)


def _parts(value: Any) -> dict[str, Any] | None:
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return {field.serialization_alias or name: getattr(value, name) for name, field in fields}
    return value if isinstance(value, dict) else None


def _path(account: str, *keys: str) -> str:
    return ".".join(keys if account == "default" and keys else ("accounts", account, *keys))
