"""What each setting is: its key, type, default and description.

Owns: the settings as frozen models.
Must not know: how a value is written (`notation.py`, `addresses.py`, `references.py`), where it comes from,
and which other settings it has to agree with.
Invariant: a description stands here and nowhere else in the code.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from cfproxy.config.access import Key, User
from cfproxy.config.addresses import (
    Admin,
    Host,
    Listen,
    Origin,
    RedirectUri,
    TcpAddress,
    Upstream,
    Url,
    url_origin,
)
from cfproxy.config.redis_url import RedisAddress
from cfproxy.config.references import CaFile, SecretText, StoreUrl
from cfproxy.config.types import ClientId, Duration, Flag, Method, PathPattern, Rate, Scope, Size, Word

SECRET_KEYS = frozenset({"client_secret", "keys", "key"})
ACCOUNT_NAME = re.compile(r"(?!(con|prn|aux|nul|com[0-9]|lpt[0-9])$)[a-z0-9][a-z0-9_-]{0,63}")


class Model(BaseModel):
    """Base of the settings: unknown keys are refused, nothing can be changed, no input in errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
        populate_by_name=True,
        defer_build=True,  # what nobody asks for by itself is not built by itself
    )
    shorthand: ClassVar[str | None] = None  # the key that is meant where a value stands for the section


def _key(default: Any, description: str, name: str | None = None) -> Any:
    """Describe one key; `name` is the key in the file where the attribute carries a unit."""
    return Field(default=default, description=description, validation_alias=name, serialization_alias=name)


def _section(model: type[Model], description: str) -> Any:
    """Describe a section; its defaults hold as they stand there."""
    return _key(model.model_construct(), description)  # without the validator that `model()` would build


class Pacing(Model):
    """How fast requests leave. All accounts that share an upstream share it: the limit is per IP."""

    rate: Rate = _key(20.0, "requests per `per`; off for no limit")
    per_s: Duration = _key(1.0, "the period that `rate` counts", "per")
    queue: Annotated[int, Field(ge=0, le=1_000_000)] = _key(
        1000, "requests that may wait; one more is answered 503 at once; 0: none waits"
    )
    max_wait_s: Duration = _key(60.0, "the longest that a request waits for its turn", "max_wait")
    shared: Flag = _key(False, "all replicas with the same Redis store keep the rate together")


class Retry(Model):
    """When a request is sent again."""

    unauthorized: Flag = _key(True, "after a 401: once, with a new token")
    body_memory_bytes: Size = _key(
        262_144, "a body up to this size is kept in memory for that retry", "body_memory"
    )
    body_max_bytes: Size = _key(67_108_864, "a larger body is streamed and never sent twice", "body_max")
    too_many_requests: Flag = _key(
        True,
        "after a 429 all requests of that upstream pause as the answer says; the request itself goes "
        "again, at most twice, within pacing.max_wait",
    )


class Access(Model):
    """Who may use the listener, and for what."""

    hosts: tuple[Host, ...] = _key((), "more Host headers to accept, as host or host:port")
    origins: tuple[Origin, ...] = _key((), "web origins whose pages may call and read the answers (CORS)")
    keys: tuple[Key, ...] = _key(
        (), "access keys; when there are any, each request needs one; {key: …, account: NAME} leads there"
    )
    users: tuple[User, ...] = _key(
        (), "names or numbers of the users who may call a Unix socket; empty: who runs cfproxy (Linux)"
    )
    methods: tuple[Method, ...] = _key((), "allowed methods; empty: all")
    paths: tuple[PathPattern, ...] = _key(
        (), "allowed paths; `*` within a segment, `**` across, `!` in front forbids; empty: all"
    )
    allow_remote: Flag = _key(False, "listen beyond this machine although no key is asked for")


class Timeouts(Model):
    """How long to wait."""

    connect_s: Duration = _key(10.0, "for a connection to the upstream, TLS included", "connect")
    idle_s: Duration = _key(300.0, "without a byte in either direction", "idle")
    head_s: Duration = _key(10.0, "for the whole head of a client's request", "head")
    keep_alive_s: Duration = _key(75.0, "for a client's next request on the same connection", "keep_alive")
    token_s: Duration = _key(30.0, "for an answer of the token endpoint", "token")
    drain_s: Duration = _key(9.0, "for running requests when the proxy stops", "drain")


class Limits(Model):
    """How much the clients of one listener may take up, and how many connections the upstream gets."""

    connections: Annotated[int, Field(ge=1, le=1_000_000)] = _key(
        4096, "client connections; one more ends the one that has been idle the longest"
    )
    unfinished: Annotated[int, Field(ge=1, le=1_000_000)] = _key(
        512, "of these, such as have not sent a whole request head for a second; the oldest go first"
    )
    line_bytes: Annotated[Size, Field(ge=1024, le=1_048_576)] = _key(
        32_768, "the request line, or one header line", "line"
    )
    head_bytes: Annotated[Size, Field(ge=1024, le=1_048_576)] = _key(
        65_536, "the request line and all headers together", "head"
    )
    headers: Annotated[int, Field(ge=1, le=10_000)] = _key(128, "header lines of a request")
    read_ahead_bytes: Annotated[Size, Field(ge=1024, le=67_108_864)] = _key(
        65_536, "of a request's body, read before the upstream takes it", "read_ahead"
    )
    upstream: Annotated[int, Field(ge=1, le=1_000_000)] = _key(
        1000, "connections to the upstream; one more request waits for a free one, up to timeouts.connect"
    )


