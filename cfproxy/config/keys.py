"""Trees of keys, on their way from a source to the settings.

Owns: which keys there are, the check that a tree has no others, and how trees are merged.
Must not know: where a tree comes from, what a value means.
Invariants: what `check_keys` returns has known keys only, and a mapping wherever a section belongs;
a secret's {env} or {file} is one value, never merged into another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from cfproxy.config.problems import Problems, hint, shown
from cfproxy.config.settings import ACCOUNT_NAME, SECRET_KEYS, AccountKeys, FileKeys, Model
from cfproxy.config.tree import Keys, Tree

# --- known keys -------------------------------------------------------------------------------


def keys_of(model: type[Model]) -> dict[str, FieldInfo]:
    """Return a section's keys as the file has them."""
    return {str(info.validation_alias or name): info for name, info in model.model_fields.items()}


def section_of(info: FieldInfo | None) -> type[Model] | None:
    """Return the section that a key opens; None for a key with a value."""
    kind = None if info is None else info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Model) else None


def sections_of(model: type[Model]) -> list[type[Model]]:
    """Return the sections that stand directly in a model."""
    return [section for section in map(section_of, keys_of(model).values()) if section]


def paths_of(model: type[Model]) -> dict[Keys, FieldInfo]:
    """Return all keys of a model, those of its sections included."""
    paths: dict[Keys, FieldInfo] = {}
    for key, info in keys_of(model).items():
        paths[(key,)] = info
        section = section_of(info)
        paths |= {(key, *below): part for below, part in (paths_of(section) if section else {}).items()}
    return paths


def check_keys(model: type[Model], tree: Tree, path: Keys, findings: Problems) -> Tree:
    """Return what of `tree` has known keys and mappings where mappings belong; report the rest."""
    known = keys_of(model)
    clean: Tree = {}
    for key, value in tree.items():
        section = section_of(known.get(key))
        if key not in known:
            _report_unknown(key, known, path, findings)
        elif key == "accounts":
            clean[key] = _check_accounts(value, findings)
        elif section is None or value is None:
            clean[key] = value
        elif isinstance(value, dict):
            clean[key] = check_keys(section, value, (*path, key), findings)
        elif section.shorthand is not None:
            findings.short.add((*path, key))
            clean[key] = {section.shorthand: value}
        else:
            findings.add((*path, key), f"must be a mapping with keys such as {next(iter(keys_of(section)))}")
    return clean


def _check_accounts(value: Any, findings: Problems) -> Tree:
    clean: Tree = {}
    if not isinstance(value, dict | None):
        findings.add(("accounts",), "must be a mapping of account names to their settings")
        return clean
    for name, account in (value or {}).items():
        here = ("accounts", name)
        if not ACCOUNT_NAME.fullmatch(name):
            text = "is not an account name: up to 64 of a-z, 0-9, - and _, none of Windows' device names"
            findings.add(here, text)
        elif isinstance(account, dict | None):
            clean[name] = check_keys(AccountKeys, account or {}, here, findings)
        else:
            findings.add(here, "must be a mapping with keys such as client_id")
    return clean


def _report_unknown(key: str, known: Mapping[str, FieldInfo], path: Keys, findings: Problems) -> None:
    word, colon, _ = key.partition(":")
    if colon and word in known:
        findings.add((*path, word), "needs a space after its colon")
    elif len(path) == 2 and path[0] == "accounts" and key in keys_of(FileKeys):
        findings.add((*path, key), "belongs to the top level: it holds for all accounts")
    else:
        here = (*path, key)
        hidden = " (not shown, it may be a secret)" if shown(here).endswith("?") else ""
        findings.add(here, f"is not a known key{hidden}{hint(key.lower(), list(known))}")


# --- trees ------------------------------------------------------------------------------------


def merge(low: Tree, high: Tree) -> Tree:
    """Return `low` with `high` over it, section by section; a secret's {env} or {file} is one value."""
    out = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict) and key not in SECRET_KEYS
        out[key] = merge(out[key], value) if both else value
    return out


def drop_nulls(tree: Tree) -> Tree:
    """Return `tree` without the keys that null sets back to their defaults."""
    return {
        key: drop_nulls(value) if isinstance(value, dict) and key not in SECRET_KEYS else value
        for key, value in tree.items()
        if value is not None
    }


def nest(path: Keys, value: Any) -> Tree:
    """Return the tree that has one value, at `path`."""
    for key in reversed(path):
        value = {key: value}
    tree: Tree = value
    return tree


def leaves_of(tree: Tree, path: Keys = ()) -> Iterator[Keys]:
    """Yield the paths at which a tree has values."""
    for key, value in tree.items():
        if isinstance(value, dict) and value and key not in SECRET_KEYS:
            yield from leaves_of(value, (*path, key))
        else:
            yield (*path, key)


def has_key(tree: Any, loc: Keys) -> bool:
    """Return whether a tree says something at `loc`, or a value stands on the way there."""
    for key in loc:
        if not isinstance(tree, dict):
            return True
        if key not in tree:
            return False
        tree = tree[key]
    return True
