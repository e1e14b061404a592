"""From the file and the environment to settings: merging, inheritance, presets, validation, conflicts.

`build_settings` always returns settings. If no problem was found, they are the configured settings and fit
together; otherwise defaults replace invalid values, so that one run finds as many problems as possible.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from cfproxy.config.conflicts import (
    EXPOSED,
    account_conflicts,
    is_exposed,
    key_conflicts,
    listen_conflicts,
    pacing_conflicts,
)
from cfproxy.config.environment import read_environment
from cfproxy.config.keys import keys_of, merge
from cfproxy.config.problems import ENVIRONMENT, Keys, Problems, Tree
from cfproxy.config.references import ValidationContext, stamp_of
from cfproxy.config.settings import SECRET_KEYS, Account, AccountKeys, Model, ProcessKeys, Settings
from cfproxy.config.sources import FoundConfig, read_file
from cfproxy.config.types import normalise_word
from cfproxy.errors import ConfigError

# A preset gives defaults for other keys; any value set explicitly overrides it.
_PRESETS = {
    ("environment", "sandbox"): {
        "upstream": "https://sandbox-gateway.creativeforce.io",
        "authorize_url": "https://sandbox-accounts.creativeforce.io/connect/authorize",
        "token_url": "https://sandbox-accounts.creativeforce.io/connect/token",
        "revocation_url": "https://sandbox-accounts.creativeforce.io/connect/revocation",
    },
    ("grant", "client_credentials"): {"scope": "cfgateway"},
}
_TYPE_TEXTS = {
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "literal_error": "must be {expected}",
    "tuple_type": "must be a list such as [a, b]",
}
_NO_CLIENT_ID = (
    "must be set, here or as CFPROXY_CLIENT_ID: the id of the app registered with Creative Force "
    "(`cfproxy config init` writes a file to start from)"
)

M = TypeVar("M", bound=Model)


def load_settings(
    path: Path | None,
    environ: Mapping[str, str],
    named: str | None = None,
    files: dict[Path, Hashable] | None = None,
    *,
    searched: bool = False,
) -> Settings:
    """Read the file, if any, and the environment, which overrides it.

    Args:
        path: the file.
        environ: the environment.
        named: the file as `-c` named it, for messages.
        files: gets each file that is read, this one included, with its stamp from before.
        searched: nobody named the file, so it has to be trusted.

    Raises:
        ConfigError: with every problem found.
    """
    files = {} if files is None else files
    if path is not None:
        files[path] = stamp_of(path)
    problems = Problems(ENVIRONMENT if path is None else str(path))
    low = {} if path is None else read_file(path, problems, searched=searched)
    high = read_environment(environ, problems)
    if low is None:
        raise problems.error()
    context = ValidationContext(environ, Path() if path is None else path.parent, named, files)
    settings = build_settings(merge(low, high), context, problems)
    if problems.found:
        raise problems.error()
    return settings


class SettingsReader:
    """Reads one configuration repeatedly, and tells whether its files have changed since.

    Args:
        found: the file.
        environ: the environment.
        named: the file as `-c` named it, for messages.
    """

    def __init__(self, found: FoundConfig, environ: Mapping[str, str], named: str | None) -> None:
        self._found = found
        self._environ = environ
        self._named = named
        self.stamps: dict[Path, Hashable] = {}  # of all files, from just before they were read

    def __call__(self) -> Settings:
        """Read everything.

        Raises:
            ConfigError: with every problem found.
        """
        stamps: dict[Path, Hashable] = {}
        # Somebody who did not mean this file has to learn why it was read; a reload need not repeat it.
        notes = () if self.stamps else self._found.notes
        try:
            searched = bool(self._found.notes)
            return load_settings(self._found.path, self._environ, self._named, stamps, searched=searched)
        except ConfigError as error:
            raise ConfigError(error.message, error.problems + notes) from None
        finally:
            self.stamps = stamps  # in one step, because `look` may run in another thread

    def look(self) -> dict[Path, Hashable]:
        """Return the stamps of the same files now."""
        return {path: stamp_of(path) for path in self.stamps}


def account_names(path: Path | None, environ: Mapping[str, str]) -> list[str]:
    """Return the accounts in the file and the environment, whatever problems they have.

    Secrets are not resolved: only the service may have access to them.
    """
    problems = Problems("")
    low = {} if path is None else read_file(path, problems) or {}
    return [raw.name for raw in _raw_accounts(merge(low, read_environment(environ, problems)), problems)]


def problem_with(key: str, value: str) -> str | None:
    """Return what is wrong with the value of a top-level key on its own; None if it is valid."""
    problems = Problems("")
    build_settings({"client_id": "any", key: value}, ValidationContext(), problems)
    return next((problem.text for problem in problems.found if problem.path == key), None)


@dataclass(frozen=True, slots=True)
class _RawAccount:
    """One account before validation.

    Args:
        name: the account's name.
        path: where its own keys are; empty for the top level.
        own: the keys it sets itself.
        inherited: the keys of the top level.
        invalid: its keys with invalid values.
    """

    name: str
    path: Keys
    own: Tree
    inherited: Tree
    invalid: set[str] = field(default_factory=set)

    def locate(self, loc: Keys) -> Keys:
        """Return the path at which the account's value for `loc` is written."""
        inherits = not _has_key(self.own, loc) and _has_key(self.inherited, loc)
        return loc if inherits else (*self.path, *loc)

    def merged(self) -> Tree:
        """Return its keys with those it inherits, and with presets."""
        tree = _drop_nulls(merge(self.inherited, self.own))
        presets: Tree = {}
        for (key, word), values in _PRESETS.items():
            if normalise_word(tree.get(key)) == word:
                presets |= values
        return {**presets, **tree}


