"""A store in Redis or Valkey, for any number of machines.

Keys: `cfproxy:{ACCOUNT}:login` (a hash: `document`, `version`, `fence`, `by`, `write`, `app`), `:lock`,
`:attempts` (see `attempts.py`), and the channel `:news`. The first app to log in has these keys (`app`, see
`App.app_id`); those of another app with an account of the same name are `cfproxy:{ACCOUNT}@APP:login` etc.

Invariants:
1. `version` only grows, by one with every change, deletions included. The hash is never removed, so a machine
   that was suspended can't bring back what was deleted meanwhile.
2. The holder of the lock writes only over the version that it read, and never over a record whose writer
   (`by`) had a higher fence. What it could not write for that reason it may still keep and save later.
3. Every command may arrive twice: `write` distinguishes a repetition from a second writer.
4. `stamp` costs no round trip: it returns what `subscription.py` has received, or `confirm` has fetched.
5. A server that has lost the key (emptied, evicted, restarted without its data) gets it back from any
   process that knows it: only `delete` forgets a login, and it leaves the hash.
6. What is another app's is never overwritten or deleted.
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

from cfproxy.auth.interfaces import Lease
from cfproxy.auth.models import Attempt, Login
from cfproxy.config.redis_url import RedisAddress
from cfproxy.errors import StoreUnavailable, StoreUnusable
from cfproxy.stores.documents import DocumentCodec
from cfproxy.stores.redis.attempts import RedisAttempts
from cfproxy.stores.redis.client import close_client, naming_errors, open_client
from cfproxy.stores.redis.lock import LIFE_S, RedisLease, RedisLock
from cfproxy.stores.redis.subscription import Subscription

RECORD_MAX_BYTES = 1 << 20
ACKNOWLEDGE_MS = 1500
CONFIRM_S = 0.5  # a valid token waits for it

# KEYS: record. ARGV: write, version that was read ('' for any), fence ('' for any), channel, document ('' to
# delete it), app ('' for any). Returns {done, version, whether there was a document}.
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
if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], 'app', ARGV[6]) end
redis.call('HSET', KEYS[1], 'version', version + 1, 'write', ARGV[1])
redis.call('PUBLISH', ARGV[4], (version + 1) .. ' ' .. ARGV[1])
return {1, version + 1, existed}
"""
# KEYS: record. ARGV: write, version, channel, document, app ('' for any). Returns 1 if there was nothing.
_RESTORE = """
if redis.call('HEXISTS', KEYS[1], 'version') == 1 then return 0 end
redis.call('HSET', KEYS[1], 'document', ARGV[4], 'version', ARGV[2], 'write', ARGV[1])
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'app', ARGV[5]) end
redis.call('PUBLISH', ARGV[3], ARGV[2] .. ' ' .. ARGV[1])
return 1
"""


