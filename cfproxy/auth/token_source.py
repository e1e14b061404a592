"""The refreshing token cache of one account.

Owns: which token a request gets, and whether it has to wait for it.
Must not know: HTTP, files, the configuration's form; when a refresh is tried (`refresher.py`), how it
goes (`renewal.py`) and what the store holds (`cached_login.py`).

Invariants:
1. A token that is valid is served, whatever else is broken, and without waiting.
2. A token that is not valid by either clock is never served, nor is another app's.
3. Whoever waits, waits for the one refresh that everybody shares.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from structlog.typing import FilteringBoundLogger

from cfproxy.auth.backoff import Backoff
from cfproxy.auth.cached_login import CachedLogin
from cfproxy.auth.expiry import expiry_warning
from cfproxy.auth.interfaces import TokenEndpoint, TokenStore
from cfproxy.auth.models import App, Login, Token
from cfproxy.auth.refresh import Refresh
from cfproxy.auth.refresh_loop import Refresher
from cfproxy.clock import Clock
from cfproxy.errors import CfproxyError, LoginRequired, TokenEndpointUnavailable

# A process that waits for the lock waits for somebody else's whole refresh, and some slow disk.
LOCK_SLACK_S = 10.0
# A refresh that a caller joins may have begun for another reason; the second one is the caller's own.
TRIES = 2


@dataclass(frozen=True, slots=True)
class TokenStatus:
    """What there is to know about an account, from memory alone.

    Args:
        login: the newest record, whatever its worth.
        usable_s: seconds for which the present access token will still be sent; 0 for none.
        error: why the last attempt to get a token failed; None after a success.
        retry_in_s: seconds until the next attempt is allowed; 0 for at once.
        store_error: why the store could not be used the last time.
        unsaved: the newest record is in memory only.
        refreshes: how many tokens the endpoint gave us since the start.
        failures: how many attempts gave none, by what kept them from it.
        store_failures: how many reads and writes of the store failed.
        warning_step: how near the login's end is (see `expiry.py`); 0 for far.
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
        """Whether a request that came now could be given a token."""
        return self.usable_s > 0 or self.error is None


class TokenSource:
    """A `TokenSource` that keeps one account's token fresh.

    Args:
        app: which app, at which token endpoint.
        store: where the login lives.
        endpoint: who gives new tokens.
        clock: both clocks.
        log: where events go.
        endpoint_timeout_s: how long a token request can take at most.
        jitter: returns a factor near 1 for each back-off, so that replicas don't retry in step.
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
        log = log.bind(account=app.account)
        self._app = app
        self._clock = clock
        self._cached = CachedLogin(app, store, clock, log, chance)
        self._renewal = Refresh(app, self._cached, endpoint, clock, log)
        self._refresher = Refresher(
            self._cached,
            self._renewal,
            clock,
            log,
            backoff=Backoff(jitter),
            lock_timeout_s=endpoint_timeout_s + LOCK_SLACK_S,
        )

    # --- for requests ---------------------------------------------------------------------

    def current(self) -> Token | None:
        """Return the token if it is fresh and the store need not be looked at (see `TokenSource.current`)."""
        return self._cached.fresh() if self._clock.monotonic() < self._refresher.look_at else None

    async def get(self) -> Token:
        """Return a token that is valid now; waits only when there is none (see `TokenSource.get`)."""
        if (token := self.current()) is not None:
            return token
        await self._refresher.look()
        for tries in range(TRIES + 1):
            if (token := self._cached.usable()) is not None:
                self._refresher.renew_if_due()
                return token
            self._refresher.refuse_if_hopeless()
            if tries < TRIES:
                await self._refresher.renew(None)
        raise TokenEndpointUnavailable("the token endpoint gives tokens that are already expired")

    async def replace(self, rejected: Token) -> Token:
        """Return another token than `rejected` (see `TokenSource.replace`)."""
        for tries in range(TRIES + 1):
            token = self._cached.usable()
            if token is not None and token.value != rejected.value:
                return token
            if self._refresher.hold.active(self._clock.monotonic()):
                break
            try:
                self._refresher.refuse_if_hopeless()
            except LoginRequired:
                # The upstream rejects it and nobody can renew it: sending it again helps no one.
                if token is not None:
                    self._cached.bury()
                raise
            if tries < TRIES:
                await self._refresher.renew(rejected)
        return rejected

    def distrust(self, rejected: Token) -> None:
        """Hold forced refreshes back, twice as long each time (see `TokenSource.distrust`)."""
        self._refresher.distrust(rejected)

    # --- for the service ------------------------------------------------------------------

    async def start(self) -> None:
        """Read the store for the first time; what is wrong shows in `state`, nothing is raised."""
        await self._refresher.look()

    async def aclose(self) -> None:
        """Finish what must not be lost: a refresh under way, an unsaved token."""
        await self._refresher.aclose()

    def use(self, endpoint: TokenEndpoint, endpoint_timeout_s: float) -> None:
        """Ask `endpoint` from the next refresh on, and at once if the one before was in the way."""
        self._renewal.endpoint = endpoint
        self._refresher.resume(lock_timeout_s=endpoint_timeout_s + LOCK_SLACK_S)

    async def look(self, *, at_once: bool = False) -> TokenStatus:
        """Look at the store if a second has passed since the last look, or `at_once`; return the state."""
        if at_once:
            self._refresher.look_at = -math.inf
        await self._refresher.look()
        return self.state()

    def state(self) -> TokenStatus:
        """Return what is known now."""
        error = self._refresher.backoff.error
        if self._cached.usable() is None and error is None:
            error = self._cached.problem()
        warning = expiry_warning(self._cached.login, self._app, self._clock.time())
        return TokenStatus(
            login=self._cached.login,
            usable_s=max(0.0, self._cached.left_s()),
            error=error,
            retry_in_s=self._refresher.backoff.left_s(self._clock.monotonic()),
            store_error=self._cached.store_error,
            unsaved=self._cached.unsaved,
            refreshes=self._renewal.count,
            failures=self._refresher.failures,
            store_failures=self._cached.failures,
            warning_step=0 if warning is None else warning.step,
        )
