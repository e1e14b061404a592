"""Limits the client connections of one listener, and chooses which of them to close.

Invariants:
1. There are never more than `ConnectionLimits.connections`. One with a request in progress is never closed
   to make room for others, unless `ConnectionLimits.cuts_busy` allows it.
2. As long as another connection has no request in progress, a new one is accepted in its place, so clients
   that send nothing shut no one out.
3. An incomplete head over a limit is discarded without notifying its client. A client whose connection closes
   comes back at once; one that waits in a tarpit costs less.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cfproxy.http1.turns import Backlogs, WriteBatch
from cfproxy.server.hangup import HangupWatch
from cfproxy.server.memory import release_memory

if TYPE_CHECKING:
    from cfproxy.server.connection import ClientConnection

SWEEP_S = 1.0
# The age at which an incomplete head may be discarded for others: in a burst, all are younger.
GRACE_S = 1.0
# How many connections one sweep closes, and the pause until the next. A thousand at once would block others.
SWEEP_MAX, SWEEP_PAUSE_S = 50, 0.01
# Memory is released this long after half of so many busy connections, or of more, have become idle.
MANY_BUSY, RELEASE_S = 64, 2.0


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What the clients of one listener may use together.

    Args:
        connections: maximum number of connections.
        unfinished: maximum number of request heads that have been incomplete for `GRACE_S`.
        unfinished_bytes: maximum size of all incomplete heads, whatever their age.
        cuts_busy: whether a connection with a request in progress may be closed for another if all have one:
            the oldest whose client has to send or to read on, or else the oldest.
    """

    connections: int = 4096
    unfinished: int = 512
    unfinished_bytes: int = 16 * 1024 * 1024
    cuts_busy: bool = False


