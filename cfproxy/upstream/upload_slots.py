"""How many request bodies may be under way at once while their clients are still sending them.

Owns: the places for such bodies, and who waits for one.
Must not know: sockets, what is sent.

Invariants:
1. Clients that go silent in the middle of a body keep only each other out: whoever has sent all of it needs
   no place, also one who waits for a place when the rest comes.
2. A place is given back once, whoever ends the upload.
"""

from __future__ import annotations

import asyncio

from cfproxy.errors import UpstreamTimeout
from cfproxy.upstream.interfaces import RequestBody

# How long one waits before one looks again; longer each time, since under an attack thousands do.
FIRST_LOOK_S, LATER_LOOK_S = 0.01, 1.0


class UploadSlots:
    """The places.

    Args:
        most: how many there are.
        wait_s: seconds to wait for one.
    """

    def __init__(self, most: int, wait_s: float) -> None:
        self._free = most
        self.wait_s = wait_s

    async def take_place(self, body: RequestBody) -> UploadSlot | None:
        """Wait until `body` may be under way; return its place, if it needs one.

        Raises:
            UpstreamTimeout: none became free in time, and the body did not come; `unsent`.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self.wait_s
        pause_s = FIRST_LOOK_S
        while not body.arrived:
            if self._free:
                self._free -= 1
                return UploadSlot(self)
            if loop.time() >= give_up_at:
                raise UpstreamTimeout(
                    "too many request bodies come slowly; send this one faster, or raise limits.upstream",
                    unsent=True,
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LATER_LOOK_S)
        return None

    def give_back(self) -> None:
        """Take note of a place that is free again; for `UploadSlot`."""
        self._free += 1


class UploadSlot:
    """What one body under way takes up."""

    __slots__ = ("_left", "_upload_slots")

    def __init__(self, uploads: UploadSlots) -> None:
        self._upload_slots = uploads
        self._left = False

    def leave(self) -> None:
        """Give the place back; once is enough."""
        if not self._left:
            self._left = True
            self._upload_slots.give_back()
