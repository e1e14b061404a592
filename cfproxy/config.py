"""Where settings come from: one YAML file and the environment, read into `Settings`.

Owns: finding and reading the file, merging the environment and the accounts' inheritance, the checks
that involve more than one key, and how a wrong configuration is reported.
Must not know: what a single key means (`settings_types.py`), or who uses it.
Invariants: `load_settings` returns settings that fit together, or raises one `ConfigError` with every
problem; no problem holds a value, and a key that is not known shows only if it looks like a word.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_origin

import platformdirs
import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from cfproxy.errors import ConfigError, Problem
from cfproxy.settings_types import (
    Access,
    Account,
    AccountKeys,
    Context,
    FileKeys,
    Log,
    Model,
    Pacing,
    ProcessKeys,
    Retry,
    Settings,
    TcpAddress,
    Timeouts,
    Tls,
    UnixAddress,
)

__all__ = [
    "Access",
    "Account",
    "Log",
    "Pacing",
    "Retry",
    "Settings",
    "TcpAddress",
    "Timeouts",
    "Tls",
    "UnixAddress",
    "find_config",
    "json_schema",
    "load_settings",
    "render_settings",
    "starter_file",
]

FILE_MAX_BYTES = 262_144
NODES_MAX = 10_000
DEPTH_MAX = 20
PREFIX = "CFPROXY_"
ENVIRONMENT = "environment"

_YAML = "tag:yaml.org,2002:"
_TAGS = frozenset(_YAML + kind for kind in ("str", "null", "merge", "map", "seq"))
_SECRET_KEYS = frozenset({"client_secret", "keys"})
# What a word stands for: defaults of other keys, so whatever is set explicitly wins.
_PRESETS = {
    ("environment", "sandbox"): {
        "upstream": "https://sandbox-gateway.creativeforce.io",
        "authorize_url": "https://sandbox-accounts.creativeforce.io/connect/authorize",
        "token_url": "https://sandbox-accounts.creativeforce.io/connect/token",
        "revocation_url": "https://sandbox-accounts.creativeforce.io/connect/revocation",
    },
    ("grant", "client_credentials"): {"scope": "cfgateway"},
}
_SERVICE_LINK = re.compile(
    r"CFPROXY_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_.+)?)=.*"
    r"|CFPROXY_PORT=(tcp|udp|sctp)://.*"
)
_ACCOUNT_NAME = re.compile(r"(?!(con|prn|aux|nul|com[0-9]|lpt[0-9])$)[a-z0-9][a-z0-9_-]{0,63}")
_SHOWABLE = re.compile(r"[A-Za-z][A-Za-z_-]{0,31}|[0-9]{1,4}")
_WILDCARDS = {"0.0.0.0": ".", "::": ":"}  # noqa: S104 - recognised here, not listened on
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
_EXPOSED = (
    "can be reached from other machines, and whoever reaches this port acts as you; "
    "set access.keys, or access.allow_remote: true if that is meant"
)
_STARTER = """\
# Settings of cfproxy. `cfproxy config check` validates them, `cfproxy config schema` describes every key.

# The app's id, from Creative Force: Studio settings, Integrations, Registered Apps.
client_id: your-client-id

# The app's secret: text, {env: NAME} or {file: PATH}.
client_secret: {env: CF_CLIENT_SECRET}

# The grant that the app is registered with: authorization_code or client_credentials.
grant: authorization_code

