"""Every setting: its key, type, default and description, as frozen pydantic models.

How values are written is in `types.py`, `addresses.py` and `references.py`; which settings have to agree is
in `conflicts.py`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

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
from cfproxy.config.references import CaFile, Key, SecretText, StoreUrl, User, user_folder
from cfproxy.config.types import (
    AutoOff,
    ClientId,
    Duration,
    Flag,
    Method,
    PathPattern,
    Rate,
    Scope,
    Size,
    Word,
)

SECRET_KEYS = frozenset({"client_secret", "keys", "key"})
ACCOUNT_NAME = re.compile(r"(?!(con|prn|aux|nul|com[0-9]|lpt[0-9])$)[a-z0-9][a-z0-9_-]{0,63}")


class Model(BaseModel):
    """Base of the settings: immutable, without unknown keys, and without the input in errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
        populate_by_name=True,
        defer_build=True,  # a section is only validated as part of a larger model
    )
    shorthand: ClassVar[str | None] = None  # the key that a plain value in place of the section sets


def _key(default: Any, description: str, name: str | None = None) -> Any:
    """Describe a key; `name` is the key in the file if the attribute has a unit suffix."""
    return Field(default=default, description=description, validation_alias=name, serialization_alias=name)


def _section(model: type[Model], description: str) -> Any:
    """Describe a section whose keys all have their defaults."""
    return _key(model.model_construct(), description)  # `model()` would build a validator


_Count = Annotated[int, Field(ge=1, le=1_000_000)]
_HeadSize = Annotated[Size, Field(ge=1024, le=1_048_576)]


class Pacing(Model):
    """The rate limit. Accounts that share an upstream share it, because the API counts per IP address."""

    rate: Rate = _key(20.0, "requests per `per`; off for no limit")
    per_s: Duration = _key(1.0, "the period of `rate`", "per")
    queue: Annotated[int, Field(ge=0, le=1_000_000)] = _key(
        1000, "requests that may wait; further ones get 503"
    )
    max_wait_s: Duration = _key(60.0, "the longest that a request may wait for a slot", "max_wait")
    shared: Flag = _key(False, "all replicas with the same Redis store share the rate")


class Retry(Model):
    """When a request is retried."""

    unauthorized: Flag = _key(True, "retry once after a 401, with a new token")
    body_memory_bytes: Size = _key(262_144, "the largest body kept in memory for a retry", "body_memory")
    body_max_bytes: Size = _key(67_108_864, "a larger body is streamed and never retried", "body_max")
    too_many_requests: Flag = _key(
        True,
        "after a 429 all requests to that upstream pause as long as the response asks; the request itself is "
        "retried at most twice, within pacing.max_wait",
    )


class Access(Model):
    """Who may use the listener, and for which requests."""

    hosts: tuple[Host, ...] = _key((), "further Host headers to accept, as host or host:port")
    origins: tuple[Origin, ...] = _key(
        (), "web origins whose pages may send requests and read responses (CORS)"
    )
    keys: tuple[Key, ...] = _key(
        (),
        "access keys; if there are any, each request needs one; {key: …, account: NAME} selects an account",
    )
    users: tuple[User, ...] = _key(
        (), "users, by name or number, who may use a Unix socket; empty: the user who runs cfproxy (Linux)"
    )
    methods: tuple[Method, ...] = _key((), "allowed methods; empty: all")
    paths: tuple[PathPattern, ...] = _key(
        (), "allowed paths; `*` matches within a segment, `**` across, a leading `!` forbids; empty: all"
    )
    allow_remote: Flag = _key(False, "allow a listener that other machines can reach without an access key")


class Timeouts(Model):
    """How long to wait."""

    connect_s: Duration = _key(10.0, "for a connection to the upstream, including TLS", "connect")
    idle_s: Duration = _key(300.0, "without a byte in either direction", "idle")
    head_s: Duration = _key(10.0, "for the whole head of a client's request", "head")
    keep_alive_s: Duration = _key(75.0, "for a client's next request on the same connection", "keep_alive")
    token_s: Duration = _key(30.0, "for a response from the token endpoint", "token")
    drain_s: Duration = _key(9.0, "for running requests when the proxy stops", "drain")


class Limits(Model):
    """Limits for the clients of one listener, and for connections to the upstream."""

    connections: _Count = _key(4096, "client connections; a further one closes the one idle for longest")
    unfinished: _Count = _key(
        512, "connections still sending a head after a second; then the oldest is closed"
    )
    line_bytes: _HeadSize = _key(32_768, "the request line, or one header line", "line")
    head_bytes: _HeadSize = _key(65_536, "the request line and all headers together", "head")
    headers: Annotated[int, Field(ge=1, le=10_000)] = _key(128, "header lines of a request")
    read_ahead_bytes: Annotated[Size, Field(ge=1024, le=67_108_864)] = _key(
        65_536, "bytes of a request body read before the upstream accepts them", "read_ahead"
    )
    upstream: _Count = _key(1000, "connections to the upstream; others wait up to timeouts.connect for one")


class Tls(Model):
    """Certificate verification, which can't be switched off."""

    ca_file: CaFile | None = _key(None, "a PEM file of additional certificate authorities to trust")


