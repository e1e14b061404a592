"""Login attempts in Redis: a hash for each account, by the fingerprint of the state.

The apps of accounts with one name share it. Each claims, removes and reports only its own attempts.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio

from cfproxy.auth.models import ATTEMPT_LIFETIME_S, Attempt, AttemptGone
from cfproxy.errors import CfproxyError
from cfproxy.secret import Secret
from cfproxy.stores.attempts import ATTEMPTS_MAX, choose, choose_stale, read_all
from cfproxy.stores.documents import DocumentCodec, stated_app
from cfproxy.stores.redis.client import naming_errors

# KEYS: attempts. ARGV: field, expected content, new content. Returns 1 if it was as expected.
_CLAIM = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""


class RedisAttempts:
    """Keeps attempts on one server.

    Args:
        client: the connection.
        codec: turns attempts into what is stored.
        where: the server's name, for messages.
    """

    def __init__(self, client: redis.asyncio.Redis, codec: DocumentCodec, where: str) -> None:
        self._client = client
        self._codec = codec
        self._where = where
        self._claim_script = client.register_script(_CLAIM)

    async def save(self, attempt: Attempt, key: str) -> None:
        """Keep an attempt until it expires."""
        await self._prune(attempt.account, key, attempt.created_at, ATTEMPTS_MAX - 1)
        content = await self._encode(attempt)
        with naming_errors(self._where):
            await self._client.hset(key, attempt.state.fingerprint(), content)
            # Twice the lifetime, so that late claims are reported as expired.
            await self._client.expire(key, int(2 * ATTEMPT_LIFETIME_S))

    async def claim(self, account: str, key: str, state: str | None, now: float) -> Attempt:
        """Return an attempt and mark it used (see `TokenStore.claim_attempt`)."""
        of_state = None if state is None else Secret(state).fingerprint().encode()
        while True:
            contents = await self._fetch(key)
            own = self._own(contents)
            if of_state is not None:
                if of_state in contents and of_state not in own:
                    raise AttemptGone("foreign")
                own = {field: content for field, content in own.items() if field == of_state}
            found, failure = await self._read(account, own)
            try:
                if failure is not None and all(attempt.used for attempt in found.values()):
                    raise failure
                attempt = choose(found.values(), state, now)
            finally:
                await self._prune(account, key, now)
            field = attempt.state.fingerprint()
            used = await self._encode(attempt.as_used())
            # Whoever loses the claim looks again, and finds the attempt used.
            with naming_errors(self._where):
                if await self._claim_script([key], [field, own[field.encode()], used]):
                    return attempt

    async def delete(self, key: str) -> None:
        """Forget this app's attempts."""
        if own := self._own(await self._fetch(key)):
            with naming_errors(self._where):
                await self._client.hdel(key, *own)

    async def _fetch(self, key: str) -> dict[bytes, bytes]:
        with naming_errors(self._where):
            contents: Any = await self._client.hgetall(key)
        return dict(contents)

    def _own(self, contents: dict[bytes, bytes]) -> dict[bytes, bytes]:
        foreign = self._codec.is_foreign
        return {field: content for field, content in contents.items() if not foreign(stated_app(content))}

    async def _encode(self, attempt: Attempt) -> bytes:
        return await asyncio.to_thread(self._codec.encode_attempt, attempt, _purpose(attempt.account))

    async def _read(
        self, account: str, contents: dict[bytes, bytes]
    ) -> tuple[dict[bytes, Attempt], CfproxyError | None]:
        def read(field: bytes) -> Attempt:
            where = f"a login attempt in {self._where}"
            return self._codec.decode_attempt(contents[field], _purpose(account), where)

        return await asyncio.to_thread(read_all, contents, read)

    async def _prune(self, account: str, key: str, now: float, keep: int = ATTEMPTS_MAX) -> None:
        """Remove stale attempts; what can't be read is left alone until the key expires."""
        found, _ = await self._read(account, self._own(await self._fetch(key)))
        if stale := choose_stale(found, now, keep):
            with naming_errors(self._where):
                await self._client.hdel(key, *stale)


def _purpose(account: str) -> str:
    return f"login attempt of {account}"