# The redirect URI exactly as registered; remove the line with client_credentials.
redirect_uri: https://example.com/callback
"""

Keys = tuple[str, ...]
Tree = dict[str, Any]
M = TypeVar("M", bound=Model)


def find_config(explicit: str | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """Return the file to read: `explicit`, `$CFPROXY_CONFIG`, `config.yaml` in `cwd` or the user's folder.

    Returns None when nothing was asked for and neither place has one.

    Raises:
        ConfigError: a file that was asked for does not exist.
    """
    asked = [(explicit, "-c"), (environ.get("CFPROXY_CONFIG"), "CFPROXY_CONFIG")]
    for name, origin in asked:
        if name:
            if not _exists(cwd / name):
                text = f"does not exist (named by {origin}); `cfproxy config init` writes one"
                raise ConfigError("no such configuration file", (Problem(name, "", text),))
            return cwd / name
    places = (cwd / "config.yaml", platformdirs.user_config_path("cfproxy") / "config.yaml")
    return next((place for place in places if _exists(place)), None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # reading it will tell what is wrong


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Read the file, if any, and the environment, which wins.

    Raises:
        ConfigError: with everything that is wrong.
    """
    ledger = _Ledger(ENVIRONMENT if path is None else str(path))
    low = {} if path is None else _read_file(path, ledger)
    high = _checked(FileKeys, _read_environment(environ, ledger), (), ledger)
    if low is None:
        raise ledger.error()
    context = Context(environ, Path() if path is None else path.parent)
    settings = _build_settings(_merged(low, high), context, ledger)
    if ledger.found:
        raise ledger.error()
    return settings


def render_settings(settings: Settings) -> str:
    """Return the effective configuration as YAML that reads back; secrets are `[redacted]`."""
    accounts = {
        name: account.model_dump(mode="json", by_alias=True, exclude={"name"})
        for name, account in settings.accounts.items()
    }
    tree = accounts.pop("default", {})
    tree |= settings.model_dump(mode="json", by_alias=True, include={"admin", "log"})
    tree |= {"accounts": accounts}
    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10_000)
    return re.sub(r"://[^/\s@]*@", "://[redacted]@", text)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the file."""
    schema: dict[str, Any] = _without_titles(FileKeys.model_json_schema())
    models: list[type[Model]] = [FileKeys, AccountKeys, *_sections(FileKeys)]
    for model in models:
        part = schema["$defs"].get(model.__name__, schema)
        # pydantic shows a default as the program holds it; a reader of the schema wants the file's notation.
        for key, value in model().model_dump(mode="json", by_alias=True).items():
            part["properties"][key]["default"] = value
    schema["properties"]["accounts"]["propertyNames"] = {"pattern": "^[a-z0-9][a-z0-9_-]{0,63}$"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "cfproxy", **schema}


def _without_titles(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_titles(value) for key, value in node.items() if key != "title"}
    return [_without_titles(item) for item in node] if isinstance(node, list) else node


def starter_file() -> str:
    """Return what a new user's file says: the four keys that have no default."""
    return _STARTER


# --- what is wrong ----------------------------------------------------------------------------


@dataclass(slots=True)
class _Ledger:
    """The problems found so far, each at the place where somebody can mend it.

    Args:
        source: the file's name.
        variables: which variable set which key.
    """

    source: str
    variables: dict[Keys, str] = field(default_factory=dict)
    found: dict[Problem, None] = field(default_factory=dict)

    def add(self, path: Keys, text: str) -> None:
        variable = self._variable(path)
        self._put(self.source if variable is None else ENVIRONMENT, variable or _shown(path), text)

    def add_variable(self, name: str, text: str) -> None:
        self._put(ENVIRONMENT, name, text)

    def error(self) -> ConfigError:
        return ConfigError(f"the configuration has problems: {len(self.found)}", tuple(self.found))

    def _put(self, source: str, path: str, text: str) -> None:
        self.found[Problem(source, path, text)] = None

    def _variable(self, path: Keys) -> str | None:
        for length in range(len(path), 0, -1):
            if path[:length] in self.variables:
                return self.variables[path[:length]]
        return next((name for leaf, name in self.variables.items() if leaf[: len(path)] == path), None)


def _shown(path: Keys) -> str:
    """Return the dotted path; a part that may be a misplaced secret is shown as `?`."""
    parts = []
    for index, part in enumerate(path):
        is_name = index == 1 and path[0] == "accounts" and _ACCOUNT_NAME.fullmatch(part)
        in_secret = not part.isdecimal() and _SECRET_KEYS & set(path[:index])
        parts.append(part if is_name or (_SHOWABLE.fullmatch(part) and not in_secret) else "?")
    return ".".join(parts)


