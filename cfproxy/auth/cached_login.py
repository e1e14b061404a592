"""An account's login, in memory and in the store, and which of the two is newer.

Invariants:
1. A login of another app is never usable, however valid its token.
2. A login that could not be saved stays in memory. It replaces only the stored record that it was derived
   from: a login, logout or refresh by someone else is newer.
3. The serial in the store only grows within one login.
4. A token's age is the greater of its ages by the wall clock and by the monotonic clock.
5. A shared store that has gone back in time, as after a failover that lost writes, gets the newer record
   again.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Hashable
from dataclasses import replace

from structlog.typing import FilteringBoundLogger

from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.models import App, Login, Token, instant, login_problem
from cfproxy.clock import Clock
from cfproxy.errors import CfproxyError, LoginRequired, StoreUnavailable, StoreUnusable

# A thousand replicas with one token must not refresh it in the same instant. Each waits for a random part of
# the early time, for this share of it at most.
LATEST_SHARE = 0.5


class CachedLogin:
    """Keeps one account's login.

    Args:
        app: whose login is usable.
        store: keeps the login.
        clock: the wall clock and the monotonic clock.
        log: the account is bound to it.
        on_change: called after someone else changed or removed the login; the argument says whether it is
            another login, rather than another token of the same one.
        chance: returns a number from 0 to 1; called once.

    Attributes:
        login: the newest record.
        token: its token; check with `usable`, or with the instants below, before sending it.
        expires_at: monotonic instant from which the token is not sent any more.
        refresh_at: monotonic instant from which a refresh is due; never after `expires_at`.
        refresh_at_wall: likewise by the wall clock; the earlier of the two counts.
        unsaved: `login` is in memory only.
        shared: other machines use the store (see `TokenStore.shared`).
        failures: how many reads and writes of the store failed.
    """

    def __init__(
        self,
        app: App,
        store: TokenStore,
        clock: Clock,
        log: FilteringBoundLogger,
        on_change: Callable[[bool], None],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._app = app
        self._store = store
        self._clock = clock
        self._log = log
        self._on_change = on_change
        self.shared = store.shared
        self._early_share = 1 - (1 - LATEST_SHARE) * chance() if self.shared else 1.0

        self.login: Login | None = None
        self.token: Token | None = None
        self.expires_at = self.refresh_at = self.refresh_at_wall = -math.inf
        self.unsaved = False
        self.failures = 0
        self._discarded_mark: tuple[int, float | None] | None = None
        self._unsaved_over: Login | None = None  # the stored record that the unsaved one was derived from
        self._stamp: Hashable = object()
        self._loading = asyncio.Lock()
        self._read_error: CfproxyError | None = None
        self._write_error: CfproxyError | None = None

    # --- what is known --------------------------------------------------------------------

    @property
    def store_error(self) -> CfproxyError | None:
        """Why the last use of the store failed."""
        return self._write_error or self._read_error

    def left_s(self) -> float:
        """Return the seconds for which the token may still be sent; zero or less for not at all."""
        if self.token is None:
            return -math.inf
        return min(self.token.expires_at - self._clock.time(), self.expires_at - self._clock.monotonic())

    def usable(self) -> Token | None:
        """Return the token if it may be sent now."""
        return self.token if self.left_s() > 0 else None

    def problem(self) -> LoginRequired | None:
        """Return why only a person can renew the login (see `login_problem`)."""
        return login_problem(self.login, self._app)

    def due(self) -> bool:
        """Return whether a refresh is due, and possible without a person."""
        return self.due_in_s() <= 0 and self.problem() is None

    def due_in_s(self) -> float:
        """Return the seconds until a refresh is due; zero or less from then on."""
        return min(self.refresh_at - self._clock.monotonic(), self.refresh_at_wall - self._clock.time())

    @property
    def pending_refresh(self) -> float | None:
        """Wall-clock instant since which the outcome of a refresh is unknown, None if it is known."""
        if self.login is None or (self.login.serial, self.login.presented_at) == self._discarded_mark:
            return None
        return self.login.presented_at

    # --- changes in memory ----------------------------------------------------------------

    def discard_mark(self, marked: Login) -> None:
        """Ignore this record's `presented_at` if it turns up in the store: no refresh token was sent.

        Saving it seemed to fail, or its lock was lost before the request.
        """
        self._discarded_mark = marked.serial, marked.presented_at
        self._set(self.login)

    def invalidate(self) -> None:
        """Don't send the token any more."""
        self._set(self.login, -math.inf)

    def _set(self, login: Login | None, expires_at: float | None = None) -> None:
        """Take `login` as the newest record, and work out when its refresh is due.

        Args:
            login: the record.
            expires_at: monotonic; None if the token is the same as before.
        """
        self.login = login
        self.token = None if login is None else login.token
        if expires_at is not None:
            self.expires_at = expires_at
        if self.token is None:
            self.expires_at = self.refresh_at = self.refresh_at_wall = -math.inf
            return
        early_s = self.token.early_s * self._early_share
        if self.pending_refresh is not None:
            # A process was interrupted in the middle of a refresh. On this machine it is certainly gone: find
            # the outcome out now, while the token still serves. Another machine may only be suspended, with
            # the new token in memory: it gets all the time that is left.
            early_s = 0.0 if self.shared else math.inf
        self.refresh_at = self.expires_at - early_s
        self.refresh_at_wall = self.token.expires_at - early_s

    # --- reading --------------------------------------------------------------------------

    def needs_read(self) -> bool:
        """Return whether the store may hold something else than was read last; uses no network."""
        return self._read_error is not None or self.changed()

    def changed(self) -> bool:
        """Return whether someone else has changed the login since it was last read; uses no network."""
        return self._store.stamp(self._app.account) != self._stamp

    async def confirm(self) -> None:
        """Make sure that `changed` knows of every change of a shared store.

        Raises:
            StoreUnavailable, StoreUnusable
        """
        await self._store.confirm(self._app.account)

    async def load(self) -> None:
        """Read the store, and adopt its record unless the one in memory is newer.

        Raises:
            StoreUnavailable, StoreUnusable
        """
        async with self._loading:  # one after the other, or a slow read would bring back what was replaced
            # Before the read, so that a change in between is noticed at the next look.
            stamp = self._store.stamp(self._app.account)
            try:
                stored = await self._store.load(self._app.account)
            except (StoreUnavailable, StoreUnusable) as error:
                self._report(error, self._read_error)
                self._stamp, self._read_error = stamp, error
                raise
            self._stamp, self._read_error = stamp, None
            self._adopt(stored)

    def _adopt(self, stored: Login | None) -> None:
        if self._app.grant == "client_credentials" and stored and not stored.belongs_to(self._app):
            stored = None  # this process's new token will replace it
        if self._keeps_unsaved(stored) or stored == self.login or self._keeps_newer(stored):
            return
        before = self.login
        if stored is None or not stored.belongs_to(self._app):
            self._set(stored, -math.inf)
            self._on_change(True)
        elif before is None or not _same_tokens(stored, before):
            self._set(stored, self._clock.monotonic() + stored.token.remaining_s(self._clock.time()))
            self._log.info("login.adopted", serial=stored.serial, expires_at=instant(stored.token.expires_at))
            self._on_change(before is None or stored.login_at != before.login_at)
        else:
            self._set(stored)

    def _keeps_unsaved(self, stored: Login | None) -> bool:
        if not self.unsaved or self.login is None:
            return False
        if _same_tokens(stored, self._unsaved_over) or self._outlasts(stored, self.login):
            # Someone may have marked the predecessor meanwhile, or found it refused; ours is newer than that.
            if stored is not None and stored.serial >= self.login.serial:
                self._set(replace(self.login, serial=stored.serial + 1))
            return True
        self.unsaved = False
        self._write_error = None  # someone else could write
        if not _same_tokens(stored, self.login):  # otherwise a save succeeded although it seemed to fail
            self._log.warning("token.unsaved_dropped", reason="the store has another login")
        return False

    def _outlasts(self, stored: Login | None, mine: Login) -> bool:
        # The tokens of client credentials are independent of each other: keep the one that lives longer.
        is_app = self._app.grant == "client_credentials"
        return is_app and stored is not None and stored.token.expires_at < mine.token.expires_at

    def _keeps_newer(self, stored: Login | None) -> bool:
        mine = self.login
        if not self.shared or mine is None or stored is None or mine.refused_at is not None:
            return False
        # Within one login the serial only grows, and another login has another `login_at`.
        is_rollback = stored.login_at == mine.login_at and stored.serial < mine.serial
        if not is_rollback or _same_tokens(stored, mine):
            return False
        self.unsaved, self._unsaved_over = True, stored
        self._log.warning("store.went_back", serial=mine.serial, stored_serial=stored.serial)
        return True

    # --- writing --------------------------------------------------------------------------

    async def save(self, login: Login) -> None:
        """Save `login`, then keep it in memory. The caller holds the lock.

        Raises:
            StoreUnavailable, StoreUnusable: nothing changed in memory.
        """
        try:
            await self._store.save(login)
        except (StoreUnavailable, StoreUnusable) as error:
            self._report(error, self._write_error)
            self._write_error = error
            raise
        self._set(login)
        self._stamp = self._store.stamp(self._app.account)
        self.unsaved = False
        if self._write_error is not None:
            self._write_error = None
            self._log.info("store.recovered", serial=login.serial)

    async def keep(self, login: Login, *, expires_at: float | None = None) -> None:
        """Save `login`; if that fails, keep it in memory and save it later. The caller holds the lock.

        Args:
            login: the successor of the present record.
            expires_at: for a new token, the monotonic instant at which it expires.
        """
        saved = False
        try:
            await self.save(login)
            saved = True
        except (StoreUnavailable, StoreUnusable):
            pass  # `save` has logged it
        finally:
            # Whatever else `save` may raise: the server has used up the predecessor of this one.
            if saved:
                self._set(login, expires_at)
            else:
                self._keep_unsaved(login, expires_at)

    def keep_unlocked(self, login: Login, expires_at: float, error: CfproxyError) -> None:
        """Keep `login` in memory and save it later: without the lock it is unknown what it would replace.

        Args:
            login: the successor of the present record.
            expires_at: the monotonic instant at which its token expires.
            error: why the store could not be locked or read.
        """
        self._report(error, self.store_error)
        self._write_error = error
        self._keep_unsaved(login, expires_at)

    def _keep_unsaved(self, login: Login, expires_at: float | None) -> None:
        if not self.unsaved:
            self.unsaved, self._unsaved_over = True, self.login
        self._set(login, expires_at)

    async def save_unsaved(self) -> None:
        """Save what could not be saved before. The caller holds the lock and has loaded."""
        if self.unsaved and self.login is not None:
            await self.keep(self.login)

    def _report(self, error: CfproxyError, before: CfproxyError | None) -> None:
        self.failures += 1
        if before is None or before.message != error.message:
            self._log.error("store.failed", reason=error.message)


def _same_tokens(one: Login | None, other: Login | None) -> bool:
    """Return whether both records hold the same tokens of the same login, whatever else they note."""
    if one is None or other is None:
        return one is other
    return one.belongs_to(other) and (one.login_at, one.token, one.refresh_token) == (
        other.login_at,
        other.token,
        other.refresh_token,
    )
