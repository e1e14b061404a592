"""A lock in Redis: owned, renewed while its holder works, and numbered.

Owns: the lock's key, who holds it, how long that lasts, the fence.
Must not know: what the lock protects.
Invariants:
1. A lock ends `life_s` after its holder was last heard of; a holder believes in it for a tenth less, by
   the monotonic clock and by the wall clock, whichever says sooner.
2. Each holder gets a higher fence than all before it, for as long as the record's key lives, and than
   any that has written the record, whatever a server forgot that took over.
3. Only its holder gives a lock back or prolongs it. Taking it twice by the same holder is one taking: a
   command whose answer was lost may arrive again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import redis.asyncio

from cfproxy.auth.interfaces import Lease
from cfproxy.errors import CfproxyError, StoreUnavailable
from cfproxy.stores.redis.client import end_tasks, naming_errors

LIFE_S = 10.0
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.5

# KEYS: lock, record. ARGV: holder, life in ms. Returns the fence, 0 when another one holds the lock.
_TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
local at = redis.call('HMGET', KEYS[2], 'fence', 'by')
local fence, by = tonumber(at[1] or '0'), tonumber(at[2] or '0')
if holder and fence > 0 then return fence end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
fence = math.max(fence, by) + 1
redis.call('HSET', KEYS[2], 'fence', fence)
return fence
"""
# KEYS: lock. ARGV: holder, life in ms. Returns 1 when it is still the holder's.
_PROLONG = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
# KEYS: lock. ARGV: holder.
_GIVE_BACK = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


class RedisLease(Lease):
    """A lock that was taken.

    Args:
        fence: its number.
        life_s: seconds that it lasts beyond each prolongation.
    """

    def __init__(self, fence: int, life_s: float) -> None:
        self.fence = fence
        self.version: int | None = None  # of the record, as its holder knows it; None before it was read
        self._life_s = life_s * 0.9
        self._ends_at = self._ends_at_by_wall = -math.inf

    def prolong(self, asked_at: float, asked_at_by_wall: float) -> None:
        """Count anew from when the server was asked, which is before it began to count itself."""
        self._ends_at = asked_at + self._life_s
        self._ends_at_by_wall = asked_at_by_wall + self._life_s

    def lose(self) -> None:
        """Count it as lost."""
        self._ends_at = -math.inf

    def held(self) -> bool:
        """Return whether nobody else can have taken it yet."""
        return time.monotonic() < self._ends_at and time.time() < self._ends_at_by_wall


class RedisLocks:
    """Takes locks.

    Args:
        client: the connection.
        where: the server's name, for messages.
        life_s: how long a lock outlives its holder, seconds.
    """

    def __init__(self, client: redis.asyncio.Redis, where: str, life_s: float) -> None:
        self._client = client
        self._where = where
        self._life_s = life_s
        self._take = client.register_script(_TAKE)
        self._prolong = client.register_script(_PROLONG)
        self._give_back = client.register_script(_GIVE_BACK)

    @asynccontextmanager
    async def hold(self, key: str, record_key: str, timeout_s: float, busy: str) -> AsyncIterator[RedisLease]:
        """Hold the lock `key`, waiting `timeout_s` at most.

        Raises:
            StoreUnavailable: another one still holds it (`busy` says so), or the server is out of reach.
            StoreUnusable
        """
        holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
        try:
            lease = await self._wait(key, record_key, holder, timeout_s, busy)
            keeper = asyncio.create_task(self._keep(key, holder, lease))
            try:
                yield lease
            finally:
                await end_tasks([keeper])
        finally:
            # Also when waiting was cancelled: the lock may have been taken, its answer was not heard.
            await self._drop(key, holder)

    async def _wait(self, key: str, record_key: str, holder: str, timeout_s: float, busy: str) -> RedisLease:
        loop = asyncio.get_running_loop()
        idle_timeout = loop.time() + timeout_s
        pause_s = FIRST_PAUSE_S
        while True:
            asked_at, asked_at_by_wall = time.monotonic(), time.time()
            with naming_errors(self._where):
                fence = await self._take([key, record_key], [holder, self._life_ms()])
            if fence:
                lease = RedisLease(int(fence), self._life_s)
                lease.prolong(asked_at, asked_at_by_wall)
                return lease
            left_s = idle_timeout - loop.time()
            if left_s <= 0:
                raise StoreUnavailable(busy)
            # Half of it by chance: a hundred replicas that wait must not ask in step.
            await asyncio.sleep(min(pause_s * random.uniform(0.5, 1.0), left_s))  # noqa: S311 - no secret
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _keep(self, key: str, holder: str, lease: RedisLease) -> None:
        while True:
            await asyncio.sleep(self._life_s / 4)
            asked_at, asked_at_by_wall = time.monotonic(), time.time()
            try:
                with naming_errors(self._where):
                    mine = await self._prolong([key], [holder, self._life_ms()])
            except CfproxyError:
                continue  # until it ends, there is time for more tries
            if not mine:
                lease.lose()
                return
            lease.prolong(asked_at, asked_at_by_wall)

    async def _drop(self, key: str, holder: str) -> None:
        with contextlib.suppress(CfproxyError), naming_errors(self._where):
            await self._give_back([key], [holder])

    def _life_ms(self) -> int:
        return int(self._life_s * 1000)