def _hint(word: str, known: Iterator[str] | list[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


# --- the file ---------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Reads every plain scalar but null as text: no octal 0123456, no boolean `off`, no dates."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name, read only
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _BadYaml(Exception):
    """The text cannot be read; carries our own words only, PyYAML's quote the text."""


class _Builder:
    """Turns YAML nodes into dicts, lists, texts and None, within bounds."""

    def __init__(self) -> None:
        self.twice: list[tuple[Keys, str]] = []
        self._nodes = 0

    def build(self, node: yaml.Node, path: Keys = ()) -> Any:
        line = node.start_mark.line + 1
        self._nodes += 1
        if self._nodes > NODES_MAX or len(path) > DEPTH_MAX:
            raise _BadYaml(f"line {line}: too many values, levels or aliases")
        if node.tag not in _TAGS:
            raise _BadYaml(f"line {line}: tags (words that begin with !) can't be used")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, str(index))) for index, item in enumerate(node.value)]
        return None if node.tag == f"{_YAML}null" else node.value

    def _mapping(self, node: yaml.MappingNode, path: Keys) -> Tree:
        own: Tree = {}
        merged: Tree = {}
        seen: set[str] = set()
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _TAGS:
                raise _BadYaml(f"line {line}: a key must be plain text")
            key = key_node.value
            if key in seen:
                self.twice.append(((*path, key), f"is given twice (again in line {line})"))
            seen.add(key)
            value = self.build(value_node, (*path, key))
            if key_node.tag == f"{_YAML}merge":
                merged = _merge_key(value, line)
            else:
                own[key] = value
        return merged | own


def _merge_key(value: Any, line: int) -> Tree:
    """Return the pairs that `<<: value` stands for; of several mappings the earlier wins."""
    merged: Tree = {}
    for part in value if isinstance(value, list) else [value]:
        if not isinstance(part, dict):
            raise _BadYaml(f"line {line}: << takes a mapping or a list of mappings")
        merged = part | merged
    return merged


def _read_yaml(text: str) -> tuple[Any, list[tuple[Keys, str]]]:
    """Return the content and the keys that are given twice; raises _BadYaml."""
    builder = _Builder()
    try:
        node = yaml.compose(text, Loader=_Loader)
        return (None if node is None else builder.build(node)), builder.twice
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    except RecursionError:
        raise _BadYaml("too many levels") from None
    except (yaml.YAMLError, ValueError, OverflowError):
        raise _BadYaml("holds a character or an escape that YAML does not have") from None
    raise _BadYaml(
        f"{place}not valid YAML; look at the indentation, the quotes and the space after each colon, "
        "here and in the line before"
    )


def _read_file(path: Path, ledger: _Ledger) -> Tree | None:
    """Return the file's known keys; None when it can't be read at all."""
    try:
        tree, twice = _read_yaml(_read_text(path))
    except _BadYaml as error:
        ledger.add((), str(error))
        return None
    for keys, text in twice:
        ledger.add(keys, text)
    if not isinstance(tree, dict | None):
        ledger.add((), "must consist of lines such as `key: value`, with a space after the colon")
        return None
    return _checked(FileKeys, tree or {}, (), ledger)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a usable path"
        raise _BadYaml(f"can't be read: {reason}") from None
    if len(data) > FILE_MAX_BYTES:
        raise _BadYaml(f"is larger than {FILE_MAX_BYTES // 1024} KiB")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise _BadYaml("begins with a byte-order mark; save it as UTF-8 without BOM")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise _BadYaml("is not UTF-8 text; save it as UTF-8 without BOM") from None


# --- keys -------------------------------------------------------------------------------------


def _keys(model: type[Model]) -> dict[str, FieldInfo]:
    return {str(info.validation_alias or name): info for name, info in model.model_fields.items()}


def _section(info: FieldInfo | None) -> type[Model] | None:
    kind = None if info is None else info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Model) else None


def _sections(model: type[Model]) -> list[type[Model]]:
    return [section for section in map(_section, _keys(model).values()) if section]


def _paths(model: type[Model]) -> dict[Keys, FieldInfo]:
    paths: dict[Keys, FieldInfo] = {}
    for key, info in _keys(model).items():
        paths[(key,)] = info
        section = _section(info)
        paths |= {(key, *below): part for below, part in (_paths(section) if section else {}).items()}
    return paths


