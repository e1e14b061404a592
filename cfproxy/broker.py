"""The refreshing token cache of one account.

Owns: which token is sent now, when it is refreshed and by whom, and what is wrong if it is not.
Must not know: HTTP, files, the configuration's form.

Invariants:
1. One refresh at a time: inside the process by one shared task, between processes by the store's lock.
   The task belongs to the broker; a caller who leaves does not end it.
2. Whatever a refresh is decided on is read from the store after the lock was taken.
3. A refresh token is marked as presented, on disk, before it goes out.
4. A new token is published after it was saved; if saving fails it is published all the same, kept, and
   saved as soon as the store allows, because the server may already have spent its predecessor.
5. A token that is valid is served, whatever else is broken; one that is not is never served.
6. Only `invalid_grant`, checked against the store once more, ends a login, and the record stays.
7. After a failure nobody tries again before the back-off is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from cfproxy.errors import (
    CfproxyError,
    GrantRefused,
    LoginRequired,
    Misconfigured,
    StoreUnavailable,
    StoreUnusable,
    TokenEndpointUnavailable,
)
from cfproxy.ports import Clock, TokenEndpoint, TokenReply, TokenStore
from cfproxy.token import UNKNOWN_LIFETIME_S, App, Login, Token, instant, login_problem

LOOK_EVERY_S = 1.0
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 30.0
# A process that waits for the lock waits for somebody else's whole refresh, and some slow disk.
LOCK_SLACK_S = 10.0
SAVE_AGAIN_S = 5.0
DISTRUST_MAX_S = 60.0


@dataclass(frozen=True, slots=True)
class BrokerState:
    """What there is to know about an account, from memory alone.

    Args:
        login: the newest record, whatever its worth.
        usable_s: seconds for which the present access token will still be sent; 0 for none.
        error: why the last attempt to get a token failed; None after a success.
        retry_in_s: seconds until the next attempt is allowed; 0 for at once.
        store_error: why the store could not be used the last time.
        unsaved: the newest token is in memory only.
        refreshes: how many tokens the endpoint gave us since the start.
    """

    login: Login | None
    usable_s: float
    error: CfproxyError | None
    retry_in_s: float
    store_error: CfproxyError | None
    unsaved: bool
    refreshes: int

    @property
    def ready(self) -> bool:
        """Whether a request that came now could be given a token."""
        return self.usable_s > 0 or self.error is None


class Broker:
    """A `TokenSource` that keeps one account's token fresh.

    Args:
        app: which app, at which token endpoint.
        store: where the login lives.
        endpoint: who gives new tokens.
        clock: both clocks.
        log: where events go.
        endpoint_timeout_s: how long a token request can take at most.
        jitter: returns a factor near 1 for each back-off, so that replicas don't retry in step.
    """

    def __init__(
        self,
        app: App,
        store: TokenStore,
        endpoint: TokenEndpoint,
        clock: Clock,
        log: FilteringBoundLogger,
        *,
        endpoint_timeout_s: float = 30.0,
        jitter: Callable[[], float] = lambda: random.uniform(0.8, 1.2),  # noqa: S311 - no secret hangs on it
    ) -> None:
        self._app = app
        self._store = store
        self._endpoint = endpoint
        self._clock = clock
        self._log = log.bind(account=app.account)
        self._lock_timeout_s = endpoint_timeout_s + LOCK_SLACK_S
        self._jitter = jitter

        self._login: Login | None = None
        self._dead_at = -math.inf  # monotonic instant from which the token is not sent any more
        self._calm_until = -math.inf  # monotonic instant up to which `get` has nothing to think about
        self._unsaved = False
        self._unsaved_over: Login | None = None  # the stored record that our unsaved one replaces
        self._save_at = -math.inf  # when saving it is tried again

        self._error: CfproxyError | None = None
        self._read_error: CfproxyError | None = None
        self._write_error: CfproxyError | None = None
        self._failures = 0
        self._retry_at = -math.inf
        self._forced_at = -math.inf  # a rejected token is not replaced before this instant
        self._forced_step_s = 0.0

        self._stamp: Hashable = object()
        self._look_at = -math.inf
        self._looking: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._alarm: asyncio.Task[None] | None = None
        self._closed = False
        self._refreshes = 0

    # --- for requests ---------------------------------------------------------------------

    async def get(self) -> Token:
        """Return a token that is valid now; waits only when there is none (see `TokenSource.get`)."""
        login = self._login
        if (
            login is not None
            and self._clock.monotonic() < self._calm_until
            and self._clock.time() < login.token.expires_at - login.token.early_s
        ):
            return login.token
        await self._look()
        for _ in range(2):
            if (token := self._usable()) is not None:
                if self._due() and self._may_try():
                    self._renew_soon()
                return token
            self._refuse_if_hopeless()
            await self._renewed(None)
        self._refuse_if_hopeless()
        raise TokenEndpointUnavailable("the token endpoint gives tokens that are already expired")

    async def replace(self, rejected: Token) -> Token:
        """Return another token than `rejected` (see `TokenSource.replace`)."""
        for _ in range(2):
            token = self._usable()
            if token is not None and token.value != rejected.value:
                return token
            if self._clock.monotonic() < self._forced_at:
                return rejected
            try:
                self._refuse_if_hopeless()
                await self._renewed(rejected)
            except LoginRequired:
                # The upstream rejects it and nobody can renew it: sending it again helps no one.
                if self._login is not None and self._login.token.value == rejected.value:
                    self._dead_at = self._calm_until = -math.inf
                raise
        return self._usable() or rejected

    def distrust(self, rejected: Token) -> None:
        """Hold forced refreshes back, twice as long each time (see `TokenSource.distrust`)."""
        if self._login is None or self._login.token.value != rejected.value:
            return
        now = self._clock.monotonic()
        if now > self._forced_at + DISTRUST_MAX_S:
            self._forced_step_s = 0.0
        if now >= self._forced_at:
            self._forced_step_s = min(DISTRUST_MAX_S, max(1.0, 2 * self._forced_step_s))
            self._forced_at = now + self._forced_step_s
            self._log.warning("token.rejected_fresh", hold_s=self._forced_step_s)

    # --- for the service ------------------------------------------------------------------

    async def start(self) -> None:
        """Read the store for the first time; what is wrong shows in `state`, nothing is raised."""
        await self._look()

    async def aclose(self) -> None:
        """Finish what must not be lost: a refresh under way, an unsaved token."""
        self._closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        for task in (self._looking, self._renewing):
            if task is not None:
                await asyncio.wait({task})
        if self._unsaved:
            with contextlib.suppress(CfproxyError):
                async with self._store.lock(self._app.account, LOOK_EVERY_S):
                    self._adopt(await self._load())
                    await self._save_unsaved()

    async def look(self) -> BrokerState:
        """Look at the store if a second has passed since the last look, then return the state."""
        await self._look()
        return self.state()

    def state(self) -> BrokerState:
        """Return what is known now."""
        error = self._error
        if self._usable() is None and error is None:
            error = login_problem(self._login, self._app)
        return BrokerState(
            login=self._login,
            usable_s=max(0.0, self._left_s()),
            error=error,
            retry_in_s=max(0.0, self._retry_at - self._clock.monotonic()),
            store_error=self._write_error or self._read_error,
            unsaved=self._unsaved,
            refreshes=self._refreshes,
        )

    # --- freshness ------------------------------------------------------------------------

    def _left_s(self) -> float:
        """Seconds left by the wall or the monotonic clock, whichever says older (either may have jumped)."""
        if self._login is None:
            return -math.inf
        by_wall = self._login.token.remaining_s(self._clock.time())
        return min(by_wall, self._dead_at - self._clock.monotonic())

    def _usable(self) -> Token | None:
        return self._login.token if self._login is not None and self._left_s() > 0 else None

    def _due(self) -> bool:
        if login_problem(self._login, self._app) is not None:
            return False
        if self._login is None:  # client credentials before the first token
            return True
        # An open mark: some process went away in the middle. Find out now, while the token still serves.
        return self._left_s() <= self._login.token.early_s or self._login.presented_at is not None

    def _may_try(self) -> bool:
        return not self._closed and self._clock.monotonic() >= self._retry_at

    def _refuse_if_hopeless(self) -> None:
        """Raise what would come out anyway: no login, or a back-off that is not over."""
        problem = login_problem(self._login, self._app)
        if self._error is not None and (problem is None or not isinstance(self._error, LoginRequired)):
            wait_s = self._retry_at - self._clock.monotonic()
            if wait_s > 0:
                error = self._error.fresh()
                if isinstance(error, TokenEndpointUnavailable | StoreUnavailable):
                    error.retry_after_s = wait_s
                raise error
        if problem is not None:
            raise problem

    # --- looking at the store -------------------------------------------------------------

    async def _look(self) -> None:
        if self._looking is None:
            now = self._clock.monotonic()
            if now < self._look_at:
                return
            self._look_at = now + LOOK_EVERY_S
            self._set_calm()
            stamp = self._store.stamp(self._app.account)
            if stamp == self._stamp and self._read_error is None:
                return
            if self._renewing is not None:
                return  # it reads the store itself, under the lock
            self._looking = asyncio.create_task(self._read(stamp))
        task = self._looking
        if self._usable() is None:
            await asyncio.shield(task)

    async def _read(self, stamp: Hashable) -> None:
        try:
            stored = await self._load()
        except (StoreUnavailable, StoreUnusable) as error:
            if self._login is None:
                self._error = error
                self._retry_at = self._look_at
        else:
            self._stamp = stamp  # taken before the read: a change in between shows at the next look
            self._adopt(stored)
        finally:
            self._looking = None
            self._schedule()

    def _adopt(self, stored: Login | None) -> None:
        """Take the store's record for ours, unless ours is its unsaved successor."""
        if self._unsaved:
            if stored == self._unsaved_over:
                return
            self._unsaved = False  # somebody logged in or out meanwhile: that is newer than ours
            self._log.warning("token.unsaved_dropped", reason="the store has another login")
        if (
            self._app.grant == "client_credentials"
            and stored is not None
            and not stored.belongs_to(self._app)
        ):
            stored = None  # a new token of our own will take its place
        if stored == self._login:
            return
        before, self._login = self._login, stored
        if stored is None or not stored.belongs_to(self._app):
            # Another app's token goes nowhere, however valid.
            self._dead_at = -math.inf
        elif before is None or stored.token != before.token or stored.login_at != before.login_at:
            self._dead_at = self._clock.monotonic() + stored.token.remaining_s(self._clock.time())
            self._error = None
            self._failures = 0
            self._retry_at = self._forced_at = -math.inf
            self._log.info("login.adopted", serial=stored.serial, expires_at=instant(stored.token.expires_at))
        self._set_calm()

    def _set_calm(self) -> None:
        login = self._login
        self._calm_until = (
            -math.inf if login is None else min(self._look_at, self._dead_at - login.token.early_s)
        )

    # --- refreshing -----------------------------------------------------------------------

    def _renew_soon(self, rejected: Token | None = None) -> asyncio.Task[None]:
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew(rejected))
        return self._renewing

    async def _renewed(self, rejected: Token | None) -> None:
        """Join the one refresh; afterwards either the token is new or this raises why not."""
        await asyncio.shield(self._renew_soon(rejected))
        if self._error is not None and (self._usable() is None or rejected is not None):
            raise self._error.fresh()

    async def _renew(self, rejected: Token | None) -> None:
        try:
            if self._looking is not None:
                await asyncio.wait({self._looking})
            async with self._store.lock(self._app.account, self._lock_timeout_s):
                await self._renew_locked(rejected)
        except CfproxyError as error:
            self._failed(error)
        except Exception:  # noqa: BLE001 - logged whole, and
            # a fault of ours must not be able to end refreshing for good.
            self._log.exception("token.refresh_crashed")
            self._failed(TokenEndpointUnavailable("an internal fault stopped the refresh; see the log"))
        else:
            self._error = None
            self._failures = 0
            self._retry_at = -math.inf
        finally:
            self._renewing = None
            self._set_calm()
            self._schedule()

    async def _renew_locked(self, rejected: Token | None) -> None:
        self._adopt(await self._load())
        await self._save_unsaved()
        token = self._usable()
        # Somebody else refreshed: while we waited for the lock, or before the upstream rejected ours.
        if token is not None and not self._due() and (rejected is None or token.value != rejected.value):
            return
        problem = login_problem(self._login, self._app)
        if problem is not None:
            raise problem
        if self._app.grant == "client_credentials":
            asked_at = self._clock.time()
            await self._publish(self._next_login(await self._endpoint.client_credentials(), asked_at))
        else:
            await self._spend_refresh_token()

    async def _spend_refresh_token(self) -> None:
        before = self._login
        assert before is not None  # noqa: S101 - login_problem has said so
        refresh_token = before.refresh_token
        assert refresh_token is not None  # noqa: S101 - likewise
        asked_at = self._clock.time()
        # An open mark keeps its time: it tells since when the outcome is unknown.
        await self._mark(before.next(presented_at=before.presented_at or asked_at))
        try:
            reply = await self._endpoint.refresh(refresh_token)
        except (TokenEndpointUnavailable, Misconfigured) as error:
            unspent = isinstance(error, Misconfigured) or not error.sent
            # An older open mark stays: this attempt says nothing about that one.
            if unspent and before.presented_at is None:
                await self._unmark()
            raise
        except GrantRefused:
            await self._refused(before)
            return
        await self._publish(self._next_login(reply, asked_at))

    async def _mark(self, marked: Login) -> None:
        """Save that the refresh token is about to go out.

        Raises:
            StoreUnavailable, StoreUnusable: it can't be saved, and the token in hand is still valid, so
                the refresh can wait: what could not be marked could probably not be saved either.
        """
        try:
            await self._save(marked)
        except (StoreUnavailable, StoreUnusable):
            if self._usable() is not None:
                raise
            # Nothing valid is left: serving callers from memory comes before the mark.
            self._log.error("token.refresh_unmarked", reason="the store cannot be written")
        else:
            self._login = marked

    async def _unmark(self) -> None:
        if self._login is not None and self._login.presented_at is not None:
            clean = self._login.next(presented_at=None)
            with contextlib.suppress(StoreUnavailable, StoreUnusable):
                await self._save(clean)
                self._login = clean

    async def _refused(self, before: Login) -> None:
        """Handle `invalid_grant`: believe it only if the store still has what we presented.

        Raises:
            LoginRequired
        """
        stored = await self._load()
        if stored is not None and stored.refresh_token != before.refresh_token and not self._unsaved:
            self._log.info("token.sibling_won", serial=stored.serial)
            self._adopt(stored)
            if self._usable() is None:
                raise TokenEndpointUnavailable("another process refreshed this login meanwhile; trying again")
            return
        assert self._login is not None  # noqa: S101 - it was presented a moment ago
        refused = self._login.next(
            refused_at=self._clock.time(),
            presented_at=before.presented_at,
            answer_lost=before.presented_at is not None,
        )
        await self._save_or_keep(refused)
        self._login = refused
        problem = login_problem(refused, self._app)
        assert problem is not None  # noqa: S101 - refused_at is set
        raise problem

    def _next_login(self, reply: TokenReply, asked_at: float) -> Login:
        token = Token(reply.access_token, asked_at, reply.lifetime_s or UNKNOWN_LIFETIME_S)
        if self._login is None:
            return Login(
                account=self._app.account,
                client_id=self._app.client_id,
                token_url=self._app.token_url,
                scope=reply.scope or self._app.scope,
                token=token,
                refresh_token=None,
                serial=1,
                login_at=asked_at,
            )
        return self._login.next(
            client_id=self._app.client_id,
            token_url=self._app.token_url,
            token=token,
            # RFC 6749 §6: no new one means that the old one stays good.
            refresh_token=reply.refresh_token or self._login.refresh_token,
            scope=reply.scope or self._login.scope,
            presented_at=None,
            refused_at=None,
            answer_lost=False,
        )

    async def _publish(self, login: Login) -> None:
        await self._save_or_keep(login)
        self._login = login
        self._dead_at = self._clock.monotonic() + login.token.remaining_s(self._clock.time())
        self._refreshes += 1
        self._log.info("token.refreshed", serial=login.serial, expires_at=instant(login.token.expires_at))
        if self._usable() is None:
            raise TokenEndpointUnavailable("the token endpoint gave a token that had expired when it arrived")

    # --- saving ---------------------------------------------------------------------------

    async def _load(self) -> Login | None:
        stamp = self._store.stamp(self._app.account)
        try:
            stored = await self._store.load(self._app.account)
        except (StoreUnavailable, StoreUnusable) as error:
            self._read_error = self._store_failed(error, self._read_error)
            raise
        self._stamp = stamp
        if self._error is not None and self._error is self._read_error:
            self._error = None
        self._read_error = None
        return stored

    async def _save(self, login: Login) -> None:
        try:
            await self._store.save(login)
        except (StoreUnavailable, StoreUnusable) as error:
            self._write_error = self._store_failed(error, self._write_error)
            raise
        self._stamp = self._store.stamp(self._app.account)
        self._unsaved = False
        if self._write_error is not None:
            self._write_error = None
            self._log.info("store.recovered", serial=login.serial)

    async def _save_or_keep(self, login: Login) -> None:
        """Save; if that fails remember which stored record ours replaces, and try again soon."""
        try:
            await self._save(login)
        except (StoreUnavailable, StoreUnusable):
            if not self._unsaved:
                self._unsaved = True
                self._unsaved_over = self._login
            self._save_at = self._clock.monotonic() + SAVE_AGAIN_S

    async def _save_unsaved(self) -> None:
        """Save what could not be saved before. The caller holds the lock and has adopted the stored record."""
        if self._unsaved and self._login is not None:
            await self._save_or_keep(self._login)

    def _store_failed(self, error: CfproxyError, before: CfproxyError | None) -> CfproxyError:
        if before is None or before.message != error.message:
            self._log.error("store.failed", reason=error.message)
        return error

    # --- failures and alarms --------------------------------------------------------------

    def _failed(self, error: CfproxyError) -> None:
        self._error = error
        if isinstance(error, LoginRequired):
            self._log.error("login.required", reason=error.message)
            return
        step_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(self._failures, 10)) * self._jitter()
        asked_s = error.retry_after_s if isinstance(error, TokenEndpointUnavailable) else 0.0
        self._failures += 1
        self._retry_at = self._clock.monotonic() + max(step_s, asked_s)
        if isinstance(error, StoreUnavailable | StoreUnusable) and self._usable() is not None:
            # It waits for a better moment to be saved, but not beyond the life of the token in hand.
            self._retry_at = min(self._retry_at, self._dead_at)
        self._log.warning(
            "token.refresh_failed",
            reason=error.message,
            attempt=self._failures,
            retry_in_s=round(max(step_s, asked_s), 1),
            token_left_s=round(max(0.0, self._left_s())),
        )

    def _schedule(self) -> None:
        """Set the one alarm: the next refresh, retry or late save. None while logged out."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._closed:
            return
        now = self._clock.monotonic()
        due_at = self._save_at if self._unsaved else math.inf
        if login_problem(self._login, self._app) is None:
            wanted_at = now
            if self._login is not None and self._login.presented_at is None:
                wanted_at += self._left_s() - self._login.token.early_s
            due_at = min(due_at, max(wanted_at, self._retry_at))
        if due_at < math.inf:
            self._alarm = asyncio.create_task(self._wake(max(0.0, due_at - now)))

    async def _wake(self, delay_s: float) -> None:
        await self._clock.sleep(delay_s)
        self._alarm = None
        save_now = self._unsaved and self._clock.monotonic() >= self._save_at
        if save_now or (self._due() and self._may_try()):
            self._renew_soon()
        elif self._renewing is None:
            self._schedule()
