"""Who calls, as the settings name them: access keys, and users of this machine.

Owns: parser, form and JSON Schema of each.
Must not know: how a caller proves to be one of them.
Invariant: no message and no form holds a key.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from cfproxy.config.references import SECRET_SCHEMA, parse_secret
from cfproxy.config.types import STRING, text_of
from cfproxy.secret import REDACTED, Secret


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A key that opens a listener; `account` is the one that it leads to, None for the listener's own."""

    secret: Secret
    account: str | None = None


@dataclass(frozen=True, slots=True)
class LocalUser:
    """A user of this machine: as it was written, and the number."""

    name: str
    uid: int


def parse_access_key(value: object, info: ValidationInfo) -> AccessKey:
    """Return the key of a secret, or of `{key: SECRET, account: NAME}`."""
    if isinstance(value, AccessKey):
        return value
    if not isinstance(value, Mapping) or "key" not in value:
        try:
            return AccessKey(parse_secret(value, info))
        except ValueError as error:
            more = ", or {key: one of these, account: NAME}" if "{file: PATH}" in str(error) else ""
            raise ValueError(f"{error}{more}") from None
    account = value.get("account")
    if set(value) - {"key", "account"} or not isinstance(account, str | None):
        raise ValueError("must have no other keys than key and account, which is a name")
    return AccessKey(parse_secret(value["key"], info), account)


def _shown_key(key: AccessKey) -> str | dict[str, str]:
    return REDACTED if key.account is None else {"key": REDACTED, "account": key.account}


def parse_user(value: object) -> LocalUser:
    """Return the user that a name or a number means on this machine."""
    if isinstance(value, LocalUser):
        return value
    if sys.platform != "linux":
        raise ValueError("works on Linux only: elsewhere a socket does not tell who calls; use access.keys")
    import pwd  # noqa: PLC0415 - not on Windows

    name = text_of(value, "must be a user's name or number")
    if name.isascii() and name.isdigit() and len(name) <= 10:
        return LocalUser(name, int(name))
    try:
        return LocalUser(name, pwd.getpwnam(name).pw_uid)
    except (KeyError, ValueError):
        raise ValueError("names no user of this machine") from None


_KEY_SCHEMA: dict[str, Any] = {
    "anyOf": [
        *SECRET_SCHEMA["anyOf"],
        {
            "type": "object",
            "properties": {
                "key": {**SECRET_SCHEMA, "description": "the key itself"},
                "account": {**STRING, "description": "the account that its caller uses"},
            },
            "required": ["key"],
            "additionalProperties": False,
        },
    ]
}

Key = Annotated[
    AccessKey,
    PlainValidator(parse_access_key),
    PlainSerializer(_shown_key),
    WithJsonSchema(_KEY_SCHEMA),
]
User = Annotated[
    LocalUser,
    PlainValidator(parse_user),
    PlainSerializer(lambda user: user.name),
    WithJsonSchema({"anyOf": [{**STRING, "minLength": 1}, {"type": "integer", "minimum": 0}]}),
]