def _checked(model: type[Model], tree: Tree, path: Keys, ledger: _Ledger) -> Tree:
    """Return what of `tree` has known keys and mappings where mappings belong; report the rest."""
    known = _keys(model)
    clean: Tree = {}
    for key, value in tree.items():
        section = _section(known.get(key))
        if key not in known:
            _report_unknown(key, known, path, ledger)
        elif key == "accounts":
            clean[key] = _checked_accounts(value, ledger)
        elif section is None or value is None:
            clean[key] = value
        elif isinstance(value, dict):
            clean[key] = _checked(section, value, (*path, key), ledger)
        else:
            ledger.add((*path, key), f"must be a mapping with keys such as {next(iter(_keys(section)))}")
    return clean


def _checked_accounts(value: Any, ledger: _Ledger) -> Tree:
    clean: Tree = {}
    if not isinstance(value, dict | None):
        ledger.add(("accounts",), "must be a mapping of account names to their settings")
        return clean
    for name, account in (value or {}).items():
        here = ("accounts", name)
        if not _ACCOUNT_NAME.fullmatch(name):
            text = "is not an account name: up to 64 of a-z, 0-9, - and _, none of Windows' device names"
            ledger.add(here, text)
        elif isinstance(account, dict | None):
            clean[name] = _checked(AccountKeys, account or {}, here, ledger)
        else:
            ledger.add(here, "must be a mapping with keys such as client_id")
    return clean


def _report_unknown(key: str, known: Mapping[str, FieldInfo], path: Keys, ledger: _Ledger) -> None:
    word, colon, _ = key.partition(":")
    if colon and word in known:
        ledger.add((*path, word), "needs a space after its colon")
    elif len(path) == 2 and path[0] == "accounts" and key in _keys(FileKeys):
        ledger.add((*path, key), "belongs to the top level: it holds for all accounts")
    else:
        here = (*path, key)
        hidden = " (not shown, it may be a secret)" if _shown(here).endswith("?") else ""
        ledger.add(here, f"is not a known key{hidden}{_hint(key.lower(), list(known))}")


# --- the environment --------------------------------------------------------------------------


def _read_environment(environ: Mapping[str, str], ledger: _Ledger) -> Tree:
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
            ledger.add_variable(name, str(error))
            continue
        for leaf in _leaves(addition):
            if leaf in ledger.variables:
                ledger.add_variable(name, f"sets the same as {ledger.variables[leaf]}; keep one of them")
            ledger.variables.setdefault(leaf, name)
        tree = _merged(tree, addition)
    return tree


def _read_variable(name: str, value: str) -> Tree:
    """Return the tree that one variable stands for; raises ValueError with our own words."""
    path = tuple(name.removeprefix(PREFIX).lower().split("__"))
    depth = 2 if path[0] == "accounts" and len(path) > 1 else 0
    owner, rest = path[:depth], path[depth:]
    known = _paths(AccountKeys if owner else FileKeys)
    if name != name.upper():
        raise ValueError("is not a known variable: their names are in capitals")
    if not rest or rest == ("accounts",) or _section(known.get(rest)):
        return _nested(path, _flow(value, dict, "{key: value}"))
    if rest in known and get_origin(known[rest].annotation) is tuple:
        is_flow = value.lstrip().startswith("[")
        parts = [part.strip() for part in value.split(",") if part.strip()]
        return _nested(path, _flow(value, list, "[a, b]") if is_flow else parts)
    if rest in known or (rest[:-1] == ("client_secret",) and rest[-1] in {"env", "file"}):
        return _nested(path, value)
    names = [PREFIX + "__".join(owner + keys).upper() for keys in known]
    raise ValueError(f"is not a known variable{_hint(name, names)}")


def _flow(value: str, kind: type[dict[Any, Any] | list[Any]], example: str) -> Any:
    want = f"must be a {'mapping' if kind is dict else 'list'} in one line, such as {example}"
    try:
        tree, twice = _read_yaml(value)
    except _BadYaml:
        raise ValueError(want) from None
    if twice or not isinstance(tree, kind):
        raise ValueError(want)
    return tree


def _nested(path: Keys, value: Any) -> Tree:
    for key in reversed(path):
        value = {key: value}
    tree: Tree = value
    return tree


