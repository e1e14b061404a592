"""The configuration as the rest of the program sees it.

Owns: finding the file, loading it with the environment, and what is printed about settings: the effective
ones, their JSON Schema.
Must not know: who uses it.
Invariant: `load_settings` returns settings that fit together, or raises one `ConfigError` with every
problem (`findings.py`).
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from cfproxy.config.access import AccessKey, LocalUser
from cfproxy.config.addresses import TcpAddress, UnixAddress
from cfproxy.config.keys import keys_of, merge, section_of, sections_of
from cfproxy.config.problems import ENVIRONMENT, Problems
from cfproxy.config.redis_url import RedisAddress
from cfproxy.config.references import Context
from cfproxy.config.resolve import build_settings, names_of
from cfproxy.config.settings import (
    Access,
    Account,
    AccountKeys,
    FileKeys,
    Limits,
    Log,
    Model,
    Pacing,
    Retry,
    Settings,
    Store,
    Timeouts,
    Tls,
)
from cfproxy.config.sources import read_environment, read_file
from cfproxy.config.template import filled_file, starter_file
from cfproxy.errors import ConfigError, Problem

__all__ = [
    "Access",
    "AccessKey",
    "Account",
    "Limits",
    "LocalUser",
    "Log",
    "Pacing",
    "RedisAddress",
    "Retry",
    "Settings",
    "Store",
    "TcpAddress",
    "Timeouts",
    "Tls",
    "UnixAddress",
    "account_names",
    "filled_file",
    "find_config",
    "json_schema",
    "load_settings",
    "problem_with",
    "render_settings",
    "starter_file",
]


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
                if (cwd / name).is_symlink():
                    text = f"is a link to something that does not exist (named by {origin}); mend the link"
                    raise ConfigError("no such configuration file", (Problem(name, "", text),))
                text = f"does not exist (named by {origin}); run: cfproxy config init -c {shlex.quote(name)}"
                raise ConfigError("no such configuration file", (Problem(name, "", text),))
            return cwd / name
    places = (cwd / "config.yaml", platformdirs.user_config_path("cfproxy") / "config.yaml")
    found = next((place for place in places if _exists(place)), None)
    if found is not None and not _is_trusted(found):
        text = "belongs to another user, or others may write it; to use it all the same name it: -c FILE"
        raise ConfigError("a configuration file of somebody else", (Problem(str(found), "", text),))
    return found


def _is_trusted(path: Path) -> bool:
    """Whether a file that nobody named was put there by this user or the system.

    It decides where tokens and secrets go, and the current folder may be one that others write to.
    """
    if os.name != "posix":
        return True
    try:
        status = path.stat()
    except OSError:
        return True  # reading it will tell what is wrong
    return status.st_uid in {0, os.geteuid()} and not status.st_mode & stat.S_IWOTH


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # reading it will tell what is wrong


def load_settings(path: Path | None, environ: Mapping[str, str], named: str | None = None) -> Settings:
    """Read the file, if any, and the environment, which wins; `named` is what `-c` called the file.

    Raises:
        ConfigError: with everything that is wrong.
    """
    findings = Problems(ENVIRONMENT if path is None else str(path))
    low = {} if path is None else read_file(path, findings)
    high = read_environment(environ, findings)
    if low is None:
        raise findings.error()
    context = Context(environ, Path() if path is None else path.parent, named)
    settings = build_settings(merge(low, high), context, findings)
    if findings.found:
        raise findings.error()
    return settings


def account_names(path: Path | None, environ: Mapping[str, str]) -> list[str]:
    """Return the accounts that the file and the environment name, whatever else may be wrong with them.

    No secret is looked up, so that it works where only the service has them.
    """
    findings = Problems("")
    low = {} if path is None else read_file(path, findings) or {}
    return names_of(merge(low, read_environment(environ, findings)))


def problem_with(key: str, value: str) -> str | None:
    """Return what is wrong with the value of a key of the top level, by itself; None when nothing is."""
    findings = Problems("")
    build_settings({"client_id": "any", key: value}, Context({}, Path(), None), findings)
    return next((problem.text for problem in findings.found if problem.path == key), None)


def render_settings(settings: Settings) -> str:
    """Return the effective configuration as YAML that reads back; secrets are `[redacted]`."""
    import yaml  # noqa: PLC0415 - see `trees.py`

    accounts = {
        name: account.model_dump(mode="json", by_alias=True, exclude={"name", "config_file"})
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
    models: list[type[Model]] = [FileKeys, AccountKeys, *sections_of(FileKeys)]
    for model in models:
        part = schema["$defs"].get(model.__name__, schema)
        # pydantic shows a default as the program holds it; a reader of the schema wants the file's notation.
        for key, value in model().model_dump(mode="json", by_alias=True).items():
            part["properties"][key]["default"] = value
    for holder in (schema, schema["$defs"]["AccountKeys"]):
        _allow_shorthands(FileKeys, holder["properties"], schema)
    schema["properties"]["accounts"]["propertyNames"] = {"pattern": "^[a-z0-9][a-z0-9_-]{0,63}$"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "cfproxy", **schema}


def _allow_shorthands(model: type[Model], properties: dict[str, Any], schema: dict[str, Any]) -> None:
    """Let the value of one key stand for a section that has such a key."""
    for key, info in keys_of(model).items():
        section = section_of(info)
        if section is not None and section.shorthand is not None and key in properties:
            value = dict(schema["$defs"][section.__name__]["properties"][section.shorthand])
            del value["description"]
            properties[key]["anyOf"] = [value, {"$ref": properties[key].pop("$ref")}]


def _without_titles(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_titles(value) for key, value in node.items() if key != "title"}
    return [_without_titles(item) for item in node] if isinstance(node, list) else node
