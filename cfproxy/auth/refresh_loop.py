"""When the store is looked at and the token is refreshed, and what is told while that fails.

Owns: the three tasks of an account (a look, a refresh, an alarm), the back-off, the hold.
Must not know: what a request needs (`token_source.py`), how a refresh goes (`renewal.py`), what the store
holds (`cached_login.py`).

Invariants:
1. One refresh at a time: inside the process by one shared task, between processes by the store's lock.
   The tasks belong to this object; a caller who leaves does not end them.
2. After a failure nobody tries again before the back-off is over.
3. At most one alarm is set; none while only a person can help; none after `aclose`.
4. Nothing is raised from a task: what went wrong is told by `refuse_if_hopeless`, to each caller anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter

from structlog.typing import FilteringBoundLogger

from cfproxy.auth.backoff import Backoff, Hold
from cfproxy.auth.cached_login import CachedLogin
from cfproxy.auth.models import Token
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

LOOK_EVERY_S = 1.0
SAVE_AGAIN_S = 5.0
LAST_SAVE_WAIT_S = 1.0


class Refresher:
    """Keeps one ledger's token fresh.

    Args:
        ledger: the account's record.
        renewal: renews it.
        clock: the clock that alarms and pauses go by.
        log: where events go, the account bound to it.
        backoff: the pause after failures.
        lock_timeout_s: seconds to wait for another process' refresh.
    """

    def __init__(
        self,
        cached_login: CachedLogin,
        renewal: Refresh,
        clock: Clock,
        log: FilteringBoundLogger,
        *,
        backoff: Backoff,
        lock_timeout_s: float,
    ) -> None:
        self._cached = cached_login
        self._renewal = renewal
        self._clock = clock
        self._log = log
        self._lock_timeout_s = lock_timeout_s
        cached_login.on_news = self._on_news
        self.backoff = backoff
        self.hold = Hold()
        self.failures: Counter[type[CfproxyError]] = Counter()
        self.look_at = -math.inf  # monotonic instant of the next look at the store
        self._save_at = -math.inf  # monotonic instant at which what is unsaved is tried again
        self._looking: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._alarm: asyncio.Task[None] | None = None
        self._closed = False

    # --- for callers ----------------------------------------------------------------------

    async def look(self) -> None:
        """Look at the store, once a second at most; wait for it only if no token is usable."""
        if self._looking is None:
            now = self._clock.monotonic()
            if now < self.look_at or self._closed:
                return
            self.look_at = now + LOOK_EVERY_S
            # A refresh under way reads the store itself, under the lock.
            if self._renewing is not None or not self._cached.changed():
                return
            self._looking = asyncio.create_task(self._read())
        if self._cached.usable() is None:
            await asyncio.shield(self._looking)

    async def renew(self, rejected: Token | None) -> None:
        """Begin a refresh or join the one under way; return when it is over, however it went."""
        await asyncio.shield(self._renewing or self._begin(rejected))

    def renew_if_due(self) -> None:
        """Begin a refresh in the background if one makes sense and may be tried now."""
        if self._renewing is None and self._cached.due() and self._may_try() and not self._hear():
            self._begin(None)

    def refuse_if_hopeless(self) -> None:
        """Raise what would come out anyway: a back-off that is not over, no login, the end."""
        refusal = self.backoff.refusal(self._clock.monotonic()) or self._cached.problem()
        if refusal is not None:
            raise refusal
        if self._closed:
            raise ShuttingDown("the proxy is shutting down")

    def distrust(self, rejected: Token) -> None:
        """Hold forced refreshes back if `rejected` is the current token."""
        login = self._cached.login
        if login is not None and login.token.value == rejected.value:
            hold_s = self.hold.begin(self._clock.monotonic())
            if hold_s > 0:
                self._log.warning("token.rejected_fresh", hold_s=hold_s)

    def resume(self, *, lock_timeout_s: float) -> None:
        """Let the next refresh be tried at once: something that it depends on was changed."""
        self._lock_timeout_s = lock_timeout_s
        if isinstance(self.backoff.error, Misconfigured | TokenEndpointUnavailable):
            self.backoff.resume()
            self._schedule()

    async def aclose(self) -> None:
        """Finish what must not be lost: a refresh under way, an unsaved token."""
        self._closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        going_on = {task for task in (self._alarm, self._looking, self._renewing) if task is not None}
        if going_on:
            await asyncio.wait(going_on)
        if self._cached.unsaved:
            with contextlib.suppress(CfproxyError):
                async with self._cached.lock(LAST_SAVE_WAIT_S) as lease:
                    await self._renewal.run(None, lease, ask=False)

    # --- a look ---------------------------------------------------------------------------

    def _hear(self) -> bool:
        """Read what somebody else has stored, if so; return whether that goes on: it may be the refresh."""
        if self._looking is None and self._cached.heard():
            self.look_at = self._clock.monotonic() + LOOK_EVERY_S
            self._looking = asyncio.create_task(self._read())
        return self._looking is not None

    async def _read(self) -> None:
        try:
            await self._cached.load()
        except (StoreUnavailable, StoreUnusable) as error:
            self._not_read(error)
        except Exception:  # noqa: BLE001 - logged whole; the token in hand does not depend on it
            self._log.exception("store.read_crashed")
            self._not_read(StoreUnavailable("an internal fault stopped reading the store; see the log"))
        else:
            if isinstance(self.backoff.error, StoreUnavailable | StoreUnusable):
                self.backoff.resume()
        finally:
            self._looking = None
        self._schedule()

    def _not_read(self, error: CfproxyError) -> None:
        # With a record in memory, or client credentials, a refresh will tell; without that this is not to
        # look like a logout.
        lasting = isinstance(error, StoreUnusable) or self._cached.problem() is not None
        if lasting and self._cached.login is None and self.backoff.left_s(self._clock.monotonic()) == 0:
            self.backoff.stop(error, self.look_at)

    def _on_news(self, another_login: bool) -> None:
        self.backoff.clear()
        # A refresh by another process is no reason to believe that refreshing helps.
        if another_login:
            self.hold.clear()

    # --- a refresh ------------------------------------------------------------------------

    def _may_try(self) -> bool:
        return not self._closed and self.backoff.left_s(self._clock.monotonic()) == 0

    def _begin(self, rejected: Token | None, *, ask: bool = True) -> asyncio.Task[None]:
        self._renewing = asyncio.create_task(self._renew(rejected, ask=ask))
        return self._renewing

    async def _renew(self, rejected: Token | None, *, ask: bool) -> None:
        failure: CfproxyError | None = None
        # Set before anything can fail, or a store that is gone would be tried in a busy loop.
        self._save_at = self._clock.monotonic() + SAVE_AGAIN_S
        try:
            if self._looking is not None:
                await asyncio.wait({self._looking})
            await self._try(rejected, ask=ask)
        except CfproxyError as error:
            failure = error
        except Exception:  # noqa: BLE001 - logged whole; the token in hand does not depend on it
            # a fault of ours must not be able to end refreshing for good.
            self._log.exception("token.refresh_crashed")
            failure = TokenEndpointUnavailable("an internal fault stopped the refresh; see the log")
        finally:
            self._renewing = None
        if failure is not None:
            self.failures[type(failure)] += 1
        if ask:
            self._settle(failure, rejected)
        self._schedule()

    async def _try(self, rejected: Token | None, *, ask: bool) -> None:
        try:
            async with self._cached.lock(self._lock_timeout_s) as lease:
                await self._renewal.run(rejected, lease, ask=ask)
        except StoreUnavailable as error:
            if not ask:
                raise
            await self._renewal.run_unlocked(error)

    def _settle(self, failure: CfproxyError | None, rejected: Token | None) -> None:
        if failure is None:
            self.backoff.clear()
            if rejected is not None:
                self.distrust(rejected)  # has an effect only if the same token came once more
        elif isinstance(failure, LoginRequired):
            self.backoff.stop(failure)
            self._log.error("login.required", reason=failure.message)
        else:
            now = self._clock.monotonic()
            self.backoff.fail(failure, now)
            if isinstance(failure, StoreUnavailable | StoreUnusable) and self._cached.usable() is not None:
                # It waits for a better moment to be saved, but not beyond the life of the token in hand.
                self.backoff.retry_by(self._cached.dead_at)
            self._log.warning(
                "token.refresh_failed",
                reason=failure.message,
                attempt=self.backoff.failures,
                retry_in_s=round(self.backoff.left_s(now), 1),
                token_left_s=round(max(0.0, self._cached.left_s())),
            )

    # --- the alarm ------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Set the alarm to the next refresh, retry or late save, whichever comes first."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._closed:
            return
        now = self._clock.monotonic()
        due_at = self._save_at if self._cached.unsaved else math.inf
        if self._cached.problem() is None:
            due_at = min(due_at, max(now + self._cached.due_in_s(), self.backoff.retry_at))
        if due_at < math.inf:
            self._alarm = asyncio.create_task(self._wake(max(0.0, due_at - now)))

    async def _wake(self, delay_s: float) -> None:
        await self._clock.sleep(delay_s)
        self._alarm = None
        if self._renewing is not None:
            return  # it sets the next alarm
        if self._hear():
            return  # likewise
        ask = self._cached.due() and self._may_try()
        if ask or (self._cached.unsaved and self._clock.monotonic() >= self._save_at):
            self._begin(None, ask=ask)
        else:
            self._schedule()
