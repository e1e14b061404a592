"""The keys of each section, the check that a tree has no others, and how trees are merged.

A tree that `check_keys` returns has known keys only, and a mapping wherever a section belongs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from cfproxy.config.problems import Keys, Problems, Tree, render_path, suggest
from cfproxy.config.settings import ACCOUNT_NAME, SECRET_KEYS, AccountKeys, FileKeys, Model


def keys_of(model: type[Model]) -> dict[str, FieldInfo]:
    """Return the keys of a section as the file has them."""
    return {str(info.validation_alias or name): info for name, info in model.model_fields.items()}


def section_of(info: FieldInfo | None) -> type[Model] | None:
    """Return the section behind a key; None for a key with a value."""
    kind = None if info is None else info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Model) else None


def paths_of(model: type[Model]) -> dict[Keys, FieldInfo]:
    """Return all keys of a model, including those of its sections."""
    paths: dict[Keys, FieldInfo] = {}
    for key, info in keys_of(model).items():
        paths[(key,)] = info
        section = section_of(info)
        paths |= {(key, *below): part for below, part in (paths_of(section) if section else {}).items()}
    return paths


def check_keys(model: type[Model], tree: Tree, path: Keys, problems: Problems) -> Tree:
    """Return the part of `tree` with known keys, and with mappings for sections; report the rest."""
    known = keys_of(model)
    checked: Tree = {}
    for key, value in tree.items():
        section = section_of(known.get(key))
        if key not in known:
            _report_unknown(key, known, path, problems)
        elif key == "accounts":
            checked[key] = _check_accounts(value, problems)
        elif section is None or value is None:
            checked[key] = value
        elif isinstance(value, dict):
            checked[key] = check_keys(section, value, (*path, key), problems)
        elif section.shorthand is not None:
            problems.shorthands.add((*path, key))
            checked[key] = {section.shorthand: value}
        else:
            problems.add((*path, key), f"must be a mapping with keys such as {next(iter(keys_of(section)))}")
    return checked


def _check_accounts(value: Any, problems: Problems) -> Tree:
    checked: Tree = {}
    if not isinstance(value, dict | None):
        problems.add(("accounts",), "must be a mapping of account names to their settings")
        return checked
    for name, account in (value or {}).items():
        path = ("accounts", name)
        if not ACCOUNT_NAME.fullmatch(name):
            text = "is not an account name: up to 64 of a-z, 0-9, - and _, and not a Windows device name"
            problems.add(path, text)
        elif isinstance(account, dict | None):
            checked[name] = check_keys(AccountKeys, account or {}, path, problems)
        else:
            problems.add(path, "must be a mapping with keys such as client_id")
    return checked


def _report_unknown(key: str, known: Mapping[str, FieldInfo], path: Keys, problems: Problems) -> None:
    word, colon, _ = key.partition(":")
    if colon and word in known:
        problems.add((*path, word), "needs a space after its colon")
    elif len(path) == 2 and path[0] == "accounts" and key in keys_of(FileKeys):
        problems.add((*path, key), "belongs to the top level: it applies to all accounts")
    else:
        full = (*path, key)
        hidden = " (not shown, because it may be a secret)" if render_path(full).endswith("?") else ""
        problems.add(full, f"is not a known key{hidden}{suggest(key.lower(), list(known))}")


def merge(low: Tree, high: Tree) -> Tree:
    """Return `low` overridden by `high`, section by section; a secret's {env} or {file} is one value."""
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key not in SECRET_KEYS
        merged[key] = merge(merged[key], value) if both else value
    return merged
