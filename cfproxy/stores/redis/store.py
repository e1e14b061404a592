"""A store of one record an account in Redis or Valkey, for any number of machines.

Owns: the keys and what is under them: `cfproxy:{ACCOUNT}:login` (a hash: `document`, `version`, `fence`,
`by`, `write`), `:lock`, `:attempts` (a hash by the state's fingerprint), and the channel `:news`.
Must not know: which attempt may be taken (`attempts.py`), how long a lock lasts (`locks.py`).

Invariants:
1. `version` only grows, by one with every change, deletions included; the hash is never removed, so a
   machine that stood still can't bring back what was forgotten meanwhile.
2. Whoever holds the lock writes only over the version that it read, and never over a record whose writer
   (`by`) had a higher fence. What it could not write for that reason it may still keep and save later.
3. Every command may arrive twice: `write` tells a repetition from a second writer.
4. No request costs a round trip: `stamp` answers from what `news.py` has heard.
5. A server that has lost the key (emptied, evicted, restarted without its data) gets it again from whoever
   knows it: only `delete` forgets a login, and leaves the hash.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Hashable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import quote

from redis.exceptions import NoPermissionError, ReadOnlyError, ResponseError

from cfproxy.auth.interfaces import ATTEMPT_LIFETIME_S, Attempt, Lease
from cfproxy.auth.models import Login
from cfproxy.config.redis_url import RedisAddress
from cfproxy.errors import StoreUnavailable, StoreUnusable
from cfproxy.stores.attempts import Entry, choose, from_document, to_document
from cfproxy.stores.encryption import DocumentCodec
from cfproxy.stores.redis.client import close_client, naming_errors, open_client
from cfproxy.stores.redis.lock import LIFE_S, RedisLease, RedisLocks
from cfproxy.stores.redis.subscription import Subscription

RECORD_MAX_BYTES = 1 << 20
ACKNOWLEDGE_MS = 1500

# KEYS: record. ARGV: write, version that was read ('' for any), fence ('' for any), channel, document ('' to
# forget). Returns {done, version, whether there was a document}.
_WRITE = """
local at = redis.call('HMGET', KEYS[1], 'version', 'by', 'write')
local version, by = tonumber(at[1] or '0'), tonumber(at[2] or '0')
if at[3] == ARGV[1] then return {1, version, 1} end
if ARGV[3] ~= '' and by > tonumber(ARGV[3]) then return {0, version, 0} end
if ARGV[2] ~= '' and version ~= tonumber(ARGV[2]) then return {0, version, 0} end
local existed = redis.call('HEXISTS', KEYS[1], 'document')
if ARGV[5] == '' then
  redis.call('HDEL', KEYS[1], 'document')
else
  redis.call('HSET', KEYS[1], 'document', ARGV[5])
