"""The file that a new user starts from.

Owns: its text, with placeholders or with the values that only the user knows.
Must not know: who was asked for them, and how.
"""

from __future__ import annotations

import json

from cfproxy.config.conflicts import CLIENT_ID_PLACEHOLDER, REDIRECT_URI_PLACEHOLDER

SECRET_VARIABLE = "CF_CLIENT_SECRET"  # noqa: S105 - the name of the variable
_BLANK = f"""\
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
    """Return what a new user's file says: the four keys that have no default."""
    return _BLANK


def filled_file(client_id: str, redirect_uri: str | None, secret: str | None) -> str:
    """Return the starter file with the user's values.

    Args:
        client_id: of the app.
        redirect_uri: as registered; None means that the grant is client credentials.
        secret: the app's; None refers to the variable instead.
    """
    values = {
        "client_id": json.dumps(client_id),
        "client_secret": f"{{env: {SECRET_VARIABLE}}}" if secret is None else json.dumps(secret),
        "grant": "client_credentials" if redirect_uri is None else "authorization_code",
        "redirect_uri": None if redirect_uri is None else json.dumps(redirect_uri),
    }
    paragraphs = []
    for paragraph in _BLANK.strip().split("\n\n"):
        *comments, setting = paragraph.splitlines()
        key, separator, _ = setting.partition(": ")
        if not separator or key not in values:
            paragraphs.append(paragraph)
        elif values[key] is not None:
            paragraphs.append("\n".join([*comments, f"{key}: {values[key]}"]))
    return "\n\n".join(paragraphs) + "\n"
