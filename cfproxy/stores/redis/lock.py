"""A lock in Redis with a lease that its holder extends, and a fence that numbers the holders.

Invariants:
1. The lock expires `life_s` after its holder last extended it. The holder believes in it for a tenth less, by
   the monotonic clock and by the wall clock, whichever expires first.
2. Each holder gets a higher fence than all before it, as long as the record's key lives, and than any that
   has written the record, even if a server that took over has lost data.
3. Only the holder releases or extends the lock. Acquiring it twice as the same holder counts once: a command
   whose reply was lost may arrive again.
4. A holder whose release was not acknowledged, or who may have got the lock without knowing, is released
   again in the background: a server that was stalled carries out what it has received, in any order.
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
RELEASE_AGAIN_S = 0.25
OWED_MAX = 64

# KEYS: lock, record. ARGV: holder, life in ms. Returns the fence, 0 if someone else holds the lock.
_ACQUIRE = """
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
# KEYS: lock. ARGV: holder, life in ms. Returns 1 if it is still the holder's.
_EXTEND = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
# KEYS: lock. ARGV: holders.
_RELEASE = """
local holder = redis.call('GET', KEYS[1])
for _, each in ipairs(ARGV) do
  if holder == each then return redis.call('DEL', KEYS[1]) end
end
return 0
"""


class RedisLease(Lease):
    """A lock that was acquired.

    Args:
        fence: its number.
        life_s: seconds for which it lasts after each extension.

    Attributes:
        version: of the record, as the holder knows it; None before it was read.
    """

    def __init__(self, fence: int, life_s: float) -> None:
        self.fence = fence
        self.version: int | None = None
        self._life_s = life_s * 0.9
        self._ends_at = self._ends_at_wall = -math.inf

    def extend(self, sent_at: float, sent_at_wall: float) -> None:
        """Restart the lease at the time of sending, which is before the server's own start."""
        self._ends_at = sent_at + self._life_s
        self._ends_at_wall = sent_at_wall + self._life_s

    def lose(self) -> None:
        """Mark it as lost."""
        self._ends_at = -math.inf

    def is_held(self) -> bool:
        """Return whether nobody else can have acquired it yet."""
        return time.monotonic() < self._ends_at and time.time() < self._ends_at_wall


class RedisLock:
    """Acquires locks on one server.

    Args:
        client: the connection.
        where: the server's name, for messages.
        life_s: seconds for which a lock outlives its holder.
    """

    def __init__(self, client: redis.asyncio.Redis, where: str, life_s: float) -> None:
        self._client = client
        self._where = where
        self._life_s = life_s
        self._life_ms = int(life_s * 1000)
        self._acquire_script = client.register_script(_ACQUIRE)
        self._extend_script = client.register_script(_EXTEND)
        self._owed: dict[str, list[str]] = {}  # holders to release again, by lock
        self._releasing: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def acquire(
        self, key: str, record_key: str, timeout_s: float, busy: str
    ) -> AsyncIterator[RedisLease]:
        """Hold the lock `key` while the context lasts.

        Raises:
            StoreUnavailable: still locked after `timeout_s` (`busy` is the message), or the server can't be
                reached.
            StoreUnusable
        """
        holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
        released = False
        try:
            lease = await self._wait(key, record_key, holder, timeout_s, busy)
            extending = asyncio.create_task(self._extend(key, holder, lease))
            try:
                yield lease
            finally:
                await end_tasks([extending])
                released = await self._release(key, [holder])
        except asyncio.CancelledError:
            released = released or await self._release(key, [holder])  # the process may end with this task
            raise
        finally:
            # Also after a failed wait: the lock may have been acquired although no reply arrived.
            if not released:
                self._release_later(key, holder)

    async def aclose(self) -> None:
        """Stop releasing in the background; the locks expire by themselves."""
        if self._releasing is not None:
            await end_tasks([self._releasing])

    async def _release(self, key: str, holders: list[str]) -> bool:
        """Release the lock if one of `holders` has it; return whether the server has acknowledged that."""
        with contextlib.suppress(CfproxyError), naming_errors(self._where):
            # The whole script, not its digest: a stalled server can't report that it does not know that.
            await self._client.eval(_RELEASE, 1, key, *holders)
            return True
        return False

    def _release_later(self, key: str, holder: str) -> None:
        holders = self._owed.setdefault(key, [])
        holders.append(holder)
        del holders[:-OWED_MAX]
        if self._releasing is None or self._releasing.done():
            self._releasing = asyncio.create_task(self._release_owed())

    async def _release_owed(self) -> None:
        while self._owed:
            for key, owed in list(self._owed.items()):
                holders = list(owed)
                # Twice: the server may only now carry out an earlier request for the lock.
                for _ in range(2):
                    released = await self._release(key, holders)
                    await asyncio.sleep(RELEASE_AGAIN_S)
                    if not released:
                        break
                else:
                    self._owed[key] = [each for each in self._owed[key] if each not in holders]
            self._owed = {key: owed for key, owed in self._owed.items() if owed}

    async def _wait(self, key: str, record_key: str, holder: str, timeout_s: float, busy: str) -> RedisLease:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        pause_s = FIRST_PAUSE_S
        while True:
            sent_at, sent_at_wall = time.monotonic(), time.time()
            with naming_errors(self._where):
                fence = await self._acquire_script([key, record_key], [holder, self._life_ms])
            if fence:
                lease = RedisLease(int(fence), self._life_s)
                lease.extend(sent_at, sent_at_wall)
                return lease
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise StoreUnavailable(busy)
            # Half of it random: a hundred waiting replicas must not ask in step.
            await asyncio.sleep(min(pause_s * random.uniform(0.5, 1.0), left_s))  # noqa: S311 - no secret
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _extend(self, key: str, holder: str, lease: RedisLease) -> None:
        while True:
            await asyncio.sleep(self._life_s / 4)
            sent_at, sent_at_wall = time.monotonic(), time.time()
            try:
                with naming_errors(self._where):
                    extended = await self._extend_script([key], [holder, self._life_ms])
            except CfproxyError:
                continue  # there is time for more tries until the lease ends
            if not extended:
                lease.lose()
                return
            lease.extend(sent_at, sent_at_wall)
