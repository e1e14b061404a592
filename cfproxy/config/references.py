"""Values that refer to something outside: secrets in variables and files, certificates, the store.

Owns: how such a reference is written and resolved: parser and JSON Schema of each.
Must not know: which setting uses it; how a store works.
Invariants: a relative path starts at the configuration's folder; a file is read up to a bound; no message
holds a secret, a variable's name or a path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from cfproxy.config.redis_url import RedisAddress, is_redis_url, parse_redis_url
from cfproxy.config.types import STRING, text_of
from cfproxy.secret import REDACTED, Secret

SECRET_MAX_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Context:
    """What a value may refer to: variables by `{env: …}`, files relative to `folder`.

    `named` is the configuration file's name as somebody gave it, if somebody did.
    """

    environ: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()
    named: str | None = None


def _context(info: ValidationInfo) -> Context:
    return info.context if isinstance(info.context, Context) else Context()


def _parse_path(text: str, info: ValidationInfo) -> Path:
    if not text or not text.isprintable():
        raise ValueError("must name a path")
    try:
        return (_context(info).folder / Path(text).expanduser()).absolute()
    except RuntimeError:
        raise ValueError("starts with ~, but that user's home folder is unknown") from None
    except OSError:
        raise ValueError("is relative, but the working folder is gone; change to one that exists") from None


def _read_start(path: Path, size_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size_bytes)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a usable path"
        raise ValueError(f"names a file that can't be read: {reason}") from None


def parse_ca_file(value: object, info: ValidationInfo) -> Path:
    """Return the absolute path of a file that can be read."""
    path = _parse_path(text_of(value, "must be the path of a PEM file"), info)
    _read_start(path, 1)
    return path


def parse_store(value: object, info: ValidationInfo) -> str | RedisAddress:
    """Return `file`, `memory`, `file:` and an absolute folder, or where a Redis server is."""
    want = "must be file, file:DIR, memory or redis://host:port/0"
    if isinstance(value, RedisAddress):
        return value
    text = text_of(value, want)
    if text.lower() in {"file", "memory"}:
        return text.lower()
    if is_redis_url(text):
        return parse_redis_url(text)
    if not text.startswith("file:"):
        raise ValueError(want)
    return f"file:{_parse_path(text.removeprefix('file:'), info)}"


def parse_secret(value: object, info: ValidationInfo) -> Secret:
    """Return the secret that a literal, `{env: NAME}` or `{file: PATH}` stands for."""
    want = "must be text, {env: NAME} or {file: PATH}"
    if isinstance(value, Secret):
        return value
    if isinstance(value, Mapping):
        if len(value) != 1 or not all(isinstance(part, str) for part in value.values()):
            raise ValueError(want)
        ((kind, name),) = value.items()
        value = _resolve_secret(kind, name, info)
    if not isinstance(value, str):
        raise ValueError(want)  # noqa: TRY004 - pydantic collects ValueErrors only
    if not value.strip():
        raise ValueError("must not be empty")
    if not value.isprintable():
        raise ValueError("must not hold line breaks or other control characters")
    return Secret(value)


def _resolve_secret(kind: object, name: str, info: ValidationInfo) -> str | None:
    if kind == "env":
        if name not in _context(info).environ:
            raise ValueError("the variable that {env: …} names is not set")
        return _context(info).environ[name]
    if kind != "file":
        return None
    data = _read_start(_parse_path(name, info), SECRET_MAX_BYTES + 1)
    if len(data) > SECRET_MAX_BYTES:
        raise ValueError(f"names a file of more than {SECRET_MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")  # Windows editors put a byte-order mark first
    except UnicodeDecodeError:
        raise ValueError("names a file that is not UTF-8 text") from None
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


CaFile = Annotated[Path, PlainValidator(parse_ca_file), PlainSerializer(str), WithJsonSchema(STRING)]
StoreUrl = Annotated[
    str | RedisAddress,
    PlainValidator(parse_store),
    PlainSerializer(str),
    WithJsonSchema({**STRING, "pattern": "^(file|file:.+|memory|rediss?(\\+sentinel)?://.+)$"}),
]
SECRET_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {**STRING, "minLength": 1},
        *(
            {
                "type": "object",
                "properties": {kind: {**STRING, "minLength": 1, "description": text}},
                "required": [kind],
                "additionalProperties": False,
            }
            for kind, text in (
                ("env", "the environment variable that holds it"),
                ("file", "the file that holds it; one trailing newline is cut"),
            )
        ),
    ]
}
SecretText = Annotated[
    Secret,
    PlainValidator(parse_secret),
    PlainSerializer(lambda _: REDACTED),
    WithJsonSchema(SECRET_SCHEMA),
]
