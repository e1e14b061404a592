"""A store of one JSON document an account, in a private folder.

Owns: names and contents of the files: `ACCOUNT.json` (the login), `ACCOUNT.lock` (who refreshes),
`ACCOUNT.login-HASH.json` (an attempt; `….used.json` once taken; HASH is the state's).
Must not know: how a file is written or judged safe (`disk.py`), which attempt may be taken
(`attempts.py`).
Invariants: a document that we cannot read as ours is never overwritten; what is saved can be loaded;
all file work runs in threads, so a cancelled `save` returns early but is still finished.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cfproxy.auth.interfaces import Attempt, Lease
from cfproxy.auth.models import Login
from cfproxy.errors import StoreUnavailable, StoreUnusable
from cfproxy.secret import Secret
from cfproxy.stores.atomic_files import FILE_MAX_BYTES, Folder
from cfproxy.stores.attempts import Entry, choose, from_document, to_document
from cfproxy.stores.encryption import DocumentCodec
from cfproxy.stores.file_lock import hold

USED_SUFFIX = ".used.json"


class FileStore:
    """Keep logins in `directory`, for any number of processes of one user.

    Args:
        directory: absolute; made by the first write.
        codec: turns documents into the files' contents; in clear by default.
    """

    def __init__(self, directory: Path, codec: DocumentCodec | None = None) -> None:
        self._folder = Folder(directory)
        self._codec = codec or DocumentCodec()

    @property
    def location(self) -> str:
        """Say where the records are, for people."""
        return str(self._folder.path)

    @property
    def shared(self) -> bool:
        """Say that the operating system guards its locks: a free one has no holder that lives."""
        return False

    def lock(self, account: str, timeout_s: float) -> AbstractAsyncContextManager[Lease]:
        """Exclude every other process and task that refreshes this account, waiting `timeout_s` at most.

        Raises:
            StoreUnavailable: another one still holds the lock, or the lock file cannot be made.
            StoreUnusable: the folder or the lock file is not safe.
        """
        busy = (
            f"another process is refreshing account '{account}' and still was after {timeout_s:g} s; "
            "try again, and look for a second cfproxy that hangs"
        )
        return hold(self._folder, f"{_stem(account)}.lock", timeout_s, busy)

    async def load(self, account: str) -> Login | None:
        """Return the record, or None when there is none.

        Raises:
            StoreUnavailable: the disk does not answer.
            StoreUnusable: damaged, unsafe, or written by a newer version.
        """
        return await asyncio.to_thread(self._load, account)

    async def save(self, login: Login) -> None:
        """Replace the account's record; when this returns, it survives a power cut.

        Raises:
            StoreUnavailable: disk full, read-only and the like; the old record stands, unless the
                very last step failed: then the new one does.
            StoreUnusable: what is there is damaged, unsafe or newer; it was left alone.
        """
        await asyncio.to_thread(self._save, login)

    async def delete(self, account: str) -> bool:
        """Forget the record and the account's attempts; False when there was no record.

        Raises:
            StoreUnavailable, StoreUnusable
        """
        return await asyncio.to_thread(self._delete, account)

    def stamp(self, account: str) -> Hashable:
        """Return a value that differs after the record was changed by anybody; one stat, never raises."""
        return self._folder.stamp(_document_name(account))

    async def probe(self, account: str) -> None:
        """Try whether a record could be saved now, leaving nothing behind but the folder.

        Raises:
            StoreUnavailable, StoreUnusable: as `save` would.
        """
        await asyncio.to_thread(self._probe, account)

    async def put_attempt(self, attempt: Attempt) -> None:
        """Remember an attempt for `ATTEMPT_LIFETIME_S`.

        Raises:
            StoreUnavailable, StoreUnusable
        """
        await asyncio.to_thread(self._put, attempt)

    async def take_attempt(self, account: str, state: str | None, now: float) -> Attempt:
        """Return an attempt, the newest with `state=None`, and mark it used.

        Raises:
            AttemptGone: unknown, used or expired at wall-clock `now`.
            StoreUnavailable, StoreUnusable
        """
        return await asyncio.to_thread(self._take, account, state, now)

    async def aclose(self) -> None:
        """Do nothing: no file is kept open."""

    # --- the record ----------------------------------------------------------------------

    def _load(self, account: str) -> Login | None:
        name = _document_name(account)
        content = self._folder.read(name)
        if content is None:
            return None
        where = self._where(name)
        login = self._read(content, account, where)
        if login.account != account:
            raise StoreUnusable(
                f"{where} is not the login of account '{account}' but of another one; "
                "move it away and log in again"
            )
        return login

    def _save(self, login: Login) -> None:
        name = _document_name(login.account)
        content = self._render(login.to_document(), f"login of {login.account}")
        # A record that `load` would refuse must not replace one that it accepts.
        self._read(content, login.account, f"the new login of account '{login.account}'")
        self._load(login.account)
        self._folder.write(name, content)

    def _delete(self, account: str) -> bool:
        name = _document_name(account)
        existed = name in self._folder.names()
        doomed = self._attempt_names(account) + [name] * existed
        if doomed:
            self._folder.remove(doomed)
        return existed

    def _probe(self, account: str) -> None:
        self._load(account)
        self._folder.rehearse()

    # --- attempts ------------------------------------------------------------------------

    def _put(self, attempt: Attempt) -> None:
        self._prune(attempt.account, attempt.created_at)
        name, used_name = _attempt_names(attempt)
        self._write_entry(name, Entry(attempt))
        # Whoever puts an attempt back withdraws the mark that it was used; until then the mark counts.
        self._folder.remove([used_name])

    def _take(self, account: str, state: str | None, now: float) -> Attempt:
        while True:
            try:
                entry = choose(self._attempts(account, state), state, now)
            finally:
                self._prune(account, now)
            name, used_name = _attempt_names(entry.attempt)
            # Not under the account's lock, which a login may already hold: the rename is the claim.
            # Whoever loses it looks again, and finds the attempt used.
            if self._folder.claim(name, used_name):
                break
        # The claim stands without this; it takes the verifier off the disk half an hour earlier.
        with suppress(StoreUnavailable):
            self._write_entry(used_name, entry.spent())
        return entry.attempt

    def _attempts(self, account: str, state: str | None) -> list[Entry]:
        if state is None:
            names = self._attempt_names(account)
        else:
            # In the order in which an attempt has its names, so that none slips through in between.
            names = list(_names_of_state(account, Secret(state)))
        entries = (self._attempt(name, account) for name in names)
        return [entry for entry in entries if entry is not None and entry.attempt.account == account]

    def _attempt(self, name: str, account: str) -> Entry | None:
        content = self._folder.read(name)
        if content is None:
            return None
        where = self._where(name)
        entry = from_document(self._codec.decode(content, f"attempt of {account}", where), where)
        # The name decides: a taker that was killed, or found the disk full, left the content as it was.
        return entry.spent() if name.endswith(USED_SUFFIX) else entry

    def _prune(self, account: str, now: float) -> None:
        """Remove expired attempts where that is possible; what cannot be read is left alone."""
        for name in self._attempt_names(account):
            with suppress(StoreUnavailable, StoreUnusable):
                entry = self._attempt(name, account)
                if entry is not None and entry.expired(now):
                    self._folder.remove([name])

    def _attempt_names(self, account: str) -> list[str]:
        prefix = f"{_stem(account)}.login-"
        return [name for name in self._folder.names() if name.startswith(prefix) and name.endswith(".json")]

    def _write_entry(self, name: str, entry: Entry) -> None:
        self._folder.write(name, self._render(to_document(entry), f"attempt of {entry.attempt.account}"))

    def _render(self, document: dict[str, Any], purpose: str) -> bytes:
        content = self._codec.encode(document, purpose)
        if len(content) > FILE_MAX_BYTES:
            raise StoreUnusable(
                f"the record is larger than {FILE_MAX_BYTES} bytes: the server's tokens are too long"
            )
        return content

    def _read(self, content: bytes, account: str, where: str) -> Login:
        return Login.from_document(self._codec.decode(content, f"login of {account}", where), where)

    def _where(self, name: str) -> str:
        return str(self._folder.path / name)


def _stem(account: str) -> str:
    # No dot survives, so no account's name can be read as another one's file.
    return quote(account, safe="", errors="surrogatepass").replace(".", "%2E")


def _document_name(account: str) -> str:
    return f"{_stem(account)}.json"


def _attempt_names(attempt: Attempt) -> tuple[str, str]:
    return _names_of_state(attempt.account, attempt.state)


def _names_of_state(account: str, state: Secret) -> tuple[str, str]:
    """Return an attempt's file name before and after it is taken."""
    base = f"{_stem(account)}.login-{state.fingerprint()}"
    return f"{base}.json", f"{base}{USED_SUFFIX}"
