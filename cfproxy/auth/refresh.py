"""One refresh, from the lock held to the new token published.

Owns: what is asked of the token endpoint, what is written before and after, what an answer means.
Must not know: when to refresh, who waits, how long to wait after a failure.

Invariants:
1. Whatever a refresh is decided on is read from the store after the lock was taken. Client credentials
   have nothing to spend: they are asked for without the store, too, where it is out of reach.
2. A refresh token is marked as presented, on disk, before it goes out.
3. A new token is published after it was saved; if saving fails it is published all the same and kept,
   because the server may already have spent its predecessor.
4. Only `invalid_grant`, checked against the store once more, ends a login, and the record stays.
"""

from __future__ import annotations

from dataclasses import replace

from structlog.typing import FilteringBoundLogger

from cfproxy.auth.cached_login import CachedLogin
from cfproxy.auth.interfaces import Lease, TokenEndpoint, TokenReply
from cfproxy.auth.models import UNKNOWN_LIFETIME_S, App, Login, Token, instant
from cfproxy.clock import Clock
from cfproxy.errors import (
    GrantRefused,
    Misconfigured,
    StoreUnavailable,
    StoreUnusable,
    TokenEndpointUnavailable,
)


class Refresh:
    """Renews the token of one account's ledger.

    Args:
        app: which app.
        ledger: its record.
        endpoint: who gives new tokens.
        clock: both clocks.
        log: where events go, the account bound to it.
    """

    def __init__(
        self,
        app: App,
        cached_login: CachedLogin,
        endpoint: TokenEndpoint,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._app = app
        self._cached = cached_login
        self.endpoint = endpoint  # who is asked by the next refresh
        self._clock = clock
        self._log = log
        self.count = 0  # how many tokens the endpoint gave us

    async def run(self, rejected: Token | None, lease: Lease, *, ask: bool) -> None:
        """Make the ledger's token a good one. The caller holds the ledger's lock.

        Args:
            rejected: a token that the upstream rejected; another one is wanted.
            lease: that lock.
            ask: whether the endpoint may be asked; if not, only what is unsaved is saved.

        Raises:
            LoginRequired, Misconfigured, TokenEndpointUnavailable, StoreUnavailable, StoreUnusable
        """
        cached_login = self._cached
        await cached_login.load()
        await cached_login.save_unsaved()
        if not ask:
            return
        token = cached_login.usable()
        # Somebody else refreshed: while we waited for the lock, or before the upstream rejected ours.
        if (
            token is not None
            and not cached_login.due()
            and (rejected is None or token.value != rejected.value)
        ):
            return
        if (problem := cached_login.problem()) is not None:
            raise problem
        if self._app.grant == "client_credentials":
            await self._ask_for_credentials()
        elif cached_login.login is not None and cached_login.login.refresh_token is not None:
            await self._spend_refresh_token(cached_login.login, rejected, lease)

    async def run_unlocked(self, error: StoreUnavailable) -> None:
        """Get a token although the store can't be locked or read, where that spends nothing.

        Args:
            error: why it can't.

        Raises:
            Misconfigured, TokenEndpointUnavailable
            StoreUnavailable: `error`, with a login that has a refresh token.
        """
        if self._app.grant != "client_credentials":
            raise error
        await self._ask_for_credentials(error)

    async def _ask_for_credentials(self, unlocked: StoreUnavailable | None = None) -> None:
        asked_at, asked_mono = self._clock.time(), self._clock.monotonic()
        try:
            reply = await self.endpoint.client_credentials()
        except GrantRefused as error:
            raise Misconfigured(
                "the token endpoint refused this app's client credentials (invalid_grant); "
                "check the app's grant and its user in Creative Force"
            ) from error
        await self._publish(reply, asked_at, asked_mono, unlocked)

    async def _spend_refresh_token(self, before: Login, rejected: Token | None, lease: Lease) -> None:
        refresh_token = before.refresh_token
        assert refresh_token is not None  # noqa: S101 - for the type checker: `run` has seen to it
        asked_at, asked_mono = self._clock.time(), self._clock.monotonic()
        # An open mark keeps its time: it tells since when the outcome is unknown.
        before = replace(before, presented_at=self._cached.open_mark(before))
        marked = before.next(presented_at=before.presented_at or asked_at)
        await self._mark(marked, rejected)
        try:
            reply = await self.endpoint.refresh(refresh_token, lease.held)
        except (TokenEndpointUnavailable, Misconfigured) as error:
            settled = isinstance(error, Misconfigured) or not error.sent or error.answered
            # An older open mark stays: this attempt says nothing about that one.
            if settled and before.presented_at is None:
                await self._settle(marked, lease)
            raise
        except GrantRefused:
            await self._refused(before)
            return
        await self._publish(reply, asked_at, asked_mono)

    async def _settle(self, marked: Login, lease: Lease) -> None:
        """Close the mark of an attempt that spent nothing."""
        if lease.held() and self._cached.login is not None:
            await self._cached.keep(self._cached.login.next(presented_at=None))
        else:
            # Whoever took our place meanwhile has made a mark of its own, with another serial: that stays.
            self._cached.void(marked)

    async def _mark(self, marked: Login, rejected: Token | None) -> None:
        """Save that the refresh token is about to go out.

        Raises:
            StoreUnavailable, StoreUnusable: it can't be saved, and the token in hand is still valid, so
                the refresh can wait: what could not be marked could probably not be saved either. Or
                other machines use the store.
        """
        token = self._cached.usable()
        # A mark that can't be saved in a shared store can't keep another machine from spending it, too.
        if self._cached.shared or (token is not None and (rejected is None or token.value != rejected.value)):
            try:
                await self._cached.save(marked)
            except (StoreUnavailable, StoreUnusable):
                # It may have been saved all the same: on too few replicas, or its answer was lost.
                if self._cached.login is None or self._cached.open_mark(self._cached.login) is None:
                    self._cached.void(marked)
                raise
            return
        # Nothing is left that the upstream takes: serving callers from memory comes before the mark.
        await self._cached.keep(marked)
        if self._cached.unsaved:
            self._log.error("token.refresh_unmarked", reason="the store cannot be written")

    async def _refused(self, before: Login) -> None:
        """Handle `invalid_grant`: believe it only if the store still has what we presented.

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
        asked_at: float,
        asked_mono: float,
        unlocked: StoreUnavailable | None = None,
    ) -> None:
        lifetime_s = UNKNOWN_LIFETIME_S if reply.lifetime_s is None else reply.lifetime_s
        login = self._next_login(reply, Token(reply.access_token, asked_at, lifetime_s))
        self.count += 1
        dead_at = asked_mono + lifetime_s
        if unlocked is None:
            await self._cached.keep(login, dead_at=dead_at)
        else:
            self._cached.keep_unlocked(login, dead_at, unlocked)
        self._log.info("token.refreshed", serial=login.serial, expires_at=instant(login.token.expires_at))
        if self._cached.usable() is None:
            raise TokenEndpointUnavailable("the token endpoint gave a token that had expired when it arrived")

    def _next_login(self, reply: TokenReply, token: Token) -> Login:
        login = self._cached.login
        if login is None:
            return Login(
                account=self._app.account,
                client_id=self._app.client_id,
                token_url=self._app.token_url,
                upstream=self._app.upstream,
                scope=reply.scope or self._app.scope,
                token=token,
                refresh_token=None,
                serial=1,
                login_at=token.obtained_at,
            )
        return login.next(
            token=token,
            # RFC 6749 §6: no new one means that the old one stays good.
            refresh_token=reply.refresh_token or login.refresh_token,
            scope=reply.scope or login.scope,
            presented_at=None,
            refused_at=None,
            answer_lost=False,
        )
