"""Reads the environment into a tree of known keys.

Whatever the variables contain, the result is a tree or problems, never another exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_origin

from cfproxy.config.keys import check_keys, merge, paths_of, section_of
from cfproxy.config.problems import BadYaml, Keys, Problems, Tree, suggest
from cfproxy.config.settings import SECRET_KEYS, AccountKeys, FileKeys
from cfproxy.config.sources import parse_yaml
from cfproxy.config.types import unquote

PREFIX = "CFPROXY_"

# A variable may give a secret by reference, as the file does: no literal secret starts like this.
_REFERENCE = re.compile(r"\s*\{\s*(?:file|env)\s*:")
_SECRETS = frozenset({("client_secret",), ("store", "key"), ("store", "password")})
# An item of a list without brackets; a comma in quotes belongs to the item.
_ITEM = re.compile(r"""\s*("[^"]*"|'[^']*'|[^,]*?)\s*(?:,|$)""")
# What Kubernetes sets for each service of the namespace, and Docker for each linked container, if the name
# is `cfproxy` or starts with `cfproxy-`. No setting looks like these.
_LINK_URL = r"(tcp|udp|sctp)://[0-9A-Za-z.:\[\]-]+"
_SERVICE_LINK = re.compile(
    r"CFPROXY(_[A-Z0-9_]+)?_("
    rf"PORT(_[0-9]+_(TCP|UDP|SCTP)(_START|_END)?)?={_LINK_URL}"
    r"|(SERVICE_HOST|PORT_[0-9]+_(TCP|UDP|SCTP)_ADDR)=[0-9A-Za-z.:-]+"
    r"|(SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)_PORT(_START|_END)?)=[0-9]+"
    r"|PORT_[0-9]+_(TCP|UDP|SCTP)_PROTO=(tcp|udp|sctp))"
)
_LINK_DETAIL = re.compile(r"(CFPROXY(?:_[A-Z0-9_]+?)?)_(?:NAME|ENV_.+)")  # Docker only, beside a `_PORT`


def read_environment(environ: Mapping[str, str], problems: Problems) -> Tree:
    """Return the known keys set by environment variables; an empty variable sets nothing."""
    tree: Tree = {}
    for name, value in sorted(environ.items()):
        if not name.startswith(PREFIX) or not unquote(value).strip() or _is_foreign(name, environ):
            continue
        try:
            addition = _read_variable(name, value)
        except ValueError as error:
            problems.add_variable(name, str(error))
            continue
        for leaf in _leaves(addition):
            if leaf in problems.variables:
                problems.add_variable(
                    name, f"sets the same key as {problems.variables[leaf]}; keep one of them"
                )
            problems.variables.setdefault(leaf, name)
        tree = merge(tree, addition)
    return check_keys(FileKeys, tree, (), problems)


def _is_foreign(name: str, environ: Mapping[str, str]) -> bool:
    """Whether a variable with our prefix is no setting, but describes a service, an image or the file."""
    if name in {f"{PREFIX}CONFIG", f"{PREFIX}VERSION"} or _SERVICE_LINK.fullmatch(f"{name}={environ[name]}"):
        return True
    link = _LINK_DETAIL.fullmatch(name)
    return link is not None and bool(re.fullmatch(_LINK_URL, environ.get(f"{link[1]}_PORT", "")))


def _read_variable(name: str, raw: str) -> Tree:
    """Return the tree that one variable stands for; the messages of its ValueErrors are our own."""
    value = unquote(raw)
    path = tuple(name.removeprefix(PREFIX).lower().split("__"))
    depth = 2 if path[0] == "accounts" and len(path) > 1 else 0
    account, rest = path[:depth], path[depth:]
    known = paths_of(AccountKeys if account else FileKeys)
    if name != name.upper():
        raise ValueError("is not a known variable: their names are in upper case")
    section = section_of(known.get(rest))
    if section is not None and section.shorthand is not None and not value.lstrip().startswith("{"):
        return _nest((*path, section.shorthand), value)
    if not rest or rest == ("accounts",) or section is not None:
        return _nest(path, _parse_flow(value, dict, "{key: value}"))
    if rest in known and get_origin(known[rest].annotation) is tuple:
        is_flow = value.lstrip().startswith("[")
        return _nest(path, _parse_flow(value, list, "[a, b]") if is_flow else _split_items(raw))
    if rest in _SECRETS and _REFERENCE.match(value):
        return _nest(path, _parse_flow(value, dict, "{file: PATH}"))
    if rest in known or (rest[:-1] in _SECRETS and rest[-1] in {"env", "file"}):
        return _nest(path, value)
    references = [(*keys, form) for keys in _SECRETS for form in ("env", "file")]
    names = ["__".join(account + keys).upper() for keys in (*known, *references)]
    raise ValueError(f"is not a known variable{suggest(name.removeprefix(PREFIX), names, PREFIX)}")


def _split_items(raw: str) -> list[str]:
    """Return the items between commas; quotes may be around each of them, around all together, or both."""
    text = unquote(raw)
    # `"a","b"` starts and ends with a quote, but not with a pair.
    if raw.strip()[0] in text:
        text = raw
    items = (unquote(item[1]) for item in _ITEM.finditer(text))
    return [item.strip() for item in items if item.strip()]


def _parse_flow(value: str, kind: type[dict[Any, Any] | list[Any]], example: str) -> Any:
    want = f"must be a {'mapping' if kind is dict else 'list'} on one line, such as {example}"
    try:
        tree, duplicates = parse_yaml(value)
    except BadYaml:
        raise ValueError(want) from None
    if duplicates or not isinstance(tree, kind):
        raise ValueError(want)
    return tree


def _nest(path: Keys, value: Any) -> Tree:
    """Return a tree with one value, at `path`."""
    for key in reversed(path):
        value = {key: value}
    tree: Tree = value
    return tree


def _leaves(tree: Tree, path: Keys = ()) -> Iterator[Keys]:
    """Yield the path of every value."""
    for key, value in tree.items():
        if isinstance(value, dict) and value and key not in SECRET_KEYS:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)
