"""Limits how many request bodies are uploaded at once while their clients are still sending them.

Invariants:
1. Clients that stall in the middle of a body block only each other: a body that has arrived completely
   needs no slot, even if it was waiting for one.
2. A slot is released exactly once, however the upload ends.
"""

from __future__ import annotations

import asyncio

from cfproxy.errors import UpstreamTimeout
from cfproxy.upstream.request import RequestBody

# Waiting is polling, with growing pauses: under attack, thousands wait, and a body may arrive at any time.
FIRST_PAUSE_S, LAST_PAUSE_S = 0.01, 1.0


class UploadSlots:
    """The slots.

    Args:
        limit: how many there are.
        wait_s: how long to wait for one.
    """

    def __init__(self, limit: int, wait_s: float) -> None:
        self.free = limit
        self.wait_s = wait_s

    async def acquire(self, body: RequestBody) -> UploadSlot | None:
        """Wait for a slot; return None if `body` arrives completely and needs none.

        Raises:
            UpstreamTimeout: no slot became free and the body did not arrive in time; `unsent`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.wait_s
        pause_s = FIRST_PAUSE_S
        while not body.arrived:
            if self.free:
                self.free -= 1
                return UploadSlot(self)
            if loop.time() >= deadline:
                raise UpstreamTimeout(
                    "too many slow uploads at once; send the body faster, or raise limits.upstream",
                    unsent=True,
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)
        return None


class UploadSlot:
    """A slot in use."""

    __slots__ = ("_slots",)

    def __init__(self, slots: UploadSlots) -> None:
        self._slots: UploadSlots | None = slots

    def release(self) -> None:
        """Give the slot back; further calls do nothing."""
        if self._slots is not None:
            self._slots.free += 1
            self._slots = None