def _leaves(tree: Tree, path: Keys = ()) -> Iterator[Keys]:
    for key, value in tree.items():
        if isinstance(value, dict) and value and key not in _SECRET_KEYS:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


def _merged(low: Tree, high: Tree) -> Tree:
    """Return `low` with `high` over it, section by section; a secret's {env} or {file} is one value."""
    out = dict(low)
    for key, value in high.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict) and key not in _SECRET_KEYS
        out[key] = _merged(out[key], value) if both else value
    return out


# --- from keys to settings --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Draft:
    """One account before validation: what it sets itself, and with what it inherits."""

    name: str
    prefix: Keys
    own: Tree
    top: Tree
    broken: set[str] = field(default_factory=set)

    def locate(self, loc: Keys) -> Keys:
        """Return where a key that matters for this account is written."""
        inherited = not _has(self.own, loc) and _has(self.top, loc)
        return loc if inherited else (*self.prefix, *loc)

    def complete(self) -> Tree:
        tree = _without_none(_merged(self.top, self.own))
        preset: Tree = {}
        for (key, word), values in _PRESETS.items():
            if str(tree.get(key)).strip().lower() == word:
                preset |= values
        return {**preset, **tree}


def _has(tree: Any, loc: Keys) -> bool:
    for key in loc:
        if not isinstance(tree, dict):
            return True
        if key not in tree:
            return False
        tree = tree[key]
    return True


def _without_none(tree: Tree) -> Tree:
    """Return `tree` without the keys that null sets back to their defaults."""
    return {
        key: _without_none(value) if isinstance(value, dict) and key not in _SECRET_KEYS else value
        for key, value in tree.items()
        if value is not None
    }


def _build_settings(root: Tree, context: Context, ledger: _Ledger) -> Settings:
    """Return settings in which broken values are replaced by defaults; the ledger tells which."""
    drafts = _drafts(root, ledger)
    _report_missing_ids(drafts, ledger)
    accounts = {}
    for draft in drafts:
        fixed = {"name": draft.name, "client_id": "missing"}
        account, broken = _validated(Account, fixed | draft.complete(), fixed, context, draft.locate, ledger)
        accounts[draft.name] = account
        draft.broken.update(broken)
    keys = _without_none({key: root[key] for key in _keys(ProcessKeys) if key in root})
    process, _ = _validated(ProcessKeys, keys, {}, context, lambda loc: loc, ledger)
    settings = Settings(admin=process.admin, log=process.log, accounts=accounts, source=ledger.source)
    _check_together(settings, {draft.name: draft for draft in drafts}, ledger)
    return settings


def _drafts(root: Tree, ledger: _Ledger) -> list[_Draft]:
    top = {key: value for key, value in root.items() if key in _keys(AccountKeys)}
    named = root.get("accounts", {})
    drafts = [_Draft(name, ("accounts", name), own, top) for name, own in named.items()]
    has_default = top.get("client_id") is not None
    if has_default and "default" in named:
        text = "is taken: the top level, which has a client_id, is the account 'default'"
        ledger.add(("accounts", "default"), text)
        drafts = [draft for draft in drafts if draft.name != "default"]
    if has_default or not drafts:
        drafts.insert(0, _Draft("default", (), top, top))
    return drafts


def _report_missing_ids(drafts: list[_Draft], ledger: _Ledger) -> None:
    missing = [draft for draft in drafts if "client_id" not in draft.complete()]
    for draft in missing:
        draft.broken.add("client_id")
        nobody_has_one = len(missing) == len(drafts)
        ledger.add(("client_id",) if nobody_has_one else (*draft.prefix, "client_id"), _NO_CLIENT_ID)


def _validated(
    model: type[M], tree: Tree, fixed: Tree, context: Context, locate: Callable[[Keys], Keys], ledger: _Ledger
) -> tuple[M, set[str]]:
    """Return the model and the keys whose values were broken and left out; `fixed` is never left out."""
    broken: set[str] = set()
    try:
        return model.model_validate(tree, context=context), broken
    except ValidationError as error:
        for item in error.errors(include_url=False, include_input=False):
            loc = tuple(map(str, item["loc"]))
            broken.add(loc[0])
            ledger.add(locate(loc), _explained(item["type"], item.get("ctx", {})))
    sound = {key: value for key, value in tree.items() if key not in broken}
    return model.model_validate(fixed | sound, context=context), broken


