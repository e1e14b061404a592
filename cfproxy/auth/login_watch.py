"""Notices that somebody else has changed the login in the store, and reads it before the next request.

Invariants:
1. A change that the store reports is read before a token is used; while nobody is logged in, every request
   looks, otherwise ten a second at most.
2. A valid token waits for the store only if there is something to read, and `LOOK_WAIT_S` at most.
3. The store is not read while a refresh holds the lock: it reads and writes the login itself.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from structlog.typing import FilteringBoundLogger

from cfproxy.auth.cached_login import CachedLogin
from cfproxy.clock import Clock
from cfproxy.errors import CfproxyError, StoreUnavailable, StoreUnusable

# Shorter than a command takes: once `cfproxy logout` has ended, no request gets the former token.
LOOK_EVERY_S = 0.1
LOOK_WAIT_S = 2.0
# How often a store that fails is tried again, and a shared one asked, whose news may have been lost.
AGAIN_S = 1.0


class LoginWatch:
    """Looks for changes of one account's login.

    Args:
        cached_login: the login.
        clock: the monotonic clock.
        log: the account is bound to it.
        is_refreshing: returns whether a refresh holds the lock.
        on_read: called after each read, with its error or None, and whether the store has answered.

    Attributes:
        due_at: monotonic instant from which a valid token must not be used without a look.
        again_at: monotonic instant from which a read that failed is repeated, and a shared store asked.
        reading: the running read.
    """

    def __init__(
        self,
        cached_login: CachedLogin,
        clock: Clock,
        log: FilteringBoundLogger,
        is_refreshing: Callable[[], bool],
        on_read: Callable[[CfproxyError | None, bool], None],
    ) -> None:
        self._cached = cached_login
        self._clock = clock
        self._log = log
        self._is_refreshing = is_refreshing
        self._on_read = on_read
        self.due_at = self.again_at = -math.inf
        self.reading: asyncio.Task[None] | None = None
        self._patience: asyncio.Task[None] | None = None  # ends when a valid token has waited enough
        self._answers = True  # whether the latest question to a shared store was answered
        self._closed = False

    async def look(self, *, at_once: bool = False) -> None:
        """Read the store if it has changed; without a valid token wait for that as long as it takes.

        Args:
            at_once: look whether or not it is time.
        """
        if self.reading is None:
            self._look(at_once=at_once)
        if self.reading is None:
            return
        if self._cached.usable() is None:
            await asyncio.shield(self.reading)
        elif self._patience is not None and not self._patience.done():
            await asyncio.wait({self.reading, self._patience}, return_when=asyncio.FIRST_COMPLETED)

    def read_if_changed(self) -> bool:
        """Start to read what another process has stored; return whether a read is running."""
        if self.reading is None and self._cached.changed():
            self._start(ask=False, wait=True)
        return self.reading is not None

    def close(self) -> None:
        """Start no more reads."""
        self._closed = True

    def _look(self, *, at_once: bool) -> None:
        now = self._clock.monotonic()
        due = at_once or now >= self.due_at
        if self._closed or not (due or self._cached.usable() is None):
            return
        self.due_at = now + LOOK_EVERY_S
        if self._is_refreshing():
            return
        if self._cached.changed():
            self._start(ask=False, wait=True)
        elif at_once or now >= self.again_at:
            if self._cached.needs_read():
                self._start(ask=False, wait=False)
            elif self._cached.shared:
                self._start(ask=True, wait=self._answers)

    def _start(self, *, ask: bool, wait: bool) -> None:
        self.due_at = -math.inf  # until it has ended, nobody passes without coming here
        self.again_at = self._clock.monotonic() + AGAIN_S
        self._patience = asyncio.create_task(self._clock.sleep(LOOK_WAIT_S)) if wait else None
        self.reading = asyncio.create_task(self._read(ask=ask))

    async def _read(self, *, ask: bool) -> None:
        failure: CfproxyError | None = None
        try:
            if ask:
                await self._ask()
            if not ask or self._cached.changed():
                await self._cached.load()
                self._answers = True
        except (StoreUnavailable, StoreUnusable) as error:
            failure = error
        except Exception:  # noqa: BLE001 - logged whole; the token in hand does not depend on it
            self._log.exception("store.read_crashed")
            failure = StoreUnavailable("an internal error stopped reading the store; see the log")
        finally:
            self.reading = None
            self.due_at = self._clock.monotonic() + LOOK_EVERY_S
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
        self._on_read(failure, self._answers)

    async def _ask(self) -> None:
        """Ask a shared store for changes; that it does not answer shows when something is read."""
        self._answers = False
        try:
            await self._cached.confirm()
        except (StoreUnavailable, StoreUnusable):
            return
        self._answers = True
