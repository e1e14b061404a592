"""The example file, the JSON Schema and the reference describe the same settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cfproxy.config import json_schema, load_settings, starter_file
from cfproxy.errors import ConfigError
from tests.support.paths import ROOT

SECRETS = {"CF_CLIENT_SECRET": "s", "ACME_CLIENT_SECRET": "t"}
# Values for the placeholders, as a user would set them.
ENVIRON = SECRETS | {"CFPROXY_CLIENT_ID": "app", "CFPROXY_REDIRECT_URI": "https://example.com/cb"}
EXAMPLE = ROOT / "config.example.yaml"


def _leaf_keys(node: dict[str, Any], schema: dict[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Map each dotted key to its part of the schema; `accounts` is one key."""
    leaves: dict[str, dict[str, Any]] = {}
    for key, part in node["properties"].items():
        forms = [part, *part.get("anyOf", [])]  # a section, or the one value that stands for it
        reference = next((form["$ref"].rpartition("/")[2] for form in forms if "$ref" in form), "")
        if reference:
            leaves |= _leaf_keys(schema["$defs"][reference], schema, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = part
    return leaves


def _schema_keys() -> dict[str, dict[str, Any]]:
    schema = json_schema()
    return _leaf_keys(schema, schema)


def _keys_in(tree: dict[str, Any], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for key, value in tree.items():
        is_section = isinstance(value, dict) and key not in {"client_secret", "accounts"}
        keys |= _keys_in(value, f"{prefix}{key}.") if is_section else {prefix + key}
    return keys


def _with_defaults_shown() -> str:
    return re.sub(r"(?m)^#(?=[a-z]|  )", "", EXAMPLE.read_text("utf-8"))


def _refuses_placeholders(path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, SECRETS)
    told = [(problem.path, "placeholder" in problem.text) for problem in caught.value.problems]
    assert told == [("client_id", True), ("redirect_uri", True)]
    with pytest.raises(ConfigError) as caught:
        load_settings(path, SECRETS | {"CFPROXY_GRANT": "client_credentials"})
    assert [problem.path for problem in caught.value.problems] == ["client_id"]


def test_the_example_is_a_valid_configuration() -> None:
    """config.example.yaml works once its placeholders and its secret are given, and not before."""
    assert load_settings(EXAMPLE, ENVIRON).accounts["default"].client_id == "app"
    _refuses_placeholders(EXAMPLE)


def test_the_example_shows_every_key_and_no_other() -> None:
    """Every setting is in config.example.yaml."""
    assert _keys_in(yaml.safe_load(_with_defaults_shown())) == set(_schema_keys())


def test_the_example_shows_the_real_defaults(tmp_path: Path) -> None:
    """Removing the # from every line of the example changes nothing but the accounts."""
    shown = tmp_path / "shown.yaml"
    shown.write_text(_with_defaults_shown(), "utf-8")
    explicit, implicit = load_settings(shown, ENVIRON), load_settings(EXAMPLE, ENVIRON)
    assert list(explicit.accounts) == ["default", "acme"]
    assert explicit.accounts["default"] == implicit.accounts["default"]
    assert (explicit.admin, explicit.log) == (implicit.admin, implicit.log)


def test_the_schema_describes_every_key_and_shows_its_default() -> None:
    """An editor that reads the JSON Schema can explain each key."""
    for key, part in _schema_keys().items():
        assert part["description"], key
        assert "default" in part, key


def test_the_schema_shows_defaults_in_the_notation_of_the_file() -> None:
    """A default in the JSON Schema can be copied into the file."""
    defaults = {key: part["default"] for key, part in _schema_keys().items()}
    assert defaults["refresh_token_lifetime"] == "30d"
    assert defaults["listen"] == "localhost:8080"
    assert defaults["retry.body_max"] == "64MiB"
    tree: dict[str, Any] = {}
    for key, value in defaults.items():
        *sections, last = key.split(".")
        target = tree
        for section in sections:
            target = target.setdefault(section, {})
        target[last] = value
    jsonschema.Draft202012Validator(json_schema()).validate(tree)


def test_the_schema_accepts_what_the_program_accepts() -> None:
    """The example, with and without its defaults shown, and the starter file satisfy the JSON Schema."""
    jsonschema.Draft202012Validator.check_schema(json_schema())
    validator = jsonschema.Draft202012Validator(json_schema())
    for text in (EXAMPLE.read_text("utf-8"), _with_defaults_shown(), starter_file()):
        validator.validate(yaml.safe_load(text))


def test_the_schema_refuses_unknown_keys_and_bad_values() -> None:
    """An editor can mark a misspelt key, a wrong unit and a malformed secret."""
    validator = jsonschema.Draft202012Validator(json_schema())
    wrongs: list[dict[str, Any]] = [
        {"client": "x"},
        {"pacing": {"per": "1 week"}},
        {"client_secret": {"vault": "x"}},
        {"accounts": {"acme": {"log": {}}}},
        {"accounts": {"Acme": {}}},
    ]
    for wrong in wrongs:
        assert not validator.is_valid(wrong), wrong


def test_the_starter_file_is_valid(tmp_path: Path) -> None:
    """What `config init` writes passes `config check` once its placeholders and its secret are given."""
    path = tmp_path / "config.yaml"
    path.write_text(starter_file(), "utf-8")
    _refuses_placeholders(path)
    assert list(load_settings(path, ENVIRON).accounts) == ["default"]


def test_the_reference_lists_every_key_and_no_other() -> None:
    """The table under "Keys" in docs/configuration.md lists each key (`pacing.rate`) exactly once."""
    reference = ROOT / "docs" / "configuration.md"
    match = re.search(r"(?ms)^## Keys$(.*?)(?=^## |\Z)", reference.read_text("utf-8"))
    assert match, "docs/configuration.md has no section '## Keys'"
    first_cells = re.findall(r"(?m)^\|([^|]*)\|", match[1])
    named = [name for cell in first_cells for name in re.findall(r"`([a-z_.]+)`", cell)]
    assert sorted(named) == sorted(_schema_keys())
