"""What a login consists of, how fresh it is, and how it is stored.

Owns: `Token` (one access token), `Login` (the record that a store keeps) and the stored form.
Must not know: files, networks, configuration.
Invariant: `Login.from_document(login.to_document()) == login`; a document with a newer version,
or with anything missing or of another type, is refused as a whole, never half read.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self

from cfproxy.errors import LoginRequired, StoreUnusable
from cfproxy.secret import Secret

DOCUMENT_VERSION = 1
UNKNOWN_LIFETIME_S = 300.0
EARLY_MAX_S = 300.0
EARLY_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Token:
    """One access token.

    Args:
        value: the bearer token; opaque, never parsed.
        obtained_at: wall-clock instant at which it was asked for, seconds since the epoch.
        lifetime_s: seconds that it is good for, counted from `obtained_at`.
    """

    value: Secret
    obtained_at: float
    lifetime_s: float

    @property
    def expires_at(self) -> float:
        """Wall-clock instant from which the token is not sent any more."""
        return self.obtained_at + self.lifetime_s

    @property
    def early_s(self) -> float:
        """Seconds before expiry at which a refresh begins: 25 % of the lifetime, at most 5 min."""
        return min(EARLY_MAX_S, EARLY_SHARE * self.lifetime_s)

    def remaining_s(self, now: float) -> float:
        """Return the seconds left at wall-clock `now`, never more than the lifetime.

        The cap keeps a clock that was set back from prolonging a token.
        """
        return min(self.expires_at - now, self.lifetime_s)


@dataclass(frozen=True, slots=True)
class Login:
    """What a store keeps for one account.

    Args:
        account: the account's name.
        client_id: the app that it belongs to; another app's login is never used.
        token_url: the endpoint that issued it; a token is never shown to another one.
        upstream: `scheme://host:port` of the API that it was made for; nor to another one of these.
        scope: what was granted, as the server said it, else as it was asked for.
        token: the newest access token.
        refresh_token: absent with client credentials.
        serial: grows by one with every save; the higher one is the newer one.
        login_at: when a person (or the client-credentials app) logged in.
        login_expires_at: when the login itself dies; None where nobody knows.
        presented_at: set, and saved, before the refresh token goes out; cleared when the
            outcome is known. Found set: the answer may have been lost on its way.
        refused_at: when the server said `invalid_grant` to this refresh token.
        answer_lost: that refusal followed a presentation whose answer never arrived, so a
            one-time refresh token was spent without us learning its successor.
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

    def belongs_to(self, app: App) -> bool:
        """Return whether this login was made by `app`, at the same token endpoint, for the same API."""
        mine = (self.client_id, self.token_url, self.upstream)
        return mine == (app.client_id, app.token_url, app.upstream)

    def to_document(self) -> dict[str, Any]:
        """Return the stored form: JSON types only, secrets in clear."""
        return {
            "version": DOCUMENT_VERSION,
            "account": self.account,
            "client_id": self.client_id,
            "token_url": self.token_url,
            "upstream": self.upstream,
            "scope": self.scope,
            "serial": self.serial,
            "login_at": self.login_at,
            "login_expires_at": self.login_expires_at,
            "access_token": self.token.value.reveal(),
            "obtained_at": self.token.obtained_at,
            "lifetime_s": self.token.lifetime_s,
            "refresh_token": None if self.refresh_token is None else self.refresh_token.reveal(),
            "presented_at": self.presented_at,
            "refused_at": self.refused_at,
            "answer_lost": self.answer_lost,
        }

    @classmethod
    def from_document(cls, document: object, where: str) -> Self:
        """Read the stored form.

        Args:
            document: what `json.loads` gave.
            where: the document's place, for messages.

        Raises:
            StoreUnusable: newer version, missing field, wrong type.
        """
        if not isinstance(document, dict):
            raise StoreUnusable(f"{where} is not a token document; move it away and log in again")
        version = document.get("version")
        if type(version) is int and version > DOCUMENT_VERSION:
            raise StoreUnusable(
                f"{where} was written by a newer cfproxy (version {version}, this one reads "
                f"{DOCUMENT_VERSION}); update cfproxy, nothing was changed"
            )
        take = _Taker(document, where)
        if version != DOCUMENT_VERSION or type(version) is not int:
            raise take.fault("version")
        refresh_token = take.text_or_none("refresh_token")
        return cls(
            account=take.text("account"),
            client_id=take.text("client_id"),
            token_url=take.text("token_url"),
            upstream=take.text("upstream"),
            scope=take.text("scope"),
            token=Token(
                value=Secret(take.text("access_token")),
                obtained_at=take.number("obtained_at"),
                lifetime_s=take.number("lifetime_s"),
            ),
            refresh_token=None if refresh_token is None else Secret(refresh_token),
            serial=take.whole("serial"),
            login_at=take.number("login_at"),
            login_expires_at=take.number_or_none("login_expires_at"),
            presented_at=take.number_or_none("presented_at"),
            refused_at=take.number_or_none("refused_at"),
            answer_lost=take.flag("answer_lost"),
        )


