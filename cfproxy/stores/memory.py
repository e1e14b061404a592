"""A store that lives and dies with the process.

Owns: the records of one `MemoryStore` object; for tests, and for sidecars that get by with
client credentials.
Must not know: files.
Invariant: nothing here awaits except a lock, so every operation is atomic in its event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from itertools import count

from cfproxy.auth.interfaces import Attempt, Lease
from cfproxy.auth.models import Login
from cfproxy.errors import StoreUnavailable
from cfproxy.stores.attempts import Entry, choose


class MemoryStore:
    """Keep logins in this process; each object is a store of its own."""

    def __init__(self) -> None:
        self._logins: dict[str, Login] = {}
        self._stamps: dict[str, int] = {}
        self._changes = count(1)
        self._attempts: dict[str, list[Entry]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    @property
    def location(self) -> str:
        """Say where the records are, for people."""
        return "memory"

    @property
    def shared(self) -> bool:
        """Say that no other machine uses it."""
        return False

    @asynccontextmanager
    async def lock(self, account: str, timeout_s: float) -> AsyncIterator[Lease]:
        """Exclude every other task that refreshes this account, waiting `timeout_s` at most.

        Raises:
            StoreUnavailable: another one still holds the lock.
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
        """Return the record, or None when there is none."""
        return self._logins.get(account)

    async def save(self, login: Login) -> None:
        """Replace the account's record; it lasts as long as the process."""
        self._logins[login.account] = login
        self._stamps[login.account] = next(self._changes)

    async def delete(self, account: str) -> bool:
        """Forget the record and the account's attempts; False when there was no record."""
        self._attempts.pop(account, None)
        self._stamps.pop(account, None)
        return self._logins.pop(account, None) is not None

    def stamp(self, account: str) -> Hashable:
        """Return the number of the record's last change, None when there is no record."""
        return self._stamps.get(account)

    async def probe(self, account: str) -> None:
        """Return: memory can always be written."""

    async def put_attempt(self, attempt: Attempt) -> None:
        """Remember an attempt for `ATTEMPT_LIFETIME_S`."""
        self._prune(attempt.account, attempt.created_at)
        kept = self._attempts.setdefault(attempt.account, [])
        # Whoever puts an attempt back withdraws the mark that it was used.
        kept[:] = [entry for entry in kept if entry.attempt.state != attempt.state]
        kept.append(Entry(attempt))

    async def take_attempt(self, account: str, state: str | None, now: float) -> Attempt:
        """Return an attempt, the newest with `state=None`, and mark it used.

        Raises:
            AttemptGone: unknown, used or expired at wall-clock `now`.
        """
        try:
            taken = choose(self._attempts.get(account, ()), state, now)
        finally:
            self._prune(account, now)
        entries = self._attempts[account]
        entries[entries.index(taken)] = taken.spent()
        return taken.attempt

    async def aclose(self) -> None:
        """Do nothing: the records stay as long as this object."""

    def _prune(self, account: str, now: float) -> None:
        kept = [entry for entry in self._attempts.get(account, ()) if not entry.expired(now)]
        if kept:
            self._attempts[account] = kept
        else:
            self._attempts.pop(account, None)
