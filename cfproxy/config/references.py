"""Values that refer to something outside the configuration: secrets, access keys, users, files, the store.

Each type has a parser and a JSON Schema. A relative path starts at the configuration's folder. A file is
read up to a limit. No message contains a secret, a variable's name or a path.
"""

from __future__ import annotations

import functools
import stat
import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from cfproxy.config.redis_url import RedisAddress, is_redis_url, parse_redis_url
from cfproxy.config.types import STRING, parse_text, unquote
from cfproxy.secret import REDACTED, Secret

SECRET_MAX_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class ValidationContext:
    """What references resolve against; passed to pydantic as the validation context.

    Args:
        environ: the variables for `{env: NAME}`.
        folder: the configuration file's folder, for relative paths.
        config_file: the file as it was named on the command line, if it was.
        files: gets each file that is read, with its stamp from before.
    """

    environ: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()
    config_file: str | None = None
    files: dict[Path, Hashable] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A key that gives access to a listener and to `account`; None stands for the listener's own account."""

    secret: Secret
    account: str | None = None


@dataclass(frozen=True, slots=True)
class LocalUser:
    """A user of this machine: the name or number as it was written, and the number."""

    name: str
    uid: int


def _context(info: ValidationInfo) -> ValidationContext:
    return info.context if isinstance(info.context, ValidationContext) else ValidationContext()


# --- files and the store ----------------------------------------------------------------------


def _parse_path(text: str, info: ValidationInfo) -> Path:
    if not text or not text.isprintable():
        raise ValueError("must name a path")
    try:
        return (_context(info).folder / Path(text).expanduser()).absolute()
    except RuntimeError:
        raise ValueError("starts with ~, but that user's home folder is unknown") from None
    except OSError:
        raise ValueError(
            "is relative, but the working folder no longer exists; change to another one"
        ) from None


def user_folder(locate: Callable[[str], Path]) -> Path | None:
    """Return cfproxy's folder of a kind; None for a user without a home folder, as in some containers.

    `locate` is a function of platformdirs. It raises RuntimeError, or leaves the `~`, if HOME is unset and
    the user is not in the system's list.
    """
    try:
        folder = locate("cfproxy")
    except RuntimeError:
        return None
    return folder if folder.is_absolute() else None


