"""What tells that a record was changed by somebody else, without asking for each request.

Owns: one subscription an account, and the slow poll behind it.
Must not know: what a record holds.
Invariants: after a gap in the subscription the version is asked for once; while there is none it is asked
for every `POLL_S`, and a subscription that had not told of it is made anew; a failure is silent here, since
whoever needs the record finds out by itself.
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
        ask: returns the version that the server has now, as the messages say it; empty: there is none.
        tell: called with each version that is heard of.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        ask: Callable[[str], Awaitable[str]],
        tell: Callable[[str, str], None],
    ) -> None:
        self._client = client
        self._ask = ask
        self._tell = tell
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def follow(self, account: str, channel: str) -> None:
        """Begin to follow an account; does nothing when it is followed already."""
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
            # By chance, so that a thousand replicas do not come back in the same instant.
            await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311 - no secret

    async def _listen(self, account: str, channel: str) -> None:
        async with self._client.pubsub(ignore_subscribe_messages=True) as subscription:
            await subscription.subscribe(channel)
            # Closes the gap.
            told = await self._ask(account)
            self._tell(account, told)
            while True:
                async with asyncio.timeout(2 * POLL_S):
                    message = await subscription.get_message(timeout=POLL_S)
                while message is not None:
                    told = message["data"].decode(errors="replace")  # anybody may publish anything
                    self._tell(account, told)
                    message = await subscription.get_message(timeout=POLL_S)
                # A connection can be dead unnoticed.
                if (version := await self._ask(account)) != told:
                    self._tell(account, version)
                    return