@dataclass(frozen=True, slots=True)
class App:
    """Which app logs in where: what a stored login must match before it is used.

    Args:
        account: the account's name.
        client_id: the app.
        token_url: the only place that its tokens are shown to, besides the upstream.
        upstream: `scheme://host:port` of that one.
        scope: what is asked for.
        grant: how.
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
    def login_command(self) -> str:
        """The command line that logs this account in, from the folder in which this one was given."""
        return self._command("login")

    @property
    def doctor_command(self) -> str:
        """Likewise the one that examines it."""
        return self._command("doctor")

    def _command(self, verb: str) -> str:
        file = () if self.config_file is None else ("-c", self.config_file)
        account = () if self.account == "default" else ("--account", self.account)
        return shlex.join(["cfproxy", verb, *file, *account])


def login_problem(login: Login | None, app: App) -> LoginRequired | None:
    """Return why nobody but a person can renew this login; None when it can be renewed."""
    if app.grant == "client_credentials":
        return None
    who, cure = f"account '{app.account}'", f"run: {app.login_command}"
    if login is None:
        return LoginRequired(f"{who} is not logged in; {cure}")
    if not login.belongs_to(app):
        return LoginRequired(
            f"{who} has the login of another app or API (client_id, token_url or upstream changed); {cure}"
        )
    if login.answer_lost and login.presented_at is not None:
        return LoginRequired(
            f"the login of {who} is lost: the token endpoint used up the refresh token that was sent at "
            f"{instant(login.presented_at)}, but its answer never arrived; {cure}"
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
    """Return a wall-clock instant as people and machines read it: UTC, RFC 3339, whole seconds."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Taker:
    """Typed reads from a document; the fault names the field, never its value."""

    def __init__(self, document: dict[str, Any], where: str) -> None:
        self._document = document
        self._where = where

    def fault(self, field: str) -> StoreUnusable:
        return StoreUnusable(
            f"{self._where} is damaged at '{field}'; restore it from a backup, "
            "or move it away and log in again"
        )

    def text(self, field: str) -> str:
        value = self._document.get(field)
        if not isinstance(value, str):
            raise self.fault(field)
        return value

    def text_or_none(self, field: str) -> str | None:
        return None if self._document.get(field) is None else self.text(field)

    def number(self, field: str) -> float:
        value = self._document.get(field)
        # The bounds keep inf, nan and instants that no clock can show out of the arithmetic.
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1 < value < 1e12:
            raise self.fault(field)
        return float(value)

    def number_or_none(self, field: str) -> float | None:
        return None if self._document.get(field) is None else self.number(field)

    def whole(self, field: str) -> int:
        value = self._document.get(field)
        if type(value) is not int or not 0 <= value < 2**63:
            raise self.fault(field)
        return value

    def flag(self, field: str) -> bool:
        value = self._document.get(field)
        if not isinstance(value, bool):
            raise self.fault(field)
        return value