class Tls(Model):
    """Whom to trust. Verification can't be switched off."""

    ca_file: CaFile | None = _key(None, "a PEM file of certificate authorities to trust in addition")


class Store(Model):
    """Where tokens are kept. A value in place of the section is its `url`."""

    shorthand = "url"

    url: StoreUrl = _key(
        "file",
        "file (user state folder), file:DIR (one document per account), memory, redis://host:port/0, "
        "rediss://… (TLS) or redis+sentinel://host,host/service/0",
    )
    password: SecretText | None = _key(None, "of a Redis store: text, {env: NAME} or {file: PATH}")
    key: SecretText | None = _key(
        None,
        "encrypts what is kept: a passphrase, or {file: PATH} for a key file; needs the extra [encrypt]",
    )


def _shown_store(store: Store) -> Any:
    short = store.key is None and store.password is None
    return str(store.url) if short else store.model_dump(mode="json")


class Log(Model):
    """What is logged, and how it looks."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Word] = _key(
        "info", "the least important level that is written"
    )
    format: Annotated[Literal["auto", "console", "json"], Word] = _key(
        "auto", "auto: console on a terminal, JSON lines elsewhere"
    )
    sample: Annotated[float, Field(ge=0, le=1)] = _key(
        1.0, "the share of ordinary request lines (2xx) that is written; all others always are"
    )
    request_id: Flag = _key(
        True, "tell the upstream and the caller each request's id, in an X-Request-Id header"
    )
    server_timing: Flag = _key(False, "tell each caller where the time went, in a Server-Timing header")


class AccountKeys(Model):
    """The keys of one account."""

    client_id: ClientId | None = _key(None, "the registered app's client id")
    client_secret: SecretText | None = _key(
        None, "the app's secret: text, {env: NAME} or {file: PATH}; needed for client_credentials"
    )
    grant: Annotated[Literal["authorization_code", "client_credentials"], Word] = _key(
        "authorization_code", "the grant that the app is registered with"
    )
    redirect_uri: RedirectUri | None = _key(
        None,
        "the redirect URI exactly as registered; authorization_code needs it, client_credentials has none",
    )
    scope: Scope = _key(
        "cfgateway offline_access", "what to ask for; with client_credentials the default is cfgateway"
    )
    pkce: Flag = _key(True, "protect the login with PKCE (RFC 7636)")
    environment: Annotated[Literal["production", "sandbox"], Word] = _key(
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
    listen: Listen = _key(
        TcpAddress("127.0.0.1", 8080),
        "where clients connect: host:port or unix:/path; off: with a key of another account's listener only",
    )
    store: Annotated[Store, PlainSerializer(_shown_store)] = _section(
        Store, "where tokens are kept: file, file:DIR, memory or redis://host:port/0"
    )
    pacing: Pacing = _section(Pacing, "how fast requests leave")
    retry: Retry = _section(Retry, "when a request is sent again")
    access: Access = _section(Access, "who may use the listener, and for what")
    timeouts: Timeouts = _section(Timeouts, "how long to wait")
    limits: Limits = _section(Limits, "how much the clients of one listener may take up")
    tls: Tls = _section(Tls, "whom to trust; verification can't be switched off")


class Account(AccountKeys):
    """One account, complete: its own listener, tokens and login."""

    name: str
    client_id: ClientId
    config_file: str | None = None  # as `-c` named it: messages repeat it

    @property
    def store_dir(self) -> Path | None:
        """The folder of a file store; None for other stores."""
        url = self.store.url
        if url == "file":
            return platformdirs.user_state_path("cfproxy")
        return Path(url.removeprefix("file:")) if isinstance(url, str) and url.startswith("file:") else None

    @property
    def store_url(self) -> str | RedisAddress:
        """The store, with the password that stands beside its address."""
        url, password = self.store.url, self.store.password
        return replace(url, password=password) if isinstance(url, RedisAddress) and password else url

    @property
    def upstream_origin(self) -> str:
        """`scheme://host:port` of the upstream: accounts with the same one share their pacing."""
        return url_origin(self.upstream)


class ProcessKeys(Model):
    """The keys that exist once, whatever the number of accounts."""

    admin: Admin = _key(
        TcpAddress("127.0.0.1", 8081),
        "health, status and metrics: host:port; off for none",
    )
    log: Log = _section(Log, "what is logged, and how it looks")


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