def stamp_of(path: Path) -> Hashable:
    """Return a value that differs after the file, or the target of its link, has changed; one stat.

    Without the inode's number, which some network file systems make up anew each time. None for what can't
    be looked at, and for a pipe: it can be read only once, and reading it changes its times.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _read_start(path: Path, size_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size_bytes)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a usable path"
        raise ValueError(f"names a file that can't be read: {reason}") from None


def parse_ca_file(value: object, info: ValidationInfo) -> Path:
    """Return the absolute path of a readable file."""
    path = _parse_path(parse_text(value, "must be the path of a PEM file"), info)
    _context(info).files[path] = stamp_of(path)
    _read_start(path, 1)
    return path


def parse_store(value: object, info: ValidationInfo) -> str | RedisAddress:
    """Return `file`, `memory`, `file:` and an absolute folder, or a Redis address."""
    want = "must be file, file:DIR, memory or redis://host:port/0"
    if isinstance(value, RedisAddress):
        return value
    text = parse_text(value, want)
    if text.lower() in {"file", "memory"}:
        return text.lower()
    if is_redis_url(text):
        return parse_redis_url(text)
    if not text.startswith("file:"):
        raise ValueError(want)
    return f"file:{_parse_path(text.removeprefix('file:'), info)}"


CaFile = Annotated[Path, PlainValidator(parse_ca_file), PlainSerializer(str), WithJsonSchema(STRING)]
StoreUrl = Annotated[
    str | RedisAddress,
    PlainValidator(parse_store),
    PlainSerializer(str),
    WithJsonSchema({**STRING, "pattern": "^(file|file:.+|memory|rediss?(\\+sentinel)?://.+)$"}),
]


# --- secrets and access keys ------------------------------------------------------------------


def parse_secret(value: object, info: ValidationInfo) -> Secret:
    """Return the secret that a literal, `{env: NAME}` or `{file: PATH}` stands for."""
    want = "must be text, {env: NAME} or {file: PATH}"
    if isinstance(value, Secret):
        return value
    if isinstance(value, Mapping):
        if len(value) != 1 or not all(isinstance(part, str) for part in value.values()):
            raise ValueError(want)
        ((kind, name),) = value.items()
        if kind == "file":
            path = _parse_path(name, info)
            stamp = _context(info).files[path] = stamp_of(path)
            again = functools.partial(_read_secret, path) if stamp is not None else None
            return Secret(_read_secret(path), again)
        value = _read_variable(name, info) if kind == "env" else None
    if not isinstance(value, str):
        raise ValueError(want)  # noqa: TRY004 - pydantic collects ValueErrors only
    return Secret(_check_secret(value))


def _read_variable(name: str, info: ValidationInfo) -> str:
    if name not in _context(info).environ:
        raise ValueError("the variable that {env: …} names is not set")
    return unquote(_context(info).environ[name])


def _read_secret(path: Path) -> str:
    data = _read_start(path, SECRET_MAX_BYTES + 1)
    if len(data) > SECRET_MAX_BYTES:
        raise ValueError(f"names a file of more than {SECRET_MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")  # Windows editors put a byte-order mark first
    except UnicodeDecodeError:
        raise ValueError("names a file that is not UTF-8 text") from None
    return _check_secret(text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text)


def _check_secret(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    if not text.isprintable():
        raise ValueError("must not contain line breaks or other control characters")
    return text


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


def _render_access_key(key: AccessKey) -> str | dict[str, str]:
    return REDACTED if key.account is None else {"key": REDACTED, "account": key.account}


def _object_schema(properties: dict[str, Any], required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [required],
        "additionalProperties": False,
    }


_NAME = {**STRING, "minLength": 1}
_SECRET_FORMS: list[dict[str, Any]] = [
    _NAME,
    _object_schema({"env": {**_NAME, "description": "the environment variable that contains it"}}, "env"),
    _object_schema(
        {"file": {**_NAME, "description": "the file that contains it; one trailing newline is removed"}},
        "file",
    ),
]
_KEY_PROPERTIES = {
    "key": {"anyOf": _SECRET_FORMS, "description": "the key itself"},
    "account": {**STRING, "description": "the account that its caller uses"},
}

SecretText = Annotated[
    Secret,
    PlainValidator(parse_secret),
    PlainSerializer(lambda _: REDACTED),
    WithJsonSchema({"anyOf": _SECRET_FORMS}),
]
Key = Annotated[
    AccessKey,
    PlainValidator(parse_access_key),
    PlainSerializer(_render_access_key),
    WithJsonSchema({"anyOf": [*_SECRET_FORMS, _object_schema(_KEY_PROPERTIES, "key")]}),
]


# --- users ------------------------------------------------------------------------------------


def parse_user(value: object) -> LocalUser:
    """Return the user of this machine with this name or number."""
    if isinstance(value, LocalUser):
        return value
    if sys.platform != "linux":
        raise ValueError(
            "works on Linux only: elsewhere a socket does not identify the caller; use access.keys"
        )
    import pwd  # noqa: PLC0415 - not on Windows

    name = parse_text(value, "must be a user's name or number")
    if name.isascii() and name.isdigit() and len(name) <= 10:
        return LocalUser(name, int(name))
    try:
        return LocalUser(name, pwd.getpwnam(name).pw_uid)
    except (KeyError, ValueError):
        raise ValueError("is not a user of this machine") from None


User = Annotated[
    LocalUser,
    PlainValidator(parse_user),
    PlainSerializer(lambda user: user.name),
    WithJsonSchema({"anyOf": [_NAME, {"type": "integer", "minimum": 0}]}),
]
