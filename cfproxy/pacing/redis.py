"""A shared rate limit in Redis: a script on the server reserves slots, a few at a time.

The state is in `cfproxy:pace:{ORIGIN}`, `…:log` and `…:replicas`.

1. The scripts apply the rules of `RateLimit` with `SHARED_GUARD`, step by step, on the server's clock: no
   window holds more slots than the rate, whichever replicas reserved them.
2. A reserved slot is used up: if its replica does not use it, it is lost and never reserved again.
"""

from __future__ import annotations

import math
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from cfproxy.config import RedisAddress
from cfproxy.pacing.rate import BURST, INTERVAL, RECOVERY_PER_S, SHARE_MIN, SHARED_GUARD, STEP_DOWN, TAIL
from cfproxy.pacing.shared import Slots
from cfproxy.stores.redis.client import close_client, naming_errors, open_client

MEMBER_LIFE_S = 90.0
STATE_LIFE_S = 86_400
# A clock slewed by NTP drifts from another by at most this factor; the offset may grow as fast.
DRIFT = 5e-4

# The start of every script. KEYS: state, log, replicas.
# ARGV: rate, period (µs), member, its lifetime (µs), the time (µs; '' for the server's).
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
local sent = {}
-- After the clock went back, or a failover to another server, stored instants keep their distance from now.
local back = math.max(0, tonumber(s[6] or '0') - now)
ready, recovers, slowed, paused = ready - back, recovers - back, slowed - back, paused - back
for i, at in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do sent[i] = tonumber(at) - back end
local function share_at(at)
  return math.min(1, share + RECOVERY * math.max(0, at - recovers) / 1000000)
end
local function window_at(at)
  local used = rate * share_at(at)
  local limit = math.max(1, math.floor(used))
  local span = per * math.max(1, 1 / used)
  local interval = INTERVAL * span / limit
  local burst = math.max(1, math.floor(limit * BURST))
  return limit, span * (1 + GUARD), interval, (burst - 0.5) * interval
