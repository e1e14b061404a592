"""A store of one JSON document per account, in a private folder.

Files: `ACCOUNT.json` (the login), `ACCOUNT.lock` (its lock), `ACCOUNT.login-HASH.json` (an attempt, HASH is
the fingerprint of its state) and `ACCOUNT.login-HASH.used.json` (an attempt that was claimed).
The first app to log in has these names. While its login is there, that of another app with an account of the
same name is `ACCOUNT@APP.json`, and `ACCOUNT@APP.lock` is its lock; APP is `App.app_id`.

Invariants:
1. A document that cfproxy can't read, or that is another app's, is never overwritten or deleted; what is
   saved can be loaded.
2. All file work runs in threads, so a cancelled `save` returns early but still completes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from urllib.parse import quote

from cfproxy.auth.interfaces import Lease
from cfproxy.auth.models import Attempt, AttemptGone, Login
from cfproxy.errors import StoreUnavailable, StoreUnusable
from cfproxy.secret import Secret
from cfproxy.stores.atomic_files import FILE_MAX_BYTES, Folder
from cfproxy.stores.attempts import ATTEMPTS_MAX, choose, choose_stale, read_all
from cfproxy.stores.documents import DocumentCodec, stated_app
from cfproxy.stores.file_lock import acquire
from cfproxy.stores.permissions import Permissions

USED_SUFFIX = ".used.json"


class FileStore:
    """Stores logins in a folder, for any number of processes of one user (see `TokenStore`).

    Args:
        directory: absolute; created by the first write.
        codec: turns records into the files' contents; by default unencrypted, for any app.
        warn: called once if permissions were corrected, or are loose and accepted.
    """

    shared = False  # the operating system releases the lock of a process that has ended

    def __init__(
        self,
        directory: Path,
        codec: DocumentCodec | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._codec = codec or DocumentCodec()
        self._folder = Folder(directory, Permissions(encrypted=self._codec.is_strict, warn=warn))
        self.location = str(directory)

    @asynccontextmanager
    async def lock(self, account: str, timeout_s: float) -> AsyncIterator[Lease]:
        """Exclude every other process and task that refreshes this account.

        Raises:
            StoreUnavailable: still locked after `timeout_s`, or the lock file can't be created.
            StoreUnusable: the folder or the lock file is not safe.
        """
        busy = (
            f"another process is refreshing account '{account}' and still was after {timeout_s:g} s; "
            "try again, and look for a second cfproxy that hangs"
        )
        while True:
            stem = await asyncio.to_thread(self._stem, account)
            async with acquire(self._folder, f"{stem}.lock", timeout_s, busy) as lease:
                # Another app may have got the account's plain names while this one waited.
                if stem == await asyncio.to_thread(self._stem, account):
                    yield lease
                    return

    async def load(self, account: str) -> Login | None:
        """Return the login, None if there is none."""
        return await asyncio.to_thread(self._load, account)

    async def save(self, login: Login) -> None:
        """Replace the account's login; it survives a power cut once this returns.

        Raises:
            StoreUnavailable: disk full, read-only and the like. The old login stays, unless the very last
                step failed: then the new one does.
            StoreUnusable: the stored document is damaged, unsafe or newer; it was not changed.
        """
        await asyncio.to_thread(self._save, login)

    async def delete(self, account: str) -> bool:
        """Forget the login and the attempts; return False if there was no login."""
        return await asyncio.to_thread(self._delete, account)

    def stamp(self, account: str) -> Hashable:
        """Return a value that differs after anyone has changed the login; a stat for each of its names."""
        stamps = tuple(self._folder.stamp(f"{stem}.json") for stem in self._stems(account))
        return stamps if any(stamps) else None

    async def confirm(self, account: str) -> None:
        """No-op: `stamp` asks the file system itself."""

    async def probe(self, account: str) -> None:
        """Try whether a login could be saved now; leaves nothing but the folder."""
        await asyncio.to_thread(self._probe, account)

    async def save_attempt(self, attempt: Attempt) -> None:
        """Keep an attempt until it expires."""
        await asyncio.to_thread(self._save_attempt, attempt)

    async def claim_attempt(self, account: str, state: str | None, now: float) -> Attempt:
        """Return an attempt and mark it used."""
        return await asyncio.to_thread(self._claim_attempt, account, state, now)

    async def aclose(self) -> None:
        """No-op: no file stays open."""

    # --- the login -----------------------------------------------------------------------

    def _stems(self, account: str) -> tuple[str, ...]:
        """Return what the names of this app's files can begin with: its own, and the account's plain one."""
        plain = _quoted(account)
        return (plain,) if self._codec.app_id is None else (f"{plain}@{self._codec.app_id}", plain)

    def _stem(self, account: str) -> str:
        """Return what the names of the login and its lock begin with now."""
        own, plain = self._stems(account)[0], self._stems(account)[-1]
        app_id = self._app_of(f"{plain}.json", account)
        if app_id is None:  # free, or unreadable
            return plain if self._folder.stamp(f"{own}.json") is None else own
        return own if self._codec.is_foreign(app_id) else plain

    def _app_of(self, name: str, account: str) -> str | None:
        content = self._folder.read(name)
        return None if content is None else self._codec.login_app(content, account)

    def _load(self, account: str) -> Login | None:
        name = f"{self._stem(account)}.json"
        if (content := self._folder.read(name)) is not None:
            return self._codec.decode_login(content, account, self._where(name))
        name = f"{_quoted(account)}.json"
        content = self._folder.read(name)
        # Another app's, if there is one: it explains why this app is not logged in.
        return None if content is None else self._codec.decode_other(content, account)

    def _save(self, login: Login) -> None:
        content = self._codec.encode_login(login)
        # A record that `load` would refuse must not replace one that it accepts.
        self._codec.decode_login(content, login.account, f"the new login of account '{login.account}'")
        self._load(login.account)
        self._write(f"{self._stem(login.account)}.json", content)

    def _delete(self, account: str) -> bool:
        names = {f"{stem}.json" for stem in self._stems(account)}.intersection(self._folder.names())
        at = f"{self._stem(account)}.json"
        logins = [name for name in names if name == at or self._app_of(name, account) == self._codec.app_id]
        attempts = [name for name in self._attempt_names(account) if self._is_own_attempt(name)]
        if logins or attempts:
            self._folder.remove(attempts + logins)
        return bool(logins)

    def _probe(self, account: str) -> None:
        self._load(account)
        self._folder.rehearse()

    # --- attempts ------------------------------------------------------------------------

    def _save_attempt(self, attempt: Attempt) -> None:
        self._prune(attempt.account, attempt.created_at, ATTEMPTS_MAX - 1)
        name, used_name = _names_of_state(attempt.account, attempt.state)
        self._write_attempt(name, attempt)
        # An attempt that is saved again becomes unused; until this line it counts as used.
        self._folder.remove([used_name])

    def _claim_attempt(self, account: str, state: str | None, now: float) -> Attempt:
        # In the order in which an attempt has its two names, so that none slips through in between.
        of_state = None if state is None else _names_of_state(account, Secret(state))
        if of_state is not None and not all(map(self._is_own_attempt, of_state)):
            raise AttemptGone("foreign")
        while True:
            names = self._attempt_names(account) if of_state is None else of_state
            found, failure = read_all(names, partial(self._attempt, account))
            try:
                if failure is not None and (of_state or all(attempt.used for attempt in found.values())):
                    raise failure
                attempts = (attempt for attempt in found.values() if attempt.account == account)
                attempt = choose(attempts, state, now)
            finally:
                self._prune(account, now)
            name, used_name = _names_of_state(account, attempt.state)
            # Not under the account's lock, which the login may already hold: the rename is the claim.
            # Whoever loses it looks again, and finds the attempt used.
            if self._folder.claim(name, used_name):
                break
        # The claim is valid without this, which removes the verifier from the disk half an hour earlier.
        with suppress(StoreUnavailable):
            self._write_attempt(used_name, attempt.as_used())
        return attempt

    def _is_own_attempt(self, name: str) -> bool:
        content = self._folder.read(name)
        return content is None or not self._codec.is_foreign(stated_app(content))

    def _attempt(self, account: str, name: str) -> Attempt | None:
        content = self._folder.read(name)
        if content is None or self._codec.is_foreign(stated_app(content)):
            return None
        attempt = self._codec.decode_attempt(content, _attempt_purpose(account), self._where(name))
        # The name decides: a claim that was killed, or found the disk full, left the content as it was.
        return attempt.as_used() if name.endswith(USED_SUFFIX) else attempt

    def _prune(self, account: str, now: float, keep: int = ATTEMPTS_MAX) -> None:
        """Remove stale attempts where possible; what can't be read is left alone."""
        found, _ = read_all(self._attempt_names(account), partial(self._attempt, account))
        for name in choose_stale(found, now, keep):
            with suppress(StoreUnavailable, StoreUnusable):
                self._folder.remove([name])

    def _attempt_names(self, account: str) -> list[str]:
        prefix = f"{_quoted(account)}.login-"
        return [name for name in self._folder.names() if name.startswith(prefix) and name.endswith(".json")]

    def _write_attempt(self, name: str, attempt: Attempt) -> None:
        self._write(name, self._codec.encode_attempt(attempt, _attempt_purpose(attempt.account)))

    def _write(self, name: str, content: bytes) -> None:
        if len(content) > FILE_MAX_BYTES:
            raise StoreUnusable(
                f"the record is larger than {FILE_MAX_BYTES} bytes: the server's tokens are too long"
            )
        self._folder.write(name, content)

    def _where(self, name: str) -> str:
        return str(self._folder.path / name)


def _quoted(account: str) -> str:
    # No dot and no @ survive, so no account's name can be read as another one's file.
    return quote(account, safe="", errors="surrogatepass").replace(".", "%2E")


def _names_of_state(account: str, state: Secret) -> tuple[str, str]:
    """Return an attempt's file name before and after it is claimed."""
    base = f"{_quoted(account)}.login-{state.fingerprint()}"
    return f"{base}.json", f"{base}{USED_SUFFIX}"


def _attempt_purpose(account: str) -> str:
    return f"attempt of {account}"
