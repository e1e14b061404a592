"""What cfproxy writes about its settings: the starter file, the effective settings, the JSON Schema."""

from __future__ import annotations

import json
import re
from typing import Any

from cfproxy.config.conflicts import CLIENT_ID_PLACEHOLDER, REDIRECT_URI_PLACEHOLDER
from cfproxy.config.keys import keys_of, section_of
from cfproxy.config.settings import AccountKeys, FileKeys, Model, ProcessKeys, Settings

SECRET_VARIABLE = "CF_CLIENT_SECRET"  # noqa: S105 - the name of the variable
_STARTER = """\
# Settings of cfproxy. `cfproxy config check` validates them, `cfproxy config schema` describes every key.

# The app's id, from Creative Force: Studio settings, Integrations, Registered Apps.
client_id: {client_id}

# The app's secret: text, {{env: NAME}} or {{file: PATH}}.
client_secret: {secret}

# The grant that the app is registered with: authorization_code or client_credentials.
grant: {grant}
"""
_REDIRECT_URI = """
# The redirect URI exactly as registered; remove the line with client_credentials.
redirect_uri: {redirect_uri}
"""


def starter_file() -> str:
    """Return a configuration with the four keys that have no default, as placeholders."""
    return _fill(CLIENT_ID_PLACEHOLDER, REDIRECT_URI_PLACEHOLDER, None)


def filled_file(client_id: str, redirect_uri: str | None, secret: str | None) -> str:
    """Return the starter file with the user's values.

    Args:
        client_id: the app's client id.
        redirect_uri: as registered; None selects the client credentials grant.
        secret: the app's secret; None refers to the environment variable instead.
    """
    quoted = None if redirect_uri is None else json.dumps(redirect_uri)
    return _fill(json.dumps(client_id), quoted, None if secret is None else json.dumps(secret))


def _fill(client_id: str, redirect_uri: str | None, secret: str | None) -> str:
    grant = "client_credentials" if redirect_uri is None else "authorization_code"
    secret = secret or f"{{env: {SECRET_VARIABLE}}}"
    text = _STARTER.format(client_id=client_id, secret=secret, grant=grant)
    return text if redirect_uri is None else text + _REDIRECT_URI.format(redirect_uri=redirect_uri)


def render_settings(settings: Settings, encoding: str = "utf-8") -> str:
    """Return the effective configuration as YAML that can be read back, with secrets as `[redacted]`.

    Args:
        settings: the configuration.
        encoding: of the output; what it lacks is escaped as in YAML.
    """
    import yaml  # noqa: PLC0415 - only a configuration file needs PyYAML

    accounts = {
        name: account.model_dump(mode="json", by_alias=True, exclude={"name", "config_file"})
        for name, account in settings.accounts.items()
    }
    tree = accounts.pop("default", {})
    tree |= settings.model_dump(mode="json", by_alias=True, include=set(ProcessKeys.model_fields))
    tree |= {"accounts": accounts}
    text: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10_000)
    if text.encode(encoding, "ignore").decode(encoding) != text:
        text = yaml.safe_dump(tree, sort_keys=False, width=10_000)
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
    url = {
        key: value
        for key, value in schema["$defs"]["Store"]["properties"]["url"].items()
        if key != "description"
    }
    for holder in (schema, schema["$defs"]["AccountKeys"]):  # the store's URL may stand for its section
        store = holder["properties"]["store"]
        store["anyOf"] = [url, {"$ref": store.pop("$ref")}]
    schema["properties"]["accounts"]["propertyNames"] = {"pattern": "^[a-z0-9][a-z0-9_-]{0,63}$"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "cfproxy", **schema}


def _without_titles(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_titles(value) for key, value in node.items() if key != "title"}
    return [_without_titles(item) for item in node] if isinstance(node, list) else node
