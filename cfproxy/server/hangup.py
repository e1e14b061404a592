"""Who has hung up, of those that nobody reads from.

Owns: a watch on sockets whose reading is held or whose reading side has ended: an event loop does not look at
those, so that a peer who is gone would be noticed only by the next write.
Must not know: what a connection is for.
Only Linux can be asked; elsewhere `HangupWatch.works` is False and `watch` does nothing.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable


class HangupWatch:
    """Calls back when a peer is gone. One for an event loop will do."""

    works = hasattr(select, "EPOLLRDHUP")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_hangup: dict[int, Callable[[], None]] = {}
        # In the loop's poll stands this one only, which tells of errors and hang-ups and not of data.
        self._poll = select.epoll() if self.works else None
        if self._poll is not None:
            self._loop.add_reader(self._poll.fileno(), self._look)

    def watch(self, sock: socket.socket, on_hangup: Callable[[], None], *, half: bool) -> None:
        """Call `on_hangup` once when the peer of `sock` is gone.

        Args:
            sock: connected; `forget` it before it is closed.
            on_hangup: called once.
            half: also when it has ended its side only.
        """
        if self._poll is None:
            return
        self.forget(sock)
        self._on_hangup[sock.fileno()] = on_hangup
        self._poll.register(sock.fileno(), select.EPOLLONESHOT | (select.EPOLLRDHUP if half else 0))

    def forget(self, sock: socket.socket) -> None:
        """Watch it no more; nothing happens when it was not watched."""
        if self._poll is not None and self._on_hangup.pop(sock.fileno(), None) is not None:
            self._poll.unregister(sock.fileno())

    def aclose(self) -> None:
        """Watch nobody any more."""
        if self._poll is not None:
            self._loop.remove_reader(self._poll.fileno())
            self._poll.close()
            self._poll = None

    def _look(self) -> None:
        if self._poll is None:
            return
        for number, _ in self._poll.poll(0):
            on_hangup = self._on_hangup.pop(number, None)
            self._poll.unregister(number)
            if on_hangup is not None:
                on_hangup()
