"""What the token source needs from outside: a token endpoint and a store."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from cfproxy.auth.models import Attempt, Login, TokenReply
from cfproxy.secret import Secret


class TokenEndpoint(Protocol):
    """The authorization server's token and revocation endpoints, for one app."""

    async def refresh(self, refresh_token: Secret, may_send: Callable[[], bool] | None = None) -> TokenReply:
        """Send `refresh_token` and return its successor (RFC 6749 §6).

        Args:
            refresh_token: what to send.
            may_send: called once, after connecting and before the first byte; None means always.

        Raises:
            GrantRefused: `invalid_grant` and the like; or `invalid_request`, which is about the refresh token
                only if the same request worked before.
            Misconfigured: the app's settings are refused.
            TokenEndpointUnavailable: anything else, including a `may_send` that returns False.
        """

    async def client_credentials(self) -> TokenReply:
        """Request a token in the app's own name (RFC 6749 §4.4). Raises as `refresh`."""

    async def exchange(self, code: Secret, redirect_uri: str, verifier: Secret | None) -> TokenReply:
        """Exchange an authorization code (RFC 6749 §4.1.3, RFC 7636 §4.5). Raises as `refresh`."""

    async def revoke(self, token: Secret, kind: str) -> bool:
        """Revoke a token (RFC 7009); return False if the server can't.

        Args:
            token: what to revoke.
            kind: `refresh_token` or `access_token`.

        Raises:
            TokenEndpointUnavailable
        """


class Lease:
    """A lock that was acquired. This base class never loses it before it is released."""

    def is_held(self) -> bool:
        """Return whether it certainly still excludes everyone else; uses no network."""
        return True


class TokenStore(Protocol):
    """Keeps one login per account, and login attempts.

    Methods raise `StoreUnavailable` (may pass) or `StoreUnusable` (will not), and nothing else of their own.
    """

    @property
    def shared(self) -> bool:
        """Whether other machines use it too.

        A free lock then does not prove that its last holder is gone: that machine may only be suspended.
        """

    @property
    def location(self) -> str:
        """Where the logins are, for messages; without credentials."""

    def lock(self, account: str, timeout_s: float) -> AbstractAsyncContextManager[Lease]:
        """Exclude everyone else who refreshes this account; `load` stays possible.

        Raises:
            StoreUnavailable: also if the lock is not free within `timeout_s`.
        """

    async def load(self, account: str) -> Login | None:
        """Return the login, None if there is none."""

    async def save(self, login: Login) -> None:
        """Replace the login of `login.account`; it survives a power cut once this returns.

        A stored record that cannot be read is left alone and raises `StoreUnusable`.
        """

    async def delete(self, account: str) -> bool:
        """Forget the login and the attempts; return False if there was no login."""

    def stamp(self, account: str) -> Hashable:
        """Return a value that differs after anyone has changed the login.

        It costs two stats at most, uses no network and never raises: it is called many times a second.
        """

    async def confirm(self, account: str) -> None:
        """Make sure that `stamp` knows of every change; a `shared` store asks its server."""

    async def probe(self, account: str) -> None:
        """Try whether a login could be saved now, leaving nothing behind."""

    async def save_attempt(self, attempt: Attempt) -> None:
        """Keep an attempt for `ATTEMPT_LIFETIME_S`; one that was claimed becomes unused again."""

    async def claim_attempt(self, account: str, state: str | None, now: float) -> Attempt:
        """Return an attempt and mark it used, so that nobody else gets it.

        Args:
            account: whose attempt.
            state: identifies the attempt; None claims the newest one.
            now: wall clock, seconds.

        Raises:
            AttemptGone
        """

    async def aclose(self) -> None:
        """Close connections. The store is not used afterwards."""
