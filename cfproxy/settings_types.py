"""What each setting is: its key, type, notation, default and description.

Owns: the settings as frozen models, and for each notation one parser, one renderer and one JSON Schema.
Must not know: where a value comes from, and which other settings it has to agree with (`config.py`).
Invariants: a description stands here and nowhere else in the code; what a renderer writes, its parser
reads back unchanged; no parser's message holds the value that it was given.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
)

from cfproxy.secret import REDACTED, Secret

SECRET_MAX_BYTES = 65_536
UNIX_PATH_MAX_BYTES = 103  # macOS has room for 104 with the final NUL, Linux for 108
DURATION_MIN_S = 0.001
DURATION_MAX_S = 36_500 * 86_400.0

_UNIT_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_UNIT_BYTES = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}
_FACTOR_BYTES = {unit.lower(): factor for unit, factor in _UNIT_BYTES.items()} | {"": 1}
_DURATION = r"([0-9]{1,12}(?:\.[0-9]{1,20})?)(ms|s|m|h|d)?"
_SIZE = r"([0-9]{1,15})([KkMmGg][Ii]?[Bb]|[Bb])?"
_NUMBER = r"[0-9]{1,6}(\.[0-9]{1,6})?"
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_OFF_WORDS = frozenset({"off", "false", "no"})


@dataclass(frozen=True, slots=True)
class Context:
    """What a value may refer to: variables by `{env: …}`, files relative to `folder`."""

    environ: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path()


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """Where to listen: `host` without brackets; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """Where to listen: an absolute path."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


# --- notations: each parser raises ValueError with a text that says what is wanted ------------


def _text(value: object, want: str) -> str:
    if not isinstance(value, str | int | float):
        raise ValueError(want)  # noqa: TRY004 - pydantic collects ValueErrors only
    return str(value).strip()


def parse_duration(value: object) -> float:
    """Return seconds from `10s`, `300ms`, `5m`, `1h`, `30d` or a plain number of seconds."""
    want = "must be a duration such as 10s, 5m, 1h, 30d"
    match = re.fullmatch(_DURATION, _text(value, want))
    if not match:
        raise ValueError(want)
    seconds = float(match[1]) / 1000 if match[2] == "ms" else float(match[1]) * _UNIT_S[match[2] or "s"]
    if not DURATION_MIN_S <= seconds <= DURATION_MAX_S:
        raise ValueError(f"{want}, from 1ms to 36500d")
    return seconds


def render_duration(seconds: float) -> str:
    """Return the notation with the largest unit that leaves a whole number."""
    for unit, length in _UNIT_S.items():
        if seconds % length == 0:
            return f"{int(seconds / length)}{unit}"
    return f"{Decimal(repr(seconds)):f}s"


def parse_size(value: object) -> int:
    """Return bytes from `64MiB`, `256KiB`, `10MB` or a plain number of bytes."""
    want = "must be a size such as 256KiB, 64MiB, 10MB or a number of bytes"
    match = re.fullmatch(_SIZE, _text(value, want))
    if not match:
        raise ValueError(want)
    return int(match[1]) * _FACTOR_BYTES[(match[2] or "").lower()]


def render_size(size_bytes: int) -> str:
    """Return the notation with the first unit that leaves a whole number."""
    unit, factor = next(
        (u, f) for u, f in _UNIT_BYTES.items() if size_bytes % f == 0 and (size_bytes or f == 1)
    )
    return f"{size_bytes // factor}{unit}"


def _is_off(value: object) -> bool:
    return value is None or (isinstance(value, str | bool) and str(value).strip().lower() in _OFF_WORDS)


def parse_rate(value: object) -> float | None:
    """Return a positive number, or None for `off`."""
    want = "must be a positive number (at most 6 digits before and after the point) or off"
    if _is_off(value):
        return None
    text = _text(value, want)
    if not re.fullmatch(_NUMBER, text) or float(text) <= 0:
        raise ValueError(want)
    return float(text)


def render_rate(rate: float | None) -> int | float | str:
    """Return `off` for None, and a whole number without its fraction."""
    return "off" if rate is None else int(rate) if rate == int(rate) else rate


def _parse_host(text: str) -> str:
    """Return a host name or IP address in lower case without brackets."""
    want = "must have a valid host name or IP address"
    try:
        if text.startswith("["):
            return str(ipaddress.IPv6Address(text[1:-1]))
        if text.rsplit(".", 1)[-1].isdigit():
            return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError(want) from None
    name = text.lower().removesuffix(".")
    if not re.fullmatch(rf"{_LABEL}(?:\.{_LABEL})*", name):
        raise ValueError(want)
    return name


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine by definition: 127.0.0.0/8, ::1, localhost (RFC 6761 §6.3)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _parse_authority(text: str, want: str) -> tuple[str, int | None]:
    match = _AUTHORITY.fullmatch(text)
    if not match or int(match[2] or 1) not in range(65_536):
        raise ValueError(want)
    return _parse_host(match[1]), None if match[2] is None else int(match[2])


def parse_tcp_address(value: object) -> TcpAddress:
    """Return the address of `host:port`, `[::1]:8080`, `:8080` or `8080`; no host means 127.0.0.1."""
    if isinstance(value, TcpAddress):
        return value
    want = "must be an address such as 127.0.0.1:8080, :8080, localhost:8080 or [::1]:8080"
    text = _text(value, want).removeprefix(":")
    host, port = _parse_authority(f"127.0.0.1:{text}" if text.isdigit() else text, want)
    if port is None:
        raise ValueError(want)
    return TcpAddress(host, port)


def parse_listen(value: object) -> TcpAddress | UnixAddress:
    """Return a TCP address, or the socket of `unix:/path`."""
    if isinstance(value, UnixAddress):
        return value
    if not isinstance(value, str) or not value.strip().startswith("unix:"):
        return parse_tcp_address(value)
    path = value.strip().removeprefix("unix:")
    if not path.startswith("/") or not path.isprintable():
        raise ValueError("must name an absolute path: unix:/path/to.sock")
    if len(os.fsencode(path)) > UNIX_PATH_MAX_BYTES:
        raise ValueError(f"has a path longer than {UNIX_PATH_MAX_BYTES} bytes, too long for a socket")
    return UnixAddress(path)


def parse_admin(value: object) -> TcpAddress | None:
    """Return a TCP address, or None for `off`."""
    if _is_off(value):
        return None
    if isinstance(value, str) and value.strip().startswith("unix:"):
        raise ValueError("must be a TCP address such as 127.0.0.1:8081, or off")
    return parse_tcp_address(value)


def _split_url(value: object, want: str) -> tuple[str, str, int | None, str]:
    text = _text(value, want)
    scheme, colon, rest = text.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if not _VISIBLE.fullmatch(text) or not colon or scheme.lower() not in {"http", "https"} or "\\" in text:
        raise ValueError(want)
    if "@" in authority:
        raise ValueError("must not hold a user name or password")
    host, port = _parse_authority(authority, want)
    if port == 0:
        raise ValueError(want)
    return scheme.lower(), host, port, rest[len(authority) :]


def parse_url(value: object) -> str:
    """Return a URL to which tokens may go: https, or http to this machine only (RFC 6749 §3.1, §3.2)."""
    want = "must be an https:// URL (http:// only to localhost, 127.0.0.1 or [::1])"
    scheme, host, port, path = _split_url(value, want)
    if scheme == "http" and not is_loopback(host):
        raise ValueError(want)
    if "?" in path or "#" in path:
        raise ValueError("must have no query and no fragment")
    if {".", ".."} & set(path.lower().replace("%2e", ".").split("/")):
        raise ValueError("must have no . or .. in its path")
    return f"{scheme}://{_bracketed(host)}{'' if port is None else f':{port}'}{path}"


def parse_upstream(value: object) -> str:
    """Return a URL without a trailing slash, ready to have a target put behind it."""
    return parse_url(value).rstrip("/")


def parse_redirect_uri(value: object) -> str:
    """Return the text unchanged: servers compare redirect URIs as strings (RFC 6749 §3.1.2)."""
    want = "must be an absolute http:// or https:// URL"
    if "#" in _split_url(value, want)[3]:
        raise ValueError("must have no fragment")
    return _text(value, want)


def url_origin(url: str) -> str:
    """Return `scheme://host:port` of a parsed URL, the port always there."""
    scheme, host, port, _ = _split_url(url, "must be a URL")
    return f"{scheme}://{_bracketed(host)}:{port or {'http': 80, 'https': 443}[scheme]}"


def parse_client_id(value: object) -> str:
    """Return the text as it is: any printable ASCII (RFC 6749 appendix A.1)."""
    if not isinstance(value, str) or not re.fullmatch(r"[\x20-\x7e]+", value) or not value.strip():
        raise ValueError("must be text of printable ASCII characters, not empty")
    return value


def parse_scope(value: object) -> str:
    """Return the scope tokens with one space between them (RFC 6749 §3.3)."""
    want = "must be scope names with spaces between them"
    text = _text(value, want)
    if not re.fullmatch(r"[\x20\x21\x23-\x5b\x5d-\x7e]+", text):
        raise ValueError(want)
    return " ".join(text.split())


def parse_host(value: object) -> str:
    """Return `host` or `host:port` in lower case, as a Host header has it."""
    want = "must be host or host:port, without http://"
    host, port = _parse_authority(_text(value, want), want)
    return _bracketed(host) + ("" if port is None else f":{port}")


def parse_origin(value: object) -> str:
    """Return the origin as browsers send it: lower case, no default port (RFC 6454 §6.2)."""
    want = "must be an origin such as https://app.example.com, without a path ('null' is never allowed)"
    match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([^/]+)", _text(value, want).lower())
    if not match:
        raise ValueError(want)
    host, port = _parse_authority(match[2], want)
    shown = "" if port in {None, {"http": 80, "https": 443}.get(match[1])} else f":{port}"
    return f"{match[1]}://{_bracketed(host)}{shown}"


def parse_method(value: object) -> str:
    """Return an HTTP method in upper case (a token, RFC 9110 §5.6.2)."""
    want = "must be an HTTP method such as GET"
    text = _text(value, want).upper()
    if not re.fullmatch(r"[A-Z0-9!#$%&'*+.^_`|~-]+", text):
        raise ValueError(want)
    return text


def parse_path_pattern(value: object) -> str:
    """Return a pattern as it is: `/v1/jobs/*`, `/v1/**`, `!/v1/assets/**`."""
    want = "must be a path that starts with / (or !/ to forbid it), such as /v1/jobs/*"
    text = _text(value, want)
    if not re.fullmatch(r"!?/[\x21-\x7e]*", text) or "?" in text or "#" in text:
        raise ValueError(want)
    return text


def _context(info: ValidationInfo) -> Context:
    return info.context if isinstance(info.context, Context) else Context()


def _parse_path(text: str, info: ValidationInfo) -> Path:
    if not text or not text.isprintable():
        raise ValueError("must name a path")
    try:
        return (_context(info).folder / Path(text).expanduser()).absolute()
    except RuntimeError:
        raise ValueError("starts with ~, but that user's home folder is unknown") from None


def _read_start(path: Path, size_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size_bytes)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a usable path"
        raise ValueError(f"names a file that can't be read: {reason}") from None


def parse_ca_file(value: object, info: ValidationInfo) -> Path:
    """Return the absolute path of a file that can be read."""
    path = _parse_path(_text(value, "must be the path of a PEM file"), info)
    _read_start(path, 1)
    return path


def parse_store(value: object, info: ValidationInfo) -> str:
    """Return `file`, `memory` or `file:` and an absolute folder."""
    want = "must be file, file:DIR or memory"
    text = _text(value, want)
    if text.lower() in {"file", "memory"}:
        return text.lower()
    if text.lower().startswith(("redis:", "rediss:")):
        raise ValueError("this version has no Redis store; use file, file:DIR or memory")
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
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("names a file that is not UTF-8 text") from None
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def _lowered(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


# --- types: a notation's parser, renderer and JSON Schema together ----------------------------

_STRING = {"type": "string"}
_OFF_SCHEMA = {"enum": ["off", "Off", "OFF", "no", False]}
_PORT_SCHEMA = {"type": "integer", "minimum": 0, "maximum": 65_535}

Duration = Annotated[
    float,
    PlainValidator(parse_duration),
    PlainSerializer(render_duration),
    WithJsonSchema(
        {"anyOf": [{**_STRING, "pattern": f"^{_DURATION}$"}, {"type": "number", "exclusiveMinimum": 0}]}
    ),
]
Size = Annotated[
    int,
    PlainValidator(parse_size),
    PlainSerializer(render_size),
    WithJsonSchema({"anyOf": [{**_STRING, "pattern": f"^{_SIZE}$"}, {"type": "integer", "minimum": 0}]}),
]
Rate = Annotated[
    float | None,
    PlainValidator(parse_rate),
    PlainSerializer(render_rate),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, _OFF_SCHEMA]}),
]
SecretText = Annotated[
    Secret,
    PlainValidator(parse_secret),
    PlainSerializer(lambda _: REDACTED),
    WithJsonSchema(
        {
            "anyOf": [
                {**_STRING, "minLength": 1},
                *(
                    {
                        "type": "object",
                        "properties": {kind: {**_STRING, "minLength": 1, "description": text}},
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
    ),
]
Listen = Annotated[
    TcpAddress | UnixAddress,
    PlainValidator(parse_listen),
    PlainSerializer(str),
    WithJsonSchema({"anyOf": [_STRING, _PORT_SCHEMA]}),
]
Admin = Annotated[
    TcpAddress | None,
    PlainValidator(parse_admin),
    PlainSerializer(lambda address: "off" if address is None else str(address)),
    WithJsonSchema({"anyOf": [_STRING, _PORT_SCHEMA, {"const": False}]}),
]
CaFile = Annotated[Path, PlainValidator(parse_ca_file), PlainSerializer(str), WithJsonSchema(_STRING)]
ClientId = Annotated[str, PlainValidator(parse_client_id), WithJsonSchema({**_STRING, "minLength": 1})]
Host = Annotated[str, PlainValidator(parse_host), WithJsonSchema(_STRING)]
Method = Annotated[str, PlainValidator(parse_method), WithJsonSchema(_STRING)]
Origin = Annotated[str, PlainValidator(parse_origin), WithJsonSchema(_STRING)]
PathPattern = Annotated[
    str, PlainValidator(parse_path_pattern), WithJsonSchema({**_STRING, "pattern": "^!?/"})
]
RedirectUri = Annotated[str, PlainValidator(parse_redirect_uri), WithJsonSchema(_STRING)]
Scope = Annotated[str, PlainValidator(parse_scope), WithJsonSchema(_STRING)]
Store = Annotated[
    str, PlainValidator(parse_store), WithJsonSchema({**_STRING, "pattern": "^(file|file:.+|memory)$"})
]
Upstream = Annotated[str, PlainValidator(parse_upstream), WithJsonSchema({**_STRING, "format": "uri"})]
Url = Annotated[str, PlainValidator(parse_url), WithJsonSchema({**_STRING, "format": "uri"})]
_Word = BeforeValidator(_lowered)


# --- settings -------------------------------------------------------------------------------


class Model(BaseModel):
    """Base of the settings: unknown keys are refused, nothing can be changed, no input in errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
        populate_by_name=True,
    )


