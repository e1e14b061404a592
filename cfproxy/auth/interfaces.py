"""What the engine asks of the world, as protocols.

Owns: the shapes; adapters and fakes implement them.
Must not know: any implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from cfproxy.auth.models import Login
from cfproxy.secret import Secret


@dataclass(frozen=True, slots=True)
class TokenReply:
    """A successful answer of the token endpoint (RFC 6749 §5.1).

    Args:
        access_token: never empty.
        lifetime_s: `expires_in`; None when absent.
        refresh_token: None when absent: the old one stays good (RFC 6749 §6).
        scope: None when absent: as asked for.
    """

    access_token: Secret
    lifetime_s: float | None
    refresh_token: Secret | None
    scope: str | None


class TokenEndpoint(Protocol):
    """The authorization server's token and revocation endpoints, for one app."""

    async def refresh(self, refresh_token: Secret, may_send: Callable[[], bool] | None = None) -> TokenReply:
        """Spend `refresh_token` (RFC 6749 §6).

        Args:
            refresh_token: what to spend.
            may_send: asked once, when the connection stands and nothing was written yet; None: yes.

        Raises:
            GrantRefused: `invalid_grant`.
            Misconfigured: the app's settings are refused.
            TokenEndpointUnavailable: anything else, a refusal of `may_send` included.
        """

    async def client_credentials(self) -> TokenReply:
        """Ask for a token in the app's own name (RFC 6749 §4.4). Raises as `refresh`."""

    async def exchange(self, code: Secret, redirect_uri: str, verifier: Secret | None) -> TokenReply:
        """Spend an authorization code (RFC 6749 §4.1.3, RFC 7636 §4.5). Raises as `refresh`."""

    async def revoke(self, token: Secret, kind: str) -> bool:
        """Revoke (RFC 7009); `kind` is `refresh_token` or `access_token`. False: the server can't.

        Raises:
            TokenEndpointUnavailable
        """


@dataclass(frozen=True, slots=True)
class Attempt:
    """A login that was begun: what must be known when the browser comes back.

    Args:
        account: whose login.
        state: the value that binds the redirect to this attempt (RFC 6749 §10.12).
        verifier: PKCE's code verifier (RFC 7636 §4.1), None with `pkce: false`.
        redirect_uri: as sent to the authorize endpoint; the token endpoint compares it.
        client_id: the app that asked.
        created_at: wall-clock instant.
    """

    account: str
    state: Secret
    verifier: Secret | None
    redirect_uri: str
    client_id: str
    created_at: float


ATTEMPT_LIFETIME_S = 1800.0


class AttemptGone(Exception):
    """The attempt asked for cannot be taken; `reason` is `unknown`, `used` or `expired`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Lease:
    """A lock that is held; this one for as long as its holder lives."""

    def held(self) -> bool:
        """Return whether it still excludes everybody else for certain; asks no network."""
        return True


class TokenStore(Protocol):
    """One record an account, and the login attempts under way.

    Every method raises `StoreUnavailable` or `StoreUnusable` and nothing else of its own.
    """

    @property
    def shared(self) -> bool:
        """Whether other machines use it too.

        Then a lock that is free does not prove that its last holder is gone: it may have stood still.
        """

    @property
    def location(self) -> str:
        """Where the records are, for people; without credentials."""

    def lock(self, account: str, timeout_s: float) -> AbstractAsyncContextManager[Lease]:
        """Exclude everybody else who refreshes this account, on this machine at least.

        Waits `timeout_s` at most, then raises `StoreUnavailable`. Does not exclude `load`.
        """

    async def load(self, account: str) -> Login | None:
        """Return the newest record, or None when there is none."""

    async def save(self, login: Login) -> None:
        """Replace `login.account`'s record; when this returns, the record survives a power cut."""

    async def delete(self, account: str) -> bool:
        """Forget the record and the account's attempts; False when there was no record."""

    def stamp(self, account: str) -> Hashable:
        """Return a value that differs after the record was changed by anybody.

        Cheap (no network, at most a stat), never raises: it is asked once a second under load.
        """

    async def probe(self, account: str) -> None:
        """Try whether a record could be saved now, leaving nothing behind."""

    async def put_attempt(self, attempt: Attempt) -> None:
        """Remember an attempt for `ATTEMPT_LIFETIME_S`; one that was taken can be put back."""

    async def take_attempt(self, account: str, state: str | None, now: float) -> Attempt:
        """Return an attempt and mark it used, so that nobody takes it again.

        Args:
            account: whose attempt.
            state: the one to take; None takes the newest.
            now: wall clock, seconds.

        Raises:
            AttemptGone
        """

    async def aclose(self) -> None:
        """Let go of connections; nothing is asked of the store afterwards."""