def build_settings(root: Tree, context: ValidationContext, problems: Problems) -> Settings:
    """Return settings in which defaults replace invalid values; each of these is reported."""
    raw_accounts = {raw.name: raw for raw in _raw_accounts(root, problems)}
    _report_missing_ids(list(raw_accounts.values()), problems)
    accounts = {}
    for name, raw in raw_accounts.items():
        fixed = {"name": name, "client_id": "missing", "config_file": context.config_file}
        accounts[name], invalid = _validate(
            Account, fixed | raw.merged(), fixed, context, raw.locate, problems
        )
        raw.invalid.update(invalid)
    keys = _drop_nulls({key: root[key] for key in keys_of(ProcessKeys) if key in root})
    process, _ = _validate(ProcessKeys, keys, {}, context, lambda loc: loc, problems)
    settings = Settings(
        admin=process.admin,
        reload=process.reload,
        log=process.log,
        accounts=accounts,
        source=problems.source,
    )
    _report_conflicts(settings, raw_accounts, problems)
    return settings


def _raw_accounts(root: Tree, problems: Problems) -> list[_RawAccount]:
    top = {key: value for key, value in root.items() if key in keys_of(AccountKeys)}
    named = root.get("accounts", {})
    accounts = [_RawAccount(name, ("accounts", name), own, top) for name, own in named.items()]
    has_default = top.get("client_id") is not None
    if has_default and "default" in named:
        text = "is taken: the top level, which has a client_id, is the account 'default'"
        problems.add(("accounts", "default"), text)
        accounts = [raw for raw in accounts if raw.name != "default"]
    if has_default or not accounts:
        accounts.insert(0, _RawAccount("default", (), top, top))
    return accounts


def _report_missing_ids(accounts: list[_RawAccount], problems: Problems) -> None:
    missing = [raw for raw in accounts if "client_id" not in raw.merged()]
    for raw in missing:
        raw.invalid.add("client_id")
        all_missing = len(missing) == len(accounts)
        problems.add(("client_id",) if all_missing else (*raw.path, "client_id"), _NO_CLIENT_ID)


def _validate(
    model: type[M],
    tree: Tree,
    fixed: Tree,
    context: ValidationContext,
    locate: Callable[[Keys], Keys],
    problems: Problems,
) -> tuple[M, set[str]]:
    """Return the model, and the keys left out because of invalid values; `fixed` is never left out."""
    invalid: set[str] = set()
    try:
        return model.model_validate(tree, context=context), invalid
    except ValidationError as error:
        for item in error.errors(include_url=False, include_input=False):
            loc = tuple(map(str, item["loc"]))
            invalid.add(loc[0])
            problems.add(locate(loc), _describe_error(item["type"], item.get("ctx", {})))
    valid = {key: value for key, value in tree.items() if key not in invalid}
    return model.model_validate(fixed | valid, context=context), invalid


def _describe_error(kind: str, details: Mapping[str, Any]) -> str:
    if "error" in details:
        return str(details["error"])
    if kind.startswith("int_"):
        return "must be a whole number"
    return _TYPE_TEXTS.get(kind, "is not a value of the right kind").format_map(details)


def _report_conflicts(
    settings: Settings, raw_accounts: Mapping[str, _RawAccount], problems: Problems
) -> None:
    """Report values that do not fit together, except where one of them was reported as invalid."""

    def valid(*keys: str) -> dict[str, Account]:
        accounts = settings.accounts.items()
        return {name: account for name, account in accounts if not raw_accounts[name].invalid & set(keys)}

    for name, account in settings.accounts.items():
        for involved, loc, text in account_conflicts(account):
            if not involved & raw_accounts[name].invalid:
                problems.add(raw_accounts[name].locate(loc), text)
    for name, index, text in key_conflicts(settings.accounts):
        if "access" not in raw_accounts[name].invalid:
            problems.add(raw_accounts[name].locate(("access", "keys", str(index))), text)
    for name, text in listen_conflicts(settings.admin, valid("listen")):
        problems.add((*raw_accounts[name].path, "listen"), text)
    for name, text in pacing_conflicts(valid("pacing", "upstream", "environment")):
        problems.add((*raw_accounts[name].path, "pacing"), text)
    if any(is_exposed(settings.admin, account.access) for account in valid("access").values()):
        problems.add(("admin",), EXPOSED)


def _drop_nulls(tree: Tree) -> Tree:
    """Return `tree` without keys set to null, which resets them to their defaults."""
    return {
        key: _drop_nulls(value) if isinstance(value, dict) and key not in SECRET_KEYS else value
        for key, value in tree.items()
        if value is not None
    }


def _has_key(tree: Any, loc: Keys) -> bool:
    """Return whether `tree` has a value at `loc` or on the way there."""
    for key in loc:
        if not isinstance(tree, dict):
            return True
        if key not in tree:
            return False
        tree = tree[key]
    return True
