"""What a login consists of, and how long its token lasts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self

from cfproxy.errors import CfproxyError, LoginRequired, TokenEndpointUnavailable
from cfproxy.secret import Secret

UNKNOWN_LIFETIME_S = 300.0
EARLY_MAX_S = 300.0
EARLY_SHARE = 0.25
ATTEMPT_LIFETIME_S = 1800.0


@dataclass(frozen=True, slots=True)
class Token:
    """One access token.

    Args:
        value: the bearer token; opaque, never parsed; visible ASCII only.
        obtained_at: wall-clock instant at which it was requested, seconds since the epoch.
        lifetime_s: seconds that it is valid, counted from `obtained_at`.

    Attributes:
        authorization: the value of the `Authorization` header (RFC 6750 §2.1), ready to be sent.
    """

    value: Secret
    obtained_at: float
    lifetime_s: float
    authorization: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "authorization", b"Bearer " + self.value.reveal().encode("ascii"))

    @property
    def expires_at(self) -> float:
        """Wall-clock instant from which the token is not sent any more."""
        return self.obtained_at + self.lifetime_s

    @property
    def early_s(self) -> float:
        """Seconds before expiry at which a refresh is due: 25 % of the lifetime, at most 5 min."""
        return min(EARLY_MAX_S, EARLY_SHARE * self.lifetime_s)

    def remaining_s(self, now: float) -> float:
        """Return the seconds left at wall-clock `now`, never more than the lifetime.

        The cap keeps a clock that was set back from prolonging a token.
        """
        return min(self.expires_at - now, self.lifetime_s)


@dataclass(frozen=True, slots=True)
class TokenReply:
    """A successful reply of the token endpoint (RFC 6749 §5.1).

    Args:
        access_token: never empty; visible ASCII only. None if it is unusable, but a refresh token came.
        lifetime_s: `expires_in`; None if absent.
        refresh_token: None if absent: the old one stays valid (RFC 6749 §6).
        scope: None if absent: what was requested.
    """

    access_token: Secret | None
    lifetime_s: float | None
    refresh_token: Secret | None
    scope: str | None

    def token(self, requested_at: float) -> Token:
        """Return the access token; its lifetime counts from when it was requested.

        Raises:
            TokenEndpointUnavailable: there is none.
        """
        if self.access_token is None:
            raise TokenEndpointUnavailable(
                "the token endpoint sent a new refresh token without a usable bearer token; try again later"
            )
        lifetime_s = UNKNOWN_LIFETIME_S if self.lifetime_s is None else self.lifetime_s
        return Token(self.access_token, requested_at, lifetime_s)


@dataclass(frozen=True, slots=True)
class Login:
    """What a store keeps for one account.

    Args:
        account: the account's name.
        client_id: the app that it belongs to; another app's login is never used.
        token_url: the endpoint that issued it; no token is sent to another endpoint.
        upstream: `scheme://host:port` of the API that it was made for; no token is sent to another API.
        scope: as granted by the server, else as requested.
        token: the newest access token.
        refresh_token: None with client credentials.
        serial: grows by one with every save; the higher one is the newer one.
        login_at: when a person (or the client-credentials app) logged in.
        login_expires_at: when the login itself ends; None if unknown.
        presented_at: set, and saved, before the refresh token is sent; cleared when the outcome is
            known. A record that has it set may have lost the response to a refresh.
        refused_at: when the server refused this refresh token.
        answer_lost: the refusal followed a refresh whose response never arrived or was unreadable: the
            one-time refresh token was used up and its successor was lost.
    """

    account: str
    client_id: str
    token_url: str
    upstream: str
    scope: str
    token: Token
    refresh_token: Secret | None
    serial: int
    login_at: float
    login_expires_at: float | None = None
    presented_at: float | None = None
    refused_at: float | None = None
    answer_lost: bool = False

    def next(self, **changes: Any) -> Self:
        """Return this record with `changes` and the next serial."""
        return replace(self, serial=self.serial + 1, **changes)

    @property
    def refreshed(self) -> bool:
        """Whether it was ever refreshed."""
        return self.token.obtained_at != self.login_at

    @property
    def app_id(self) -> str:
        """The app, token endpoint and API that it is for, as `App.app_id`."""
        return _app_id(self)

    def belongs_to(self, app: App | Login) -> bool:
        """Return whether this login is for the same app, token endpoint and API."""
        mine = (self.client_id, self.token_url, self.upstream)
        return mine == (app.client_id, app.token_url, app.upstream)


@dataclass(frozen=True, slots=True)
class App:
    """The app that logs in: what a stored login must match before it is used.

    Args:
        account: the account's name.
        client_id: the app.
        token_url: the only place that its tokens are sent to, besides the upstream.
        upstream: `scheme://host:port` of the API.
        scope: what is requested.
        grant: how it logs in.
        config_file: the configuration as `-c` named it, if it did; for the commands.
    """

    account: str
    client_id: str
    token_url: str
    upstream: str
    scope: str
    grant: Literal["authorization_code", "client_credentials"]
    config_file: str | None = None

    @property
    def app_id(self) -> str:
        """16 hex digits for client_id, token_url and upstream: what a login is bound to."""
        return _app_id(self)

    @property
    def encrypt_command(self) -> str:
        """The command line that encrypts this account's stored login, from the current folder."""
        return self._command("store", "encrypt")

    @property
    def login_command(self) -> str:
        """The command line that logs this account in, from the current folder."""
        return self._command("login")

    @property
    def doctor_command(self) -> str:
        """The command line that examines this account, from the current folder."""
        return self._command("doctor")

    def _command(self, *words: str) -> str:
        file = () if self.config_file is None else ("-c", self.config_file)
        account = () if self.account == "default" else ("--account", self.account)
        return shlex.join(["cfproxy", *words, *file, *account])


