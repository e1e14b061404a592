"""Notices that a peer has hung up while its connection is not read from.

An event loop does not poll sockets whose reading is paused or has ended, so a peer that is gone would only be
noticed by the next write. Only Linux can report it; elsewhere `HangupWatch.works` is False and `watch` does
nothing.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable


class HangupWatch:
    """Calls back when a peer has hung up; one watches any number of connections of its event loop."""

    works = hasattr(select, "EPOLLRDHUP")

    def __init__(self) -> None:
        self._on_hangup: dict[int, Callable[[], None]] = {}
        # The loop polls this epoll object alone, which reports errors and hang-ups but no data.
        self._poll: select.epoll | None = None  # opened by the first `watch`
        self._closed = False

    def watch(self, sock: socket.socket, on_hangup: Callable[[], None], *, half: bool) -> None:
        """Call `on_hangup` once when the peer of `sock` has hung up.

        Args:
            sock: connected; call `forget` before it is closed.
            on_hangup: called at most once.
            half: also when the peer has only ended its side.
        """
        if self._closed or not self.works:
            return
        if self._poll is None:
            self._poll = select.epoll()
            asyncio.get_running_loop().add_reader(self._poll.fileno(), self._report)
        self.forget(sock)
        self._on_hangup[sock.fileno()] = on_hangup
        self._poll.register(sock.fileno(), select.EPOLLONESHOT | (select.EPOLLRDHUP if half else 0))

    def forget(self, sock: socket.socket) -> None:
        """Stop watching `sock`, if it is watched."""
        if self._poll is not None and self._on_hangup.pop(sock.fileno(), None) is not None:
            self._poll.unregister(sock.fileno())

    def aclose(self) -> None:
        """Stop watching all sockets."""
        self._closed = True
        if self._poll is not None:
            asyncio.get_running_loop().remove_reader(self._poll.fileno())
            self._poll.close()
            self._poll = None

    def _report(self) -> None:
        if self._poll is None:
            return
        for fileno, _ in self._poll.poll(0):
            on_hangup = self._on_hangup.pop(fileno, None)
            self._poll.unregister(fileno)
            if on_hangup is not None:
                on_hangup()
