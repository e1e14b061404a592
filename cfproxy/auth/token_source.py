"""The access token of one account: cached, refreshed in the background, shared by all requests.

Invariants:
1. A valid token is served without waiting, whatever else is broken.
2. A token that has expired by either clock, or that belongs to another app, is never served.
3. One refresh runs at a time: one shared task in this process, the store's lock between processes.
   A caller that is cancelled does not cancel it.
4. After a failure nothing is tried again before the backoff is over.
5. At most one timer is set; none while only a person can help, and none after `aclose`.
6. Background tasks raise nothing: each caller gets its own copy of the last error.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable, Hashable

from structlog.typing import FilteringBoundLogger

from cfproxy.auth.backoff import Backoff, Holds
from cfproxy.auth.cached_login import CachedLogin
from cfproxy.auth.expiry import expiry_warning
from cfproxy.auth.interfaces import TokenEndpoint, TokenStore
from cfproxy.auth.login_watch import LoginWatch
from cfproxy.auth.models import App, Token, TokenStatus
from cfproxy.auth.refresh import Refresh
from cfproxy.clock import Clock
from cfproxy.errors import (
    CfproxyError,
    LoginRequired,
    Misconfigured,
    ShuttingDown,
    StoreUnavailable,
    StoreUnusable,
    TokenEndpointUnavailable,
)

SAVE_AGAIN_S = 5.0
LAST_SAVE_WAIT_S = 1.0
# Waiting for the lock means waiting for another process' whole refresh, and for a slow disk.
LOCK_SLACK_S = 10.0
# A caller may join a refresh that was started for another reason; the second one is its own.
TRIES = 2


class TokenSource:
    """Gives access tokens for one account, and refreshes them before they expire.

    Args:
        app: the app and its token endpoint.
        store: keeps the login.
        endpoint: issues tokens.
        clock: the wall clock and the monotonic clock.
        log: the account is bound to it here.
        endpoint_timeout_s: longest duration of a token request.
        jitter: returns a factor near 1 for each backoff, so that replicas don't retry in step.
        chance: see `CachedLogin`.
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
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._app = app
        self._clock = clock
        self._log = log.bind(account=app.account)
        self._lock_timeout_s = endpoint_timeout_s + LOCK_SLACK_S
        self._cached = CachedLogin(app, store, clock, self._log, self._on_change, chance)
        self._refresh = Refresh(app, store, self._cached, endpoint, clock, self._log)
        self._watch = LoginWatch(
            self._cached, clock, self._log, lambda: self._refresh.is_locked, self._on_read
        )
        self._backoff = Backoff(jitter)
        self._holds = Holds()
        self._failures: Counter[type[CfproxyError]] = Counter()
        self._save_at = -math.inf  # monotonic instant at which to try to save again
        self._refreshing: asyncio.Task[None] | None = None
        self._timer: asyncio.Task[None] | None = None
        self._closed = False

    # --- for requests ---------------------------------------------------------------------

    def current(self) -> Token | None:
        """Return the token unless a refresh or a look into the store is due.

        Every request comes through here, so it only compares instants that were worked out before.
        """
        cached, now = self._cached, self._clock.monotonic()
        if (
            now < self._watch.due_at
            and now < cached.refresh_at
            and self._clock.time() < cached.refresh_at_wall
        ):
            return cached.token
        return None

    async def get(self) -> Token:
        """Return a token that is valid now; wait only if there is none.

        Raises:
            LoginRequired, Misconfigured, TokenEndpointUnavailable, StoreUnavailable, StoreUnusable,
            ShuttingDown
        """
        if (token := self.current()) is not None:
            return token
        await self._watch.look()
        for tries in range(TRIES + 1):
            if (token := self._cached.usable()) is not None:
                if self._should_refresh() and not self._watch.read_if_changed():
                    self._start_refresh(None)
                return token
            self._raise_if_blocked()
            if tries < TRIES:
                await asyncio.shield(self._refreshing or self._start_refresh(None))
        raise TokenEndpointUnavailable("the token endpoint issues tokens that have already expired")

    async def replace(self, rejected: Token, request: Hashable) -> Token:
        """Return another token than `rejected`, or that one while refreshes don't help. Raises as `get`.

        Args:
            rejected: the token that the API has rejected.
            request: identifies requests that are likely to be rejected for the same reason.
        """
        for tries in range(TRIES + 1):
            token = self._cached.usable()
            if token is not None and token.value != rejected.value:
                return token
            running, issued = self._refreshing, self._refresh.count
            if running is None and not self._may_force(request):
                break
            if tries < TRIES:
                await asyncio.shield(running or self._start_refresh(rejected))
            if self._refresh.count > issued:
                self.distrust(rejected, request)  # has an effect only if the same token was issued again
        return rejected

    def reject(self, rejected: Token, request: Hashable) -> None:
        """Replace `rejected` in the background, for a request that can't be sent again (see `replace`)."""
        if not self._is_current(rejected) or self._refreshing is not None:
            return
        with contextlib.suppress(CfproxyError):
            if self._may_force(request):
                # The request is not repeated, so nobody learns whether the next token helps.
                self._holds.start(request, self._clock.monotonic())
                self._start_refresh(rejected)

    def distrust(self, rejected: Token, request: Hashable) -> None:
        """Hold `request` back if `rejected` is the current token, twice as long each time."""
        if self._is_current(rejected):
            hold_s = self._holds.start(request, self._clock.monotonic())
            if hold_s > 0:
                self._log.warning("token.rejected_fresh", hold_s=hold_s)

    def _is_current(self, token: Token) -> bool:
        return self._cached.token is not None and self._cached.token.value == token.value

    def _may_force(self, request: Hashable) -> bool:
        """Return whether `request` may have the current token replaced; raises what would prevent that."""
        if self._holds.active(request, self._clock.monotonic()):
            return False
        try:
            self._raise_if_blocked()
        except LoginRequired:
            login = self._cached.login
            if self._cached.usable() is not None:
                if login is not None and login.refresh_token is None:
                    return False  # the API's own word is all that is known, and may concern this request only
                # The API rejects it and nothing can renew it: sending it again is useless.
                self._cached.invalidate()
            raise
        return True

    # --- for the service ------------------------------------------------------------------

    async def start(self) -> None:
        """Read the store for the first time; problems show in `state`, nothing is raised."""
        await self.check_store()

    async def aclose(self) -> None:
        """Finish a running refresh and save an unsaved token, so that neither is lost."""
        self._closed = True
        self._watch.close()
        if self._timer is not None:
            self._timer.cancel()
        running = {task for task in (self._timer, self._watch.reading, self._refreshing) if task is not None}
        if running:
            await asyncio.wait(running)
        if self._cached.unsaved:
            with contextlib.suppress(CfproxyError):
                await self._refresh.run(None, lock_timeout_s=LAST_SAVE_WAIT_S, may_request=False)

    def use_endpoint(self, endpoint: TokenEndpoint, endpoint_timeout_s: float) -> None:
        """Refresh at `endpoint` from now on, and at once if the previous one was the obstacle."""
        self._refresh.endpoint = endpoint
        self._lock_timeout_s = endpoint_timeout_s + LOCK_SLACK_S
        if isinstance(self._backoff.error, Misconfigured | TokenEndpointUnavailable):
            self._backoff.resume()
            self._schedule()

    def state(self) -> TokenStatus:
        """Return what is known now."""
        error = self._backoff.error
        if self._cached.usable() is None and error is None:
            error = self._cached.problem()
        warning = expiry_warning(self._cached.login, self._app, self._clock.time())
        return TokenStatus(
            login=self._cached.login,
            usable_s=max(0.0, self._cached.left_s()),
            error=error,
            retry_in_s=self._backoff.left_s(self._clock.monotonic()),
            store_error=self._cached.store_error,
            unsaved=self._cached.unsaved,
            refreshes=self._refresh.count,
            failures=self._failures,
            store_failures=self._cached.failures,
            warning_step=0 if warning is None else warning.step,
        )

    # --- reading the store ----------------------------------------------------------------

    async def check_store(self, *, at_once: bool = False) -> None:
        """Read the store if it has changed (see `LoginWatch.look`)."""
        await self._watch.look(at_once=at_once)

    def _on_read(self, error: CfproxyError | None, answered: bool) -> None:
        if error is not None:
            self._read_failed(error)
        elif answered and isinstance(self._backoff.error, StoreUnavailable | StoreUnusable):
            self._backoff.resume()
        self._schedule()

    def _read_failed(self, error: CfproxyError) -> None:
        # With a record in memory, or with client credentials, the next refresh reports the failure.
        # Otherwise it must not look like a logout.
        needs_it = self._app.grant != "client_credentials"
        lasting = needs_it and (isinstance(error, StoreUnusable) or self._cached.problem() is not None)
        if lasting and self._cached.login is None and self._backoff.left_s(self._clock.monotonic()) == 0:
            self._backoff.stop(error, self._watch.again_at)

    def _on_change(self, another_login: bool) -> None:
        self._backoff.clear()
        # A refresh by another process is no sign that refreshing helps.
        if another_login:
            self._holds.clear()

    # --- refreshing -----------------------------------------------------------------------

    def _raise_if_blocked(self) -> None:
        """Raise the error that a refresh would end in anyway: backoff, no login, shutdown."""
        error = self._backoff.refusal(self._clock.monotonic()) or self._cached.problem()
        if error is not None:
            raise error
        if self._closed:
            raise ShuttingDown("the proxy is shutting down")

    def _should_refresh(self) -> bool:
        """Return whether a refresh is due and may be tried now."""
        may_try = not self._closed and self._backoff.left_s(self._clock.monotonic()) == 0
        return self._refreshing is None and may_try and self._cached.due()

    def _start_refresh(self, rejected: Token | None, *, may_request: bool = True) -> asyncio.Task[None]:
        self._refreshing = asyncio.create_task(self._run_refresh(rejected, may_request=may_request))
        return self._refreshing

    async def _run_refresh(self, rejected: Token | None, *, may_request: bool) -> None:
        failure: CfproxyError | None = None
        # Set before anything can fail, or a store that is gone would be tried in a busy loop.
        self._save_at = self._clock.monotonic() + SAVE_AGAIN_S
        try:
            await self._refresh.run(rejected, lock_timeout_s=self._lock_timeout_s, may_request=may_request)
        except CfproxyError as error:
            failure = error
        except Exception:  # noqa: BLE001 - logged whole; the token in hand does not depend on it
            self._log.exception("token.refresh_crashed")
            failure = TokenEndpointUnavailable("an internal error stopped the refresh; see the log")
        finally:
            self._refreshing = None
        if failure is not None:
            self._failures[type(failure)] += 1
        if may_request:
            self._record_outcome(failure)
        self._schedule()

    def _record_outcome(self, failure: CfproxyError | None) -> None:
        if failure is None:
            self._backoff.clear()
        elif isinstance(failure, LoginRequired):
            self._backoff.stop(failure)
            self._log.error("login.required", reason=failure.message)
        else:
            now = self._clock.monotonic()
            self._backoff.fail(failure, now)
            if isinstance(failure, StoreUnavailable | StoreUnusable) and self._cached.usable() is not None:
                # The refresh can wait until the store works again, but not beyond the token's end.
                self._backoff.retry_by(self._cached.expires_at)
            self._log.warning(
                "token.refresh_failed",
                reason=failure.message,
                attempt=self._backoff.failures,
                retry_in_s=round(self._backoff.left_s(now), 1),
                token_left_s=round(max(0.0, self._cached.left_s())),
            )

    # --- the timer ------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Set the timer to the next refresh, retry or late save, whichever comes first."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._closed:
            return
        now = self._clock.monotonic()
        wake_at = self._save_at if self._cached.unsaved else math.inf
        if self._cached.problem() is None:
            wake_at = min(wake_at, max(now + self._cached.due_in_s(), self._backoff.retry_at))
        if wake_at < math.inf:
            self._timer = asyncio.create_task(self._wake(max(0.0, wake_at - now)))

    async def _wake(self, delay_s: float) -> None:
        await self._clock.sleep(delay_s)
        self._timer = None
        if self._refreshing is not None or self._watch.read_if_changed():
            return  # whichever is running sets the next timer
        may_request = self._should_refresh()
        if may_request or (self._cached.unsaved and self._clock.monotonic() >= self._save_at):
            self._start_refresh(None, may_request=may_request)
        else:
            self._schedule()