end
local function save()
  redis.call('HSET', KEYS[1], 'ready', string.format('%.0f', ready), 'share', string.format('%.9f', share),
    'recovers', string.format('%.0f', recovers), 'slowed', string.format('%.0f', slowed),
    'paused', string.format('%.0f', paused), 'at', string.format('%.0f', now))
  redis.call('DEL', KEYS[2])
  for _, at in ipairs(sent) do redis.call('RPUSH', KEYS[2], string.format('%.0f', at)) end
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, STATE_LIFE) end
end
local function free_at(limit, window)
  if #sent < limit then return 0 end
  return sent[#sent - limit + 1] + window
end
"""
# Also: the number of slots; '1' if the replica is rejoining, '2' if it has reserved before: then missing
# state was lost. Returns now, replicas, share in millionths, instants.
_RESERVE = """
local count, rejoining = tonumber(ARGV[6]), ARGV[7] == '1' or (ARGV[7] == '2' and not s[1])
local answer = {now, redis.call('ZCARD', KEYS[3]), 0}
if rejoining then
  local _, window = window_at(now)
  ready = math.max(ready, now + window)
end
for i = 1, count do
  local at = math.max(now, ready)
  local limit, window, interval, credit = window_at(at)
  while sent[1] and sent[1] + window <= at do table.remove(sent, 1) end
  sent[#sent + 1] = at
  local remaining = limit - #sent
  local due = math.max(ready, at - credit)
  local gap = interval
  if remaining > 0 and due + gap > at then
    gap = math.max(gap, (sent[1] + window - due) / (remaining + TAIL))
  end
  ready = math.max(due + gap, free_at(limit, window))
  answer[3 + i] = at
end
answer[3] = share_at(now) * 1000000
if count > 0 or rejoining then save() end
return answer
"""
# Also: the pause (µs), and '1' if the rate steps down.
_THROTTLE = """
local pause, step_down = tonumber(ARGV[6]), ARGV[7] == '1'
local limit, window = window_at(now)
share = share_at(now)
recovers = math.max(now, paused)
if step_down and now >= slowed + window then
  share = math.max(SHARE_MIN, share * STEP_DOWN)
  slowed = now
  limit, window = window_at(now)
  ready = math.max(ready, free_at(limit, window))
end
paused = math.max(paused, now + pause)
recovers = math.max(now, paused)
ready = math.max(ready, now + pause)
save()
return 1
"""


def _script(text: str) -> str:
    """Return the script with the constants of `rate`, so that both implementations use the same."""
    constants = {
        "RECOVERY": RECOVERY_PER_S,
        "SHARE_MIN": SHARE_MIN,
        "STEP_DOWN": STEP_DOWN,
        "INTERVAL": INTERVAL,
        "BURST": BURST,
        "GUARD": SHARED_GUARD,
        "TAIL": TAIL,
        "STATE_LIFE": STATE_LIFE_S,
    }
    header = "".join(f"local {name} = {value!r}\n" for name, value in constants.items())
    return header + _STATE + text


@dataclass(slots=True)
class _ClockOffset:
    """The offset from the server's clock to our monotonic one, in seconds: the smallest estimate so far.

    Each estimate is too large by the response's travel time, so the fastest response gives the best one. If
    the offset would place the server's reading before the request, the clock is a different one: the server
    failed over, or its time was set.
    """

    value_s: float = math.inf
    seen_at: float = 0.0

    def update(self, server_s: float, sent_at: float, now: float) -> float:
        drifted = self.value_s + DRIFT * (now - self.seen_at)
        if drifted < sent_at - server_s:
            drifted = math.inf
        self.value_s, self.seen_at = min(drifted, now - server_s), now
        return self.value_s


class RedisRate:
    """Reserves slots for one upstream; a `SharedRateBackend`.

    Args:
        address: the server.
        origin: `scheme://host:port` of the upstream; replicas with the same origin share its rate.
        ca_file: certificate authorities to trust instead of the system's, in PEM form.
    """

    def __init__(self, address: RedisAddress, origin: str, ca_file: Path | None = None) -> None:
        self._where = f"the store {address}"
        self._client = open_client(address, ca_file)
        key = f"cfproxy:pace:{{{origin}}}"
        self._keys = [key, f"{key}:log", f"{key}:replicas"]
        self._member = f"{socket.gethostname()}:{secrets.token_hex(8)}"
        self._reserve = self._client.register_script(_script(_RESERVE))
        self._throttle = self._client.register_script(_script(_THROTTLE))
        self._offset = _ClockOffset()
        self._has_reserved = False

    async def reserve(self, rate: float, per_s: float, count: int, *, rejoining: bool = False) -> Slots:
        """Reserve the next `count` slots; see `SharedRateBackend.reserve`."""
        known = 2 if self._has_reserved else 0
        arguments = [*self._arguments(rate, per_s), count, 1 if rejoining else known]
        sent_at = time.monotonic()
        with naming_errors(self._where):
            server_us, replicas, share, *instants = await self._reserve(self._keys, arguments)
        self._has_reserved = self._has_reserved or bool(instants)
        offset_s = self._offset.update(server_us / 1e6, sent_at, time.monotonic())
        return Slots([at / 1e6 + offset_s for at in instants], int(replicas), share / 1e6)

    async def throttle(self, rate: float, per_s: float, pause_s: float, *, step_down: bool) -> None:
        """Reserve no slot for a while; see `SharedRateBackend.throttle`."""
        arguments = [*self._arguments(rate, per_s), int(pause_s * 1e6), int(step_down)]
        with naming_errors(self._where):
            await self._throttle(self._keys, arguments)

    async def aclose(self) -> None:
        """Unregister this replica and close the connection."""
        try:
            with naming_errors(self._where):
                await self._client.zrem(self._keys[2], self._member)
        finally:
            await close_client(self._client)

    def _arguments(self, rate: float, per_s: float) -> list[str | int]:
        return [repr(rate), int(per_s * 1e6), self._member, int(MEMBER_LIFE_S * 1e6), ""]
