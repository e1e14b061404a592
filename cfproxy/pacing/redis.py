"""One pace for all replicas: departures are lent out by the Redis server, a few at a time.

Owns: the pace's state in Redis (`cfproxy:pace:{ORIGIN}`, `…:log`, `…:replicas`), and how the server's clock
is read on ours.
Must not know: who waits, what a departure is for, what happens while the server is away.

Invariants:
1. The script keeps the pace of `pacing.RateLimit` with the `SHARED_GUARD`, step by step, on the server's
   clock: no window holds more departures than the rate, whichever replicas they were lent to.
2. What is lent is spent: a departure that its replica lets pass is lost, never lent again.
"""

from __future__ import annotations

import math
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from cfproxy.config import RedisAddress
from cfproxy.pacing.rate import BEAT, BURST, RECOVERY_PER_S, SHARE_MIN, SHARED_GUARD, STEP_DOWN, TAIL
from cfproxy.pacing.shared import Slots
from cfproxy.stores.redis.client import close_client, naming_errors, open_client

MEMBER_LIFE_S = 90.0
KEPT_S = 86_400
# A clock that NTP slews runs away from another one by this much at most; the offset may grow as fast.
DRIFT = 5e-4

# What all scripts begin with. KEYS: state, log, replicas.
# ARGV: rate, per (µs), member, its life (µs), the time (µs; '' for the server's).
_STATE = """
local rate, per = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = tonumber(ARGV[5])
if not now then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end
redis.call('ZADD', KEYS[3], string.format('%.0f', now), ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now - ARGV[4]))
local s = redis.call('HMGET', KEYS[1], 'ready', 'share', 'recovers', 'slowed', 'paused', 'at')
local ready, share = tonumber(s[1] or '0'), tonumber(s[2] or '1')
local recovers, slowed, paused = tonumber(s[3] or '0'), tonumber(s[4] or '0'), tonumber(s[5] or '0')
local taken = {}
-- A clock that went back, or that of another server: what is kept keeps its distance from now.
local back = math.max(0, tonumber(s[6] or '0') - now)
ready, recovers, slowed, paused = ready - back, recovers - back, slowed - back, paused - back
for i, at in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do taken[i] = tonumber(at) - back end
local function share_at(at)
  return math.min(1, share + RECOVERY * math.max(0, at - recovers) / 1000000)
end
local function shape_at(at)
  local used = rate * share_at(at)
  local limit = math.max(1, math.floor(used))
  local span = per * math.max(1, 1 / used)
  local beat = BEAT * span / limit
  local burst = math.max(1, math.floor(limit * BURST))
  return limit, span * (1 + GUARD), beat, (burst - 0.5) * beat
end
local function keep()
  redis.call('HSET', KEYS[1], 'ready', string.format('%.0f', ready), 'share', string.format('%.9f', share),
    'recovers', string.format('%.0f', recovers), 'slowed', string.format('%.0f', slowed),
    'paused', string.format('%.0f', paused), 'at', string.format('%.0f', now))
  redis.call('DEL', KEYS[2])
  for _, at in ipairs(taken) do redis.call('RPUSH', KEYS[2], string.format('%.0f', at)) end
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, KEPT) end
end
local function room_at(limit, window)
  if #taken < limit then return 0 end
  return taken[#taken - limit + 1] + window
end
"""
# More: how many; '1' when the borrower was away, '2' when it has borrowed before: then a state that is gone
# was lost. Returns now, replicas, share in millionths, instants.
_LEND = """
local count, fresh = tonumber(ARGV[6]), ARGV[7] == '1' or (ARGV[7] == '2' and not s[1])
local answer = {now, redis.call('ZCARD', KEYS[3]), 0}
if fresh then
  local _, window = shape_at(now)
  ready = math.max(ready, now + window)
end
for i = 1, count do
  local at = math.max(now, ready)
  local limit, window, beat, credit = shape_at(at)
  while taken[1] and taken[1] + window <= at do table.remove(taken, 1) end
  taken[#taken + 1] = at
  local room = limit - #taken
  local due = math.max(ready, at - credit)
  local gap = beat
  if room > 0 and due + gap > at then gap = math.max(gap, (taken[1] + window - due) / (room + TAIL)) end
  ready = math.max(due + gap, room_at(limit, window))
  answer[3 + i] = at
end
answer[3] = share_at(now) * 1000000
if count > 0 or fresh then keep() end
return answer
"""
# More: the pause (µs), whether the rate steps down ('1').
_BACK_OFF = """
local pause, slower = tonumber(ARGV[6]), ARGV[7] == '1'
local limit, window = shape_at(now)
share = share_at(now)
recovers = math.max(now, paused)
if slower and now >= slowed + window then
  share = math.max(SHARE_MIN, share * STEP_DOWN)
  slowed = now
  limit, window = shape_at(now)
  ready = math.max(ready, room_at(limit, window))
end
paused = math.max(paused, now + pause)
recovers = math.max(now, paused)
ready = math.max(ready, now + pause)
keep()
return 1
"""


