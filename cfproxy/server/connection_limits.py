"""The client connections of one listener: how many there are, and which one has to go.

Owns: who waits for what since when, and how many may.
Must not know: HTTP, what a connection is made of, how long each may wait (`connection.py`).
Invariants:
1. There are never more than `connections` of them, and one that is at work is never ended here.
2. As long as one is silent, a newcomer is let in at its cost: clients who say nothing keep nobody out.
3. A slow head over a bound holds nothing any more, but its client is not told: who is cut off comes back at
   once, and so costs more than one who waits in vain (a tarpit).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cfproxy.server.connection import ClientConnection

SWEEP_S = 1.0
# How long a head may be under way before it can be ended for the sake of others: in a burst all are young.
GRACE_S = 1.0
# So many have to go at once, and so soon the next: a thousand in one turn would keep others waiting.
AT_ONCE, SOON_S = 50, 0.01


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What the clients of one listener may take up.

    Args:
        connections: all of them together.
        unfinished: those whose request head has not come whole for `GRACE_S`.
        unfinished_bytes: of such heads, all together, also of young ones.
    """

    connections: int = 4096
    unfinished: int = 512
    unfinished_bytes: int = 16 * 1024 * 1024


@dataclass(slots=True)
class Connections:
    """Keeps track of connections and ends those that are over a bound.

    Args:
        limits: the bounds.
        clock: monotonic seconds.
        later: calls a function after some seconds.
        on_ended: told, once a sweep, how many were ended for which cause.
    """

    limits: ConnectionLimits
    clock: Callable[[], float]
    later: Callable[[float, Callable[[], None]], asyncio.TimerHandle]
    on_ended: Callable[[dict[str, int]], None]
    # In the order of the instants, oldest first: whoever changes its state goes to the end.
    _unfinished: dict[ClientConnection, float] = field(init=False, default_factory=dict)
    _idle: dict[ClientConnection, float] = field(init=False, default_factory=dict)
    _held: dict[ClientConnection, int] = field(
        init=False, default_factory=dict
    )  # bytes of unfinished heads, likewise
    _held_bytes: int = field(init=False, default=0)
    _stuck: dict[ClientConnection, None] = field(
        init=False, default_factory=dict
    )  # in the tarpit, oldest first
    _all: set[ClientConnection] = field(init=False, default_factory=set)  # until they are closed
    _busy: set[ClientConnection] = field(init=False, default_factory=set)
    _ended: Counter[str] = field(init=False, default_factory=Counter)
    _alarm: asyncio.TimerHandle | None = field(init=False, default=None)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[ClientConnection]:
        return iter(self._all)

    def _counted(self) -> int:
        """Return how many count towards the limit: those that were ended and are not closed yet do not."""
        return len(self._unfinished) + len(self._stuck) + len(self._idle) + len(self._busy)

    def counts(self) -> dict[str, int]:
        """Return how many wait for a head, for nothing, for a next request, and for an answer."""
        return {
            "unfinished": len(self._unfinished),
            "stuck": len(self._stuck),
            "idle": len(self._idle),
            "busy": len(self._busy),
        }

    def opened(self, client: ClientConnection) -> None:
        """Take one more in, or end it at once when all others are at work."""
        self._all.add(client)
        self._make_room()
        if self._counted() >= self.limits.connections:
            self._ended["refused"] += 1
            client.end("refused")
        else:
            self._unfinished[client] = self.clock()
        if self._alarm is None:
            self._alarm = self.later(SWEEP_S, self._sweep)

    def head_started(self, client: ClientConnection) -> None:
        """Note that the first byte of a next request came."""
        if self._idle.pop(client, None) is not None:
            self._unfinished[client] = self.clock()

    def head_grew(self, client: ClientConnection, size_bytes: int) -> None:
        """Note how much of a head is there; over the bound the oldest are forgotten, perhaps this one."""
        self._held_bytes += size_bytes - self._held.get(client, 0)
        self._held[client] = size_bytes
        while self._held_bytes > self.limits.unfinished_bytes:
            self._tarpit(next(iter(self._held)))

    def request_started(self, client: ClientConnection) -> None:
        """Note that a request's head is whole."""
        if self._idle.pop(client, None) is not None or self._forget(client):
            self._busy.add(client)

    def request_finished(self, client: ClientConnection) -> None:
        """Note that an answer is through, and nothing of a next request came yet."""
        if client in self._busy:
            self._busy.discard(client)
        elif not self._forget(client):
            return
        self._idle[client] = self.clock()

    def closed(self, client: ClientConnection) -> None:
        """Forget it."""
        self._all.discard(client)
        self._forget(client)

    def aclose(self) -> None:
        """Stop the clock."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _forget(self, client: ClientConnection) -> bool:
        self._held_bytes -= self._held.pop(client, 0)
        self._stuck.pop(client, None)
        known = self._unfinished.pop(client, None) is not None or self._idle.pop(client, None) is not None
        if client in self._busy:
            self._busy.discard(client)
            return True
        return known

    def _end(self, client: ClientConnection, cause: str) -> None:
        self._forget(client)
        self._ended[cause] += 1
        client.end(cause)

    def _tarpit(self, client: ClientConnection) -> None:
        self._forget(client)
        self._ended["unfinished"] += 1
        self._stuck[client] = None
        client.tarpit()

    def _make_room(self) -> None:
        while self._counted() >= self.limits.connections:
            if self._stuck:
                client = next(iter(self._stuck))
                self._forget(client)
                client.end("unfinished")  # and was counted
            elif self._idle:
                self._end(next(iter(self._idle)), "idle")
            elif self._unfinished:
                self._end(next(iter(self._unfinished)), "unfinished")
            else:
                return

    def _spare(self) -> None:
        """Put some of the oldest unfinished heads aside that are over the bound, young ones spared."""
        for _ in range(AT_ONCE):
            if not self._too_many():
                return
            client = next(iter(self._unfinished))
            if client in self._held:
                self._tarpit(client)
            else:  # it may still mean to say something: then it is to hear that it must begin anew
                self._end(client, "unfinished")

    def _too_many(self) -> bool:
        """Whether heads are over the bound that are not young any more."""
        if len(self._unfinished) <= self.limits.unfinished:
            return False
        return self.clock() - next(iter(self._unfinished.values())) >= GRACE_S

    def _sweep(self) -> None:
        self._spare()
        if self._too_many():
            self._alarm = self.later(SOON_S, self._sweep)
            return
        if self._ended:
            self.on_ended(dict(self._ended))
            self._ended.clear()
        self._alarm = self.later(SWEEP_S, self._sweep) if self._counted() else None