end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'by', ARGV[3]) end
redis.call('HSET', KEYS[1], 'version', version + 1, 'write', ARGV[1])
redis.call('PUBLISH', ARGV[4], (version + 1) .. ' ' .. ARGV[1])
return {1, version + 1, existed}
"""
# KEYS: record. ARGV: write, version, channel, document. Returns 1 when there was nothing.
_PUT_BACK = """
if redis.call('HEXISTS', KEYS[1], 'version') == 1 then return 0 end
redis.call('HSET', KEYS[1], 'document', ARGV[4], 'version', ARGV[2], 'write', ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[2] .. ' ' .. ARGV[1])
return 1
"""
# KEYS: attempts. ARGV: field, what it held, what it is to hold.
_CLAIM = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""


class RedisStore:
    """Keep logins on a Redis server.

    Args:
        address: the server.
        codec: turns documents into what is kept; in clear by default.
        ca_file: authorities to trust instead of the system's, in PEM form.
        life_s: how long a lock outlives its holder, seconds.
    """

    def __init__(
        self,
        address: RedisAddress,
        codec: DocumentCodec | None = None,
        ca_file: Path | None = None,
        life_s: float = LIFE_S,
    ) -> None:
        self._address = address
        self._codec = codec or DocumentCodec()
        self._where = f"the store {address}"
        self._client = open_client(address, ca_file)
        self._locks = RedisLocks(self._client, self._where, life_s)
        self._news = Subscription(self._client, self._ask_version, self._heard)
        self._put_back = self._client.register_script(_PUT_BACK)
        self._claim = self._client.register_script(_CLAIM)
        self._versions: dict[str, str | None] = {}  # as far as heard; None: there is no record
        self._known: dict[str, tuple[int, bytes]] = {}  # the newest record that was read or written
        # By context: a task that lost its lock must not write under the one that another task took after it.
        self._leases: ContextVar[Mapping[str, RedisLease]] = ContextVar("leases")

    @property
    def location(self) -> str:
        """Say where the records are, for people."""
        return str(self._address)

    @property
    def shared(self) -> bool:
        """Say that a lock can end while its holder lives."""
        return True

    @asynccontextmanager
    async def lock(self, account: str, timeout_s: float) -> AsyncIterator[Lease]:
        """Exclude everybody else who refreshes this account, waiting `timeout_s` at most.

        Raises:
            StoreUnavailable: another one still holds the lock, or the server is out of reach.
            StoreUnusable
        """
        busy = (
            f"another process is refreshing account '{account}' and still was after {timeout_s:g} s; "
            "try again, and look for a cfproxy that hangs"
        )
        async with self._locks.hold(_key(account, "lock"), _key(account, "login"), timeout_s, busy) as lease:
            held = self._leases.get({})
            self._leases.set({**held, account: lease})
            try:
                yield lease
            finally:
                self._leases.set(held)

    async def load(self, account: str) -> Login | None:
        """Return the record, or None when there is none.

        Raises:
            StoreUnavailable: the server does not answer, or had lost the record; then it has it again.
            StoreUnusable: damaged, or written by a newer version.
        """
        with naming_errors(self._where):
            found: list[Any] = await self._client.hmget(_key(account, "login"), "document", "version")
        content, version = found
        if version is None and content is None and account in self._known:
            await self._restore(account, *self._known[account])
        login = None if content is None else await self._read(content, account)
        if (lease := self._lease(account)) is not None:
            lease.version = int(version or 0)
        self._note(account, int(version or 0), content)
        return login

    async def save(self, login: Login) -> None:
        """Replace the account's record; when this returns, as many replicas have it as were asked for.

        Raises:
            StoreUnavailable: the server does not answer, or another one changed the record meanwhile.
            StoreUnusable: what would be saved could not be read again.
        """
        content = await self._encoded(login.to_document(), _login_purpose(login.account))
        if len(content) > RECORD_MAX_BYTES:
            raise StoreUnusable("the record is larger than 1 MiB: the server's tokens are too long")
        await self._read(content, login.account)  # what `load` would refuse must not replace anything
        if self._lease(login.account) is None:
            await self.load(login.account)  # what can't be read as ours is not overwritten
        await self._change(login.account, content)

    async def delete(self, account: str) -> bool:
        """Forget the record and the account's attempts; False when there was no record.

        Raises:
            StoreUnavailable, StoreUnusable
        """
        existed = await self._change(account, b"")
        with naming_errors(self._where):
            await self._client.delete(_key(account, "attempts"))
        return existed

    def stamp(self, account: str) -> Hashable:
        """Return a value that differs soon after the record was changed by anybody; asks no network."""
        self._news.follow(account, _key(account, "news"))
        return self._versions.get(account)

    async def probe(self, account: str) -> None:
        """Try whether a record could be saved now, leaving nothing behind.

        Raises:
            StoreUnavailable, StoreUnusable
        """
        await self.load(account)
        with naming_errors(self._where):
            await self._client.set(_key(account, "probe"), b"", px=1)

    async def put_attempt(self, attempt: Attempt) -> None:
        """Remember an attempt for `ATTEMPT_LIFETIME_S`; one that was taken can be put back.

        Raises:
            StoreUnavailable, StoreUnusable
        """
        account = attempt.account
        await self._prune(account, attempt.created_at)
        content = await self._encoded(to_document(Entry(attempt)), _attempt_purpose(account))
        key = _key(account, "attempts")
        with naming_errors(self._where):
            await self._client.hset(key, attempt.state.fingerprint(), content)
            # Twice as long as an attempt lasts: who comes too late is to be told so.
            await self._client.expire(key, int(2 * ATTEMPT_LIFETIME_S))

    async def take_attempt(self, account: str, state: str | None, now: float) -> Attempt:
        """Return an attempt, the newest with `state=None`, and mark it used.

        Raises:
            AttemptGone: unknown, used or expired at wall-clock `now`.
            StoreUnavailable, StoreUnusable
        """
        while True:
            found = await self._entries(account)
            try:
                entry = choose((entry for entry, _ in found.values()), state, now)
            finally:
                await self._prune(account, now)
            field = entry.attempt.state.fingerprint()
            spent = await self._encoded(to_document(entry.spent()), _attempt_purpose(account))
            # Who loses the claim looks again, and finds the attempt used.
            with naming_errors(self._where):
                if await self._claim([_key(account, "attempts")], [field, found[field][1], spent]):
                    return entry.attempt

    async def aclose(self) -> None:
        """Stop listening and let the connections go; whatever is asked later opens new ones."""
        await self._news.aclose()
        with naming_errors(self._where):
            await close_client(self._client)

    # --- the record ----------------------------------------------------------------------

    def _lease(self, account: str) -> RedisLease | None:
        return self._leases.get({}).get(account)

    async def _change(self, account: str, content: bytes) -> bool:
        lease = self._lease(account)
        version = "" if lease is None or lease.version is None else lease.version
        fence = "" if lease is None else lease.fence
        write = secrets.token_hex(8)
        with naming_errors(self._where):
            done, now_at, existed, acknowledged = await self._send(
                _key(account, "login"), [write, version, fence, _key(account, "news"), content]
            )
        if not done:
            raise StoreUnavailable(
                f"another process changed the login of account '{account}' in the meantime; trying again",
                retry_after_s=1.0,
            )
        self._versions[account] = f"{now_at} {write}"
        self._note(account, int(now_at), content or None)
        if lease is not None:
            lease.version = int(now_at)
        if acknowledged < self._address.replicas:
            raise StoreUnavailable(
                f"{self._where} has the login of account '{account}', but only {acknowledged} of "
                f"{self._address.replicas} replicas do; look at the replicas"
            )
        return bool(existed)

    async def _send(self, key: str, arguments: list[Any]) -> tuple[int, int, int, int]:
        # As a whole each time, not by its digest: a server that took over does not know that yet.
        if not self._address.replicas:
            written: Any = await self._client.eval(_WRITE, 1, key, *arguments)
            return *written, 0
        # On one connection: the server waits for what came on that.
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.eval(_WRITE, 1, key, *arguments)
            pipe.wait(self._address.replicas, ACKNOWLEDGE_MS)
            # Errors as they came: raised for the whole, their code word stands behind the command's text.
            written, acknowledged = await pipe.execute(raise_on_error=False)
        if isinstance(written, ReadOnlyError):  # as `open_client` has it done after a single command
            await self._client.connection_pool.disconnect(inuse_connections=False)
        for answer in (written, acknowledged):
            if isinstance(answer, NoPermissionError):
                raise answer
        if isinstance(written, ResponseError):
            raise written
        # A server that was set back while it waited, or before, can't tell who has it.
        return *written, 0 if isinstance(acknowledged, ResponseError) else int(acknowledged)

    async def _restore(self, account: str, version: int, content: bytes) -> None:
        with naming_errors(self._where):
            # One more than is known: who still works on the old record must not take it for that.
            write, channel = secrets.token_hex(8), _key(account, "news")
            await self._put_back([_key(account, "login")], [write, version + 1, channel, content])
        raise StoreUnavailable(
            f"{self._where} had lost the login of account '{account}'; it was put back. Switch appendonly on "
            "and eviction off, and forget logins with cfproxy logout",
            retry_after_s=1.0,
        )

    def _note(self, account: str, version: int, content: bytes | None) -> None:
        if content is not None:
            self._known[account] = version, content
        else:
            self._known.pop(account, None)

    async def _encoded(self, document: dict[str, Any], purpose: str) -> bytes:
        # In a thread: with a key it may take tenths of a second.
        return await asyncio.to_thread(self._codec.encode, document, purpose)

    async def _decoded(self, content: bytes, purpose: str, where: str) -> object:
        return await asyncio.to_thread(self._codec.decode, content, purpose, where)

    async def _read(self, content: bytes, account: str) -> Login:
        where = f"the login of account '{account}' in {self._address}"
        login = Login.from_document(await self._decoded(content, _login_purpose(account), where), where)
        if login.account != account:
            raise StoreUnusable(f"{where} is another account's; delete its key and log in again")
        return login

    async def _ask_version(self, account: str) -> str:
        found: list[Any] = await self._client.hmget(_key(account, "login"), "version", "write")
        return b" ".join(part for part in found if part is not None).decode()

    def _heard(self, account: str, version: str) -> None:
        # A record that was forgotten has a version, too: `load` tells that it is gone. With the writer's
        # word beside it, since a server that took over may count from an earlier one.
        self._versions[account] = version or None

    # --- attempts ------------------------------------------------------------------------

    async def _entries(self, account: str) -> dict[str, tuple[Entry, bytes]]:
        with naming_errors(self._where):
            contents: Any = await self._client.hgetall(_key(account, "attempts"))
        where, purpose = f"a login attempt in {self._address}", _attempt_purpose(account)
        return {
            field.decode(): (from_document(await self._decoded(content, purpose, where), where), content)
            for field, content in contents.items()
        }

    async def _prune(self, account: str, now: float) -> None:
        over = [field for field, (entry, _) in (await self._entries(account)).items() if entry.expired(now)]
        if over:
            with naming_errors(self._where):
                await self._client.hdel(_key(account, "attempts"), *over)


def _key(account: str, name: str) -> str:
    # In braces: with Redis Cluster all keys of an account lie on one node, as the scripts need it.
    return f"cfproxy:{{{quote(account, safe='', errors='surrogatepass')}}}:{name}"


def _login_purpose(account: str) -> str:
    return f"login of {account}"


def _attempt_purpose(account: str) -> str:
    return f"login attempt of {account}"