class RedisStore:
    """Stores logins on a Redis server (see `TokenStore`).

    Args:
        address: the server.
        codec: turns records into what is stored, for one app or any; by default unencrypted, for any app.
        ca_file: authorities to trust instead of the system's, in PEM form.
        life_s: seconds for which a lock outlives its holder.
    """

    shared = True  # a lock can expire while its holder lives

    def __init__(
        self,
        address: RedisAddress,
        codec: DocumentCodec | None = None,
        ca_file: Path | None = None,
        life_s: float = LIFE_S,
    ) -> None:
        self.location = str(address)
        self._replicas = address.replicas
        self._codec = codec or DocumentCodec()
        self._app_id = self._codec.app_id or ""
        self._where = f"the store {address}"
        self._client = open_client(address, ca_file)
        self._lock = RedisLock(self._client, self._where, life_s)
        self._subscription = Subscription(self._client, self._fetch_version, self._on_version)
        self._attempts = RedisAttempts(self._client, self._codec, self._where)
        self._restore_script = self._client.register_script(_RESTORE)
        self._stems: dict[str, str] = {}  # how the account's keys began when its record was last read
        self._versions: dict[str, str | None] = {}  # by stem, as last heard; None: there is no record
        self._known: dict[str, tuple[int, bytes]] = {}  # the newest record that was read or written
        # By context: a task that lost its lock must not write under the one that another task acquired later.
        self._leases: ContextVar[Mapping[str, RedisLease]] = ContextVar("leases")

    @asynccontextmanager
    async def lock(self, account: str, timeout_s: float) -> AsyncIterator[Lease]:
        """Exclude everyone else who refreshes this account.

        Raises:
            StoreUnavailable: still locked after `timeout_s`, or the server can't be reached.
            StoreUnusable
        """
        busy = (
            f"another process is refreshing account '{account}' and still was after {timeout_s:g} s; "
            "try again, and look for a cfproxy that hangs"
        )
        stem, _, _ = await self._fetch(account)
        keys = _key(stem, "lock"), _key(stem, "login")
        async with self._lock.acquire(*keys, timeout_s, busy) as lease:
            leases = self._leases.get({})
            self._leases.set({**leases, account: lease})
            try:
                yield lease
            finally:
                self._leases.set(leases)

    async def load(self, account: str) -> Login | None:
        """Return the login, None if there is none.

        Raises:
            StoreUnavailable: the server does not respond, or had lost the login; then it was restored.
            StoreUnusable: damaged, or written by a newer version.
        """
        stem, content, version = await self._fetch(account)
        if version is None and content is None and account in self._known:
            await self._restore(account, *self._known[account])
        login = None if content is None else await self._decode(content, account)
        if (lease := self._lease(account)) is not None:
            lease.version = int(version or 0)
        self._remember(account, int(version or 0), content)
        if login is None and stem != _quoted(account):
            # Another app's, if it can be read: it explains why this app is not logged in.
            other, _ = await self._read(_quoted(account), "document", "version")
            if other is not None:
                return await asyncio.to_thread(self._codec.decode_other, other, account)
        return login

    async def save(self, login: Login) -> None:
        """Replace the account's login; the configured number of replicas have it once this returns.

        Raises:
            StoreUnavailable: the server does not respond, or someone else changed the login meanwhile.
            StoreUnusable: what is stored, or would be stored, can't be read.
        """
        # In a thread: with a key this may take tenths of a second.
        content = await asyncio.to_thread(self._codec.encode_login, login)
        if len(content) > RECORD_MAX_BYTES:
            raise StoreUnusable("the record is larger than 1 MiB: the server's tokens are too long")
        await self._decode(content, login.account)  # what `load` would refuse must not replace anything
        if self._lease(login.account) is None:
            await self.load(login.account)  # what cfproxy can't read is not overwritten
        await self._change(login.account, content)

    async def delete(self, account: str) -> bool:
        """Forget the login and the attempts; return False if there was no login."""
        await self._fetch(account)
        existed = await self._change(account, b"")
        await self._attempts.delete(_key(_quoted(account), "attempts"))
        return existed

    def stamp(self, account: str) -> Hashable:
        """Return a value that differs soon after anyone has changed the login; uses no network."""
        stem = self._stems.get(account, _quoted(account))
        self._subscription.follow(stem, _key(stem, "news"))
        return self._versions.get(stem)

    async def confirm(self, account: str) -> None:
        """Fetch the version, because the subscription may be interrupted without having noticed."""
        stem = self._stems.get(account, _quoted(account))
        try:
            async with asyncio.timeout(CONFIRM_S):
                with naming_errors(self._where):
                    self._on_version(stem, await self._fetch_version(stem))
        except TimeoutError:
            raise StoreUnavailable(f"{self._where} does not answer") from None

    async def probe(self, account: str) -> None:
        """Try whether a login could be saved now, leaving nothing behind."""
        await self.load(account)
        with naming_errors(self._where):
            await self._client.set(_key(_quoted(account), "probe"), b"", px=1)

    async def save_attempt(self, attempt: Attempt) -> None:
        """Keep an attempt until it expires."""
        await self._attempts.save(attempt, _key(_quoted(attempt.account), "attempts"))

    async def claim_attempt(self, account: str, state: str | None, now: float) -> Attempt:
        """Return an attempt and mark it used."""
        return await self._attempts.claim(account, _key(_quoted(account), "attempts"), state, now)

    async def aclose(self) -> None:
        """Stop listening and close connections; later calls open new ones."""
        await self._subscription.aclose()
        await self._lock.aclose()
        with naming_errors(self._where):
            await close_client(self._client)

    # --- the login -----------------------------------------------------------------------

    def _lease(self, account: str) -> RedisLease | None:
        return self._leases.get({}).get(account)

    async def _fetch(self, account: str) -> tuple[str, bytes | None, bytes | None]:
        """Return how the keys of this app's record begin, its document and its version."""
        plain = _quoted(account)
        own, stem = f"{plain}@{self._app_id}", plain
        content, version, app = await self._read(plain, "document", "version", "app")
        if self._app_id:
            owner = None if app is None else app.decode()
            if content is not None:  # a release that knows no `app` may have put another app's login there
                owner = await asyncio.to_thread(self._codec.login_app, content, account) or owner
            if owner is None or owner != self._app_id:
                own_content, own_version = await self._read(own, "document", "version")
                if owner is not None or own_version is not None:
                    stem, content, version = own, own_content, own_version
        self._stems[account] = stem
        return stem, content, version

    async def _read(self, stem: str, *fields: str) -> list[Any]:
        with naming_errors(self._where):
            found: list[Any] = await self._client.hmget(_key(stem, "login"), *fields)
        return found

    async def _change(self, account: str, content: bytes) -> bool:
        lease = self._lease(account)
        version = "" if lease is None or lease.version is None else lease.version
        fence = "" if lease is None else lease.fence
        stem, write = self._stems[account], secrets.token_hex(8)
        with naming_errors(self._where):
            done, now_at, existed, acknowledged = await self._send(
                _key(stem, "login"), [write, version, fence, _key(stem, "news"), content, self._app_id]
            )
        if not done:
            raise StoreUnavailable(
                f"another process changed the login of account '{account}' in the meantime; trying again",
                retry_after_s=1.0,
            )
        self._versions[stem] = f"{now_at} {write}"
        self._remember(account, int(now_at), content or None)
        if lease is not None:
            lease.version = int(now_at)
        if acknowledged < self._replicas:
            raise StoreUnavailable(
                f"{self._where} has the login of account '{account}', but only {acknowledged} of "
                f"{self._replicas} replicas do; look at the replicas"
            )
        return bool(existed)

    async def _send(self, key: str, arguments: list[Any]) -> tuple[int, int, int, int]:
        # The whole script each time, not its digest, which a server that has just taken over does not know.
        if not self._replicas:
            written: Any = await self._client.eval(_WRITE, 1, key, *arguments)
            return *written, 0
        # On one connection: WAIT counts the writes of its own connection.
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.eval(_WRITE, 1, key, *arguments)
            pipe.wait(self._replicas, ACKNOWLEDGE_MS)
            # Errors as they came: an error raised for the whole pipeline has its code behind the command.
            written, acknowledged = await pipe.execute(raise_on_error=False)
        if isinstance(written, ReadOnlyError):  # as `retry_on_error` does for a single command
            await self._client.connection_pool.disconnect(inuse_connections=False)
        for answer in (written, acknowledged):
            if isinstance(answer, NoPermissionError):
                raise answer
        if isinstance(written, ResponseError):
            raise written
        # A server that was demoted before or while it waited can't tell who has it.
        return *written, 0 if isinstance(acknowledged, ResponseError) else int(acknowledged)

    async def _restore(self, account: str, version: int, content: bytes) -> None:
        with naming_errors(self._where):
            # One more than the known version, so that no process takes it for the old record.
            stem, write = self._stems[account], secrets.token_hex(8)
            arguments: list[Any] = [write, version + 1, _key(stem, "news"), content, self._app_id]
            await self._restore_script([_key(stem, "login")], arguments)
        raise StoreUnavailable(
            f"{self._where} had lost the login of account '{account}'; it was put back. Switch appendonly on "
            "and eviction off, and forget logins with cfproxy logout",
            retry_after_s=1.0,
        )

    def _remember(self, account: str, version: int, content: bytes | None) -> None:
        if content is not None:
            self._known[account] = version, content
        else:
            self._known.pop(account, None)

    async def _decode(self, content: bytes, account: str) -> Login:
        where = f"the login of account '{account}' in {self._where}"
        return await asyncio.to_thread(self._codec.decode_login, content, account, where)

    async def _fetch_version(self, stem: str) -> str:
        found: list[Any] = await self._client.hmget(_key(stem, "login"), "version", "write")
        return b" ".join(part for part in found if part is not None).decode()

    def _on_version(self, stem: str, version: str) -> None:
        # A deleted login has a version too: `load` then returns None. The value includes `write`, since a
        # server that took over may count from an earlier version.
        self._versions[stem] = version or None


def _quoted(account: str) -> str:
    return quote(account, safe="", errors="surrogatepass")


def _key(stem: str, name: str) -> str:
    # The braces put all keys of an account on one node of a Redis Cluster, which the scripts need.
    account, at, app_id = stem.partition("@")
    return f"cfproxy:{{{account}}}{at}{app_id}:{name}"