def _explained(kind: str, details: Mapping[str, Any]) -> str:
    if "error" in details:
        return str(details["error"])
    if kind.startswith("int_"):
        return "must be a whole number"
    return _TYPE_TEXTS.get(kind, "is not a value of the right kind").format_map(details)


# --- keys that have to agree ------------------------------------------------------------------


def _check_together(settings: Settings, drafts: Mapping[str, _Draft], ledger: _Ledger) -> None:
    """Report what single values can't show; what rests on a broken value is not reported again."""

    def sound(*keys: str) -> dict[str, Account]:
        accounts = settings.accounts.items()
        return {name: account for name, account in accounts if not drafts[name].broken & set(keys)}

    for name, account in settings.accounts.items():
        for involved, loc, text in _own_conflicts(account):
            if not involved & drafts[name].broken:
                ledger.add(drafts[name].locate(loc), text)
    for name, text in _listen_conflicts(settings.admin, sound("listen")):
        ledger.add((*drafts[name].prefix, "listen"), text)
    for name, text in _pacing_conflicts(sound("pacing", "upstream", "environment")):
        ledger.add((*drafts[name].prefix, "pacing"), text)
    if any(_is_exposed(settings.admin, account.access) for account in sound("access").values()):
        ledger.add(("admin",), _EXPOSED)


def _own_conflicts(account: Account) -> Iterator[tuple[set[str], Keys, str]]:
    """Yield the keys involved, the place and the text."""
    if account.grant == "authorization_code" and account.redirect_uri is None:
        text = "needed for login: the redirect URI as registered with the app (or grant: client_credentials)"
        yield {"client_id", "grant", "redirect_uri"}, ("redirect_uri",), text
    if account.grant == "client_credentials" and account.client_secret is None:
        text = "needed with grant: client_credentials"
        yield {"client_id", "grant", "client_secret"}, ("client_secret",), text
    if account.retry.body_memory_bytes > account.retry.body_max_bytes:
        yield {"retry"}, ("retry",), "body_memory must not be larger than body_max"
    if _is_exposed(account.listen, account.access):
        yield {"listen", "access"}, ("listen",), _EXPOSED


def _is_exposed(address: TcpAddress | UnixAddress | None, access: Access) -> bool:
    open_to_all = not access.keys and not access.allow_remote
    return isinstance(address, TcpAddress) and not address.is_loopback and open_to_all


def _listen_conflicts(admin: TcpAddress | None, accounts: Mapping[str, Account]) -> Iterator[tuple[str, str]]:
    taken: list[tuple[str, TcpAddress | UnixAddress]] = [("admin", admin)] if admin else []
    for name, account in accounts.items():
        owner = next((owner for owner, address in taken if _overlap(address, account.listen)), None)
        if owner:
            text = f"{account.listen} is taken by {owner}; give this account a listen address of its own"
            yield name, text
        taken.append((f"account '{name}'", account.listen))


def _overlap(one: TcpAddress | UnixAddress, other: TcpAddress | UnixAddress) -> bool:
    """Tell whether two listeners would want the same place, wildcards and localhost considered."""
    if not isinstance(one, TcpAddress) or not isinstance(other, TcpAddress):
        return one == other
    if one.port != other.port or one.port == 0:
        return False
    localhost = ("127.0.0.1", "::1")
    return any(
        a == b or _WILDCARDS.get(a, "none") in b or _WILDCARDS.get(b, "none") in a
        for a in (localhost if one.host == "localhost" else (one.host,))
        for b in (localhost if other.host == "localhost" else (other.host,))
    )


def _pacing_conflicts(accounts: Mapping[str, Account]) -> Iterator[tuple[str, str]]:
    first: dict[str, Account] = {}
    for name, account in accounts.items():
        other = first.setdefault(account.upstream_origin, account)
        if other.pacing != account.pacing:
            text = (
                f"must be as in account '{other.name}': the upstream is the same, its limit is per IP address"
            )
            yield name, text
