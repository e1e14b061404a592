"""Listening addresses whose sockets stay open while what serves them changes.

Owns: opening an address, or taking over a socket that was handed to the process; the errors of that.
Must not know: what is spoken there.
Invariant: from opening to closing no connection is refused or left without an answer, whoever serves the
next one: who comes before anybody serves the door waits until somebody does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Collection
from typing import Self, cast

from cfproxy.config import TcpAddress, UnixAddress
from cfproxy.errors import ListenError
from cfproxy.server.unix_sockets import bound_unix_socket, open_to_others

BACKLOG = 4096
# uvloop takes one connection from a listening socket in each turn, however many come at once: the last of
# hundreds would wait for seconds while those that were taken are served. So it gets the socket several times.
ACCEPTS = 16


class _Early(asyncio.Protocol):
    """A connection to a door that nobody serves yet: what it says is kept, and said again to who serves it.

    Args:
        arrived: told when the transport is there, a turn of the event loop after this was made.
        left: told of the connection's end.
    """

    transport: asyncio.Transport

    def __init__(self, arrived: Callable[[_Early], None], left: Callable[[_Early], None]) -> None:
        self._arrived = arrived
        self._left = left
        self._said = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait, unless somebody serves the door by now."""
        self.transport = cast("asyncio.Transport", transport)
        self._arrived(self)

    def data_received(self, data: bytes) -> None:
        """Keep it, and read no more than this: not even the connection's end behind it."""
        self._said += data
        self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the interface's signature
        """Wait no more."""
        self._left(self)

    def hand_over(self, protocol: asyncio.Protocol) -> None:
        """Let `protocol` begin as if the connection had come just now."""
        transport = self.transport
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._said and not transport.is_closing():
            transport.resume_reading()
            protocol.data_received(self._said)


class _Nobody(asyncio.Protocol):
    """Ends a connection that nobody is going to serve."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """End it."""
        cast("asyncio.Transport", transport).abort()


class ListeningSocket:
    """One listening address.

    Args:
        address: where; what a socket that was handed over listens at in truth.
    """

    def __init__(self, address: TcpAddress | UnixAddress) -> None:
        self.address = address
        self.asked = asyncio.Event()  # set when somebody comes before anybody serves
        self._protocols: Callable[[], asyncio.Protocol] | None = None
        self._early: dict[_Early, None] = {}  # in the order of their coming
        self._stack = contextlib.ExitStack()
        self._given = False  # handed over: whoever made it has seen to its mode

    @classmethod
    async def open(cls, address: TcpAddress | UnixAddress, given: socket.socket | None = None) -> Self:
        """Listen at `address`, or at the socket `given`; port 0 becomes the one that the system chose.

        Raises:
            ListenError
        """
        door = cls(address if given is None else address_of(given))
        door._given = given is not None
        try:
            await door._listen(given)
        except OSError as error:
            door.close()
            # asyncio wraps the system's words in its own, which repeat the address.
            reason = os.strerror(error.errno) if error.errno else error.strerror or "it cannot be used"
            raise ListenError(
                f"cannot listen on {address}: {reason}; stop what uses it, or set another address "
                "(`cfproxy doctor` tells who has it)"
            ) from None
        return door

    @property
    def port(self) -> int | None:
        """The port; None for a Unix socket."""
        return self.address.port if isinstance(self.address, TcpAddress) else None

    def serve(self, protocols: Callable[[], asyncio.Protocol]) -> None:
        """Let connections be served.

        Args:
            protocols: makes the protocol of each connection from now on; those that are served already keep
                theirs.
        """
        self._protocols = protocols
        early, self._early = self._early, {}
        for connection in early:
            connection.hand_over(protocols())

    def turn_away(self) -> None:
        """Let whoever comes, or waits, be told by the connection's end that nobody serves here."""
        self.serve(_Nobody)

    def admit(self, uids: Collection[int]) -> None:
        """Let the users be able to connect to a Unix socket of ours; who is asked further in.

        Args:
            uids: theirs; empty for the owner alone, who is never kept out, any more than root is.
        """
        if not isinstance(self.address, UnixAddress) or self._given:
            return
        # Fails where somebody has taken the file away: then nobody connects by it any more.
        with contextlib.suppress(OSError):
            open_to_others(self.address.path, others=not {0, os.geteuid()}.issuperset(uids))

    def close(self) -> None:
        """Take no more connections; those that are served stay open."""
        self._stack.close()
        if self._protocols is None:
            self.turn_away()

    async def _listen(self, given: socket.socket | None) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(self.address, UnixAddress):
            bound = given or self._stack.enter_context(bound_unix_socket(self.address.path))
            server = await loop.create_unix_server(self._build, sock=bound, backlog=BACKLOG)
        elif given is not None:
            server = await loop.create_server(self._build, sock=given, backlog=BACKLOG)
        else:
            host, port = self.address.host, self.address.port
            server = await loop.create_server(self._build, host, port, backlog=BACKLOG)
            self.address = TcpAddress(host, server.sockets[0].getsockname()[1])
        self._stack.callback(server.close)
        if type(loop).__module__.startswith("uvloop"):
            for _ in range(ACCEPTS - 1):
                for listening in server.sockets:
                    await self._accept_by_one_more(listening.fileno())

    async def _accept_by_one_more(self, fileno: int) -> None:
        """Take connections from a listening socket by one more number of it."""
        loop, twin = asyncio.get_running_loop(), socket.socket(fileno=os.dup(fileno))
        create = loop.create_unix_server if isinstance(self.address, UnixAddress) else loop.create_server
        server = await create(self._build, sock=twin, backlog=BACKLOG)
        self._stack.callback(server.close)

    def _build(self) -> asyncio.Protocol:
        if self._protocols is not None:
            return self._protocols()
        self.asked.set()
        return _Early(self._arrived, self._left)

    def _arrived(self, connection: _Early) -> None:
        if self._protocols is None:
            self._early[connection] = None
        else:  # since a moment ago
            connection.hand_over(self._protocols())

    def _left(self, connection: _Early) -> None:
        self._early.pop(connection, None)