def _script(text: str) -> str:
    """Fill the constants in: the local pace and the lent one must not differ."""
    constants = {
        "RECOVERY": RECOVERY_PER_S,
        "SHARE_MIN": SHARE_MIN,
        "STEP_DOWN": STEP_DOWN,
        "BEAT": BEAT,
        "BURST": BURST,
        "GUARD": SHARED_GUARD,
        "TAIL": TAIL,
        "KEPT": KEPT_S,
    }
    header = "".join(f"local {name} = {value!r}\n" for name, value in constants.items())
    return header + _STATE + text


@dataclass(slots=True)
class _Offset:
    """What to add to the server's clock to get our monotonic one: the least that was seen, seconds.

    The answer that travelled fastest tells it best; each makes it too large by its own travel. What would
    place the server's reading before the question is of another clock: a server that took over, or was set.
    """

    value_s: float = math.inf
    seen_at: float = 0.0

    def note(self, server_s: float, asked_at: float, now: float) -> float:
        drifted = self.value_s + DRIFT * (now - self.seen_at)
        if drifted < asked_at - server_s:
            drifted = math.inf
        self.value_s, self.seen_at = min(drifted, now - server_s), now
        return self.value_s


class RedisRate:
    """Lends the departures to one upstream (see `ports.SharedRateBackend`).

    Args:
        address: the server.
        origin: `scheme://host:port` of the upstream; replicas with the same one share its pace.
        ca_file: authorities to trust instead of the system's, in PEM form.
    """

    def __init__(self, address: RedisAddress, origin: str, ca_file: Path | None = None) -> None:
        self._where = f"the store {address}"
        self._client = open_client(address, ca_file)
        key = f"cfproxy:pace:{{{origin}}}"
        self._keys = [key, f"{key}:log", f"{key}:replicas"]
        self._member = f"{socket.gethostname()}:{secrets.token_hex(8)}"
        self._lend = self._client.register_script(_script(_LEND))
        self._back_off = self._client.register_script(_script(_BACK_OFF))
        self._offset = _Offset()
        self._has_lent = False

    async def lend(self, rate: float, per_s: float, count: int, *, fresh: bool = False) -> Slots:
        """Return the next `count` departures; see `ports.SharedRateBackend`."""
        known = 2 if self._has_lent else 0
        arguments = [*self._common(rate, per_s), count, 1 if fresh else known]
        asked_at = time.monotonic()
        with naming_errors(self._where):
            server_us, replicas, share, *instants = await self._lend(self._keys, arguments)
        self._has_lent = self._has_lent or bool(instants)
        offset_s = self._offset.note(server_us / 1e6, asked_at, time.monotonic())
        return Slots([at / 1e6 + offset_s for at in instants], int(replicas), share / 1e6)

    async def back_off(self, rate: float, per_s: float, pause_s: float, *, slower: bool) -> None:
        """Lend nothing for a while; see `ports.SharedRateBackend`."""
        with naming_errors(self._where):
            await self._back_off(self._keys, [*self._common(rate, per_s), int(pause_s * 1e6), int(slower)])

    async def aclose(self) -> None:
        """Be counted as a replica no more, and let the connection go."""
        try:
            with naming_errors(self._where):
                await self._client.zrem(self._keys[2], self._member)
        finally:
            await close_client(self._client)

    def _common(self, rate: float, per_s: float) -> list[str | int]:
        return [repr(rate), int(per_s * 1e6), self._member, int(MEMBER_LIFE_S * 1e6), ""]
