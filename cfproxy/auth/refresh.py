"""One refresh: locks the login, reads the store, calls the token endpoint, saves the new token.

Invariants:
1. Every decision is based on the store's content after the lock was acquired. Client credentials use
   nothing up, so they are requested even if the store can't be reached.
2. A refresh token is marked as presented in the store before it is sent.
3. A new token is used after it was saved. If saving fails it is used all the same and saved later, because
   the server may already have invalidated its predecessor.
4. Only an explicit refusal of the refresh token, checked against the store once more, ends a login, and the
   record stays.
"""

from __future__ import annotations

from dataclasses import replace

from structlog.typing import FilteringBoundLogger

from cfproxy.auth.cached_login import CachedLogin
from cfproxy.auth.interfaces import Lease, TokenEndpoint, TokenStore
from cfproxy.auth.models import App, Login, Token, TokenReply, instant, new_login
from cfproxy.clock import Clock
from cfproxy.errors import (
    CfproxyError,
    GrantRefused,
    Misconfigured,
    StoreUnavailable,
    StoreUnusable,
    TokenEndpointUnavailable,
)
from cfproxy.secret import Secret


class Refresh:
    """Refreshes the token of one account's login.

    Args:
        app: the app.
        store: where the login is locked.
        cached_login: the login.
        endpoint: used from the next refresh on.
        clock: the wall clock and the monotonic clock.
        log: the account is bound to it.
    """

    def __init__(
        self,
        app: App,
        store: TokenStore,
        cached_login: CachedLogin,
        endpoint: TokenEndpoint,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._app = app
        self._store = store
        self._cached = cached_login
        self.endpoint = endpoint
        self._clock = clock
        self._log = log
        self.count = 0  # tokens received from the endpoint
        self.is_locked = False  # whether this process holds the lock

    async def run(self, rejected: Token | None, *, lock_timeout_s: float, may_request: bool) -> None:
        """Lock the login and get a usable token.

        Args:
            rejected: a token that the API rejected and that must be replaced.
            lock_timeout_s: seconds to wait while another process holds the lock.
            may_request: whether to call the endpoint; if not, only an unsaved login is saved.

        Raises:
            LoginRequired, Misconfigured, TokenEndpointUnavailable, StoreUnavailable, StoreUnusable
        """
        try:
            async with self._store.lock(self._app.account, lock_timeout_s) as lease:
                self.is_locked = True
                await self._run_locked(rejected, lease, may_request=may_request)
        except (StoreUnavailable, StoreUnusable) as error:
            if not may_request or self._app.grant != "client_credentials":
                raise
            await self._request_client_credentials(error)
        finally:
            self.is_locked = False

    async def _run_locked(self, rejected: Token | None, lease: Lease, *, may_request: bool) -> None:
        await self._cached.load()
        await self._cached.save_unsaved()
        if not may_request:
            return
        # Another process may have refreshed while this one waited for the lock, or before the rejection.
        if self._has_token_other_than(rejected) and not self._cached.due():
            return
        if (problem := self._cached.problem()) is not None:
            raise problem
        if self._app.grant == "client_credentials":
            await self._request_client_credentials()
        elif (login := self._cached.login) is not None and login.refresh_token is not None:
            await self._send_refresh_token(login, login.refresh_token, rejected, lease)

    async def _request_client_credentials(self, unlocked: CfproxyError | None = None) -> None:
        """Get a token in the app's own name, which needs no stored login.

        Args:
            unlocked: why the store can't be locked or read, if it can't.

        Raises:
            Misconfigured, TokenEndpointUnavailable
        """
        requested_at, requested_mono = self._clock.time(), self._clock.monotonic()
        try:
            reply = await self.endpoint.client_credentials()
        except GrantRefused as error:
            raise Misconfigured(
                f"the token endpoint refused this app's client credentials ({error.code}); "
                "check the app's grant and its user in Creative Force"
            ) from error
        await self._publish(reply, requested_at, requested_mono, unlocked)

    def _has_token_other_than(self, rejected: Token | None) -> bool:
        """Return whether there is a usable token other than `rejected`."""
        token = self._cached.usable()
        return token is not None and (rejected is None or token.value != rejected.value)

    async def _send_refresh_token(
        self, before: Login, refresh_token: Secret, rejected: Token | None, lease: Lease
    ) -> None:
        requested_at, requested_mono = self._clock.time(), self._clock.monotonic()
        # A pending refresh keeps its time, since when the outcome has been unknown.
        before = replace(before, presented_at=self._cached.pending_refresh)
        marked = before.next(presented_at=before.presented_at or requested_at)
        await self._mark(marked, rejected)
        try:
            reply = await self.endpoint.refresh(refresh_token, lease.is_held)
        except (TokenEndpointUnavailable, Misconfigured) as error:
            if isinstance(error, Misconfigured) or not error.sent or error.answered:
                await self._unmark(marked, before, lease)
            raise
        except GrantRefused as error:
            if error.code == "invalid_request" and not before.refreshed:
                # Nobody knows whether it is the refresh token or the request, which has never worked.
                await self._unmark(marked, before, lease)
                raise Misconfigured(error.message) from None
            self._log.warning("login.refused", reason=error.message)
            await self._check_refusal(before)
            return
        if reply.access_token is None:
            # The predecessor is used up. Ask again with this one, after the backoff.
            await self._cached.keep(marked.next(refresh_token=reply.refresh_token, presented_at=None))
        await self._publish(reply, requested_at, requested_mono)

    async def _mark(self, marked: Login, rejected: Token | None) -> None:
        """Save that the refresh token is about to be sent.

        Raises:
            StoreUnavailable, StoreUnusable: it can't be saved, and either the current token is still valid,
                so the refresh can wait until saving works; or other machines use the store, and without
                the mark one of them could send the same refresh token.
        """
        if not self._cached.shared and not self._has_token_other_than(rejected):
            # There is no valid token: serving callers is more important than the mark.
            await self._cached.keep(marked)
            if self._cached.unsaved:
                self._log.error("token.refresh_unmarked", reason="the store cannot be written")
            return
        try:
            await self._cached.save(marked)
        except (StoreUnavailable, StoreUnusable):
            # It may have been saved all the same: on too few replicas, or the response was lost.
            if self._cached.pending_refresh is None:
                self._cached.discard_mark(marked)
            raise

    async def _unmark(self, marked: Login, before: Login, lease: Lease) -> None:
        """Clear the mark of an attempt that used nothing up."""
        if before.presented_at is not None:
            return  # This attempt says nothing about an earlier one whose outcome is unknown.
        if lease.is_held() and self._cached.login is not None:
            await self._cached.keep(self._cached.login.next(presented_at=None))
        else:
            # The next holder of the lock has a mark of its own, with another serial: that one stays.
            self._cached.discard_mark(marked)

    async def _check_refusal(self, before: Login) -> None:
        """Handle a refusal: accept it only if the store still has the refresh token that was sent.

        Raises:
            LoginRequired, TokenEndpointUnavailable, StoreUnavailable, StoreUnusable
        """
        await self._cached.load()
        login = self._cached.login
        if login is None or login.refresh_token != before.refresh_token:
            if self._cached.usable() is not None:
                self._log.info("token.sibling_won")
                return
            raise self._cached.problem() or TokenEndpointUnavailable(
                "another process refreshed this login meanwhile; trying again"
            )
        await self._cached.keep(
            login.next(
                refused_at=self._clock.time(),
                presented_at=before.presented_at,
                answer_lost=before.presented_at is not None,
            )
        )
        if (problem := self._cached.problem()) is not None:
            raise problem

    async def _publish(
        self,
        reply: TokenReply,
        requested_at: float,
        requested_mono: float,
        unlocked: CfproxyError | None = None,
    ) -> None:
        token = reply.token(requested_at)
        before = self._cached.login
        if before is None:
            login = new_login(self._app, reply, requested_at)
        else:
            login = before.next(
                token=token,
                # RFC 6749 §6: without a new one the old one stays valid.
                refresh_token=reply.refresh_token or before.refresh_token,
                scope=reply.scope or before.scope,
                presented_at=None,
                refused_at=None,
                answer_lost=False,
            )
        self.count += 1
        expires_at = requested_mono + token.lifetime_s
        if unlocked is None:
            await self._cached.keep(login, expires_at=expires_at)
        else:
            self._cached.keep_unlocked(login, expires_at, unlocked)
        self._log.info("token.refreshed", serial=login.serial, expires_at=instant(login.token.expires_at))
        if self._cached.usable() is None:
            raise TokenEndpointUnavailable(
                "the token endpoint issued a token that had expired when it arrived"
            )