class Store(Model):
    """Where tokens are stored. A plain value in place of the section sets `url`."""

    shorthand = "url"

    url: StoreUrl = _key(
        "file",
        "file (user state folder), file:DIR (one document per account), memory, redis://host:port/0, "
        "rediss://… (TLS) or redis+sentinel://host,host/service/0",
    )
    password: SecretText | None = _key(None, "password of a Redis store: text, {env: NAME} or {file: PATH}")
    key: SecretText | None = _key(
        None,
        "encrypts stored logins: a passphrase, or {file: PATH} for a key file; needs the extra [encrypt]",
    )


def _render_store(store: Store) -> Any:
    short = store.key is None and store.password is None
    return str(store.url) if short else store.model_dump(mode="json")


class Log(Model):
    """What is logged, and in which format."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Word] = _key(
        "info", "the lowest level that is logged"
    )
    format: Annotated[Literal["auto", "console", "json"], Word] = _key(
        "auto", "auto: console on a terminal, JSON lines elsewhere"
    )
    sample: Annotated[float, Field(ge=0, le=1)] = _key(
        1.0, "the fraction of successful requests (2xx) that is logged; all others always are"
    )
    request_id: Flag = _key(True, "send each request's ID to the upstream and the client as X-Request-Id")
    server_timing: Flag = _key(False, "send the client a breakdown of the time in a Server-Timing header")


class AccountKeys(Model):
    """The keys of one account."""

    client_id: ClientId | None = _key(None, "the registered app's client id")
    client_secret: SecretText | None = _key(
        None, "the app's secret: text, {env: NAME} or {file: PATH}; needed for client_credentials"
    )
    grant: Annotated[Literal["authorization_code", "client_credentials"], Word] = _key(
        "authorization_code", "the grant that the app is registered with"
    )
    redirect_uri: RedirectUri | None = _key(None, "exactly as registered; needed for authorization_code only")
    scope: Scope = _key(
        "cfgateway offline_access", "the scopes; with client_credentials by default cfgateway"
    )
    pkce: Flag = _key(True, "protect the login with PKCE (RFC 7636)")
    environment: Annotated[Literal["production", "sandbox"], Word] = _key(
        "production", "selects Creative Force's hosts; any URL below overrides it"
    )
    upstream: Upstream = _key("https://gateway.creativeforce.io", "the API; may have a base path")
    authorize_url: Url = _key("https://accounts.creativeforce.io/connect/authorize", "where users log in")
    token_url: Url = _key("https://accounts.creativeforce.io/connect/token", "the token endpoint")
    revocation_url: Url = _key(
        "https://accounts.creativeforce.io/connect/revocation", "where logout revokes tokens"
    )
    refresh_token_lifetime_s: Duration = _key(
        2_592_000.0, "how long a login lasts, counted from the login", "refresh_token_lifetime"
    )
    listen: Listen = _key(
        TcpAddress("localhost", 8080),
        "where clients connect: host:port or unix:/path; off: only through another listener, by access key",
    )
    store: Annotated[Store, PlainSerializer(_render_store)] = _section(
        Store, "where tokens are stored: file, file:DIR, memory or redis://host:port/0"
    )
    pacing: Pacing = _section(Pacing, "the rate limit and its queue")
    retry: Retry = _section(Retry, "when a request is retried")
    access: Access = _section(Access, "who may use the listener, and for which requests")
    timeouts: Timeouts = _section(Timeouts, "how long to wait")
    limits: Limits = _section(Limits, "limits for the clients of one listener")
    tls: Tls = _section(Tls, "certificate verification, which can't be switched off")


class Account(AccountKeys):
    """One account with all its settings: its own listener, tokens and login."""

    name: str
    client_id: ClientId
    config_file: str | None = None  # as `-c` named it, for messages

    @property
    def store_dir(self) -> Path | None:
        """The folder of a file store; None for other stores, and for a user without a home folder."""
        url = self.store.url
        if url == "file":
            return user_folder(platformdirs.user_state_path)
        return Path(url.removeprefix("file:")) if isinstance(url, str) and url.startswith("file:") else None

    @property
    def store_url(self) -> str | RedisAddress:
        """The store, with the password that is configured beside its address.

        Without a home folder it is in memory; `conflicts.py` allows that for client credentials only.
        """
        url, password = self.store.url, self.store.password
        if url == "file" and self.store_dir is None:
            return "memory"
        return replace(url, password=password) if isinstance(url, RedisAddress) and password else url

    @property
    def upstream_origin(self) -> str:
        """`scheme://host:port` of the upstream: accounts with the same one share their pacing."""
        return url_origin(self.upstream)


class ProcessKeys(Model):
    """The keys that apply to the whole process."""

    admin: Admin = _key(
        TcpAddress("localhost", 8081),
        "health, status and metrics: host:port; off for none",
    )
    reload: AutoOff = _key(
        True,
        "auto: look at this file and those it refers to every few seconds, and reload after a change; "
        "off: only on SIGHUP and POST /reload",
    )
    log: Log = _section(Log, "what is logged, and in which format")


class FileKeys(AccountKeys, ProcessKeys):
    """Settings of cfproxy. The top level is the account `default` when it has a client_id."""

    accounts: dict[str, AccountKeys] = _key(
        {}, "further accounts by name; each inherits what it does not set"
    )


class Settings(ProcessKeys):
    """The effective configuration.

    `accounts` is in the file's order, `default` first; `source` is the file's path or `environment`.
    """

    accounts: dict[str, Account]
    source: str
