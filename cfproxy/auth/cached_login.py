"""An account's record: the one in memory and the one in the store, and which of them is the newer.

Owns: loading, adopting what others stored, saving, what could not be saved yet; how old the token is.
Must not know: the token endpoint, when to refresh, who waits.

Invariants:
1. A record of another app is never usable, however valid its token.
2. A record that could not be saved is kept, and replaces only the generation that it came from: a login,
   logout or refresh of somebody else is newer.
3. The serial in the store only grows within one login.
4. A token is as old as the wall clock or the monotonic clock says, whichever says older.
5. A shared store that has gone back in time, as a server does that takes over without the last writes,
   gets the newer record again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from structlog.typing import FilteringBoundLogger

from cfproxy.auth.interfaces import Lease, TokenStore
from cfproxy.auth.models import App, Login, Token, instant, login_problem
from cfproxy.clock import Clock
from cfproxy.errors import CfproxyError, LoginRequired, StoreUnavailable, StoreUnusable

# A thousand replicas with one token must not want to refresh it in the same instant: each begins after its
# own part of the early time, this one at the latest.
LATEST_SHARE = 0.5


class CachedLogin:
    """Keeps one account's record.

    Args:
        app: whose records are usable.
        store: where they live.
        clock: both clocks.
        log: where events go, the account bound to it.
        chance: returns a number from 0 to 1; asked once.
    """

    def __init__(
        self,
        app: App,
        store: TokenStore,
        clock: Clock,
        log: FilteringBoundLogger,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._app = app
        self._store = store
        self._clock = clock
        self._log = log
        self._early_share = 1 - (1 - LATEST_SHARE) * chance() if store.shared else 1.0

        # Called when somebody else's token or login was adopted, or the record is gone; the argument
        # says whether that is another login, not only a refreshed token.
        self.on_news: Callable[[bool], None] = lambda another_login: None  # noqa: ARG005 - named for readers
        self.login: Login | None = None
        self.dead_at = -math.inf  # monotonic instant from which the token is not sent any more
        self.unsaved = False
        self.failures = 0  # reads and writes of the store
        self._void_mark: tuple[int, float | None] | None = None
        self._unsaved_over: Login | None = None  # the stored record that our unsaved one comes from
        self._stamp: Hashable = object()
        self._read_error: CfproxyError | None = None
        self._write_error: CfproxyError | None = None

    # --- what is known --------------------------------------------------------------------

    @property
    def store_error(self) -> CfproxyError | None:
        """Why the store could not be used the last time."""
        return self._write_error or self._read_error

    def left_s(self) -> float:
        """Return the seconds for which the token may still be sent; negative or -inf for not at all."""
        if self.login is None:
            return -math.inf
        by_wall = self.login.token.remaining_s(self._clock.time())
        return min(by_wall, self.dead_at - self._clock.monotonic())

    def usable(self) -> Token | None:
        """Return the token if it may be sent now."""
        return self.login.token if self.login is not None and self.left_s() > 0 else None

    def fresh(self) -> Token | None:
        """Return the token if it may be sent now and need not be refreshed yet."""
        login = self.login
        return login.token if login is not None and self.left_s() > self._early_s(login) else None

    def problem(self) -> LoginRequired | None:
        """Return why only a person can renew the login (see `login_problem`)."""
        return login_problem(self.login, self._app)

    def due(self) -> bool:
        """Return whether a refresh makes sense now."""
        return self.problem() is None and self.due_in_s() <= 0

    def due_in_s(self) -> float:
        """Return the seconds until the token should be refreshed; not positive from then on."""
        if self.login is None:
            return 0.0
        if self.open_mark(self.login) is None:
            return self.left_s() - self._early_s(self.login)
        # An open mark: somebody went away in the middle of a refresh. On one machine that one is gone for
        # certain: find out now, while the token still serves. Elsewhere it may only have stood still, with
        # the new token in its hands: it gets the time that is left.
        return self.left_s() if self._store.shared else 0.0

    def _early_s(self, login: Login) -> float:
        return login.token.early_s * self._early_share

    def void(self, marked: Login) -> None:
        """Take note that nothing was presented under this mark of ours, though it may be in the store.

        It seemed not to be saved, or its lock was lost before anything was sent.
        """
        self._void_mark = marked.serial, marked.presented_at

    def open_mark(self, login: Login) -> float | None:
        """Return since when the outcome of a presentation is unknown, if one is."""
        return None if (login.serial, login.presented_at) == self._void_mark else login.presented_at

    @property
    def shared(self) -> bool:
        """Whether other machines use the store (see `TokenStore.shared`)."""
        return self._store.shared

    def bury(self) -> None:
        """Don't send the token any more."""
        self.dead_at = -math.inf

    # --- reading --------------------------------------------------------------------------

    def lock(self, timeout_s: float) -> AbstractAsyncContextManager[Lease]:
        """Exclude everybody else who changes this record (see `TokenStore.lock`)."""
        return self._store.lock(self._app.account, timeout_s)

    def changed(self) -> bool:
        """Return whether the store may hold something else than at the last look; asks no network."""
        return self._read_error is not None or self.heard()

    def heard(self) -> bool:
        """Return whether somebody else has changed the record since it was read; asks no network."""
        return self._read_error is None and self._store.stamp(self._app.account) != self._stamp

    async def load(self) -> None:
        """Read the store, and take its record for ours unless ours is its unsaved successor.

        Raises:
            StoreUnavailable, StoreUnusable
        """
        # Taken before the read: a change in between shows at the next look.
        stamp = self._store.stamp(self._app.account)
        try:
            stored = await self._store.load(self._app.account)
        except (StoreUnavailable, StoreUnusable) as error:
            self._report(error, self._read_error)
            self._read_error = error
            raise
        self._stamp = stamp
        self._read_error = None
        self._adopt(stored)

    def _adopt(self, stored: Login | None) -> None:
        if self._app.grant == "client_credentials" and stored and not stored.belongs_to(self._app):
            stored = None  # a new token of our own will take its place
        if self._keeps_unsaved(stored) or stored == self.login or self._keeps_newer(stored):
            return
        before, self.login = self.login, stored
        if stored is None or not stored.belongs_to(self._app):
            self.dead_at = -math.inf
            self.on_news(True)
        elif before is None or not _same_generation(stored, before):
            self.dead_at = self._clock.monotonic() + stored.token.remaining_s(self._clock.time())
            self._log.info("login.adopted", serial=stored.serial, expires_at=instant(stored.token.expires_at))
            self.on_news(before is None or stored.login_at != before.login_at)

    def _keeps_unsaved(self, stored: Login | None) -> bool:
        if not self.unsaved or self.login is None:
            return False
        if _same_generation(stored, self._unsaved_over) or self._outlasts(stored, self.login):
            # Others may have marked or refused the predecessor meanwhile; ours is newer than that, too.
            if stored is not None and stored.serial >= self.login.serial:
                self.login = replace(self.login, serial=stored.serial + 1)
            return True
        self.unsaved = False
        self._write_error = None  # whoever put that there could write
        if not _same_generation(stored, self.login):  # else a save took effect that seemed to fail
            self._log.warning("token.unsaved_dropped", reason="the store has another login")
        return False

    def _outlasts(self, stored: Login | None, mine: Login) -> bool:
        # Of an app's tokens none replaces another: the one that lives longer is of more use.
        is_app = self._app.grant == "client_credentials"
        return is_app and stored is not None and stored.token.expires_at < mine.token.expires_at

    def _keeps_newer(self, stored: Login | None) -> bool:
        mine = self.login
        if not self._store.shared or mine is None or stored is None or mine.refused_at is not None:
            return False
        # The serial only grows within a login, and a new login has another instant.
        went_back = stored.login_at == mine.login_at and stored.serial < mine.serial
        if not went_back or _same_generation(stored, mine):
            return False
        self.unsaved, self._unsaved_over = True, stored
        self._log.warning("store.went_back", serial=mine.serial, stored_serial=stored.serial)
        return True

    # --- writing --------------------------------------------------------------------------

    async def save(self, login: Login) -> None:
        """Put `login` into the store, then into memory. The caller holds the lock.

        Raises:
            StoreUnavailable, StoreUnusable: nothing changed in memory.
        """
        try:
            await self._store.save(login)
        except (StoreUnavailable, StoreUnusable) as error:
            self._report(error, self._write_error)
            self._write_error = error
            raise
        self.login = login
        self._stamp = self._store.stamp(self._app.account)
        self.unsaved = False
        if self._write_error is not None:
            self._write_error = None
            self._log.info("store.recovered", serial=login.serial)

    async def keep(self, login: Login, *, dead_at: float | None = None) -> None:
        """Save `login`; if that fails, keep it in memory and save it later. The caller holds the lock.

        Args:
            login: the successor of the present record.
            dead_at: for a new token, the monotonic instant at which it expires.
        """
        saved = False
        try:
            await self.save(login)
            saved = True
        except (StoreUnavailable, StoreUnusable):
            pass  # `save` has reported it
        finally:
            # Whatever else saving may raise: the server has spent the predecessor of this.
            if not saved:
                self._hold(login)
            if dead_at is not None:
                self.dead_at = dead_at

    def keep_unlocked(self, login: Login, dead_at: float, error: StoreUnavailable) -> None:
        """Keep `login` in memory, and save it later: without the lock nobody knows what it would replace.

        Args:
            login: as for `keep`.
            dead_at: likewise.
            error: why the lock, or what it guards, could not be had.
        """
        self._report(error, self.store_error)
        self._write_error = error
        self._hold(login)
        self.dead_at = dead_at

    def _hold(self, login: Login) -> None:
        if not self.unsaved:
            self.unsaved, self._unsaved_over = True, self.login
        self.login = login

    async def save_unsaved(self) -> None:
        """Save what could not be saved before. The caller holds the lock and has loaded."""
        if self.unsaved and self.login is not None:
            await self.keep(self.login)

    def _report(self, error: CfproxyError, before: CfproxyError | None) -> None:
        self.failures += 1
        if before is None or before.message != error.message:
            self._log.error("store.failed", reason=error.message)


def _same_generation(one: Login | None, other: Login | None) -> bool:
    """Return whether both records hold the same tokens of the same login, whatever their marks."""
    if one is None or other is None:
        return one is other
    return (one.client_id, one.token_url, one.upstream, one.login_at, one.token, one.refresh_token) == (
        other.client_id,
        other.token_url,
        other.upstream,
        other.login_at,
        other.token,
        other.refresh_token,
    )