def _key(default: Any, description: str, name: str | None = None) -> Any:
    """Describe one key; `name` is the key in the file where the attribute carries a unit."""
    return Field(default=default, description=description, validation_alias=name, serialization_alias=name)


class Pacing(Model):
    """How fast requests leave. All accounts that share an upstream share it: the limit is per IP."""

    rate: Rate = _key(20.0, "requests per `per`; off for no limit")
    per_s: Duration = _key(1.0, "the period that `rate` counts", "per")
    queue: Annotated[int, Field(ge=0, le=1_000_000)] = _key(
        1000, "requests that may wait; one more is answered 503 at once; 0: none waits"
    )
    max_wait_s: Duration = _key(60.0, "the longest that a request waits for its turn", "max_wait")


class Retry(Model):
    """When a request is sent a second time."""

    unauthorized: bool = _key(True, "after a 401: once, with a new token")
    body_memory_bytes: Size = _key(
        262_144, "a body up to this size is kept in memory for that retry", "body_memory"
    )
    body_max_bytes: Size = _key(67_108_864, "a larger body is streamed and never sent twice", "body_max")
    too_many_requests: bool = _key(True, "after a 429 that says how long to wait: once, after that time")


class Access(Model):
    """Who may use the listener, and for what."""

    hosts: tuple[Host, ...] = _key((), "more Host headers to accept, as host or host:port")
    origins: tuple[Origin, ...] = _key((), "web origins whose pages may call the proxy (CORS)")
    keys: tuple[SecretText, ...] = _key((), "access keys; when there are any, each request needs one")
    methods: tuple[Method, ...] = _key((), "allowed methods; empty: all")
    paths: tuple[PathPattern, ...] = _key(
        (), "allowed paths; `*` within a segment, `**` across, `!` in front forbids; empty: all"
    )
    allow_remote: bool = _key(False, "listen beyond this machine although no key is asked for")