def address_of(sock: socket.socket) -> TcpAddress | UnixAddress:
    """Return where a socket listens.

    Raises:
        ListenError: neither TCP nor a Unix socket with a path.
    """
    name = sock.getsockname()
    if isinstance(name, tuple):
        return TcpAddress(name[0], name[1])
    if isinstance(name, str) and name.startswith("/"):
        return UnixAddress(name)
    raise ListenError("a socket that was handed over is neither TCP nor a Unix socket with a path")


class ListeningSockets:
    """The listening addresses of one configuration, opened beside those of the one before.

    Args:
        before: those of the configuration in use; an address that stays keeps its socket.
        given: sockets that were handed to the process, each with its name.
    """

    def __init__(self, before: ListeningSockets | None, given: list[tuple[str, socket.socket]]) -> None:
        self._before = {} if before is None else before._doors  # noqa: SLF001 - of the same class
        self._given = given
        self._doors: dict[str, ListeningSocket] = {}
        self._taken: list[socket.socket] = []

    def unused(self) -> list[TcpAddress | UnixAddress]:
        """Return where sockets listen that were handed over and that nobody asked for."""
        return [address_of(sock) for _, sock in self._given if sock not in self._taken]

    async def open(self, owner: str, address: TcpAddress | UnixAddress) -> ListeningSocket:
        """Return the door of `owner`: an account, or `admin`.

        A socket that was handed over is used if it has the owner's name or its address.

        Raises:
            ListenError
        """
        given = next((sock for name, sock in self._given if name == owner), None)
        if given is None:
            given = next((sock for _, sock in self._given if address_of(sock) == address), None)
        key = str(address)
        if given is not None:
            self._taken.append(given)
            key = f"{owner}: given"
        elif isinstance(address, TcpAddress) and address.port == 0:
            key = f"{owner}: {address}"  # another port for each owner
        door = self._before.get(key)
        if door is None:
            # A copy: should another configuration not want it, the one after that may.
            door = await ListeningSocket.open(address, None if given is None else given.dup())
        self._doors[key] = door
        return door

    def give_up(self) -> None:
        """Close what the configuration before does not have."""
        for key, door in self._doors.items():
            if key not in self._before:
                door.close()

    def settle(self) -> None:
        """Close what only the configuration before had."""
        for key, door in self._before.items():
            if key not in self._doors:
                door.close()
        self._before = {}

    def close(self) -> None:
        """Take no more connections anywhere."""
        for door in self._doors.values():
            door.close()
