"""Notices that someone else has changed a record, without a round trip for each request.

After a gap in the subscription the version is fetched once, and every `POLL_S` after that. A subscription
that missed a change is reopened. Failures are not reported here: callers that need the record get them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

import redis.asyncio
from redis.exceptions import RedisError

from cfproxy.stores.redis.client import end_tasks

POLL_S = 15.0
PAUSE_S = 1.0


class Subscription:
    """Follows the versions of records.

    Args:
        client: the connection.
        fetch_version: returns the version on the server, in the form used by messages; empty for none.
        on_version: called with an account and each version of it that becomes known.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        fetch_version: Callable[[str], Awaitable[str]],
        on_version: Callable[[str, str], None],
    ) -> None:
        self._client = client
        self._fetch_version = fetch_version
        self._on_version = on_version
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def follow(self, account: str, channel: str) -> None:
        """Follow an account from now on; calling it again has no effect."""
        if account not in self._tasks:
            self._tasks[account] = asyncio.create_task(self._run(account, channel))

    async def aclose(self) -> None:
        """Stop following."""
        tasks, self._tasks = self._tasks, {}
        await end_tasks(tasks.values())

    async def _run(self, account: str, channel: str) -> None:
        while True:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await self._listen(account, channel)
            # Random, so that a thousand replicas do not come back in the same instant.
            await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311 - no secret

    async def _listen(self, account: str, channel: str) -> None:
        async with self._client.pubsub(ignore_subscribe_messages=True) as subscription:
            await subscription.subscribe(channel)
            # Closes the gap.
            known = await self._fetch_version(account)
            self._on_version(account, known)
            while True:
                async with asyncio.timeout(2 * POLL_S):
                    message = await subscription.get_message(timeout=POLL_S)
                while message is not None:
                    known = message["data"].decode(errors="replace")  # anyone may publish anything
                    self._on_version(account, known)
                    message = await subscription.get_message(timeout=POLL_S)
                # A connection can be dead without being noticed.
                if (version := await self._fetch_version(account)) != known:
                    self._on_version(account, version)
                    return
