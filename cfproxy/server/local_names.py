"""Names below `localhost` in `Host`, which are believed only if this machine resolves them to itself.

Web pages and callers without a key can cause look-ups. These never take the threads that others need.
"""

from __future__ import annotations

import asyncio

from cfproxy.hosts import is_below_localhost, resolves_here, split_host
from cfproxy.server.request import Request

LOOK_UP_S = 2.0
NAMES_MAX = 16  # that wait for their look-up


class LocalNames:
    """Looks names up, one at a time."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._looking_up: dict[str, asyncio.Task[bool]] = {}

    async def learn(self, request: Request) -> None:
        """Let the client call this end of its connection by the name in `Host`, if that resolves here.

        An address that changes later does not matter: the connection stays the one that was made.
        """
        host = next((value for name, value in request.fields.raw if name.lower() == b"host"), b"")
        if b".localhost" not in host.lower():
            return
        name, _ = split_host(host.decode("latin-1"))
        if is_below_localhost(name) and await self._is_local(name):
            request.connection.own_names = (*request.connection.own_names[:1], name)

    async def _is_local(self, name: str) -> bool:
        task = self._looking_up.get(name)
        if task is None:
            if len(self._looking_up) >= NAMES_MAX:
                return False
            task = self._looking_up[name] = asyncio.create_task(self._look_up(name))
        # Other requests may wait for the same name, and a thread that looks one up can't be stopped.
        done, _ = await asyncio.wait({task}, timeout=LOOK_UP_S)
        return bool(done) and task.result()

    async def _look_up(self, name: str) -> bool:
        try:
            async with self._turn:
                return await resolves_here(name)
        finally:
            del self._looking_up[name]
