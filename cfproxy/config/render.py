"""What cfproxy writes about its settings: the starter file, the effective settings, the JSON Schema.

Secrets are always written as `[redacted]`.
"""

from __future__ import annotations

import json
import re
from typing import Any

from cfproxy.config.conflicts import CLIENT_ID_PLACEHOLDER, REDIRECT_URI_PLACEHOLDER
from cfproxy.config.keys import keys_of, section_of
from cfproxy.config.settings import AccountKeys, FileKeys, Model, Settings

SECRET_VARIABLE = "CF_CLIENT_SECRET"  # noqa: S105 - the name of the variable
_STARTER = f"""\
# Settings of cfproxy. `cfproxy config check` validates them, `cfproxy config schema` describes every key.

# The app's id, from Creative Force: Studio settings, Integrations, Registered Apps.
client_id: {CLIENT_ID_PLACEHOLDER}

# The app's secret: text, {{env: NAME}} or {{file: PATH}}.
client_secret: {{env: {SECRET_VARIABLE}}}

# The grant that the app is registered with: authorization_code or client_credentials.
grant: authorization_code

# The redirect URI exactly as registered; remove the line with client_credentials.
redirect_uri: {REDIRECT_URI_PLACEHOLDER}
"""


def starter_file() -> str:
    """Return a configuration with the four keys that have no default, as placeholders."""
    return _STARTER


def filled_file(client_id: str, redirect_uri: str | None, secret: str | None) -> str:
    """Return the starter file with the user's values.

    Args:
        client_id: the app's client id.
        redirect_uri: as registered; None selects the client credentials grant.
        secret: the app's secret; None refers to the environment variable instead.
    """
    values = {
        "client_id": json.dumps(client_id),
        "client_secret": f"{{env: {SECRET_VARIABLE}}}" if secret is None else json.dumps(secret),
        "grant": "client_credentials" if redirect_uri is None else "authorization_code",
        "redirect_uri": None if redirect_uri is None else json.dumps(redirect_uri),
    }
    paragraphs = []
    for paragraph in _STARTER.strip().split("\n\n"):
        *comments, setting = paragraph.splitlines()
        key, separator, _ = setting.partition(": ")
        if not separator or key not in values:
            paragraphs.append(paragraph)
        elif values[key] is not None:
            paragraphs.append("\n".join([*comments, f"{key}: {values[key]}"]))
    return "\n\n".join(paragraphs) + "\n"


def render_settings(settings: Settings) -> str:
    """Return the effective configuration as YAML that can be read back."""
    import yaml  # noqa: PLC0415 - only a configuration file needs PyYAML

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
    """Return the JSON Schema (2020-12) of the configuration file."""
    schema: dict[str, Any] = _without_titles(FileKeys.model_json_schema())
    sections = [section for section in map(section_of, keys_of(FileKeys).values()) if section]
    models: list[type[Model]] = [FileKeys, AccountKeys, *sections]
    for model in models:
        part = schema["$defs"].get(model.__name__, schema)
        # pydantic shows a default as the program holds it; the schema's reader needs the file's notation.
        for key, value in model().model_dump(mode="json", by_alias=True).items():
            part["properties"][key]["default"] = value
    for holder in (schema, schema["$defs"]["AccountKeys"]):
        _allow_shorthands(FileKeys, holder["properties"], schema)
    schema["properties"]["accounts"]["propertyNames"] = {"pattern": "^[a-z0-9][a-z0-9_-]{0,63}$"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "cfproxy", **schema}


def _allow_shorthands(model: type[Model], properties: dict[str, Any], schema: dict[str, Any]) -> None:
    """Allow the value of a section's shorthand key in place of the section."""
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
