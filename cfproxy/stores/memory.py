"""A store that ends with its process: for tests, and for sidecars with client credentials.

Nothing here awaits anything but a lock, so every operation is atomic in its event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from itertools import count

from cfproxy.auth.interfaces import Lease
from cfproxy.auth.models import Attempt, Login
from cfproxy.errors import StoreUnavailable
from cfproxy.stores.attempts import ATTEMPTS_MAX, choose, choose_stale


class MemoryStore:
    """Stores logins in this process (see `TokenStore`); each object is a store of its own."""

    location = "memory"
    shared = False  # by other machines

    def __init__(self) -> None:
        self._logins: dict[str, Login] = {}
        self._stamps: dict[str, int] = {}
        self._changes = count(1)
        self._attempts: dict[str, list[Attempt]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def lock(self, account: str, timeout_s: float) -> AsyncIterator[Lease]:
        """Exclude every other task that refreshes this account.

        Raises:
            StoreUnavailable: still locked after `timeout_s`.
        """
        lock = self._locks.setdefault(account, asyncio.Lock())
        try:
            async with asyncio.timeout(timeout_s):
                await lock.acquire()
        except TimeoutError as error:
            raise StoreUnavailable(
                f"another task is refreshing account '{account}' and still was after {timeout_s:g} s; "
                "try again"
            ) from error
        try:
            yield Lease()
        finally:
            lock.release()

    async def load(self, account: str) -> Login | None:
        """Return the login, None if there is none."""
        return self._logins.get(account)

    async def save(self, login: Login) -> None:
        """Replace the account's login."""
        self._logins[login.account] = login
        self._stamps[login.account] = next(self._changes)

    async def delete(self, account: str) -> bool:
        """Forget the login and the attempts; return False if there was no login."""
        self._attempts.pop(account, None)
        self._stamps.pop(account, None)
        return self._logins.pop(account, None) is not None

    def stamp(self, account: str) -> Hashable:
        """Return the number of the last change, None if there is no login."""
        return self._stamps.get(account)

    async def confirm(self, account: str) -> None:
        """No-op: `stamp` knows of every change."""

    async def probe(self, account: str) -> None:
        """No-op: memory is always writable."""

    async def save_attempt(self, attempt: Attempt) -> None:
        """Keep an attempt until it expires."""
        attempts = self._alive(attempt.account, attempt.created_at, ATTEMPTS_MAX - 1)
        # An attempt that is saved again becomes unused.
        self._attempts[attempt.account] = [each for each in attempts if each.state != attempt.state] + [
            attempt
        ]

    async def claim_attempt(self, account: str, state: str | None, now: float) -> Attempt:
        """Return an attempt and mark it used."""
        try:
            claimed = choose(self._attempts.get(account, ()), state, now)
        finally:
            self._attempts[account] = self._alive(account, now)
        attempts = self._attempts[account]
        attempts[attempts.index(claimed)] = claimed.as_used()
        return claimed

    async def aclose(self) -> None:
        """No-op: the logins live as long as this object."""

    def _alive(self, account: str, now: float, keep: int = ATTEMPTS_MAX) -> list[Attempt]:
        attempts = dict(enumerate(self._attempts.get(account, ())))
        stale = choose_stale(attempts, now, keep)
        return [attempt for at, attempt in attempts.items() if at not in stale]