class Timeouts(Model):
    """How long to wait."""

    connect_s: Duration = _key(10.0, "for a connection to the upstream, TLS included", "connect")
    idle_s: Duration = _key(300.0, "for the next byte from the upstream", "idle")
    token_s: Duration = _key(30.0, "for an answer of the token endpoint", "token")
    drain_s: Duration = _key(9.0, "for running requests when the proxy stops", "drain")


class Tls(Model):
    """Whom to trust. Verification can't be switched off."""

    ca_file: CaFile | None = _key(None, "a PEM file of certificate authorities to trust in addition")


class Log(Model):
    """What is logged, and how it looks."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _Word] = _key(
        "info", "the least important level that is written"
    )
    format: Annotated[Literal["auto", "console", "json"], _Word] = _key(
        "auto", "auto: console on a terminal, JSON lines elsewhere"
    )


class AccountKeys(Model):
    """The keys of one account."""

    client_id: ClientId | None = _key(None, "the registered app's client id")
    client_secret: SecretText | None = _key(
        None, "the app's secret: text, {env: NAME} or {file: PATH}; needed for client_credentials"
    )
    grant: Annotated[Literal["authorization_code", "client_credentials"], _Word] = _key(
        "authorization_code", "the grant that the app is registered with"
    )
    redirect_uri: RedirectUri | None = _key(
        None,
        "the redirect URI exactly as registered; authorization_code needs it, client_credentials has none",
    )
    scope: Scope = _key(
        "cfgateway offline_access", "what to ask for; with client_credentials the default is cfgateway"
    )
    pkce: bool = _key(True, "protect the login with PKCE (RFC 7636)")
    environment: Annotated[Literal["production", "sandbox"], _Word] = _key(
        "production", "which of Creative Force's hosts; any URL below overrides it"
    )
    upstream: Upstream = _key("https://gateway.creativeforce.io", "the API; may have a base path")
    authorize_url: Url = _key("https://accounts.creativeforce.io/connect/authorize", "where people log in")
    token_url: Url = _key("https://accounts.creativeforce.io/connect/token", "where tokens come from")
    revocation_url: Url = _key(
        "https://accounts.creativeforce.io/connect/revocation", "where logout revokes tokens"
    )
    refresh_token_lifetime_s: Duration = _key(
        2_592_000.0, "how long a login lasts, counted from the login", "refresh_token_lifetime"
    )
    listen: Listen = _key(TcpAddress("127.0.0.1", 8080), "where clients connect: host:port or unix:/path")
    store: Store = _key(
        "file", "where tokens are kept: file (user state folder), file:DIR (one document per account), memory"
    )
    pacing: Pacing = _key(Pacing(), "how fast requests leave")
    retry: Retry = _key(Retry(), "when a request is sent a second time")
    access: Access = _key(Access(), "who may use the listener, and for what")
    timeouts: Timeouts = _key(Timeouts(), "how long to wait")
    tls: Tls = _key(Tls(), "whom to trust; verification can't be switched off")


class Account(AccountKeys):
    """One account, complete: its own listener, tokens and login."""

    name: str
    client_id: ClientId

    @property
    def store_dir(self) -> Path | None:
        """The folder of a file store; None for other stores."""
        if self.store == "file":
            return platformdirs.user_state_path("cfproxy")
        return Path(self.store.removeprefix("file:")) if self.store.startswith("file:") else None

    @property
    def upstream_origin(self) -> str:
        """`scheme://host:port` of the upstream: accounts with the same one share their pacing."""
        return url_origin(self.upstream)


class ProcessKeys(Model):
    """The keys that exist once, whatever the number of accounts."""

    admin: Admin = _key(
        TcpAddress("127.0.0.1", 8081),
        "status page, login page, callback, health, metrics: host:port; off for none",
    )
    log: Log = _key(Log(), "what is logged, and how it looks")


class FileKeys(AccountKeys, ProcessKeys):
    """Settings of cfproxy. The top level is the account `default` when it has a client_id."""

    accounts: dict[str, AccountKeys] = _key(
        {}, "more accounts by name; each inherits whatever it does not set"
    )


class Settings(ProcessKeys):
    """The effective configuration.

    `accounts` is in the file's order, `default` first; `source` is the file's path or `environment`.
    """

    accounts: dict[str, Account]
    source: str