@dataclass(slots=True)
class Connections:
    """Tracks the state of each connection and closes those that exceed a limit.

    Args:
        limits: may be replaced at any time.
        loop: for the time and timers.
        on_ended: called after a sweep with the number of connections closed, by cause.
    """

    limits: ConnectionLimits
    loop: asyncio.AbstractEventLoop
    on_ended: Callable[[dict[str, int]], None]
    # Shared by the connections.
    watch: HangupWatch = field(init=False, default_factory=HangupWatch)
    write_batch: WriteBatch = field(init=False, default_factory=WriteBatch)
    backlogs: Backlogs = field(init=False, default_factory=Backlogs)
    _all: set[ClientConnection] = field(init=False, default_factory=set)  # until they are closed
    # The states of the connections that count. A dict holds since when, oldest first.
    _unfinished: dict[ClientConnection, float] = field(init=False, default_factory=dict)
    _stuck: dict[ClientConnection, None] = field(init=False, default_factory=dict)  # in the tarpit
    _idle: dict[ClientConnection, float] = field(init=False, default_factory=dict)
    _busy: dict[ClientConnection, None] = field(init=False, default_factory=dict)
    _peak_busy: int = field(init=False, default=0)  # as seen once a second
    _head_bytes: dict[ClientConnection, int] = field(init=False, default_factory=dict)  # oldest first
    _head_bytes_sum: int = field(init=False, default=0)
    _ended: Counter[str] = field(init=False, default_factory=Counter)
    _timer: asyncio.TimerHandle | None = field(init=False, default=None)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[ClientConnection]:
        return iter(self._all)

    def counts(self) -> dict[str, int]:
        """Return the number of connections in each state; those being closed don't count."""
        return {
            "unfinished": len(self._unfinished),
            "stuck": len(self._stuck),
            "idle": len(self._idle),
            "busy": len(self._busy),
        }

    def opened(self, connection: ClientConnection) -> None:
        """Add a connection; close it at once if all others have a request in progress."""
        self._all.add(connection)
        self._make_room()
        if self._count() >= self.limits.connections:
            self._ended["refused"] += 1
            connection.end("refused")
        else:
            self._unfinished[connection] = self.loop.time()
        if self._timer is None:
            self._timer = self.loop.call_later(SWEEP_S, self._sweep)

    def head_started(self, connection: ClientConnection) -> None:
        """Note that the first byte of another request has arrived."""
        if self._idle.pop(connection, None) is not None:
            self._unfinished[connection] = self.loop.time()

    def head_grew(self, connection: ClientConnection, size_bytes: int) -> None:
        """Note the size of an incomplete head; beyond the limit, the oldest are discarded."""
        self._head_bytes_sum += size_bytes - self._head_bytes.get(connection, 0)
        self._head_bytes[connection] = size_bytes
        while self._head_bytes_sum > self.limits.unfinished_bytes:
            self._tarpit(next(iter(self._head_bytes)))

    def request_started(self, connection: ClientConnection) -> None:
        """Note that a request's head is complete."""
        if self._idle.pop(connection, None) is not None or self._forget(connection):
            self._busy[connection] = None

    def request_finished(self, connection: ClientConnection) -> None:
        """Note that the response is complete and no other request has started."""
        if connection in self._busy:
            del self._busy[connection]
        elif not self._forget(connection):
            return
        self._idle[connection] = self.loop.time()

    def closed(self, connection: ClientConnection) -> None:
        """Remove a connection."""
        self._all.discard(connection)
        self._forget(connection)

    def aclose(self) -> None:
        """Stop the timer and the watch."""
        self.watch.aclose()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _count(self) -> int:
        return len(self._unfinished) + len(self._stuck) + len(self._idle) + len(self._busy)

    def _forget(self, connection: ClientConnection) -> bool:
        """Remove a connection from its state; return whether it was unfinished, idle or busy."""
        self._head_bytes_sum -= self._head_bytes.pop(connection, 0)
        self._stuck.pop(connection, None)
        known = connection in self._busy
        self._busy.pop(connection, None)
        for state in (self._unfinished, self._idle):
            known = state.pop(connection, None) is not None or known
        return known

    def _end(self, connection: ClientConnection, cause: str) -> None:
        self._forget(connection)
        self._ended[cause] += 1
        connection.end(cause)

    def _tarpit(self, connection: ClientConnection) -> None:
        self._forget(connection)
        self._ended["unfinished"] += 1
        self._stuck[connection] = None
        connection.tarpit()

    def _make_room(self) -> None:
        while self._count() >= self.limits.connections:
            if self._stuck:
                connection = next(iter(self._stuck))
                self._forget(connection)
                connection.end("unfinished")  # counted by `_tarpit`
            elif self._idle:
                self._end(next(iter(self._idle)), "idle")
            elif self._unfinished:
                self._end(next(iter(self._unfinished)), "unfinished")
            elif self._busy and self.limits.cuts_busy:
                waiting = (connection for connection in self._busy if connection.waits_for_client)
                self._end(next(waiting, next(iter(self._busy))), "unfinished")
            else:
                return

    def _too_many_unfinished(self) -> bool:
        """Return whether heads over the limit have been incomplete for `GRACE_S`."""
        if len(self._unfinished) <= self.limits.unfinished:
            return False
        return self.loop.time() - next(iter(self._unfinished.values())) >= GRACE_S

    def _sweep(self) -> None:
        """Discard the oldest incomplete heads over the limit; report what was closed."""
        for _ in range(SWEEP_MAX):
            if not self._too_many_unfinished():
                break
            connection = next(iter(self._unfinished))
            if connection in self._head_bytes:
                self._tarpit(connection)
            else:  # it has sent nothing yet, so its client must be able to notice and connect again
                self._end(connection, "unfinished")
        if self._too_many_unfinished():
            self._timer = self.loop.call_later(SWEEP_PAUSE_S, self._sweep)
            return
        busy = len(self._busy)
        self._peak_busy = max(self._peak_busy, busy)
        if self._peak_busy >= MANY_BUSY and busy <= self._peak_busy // 2:
            self._peak_busy = busy
            self.loop.call_later(RELEASE_S, release_memory)
        if self._ended:
            self.on_ended(dict(self._ended))
            self._ended.clear()
        self._timer = self.loop.call_later(SWEEP_S, self._sweep) if self._count() else None


async def cancel_all(connections: Iterable[ClientConnection]) -> None:
    """Cancel the requests on these connections, close them, and wait for their tasks."""
    tasks = [task for connection in connections if (task := connection.cancel()) is not None]
    if tasks:
        await asyncio.wait(tasks)
