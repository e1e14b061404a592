"""The two places that settings come from: a YAML file and the environment.

Owns: reading each of them into a tree of known keys.
Must not know: what a value means, which source wins.
Invariant: whatever a source holds, it gives a tree or findings, never an exception.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

from cfproxy.config.keys import check_keys, leaves_of, merge, nest, paths_of, section_of
from cfproxy.config.problems import Problems, hint
from cfproxy.config.settings import AccountKeys, FileKeys
from cfproxy.config.tree import BadYaml, Keys, Tree

FILE_MAX_BYTES = 262_144
PREFIX = "CFPROXY_"

# Where a file would say a secret by reference, so may a variable: a literal does not begin like that.
_REFERENCE = re.compile(r"\s*\{\s*(?:file|env)\s*:")
_SECRETS = frozenset({("client_secret",), ("store", "key"), ("store", "password")})
_SERVICE_LINK = re.compile(
    r"CFPROXY_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_.+)?)=.*"
    r"|CFPROXY_PORT=(tcp|udp|sctp)://.*"
)


def read_file(path: Path, findings: Problems) -> Tree | None:
    """Return the file's known keys; None when it can't be read at all."""
    try:
        tree, twice = _read_yaml(_read_text(path))
    except BadYaml as error:
        findings.add((), str(error))
        return None
    for keys, text in twice:
        findings.add(keys, text)
    if not isinstance(tree, dict | None):
        findings.add((), "must consist of lines such as `key: value`, with a space after the colon")
        return None
    return check_keys(FileKeys, tree or {}, (), findings)


def _read_yaml(text: str) -> tuple[Any, list[tuple[Keys, str]]]:
    from cfproxy.config.yaml import read_yaml  # noqa: PLC0415 - a start without a file needs no PyYAML

    return read_yaml(text)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a usable path"
        raise BadYaml(f"can't be read: {reason}") from None
    if len(data) > FILE_MAX_BYTES:
        raise BadYaml(f"is larger than {FILE_MAX_BYTES // 1024} KiB")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadYaml("is UTF-16 text; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")  # Windows editors put a byte-order mark first
    except UnicodeDecodeError:
        raise BadYaml("is not UTF-8 text; save it as UTF-8") from None


def read_environment(environ: Mapping[str, str], findings: Problems) -> Tree:
    """Return the known keys that variables set; an empty variable sets nothing."""
    tree: Tree = {}
    for name, value in sorted(environ.items()):
        if not name.startswith(PREFIX) or name == f"{PREFIX}CONFIG" or not value:
            continue
        # Kubernetes and Docker describe a service that is called "cfproxy" with such variables.
        if _SERVICE_LINK.fullmatch(f"{name}={value}"):
            continue
        try:
            addition = _read_variable(name, value)
        except ValueError as error:
            findings.add_variable(name, str(error))
            continue
        for leaf in leaves_of(addition):
            if leaf in findings.variables:
                findings.add_variable(name, f"sets the same as {findings.variables[leaf]}; keep one of them")
            findings.variables.setdefault(leaf, name)
        tree = merge(tree, addition)
    return check_keys(FileKeys, tree, (), findings)


def _read_variable(name: str, value: str) -> Tree:
    """Return the tree that one variable stands for; raises ValueError with our own words."""
    path = tuple(name.removeprefix(PREFIX).lower().split("__"))
    depth = 2 if path[0] == "accounts" and len(path) > 1 else 0
    owner, rest = path[:depth], path[depth:]
    known = paths_of(AccountKeys if owner else FileKeys)
    if name != name.upper():
        raise ValueError("is not a known variable: their names are in capitals")
    section = section_of(known.get(rest))
    if section is not None and section.shorthand is not None and not value.lstrip().startswith("{"):
        return nest((*path, section.shorthand), value)
    if not rest or rest == ("accounts",) or section is not None:
        return nest(path, _flow(value, dict, "{key: value}"))
    if rest in known and get_origin(known[rest].annotation) is tuple:
        is_flow = value.lstrip().startswith("[")
        parts = [part.strip() for part in value.split(",") if part.strip()]
        return nest(path, _flow(value, list, "[a, b]") if is_flow else parts)
    if rest in _SECRETS and _REFERENCE.match(value):
        return nest(path, _flow(value, dict, "{file: PATH}"))
    if rest in known or (rest[:-1] in _SECRETS and rest[-1] in {"env", "file"}):
        return nest(path, value)
    names = [PREFIX + "__".join(owner + keys).upper() for keys in known]
    raise ValueError(f"is not a known variable{hint(name, names)}")


def _flow(value: str, kind: type[dict[Any, Any] | list[Any]], example: str) -> Any:
    want = f"must be a {'mapping' if kind is dict else 'list'} in one line, such as {example}"
    try:
        tree, twice = _read_yaml(value)
    except BadYaml:
        raise ValueError(want) from None
    if twice or not isinstance(tree, kind):
        raise ValueError(want)
    return tree