@dataclass(frozen=True, slots=True)
class Attempt:
    """A login that was started: what must be known when the browser comes back.

    Args:
        account: the account that logs in.
        state: binds the redirect to this attempt (RFC 6749 §10.12).
        verifier: PKCE's code verifier (RFC 7636 §4.1), None with `pkce: false`.
        redirect_uri: as sent to the authorize endpoint; the token endpoint compares it.
        client_id: the app.
        created_at: wall-clock instant; the attempt expires `ATTEMPT_LIFETIME_S` later.
        used: it was claimed; the record stays as a marker until it expires.
        app_id: of the app that started it; None if the first release wrote it.
    """

    account: str
    state: Secret
    verifier: Secret | None
    redirect_uri: str
    client_id: str
    created_at: float
    used: bool = False
    app_id: str | None = None

    def as_used(self) -> Self:
        """Return it marked as used, without the verifier."""
        return replace(self, verifier=None, used=True)

    def expired(self, now: float) -> bool:
        """Return whether it has expired at wall-clock `now`.

        One from as far in the future was written before the clock was set back. It has expired too, or it
        would stay forever.
        """
        return abs(now - self.created_at) >= ATTEMPT_LIFETIME_S


class AttemptGone(Exception):
    """No attempt can be claimed; `reason` is `unknown`, `used`, `expired` or `foreign` (of another app)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TokenStatus:
    """What is known about an account without asking the store or the network.

    Args:
        login: the newest record, usable or not.
        usable_s: seconds for which the access token will still be sent; 0 for none.
        error: why the last attempt to get a token failed; None after a success.
        retry_in_s: seconds until the next attempt is allowed; 0 for now.
        store_error: why the last use of the store failed.
        unsaved: the newest record is in memory only.
        refreshes: tokens received from the endpoint since the start.
        failures: failed attempts, by the kind of error.
        store_failures: failed reads and writes of the store.
        warning_step: how near the end of the login is (see `expiry.py`); 0 for not near.
    """

    login: Login | None
    usable_s: float
    error: CfproxyError | None
    retry_in_s: float
    store_error: CfproxyError | None
    unsaved: bool
    refreshes: int
    failures: Mapping[type[CfproxyError], int] = field(default_factory=dict)
    store_failures: int = 0
    warning_step: int = 0

    @property
    def ready(self) -> bool:
        """Whether a request that arrives now would get a token."""
        return self.usable_s > 0 or self.error is None


def _app_id(of: App | Login) -> str:
    return Secret(f"{of.client_id}\n{of.token_url}\n{of.upstream}").fingerprint()


def new_login(
    app: App, reply: TokenReply, requested_at: float, *, serial: int = 1, expires_at: float | None = None
) -> Login:
    """Return the first record of a login.

    Args:
        app: the app that has logged in.
        reply: what the token endpoint gave it.
        requested_at: wall-clock instant of the request.
        serial: greater than that of the record that it replaces.
        expires_at: wall-clock instant at which the login ends.
    """
    # RFC 6749 §4.4.3: client credentials need no refresh token; the app can log in again at any time.
    renewable = app.grant == "authorization_code"
    return Login(
        account=app.account,
        client_id=app.client_id,
        token_url=app.token_url,
        upstream=app.upstream,
        scope=reply.scope or app.scope,
        token=reply.token(requested_at),
        refresh_token=reply.refresh_token if renewable else None,
        serial=serial,
        login_at=requested_at,
        login_expires_at=expires_at if renewable else None,
    )


def login_problem(login: Login | None, app: App) -> LoginRequired | None:
    """Return why only a person can renew this login, None if it can be refreshed."""
    if app.grant == "client_credentials":
        return None
    who, cure = f"account '{app.account}'", f"run: {app.login_command}"
    if login is None:
        return LoginRequired(f"{who} is not logged in; {cure}")
    if not login.belongs_to(app):
        return LoginRequired(
            f"{who} is not logged in for this app: the store has the login of another app or API (client_id, "
            f"token_url or upstream differ), which stays as it is; {cure}"
        )
    if login.answer_lost and login.presented_at is not None:
        return LoginRequired(
            f"the login of {who} is lost: the token endpoint used up the refresh token that was sent at "
            f"{instant(login.presented_at)}, but its answer never arrived or could not be read; {cure}"
        )
    if login.refused_at is not None:
        return LoginRequired(
            f"the login of {who} has ended: the token endpoint refused the refresh token at "
            f"{instant(login.refused_at)} (expired, revoked or used up); {cure}"
        )
    if login.refresh_token is None:
        return LoginRequired(
            f"{who} got no refresh token (is offline_access in the scope?), "
            f"so its login ends with the access token; {cure}"
        )
    return None


def instant(at: float) -> str:
    """Return a wall-clock instant for people and machines: UTC, RFC 3339, whole seconds."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
