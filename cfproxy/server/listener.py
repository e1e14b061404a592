"""Listeners whose sockets stay open while their servers are replaced.

Invariant: from opening to closing, no connection is refused or ignored. Connections that arrive before a
socket is served wait until it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket
from collections.abc import Callable, Collection, Sequence
from typing import Self, cast

from cfproxy.config import TcpAddress, UnixAddress
from cfproxy.errors import ListenError
from cfproxy.server.tcp_sockets import bind_tcp, needs_lookup
from cfproxy.server.unix_sockets import bound_unix_socket, open_to_others

BACKLOG = 4096
# uvloop accepts one connection per iteration from each listening socket. When hundreds arrive at once, the
# last would wait for seconds while others are served, so uvloop gets this many duplicates of the socket.
ACCEPTS = 16


class _PendingConnection(asyncio.Protocol):
    """A connection to a socket that is not served yet; what it receives is kept for its later protocol.

    Args:
        on_made: called when the connection is made, one iteration after this object was created.
        on_lost: called when the connection has ended.
    """

    transport: asyncio.Transport

    def __init__(
        self, on_made: Callable[[_PendingConnection], None], on_lost: Callable[[_PendingConnection], None]
    ) -> None:
        self._on_made = on_made
        self._on_lost = on_lost
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait, unless the socket is served by now."""
        self.transport = cast("asyncio.Transport", transport)
        self._on_made(self)

    def data_received(self, data: bytes) -> None:
        """Keep the data and stop reading, so that an end of the stream behind it is not lost."""
        self.received += data
        self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the interface's signature
        """Stop waiting."""
        self._on_lost(self)

    def switch_to(self, protocol: asyncio.Protocol) -> None:
        """Continue with `protocol`, as if the connection had been made just now."""
        transport = self.transport
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self.received and not transport.is_closing():
            transport.resume_reading()
            protocol.data_received(self.received)


class _RejectingProtocol(asyncio.Protocol):
    """Closes every connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        cast("asyncio.Transport", transport).abort()


class ListeningSocket:
    """The listening sockets of one address: two for localhost, else nearly always one.

    Args:
        address: where it listens; for sockets inherited by name, the real address that most can reach.
    """

    def __init__(self, address: TcpAddress | UnixAddress) -> None:
        self.address = address
        self._build_protocol: Callable[[], asyncio.Protocol] | None = None
        self._pending: dict[_PendingConnection, None] = {}  # oldest first
        self._stack = contextlib.ExitStack()
        self._inherited = False  # from another process, which has set the mode of its file

    @classmethod
    async def open(cls, address: TcpAddress | UnixAddress, inherited: Sequence[socket.socket] = ()) -> Self:
        """Listen at `address`; port 0 becomes the port that the system chose.

        Args:
            address: where to listen.
            inherited: sockets that listen already; what they lack of the address is opened beside them.

        Raises:
            ListenError
        """
        listening = cls(address)
        listening._inherited = bool(inherited)
        try:
            await listening._listen(inherited)
        except OSError as error:
            listening.close()
            place = address if isinstance(address, UnixAddress) else error.filename or address
            advice = "set another address"
            if error.errno == errno.EADDRINUSE:
                advice = f"stop what uses it, or {advice} (`cfproxy doctor` shows what uses it)"
            raise ListenError(
                f"cannot listen on {place}: {error.strerror or 'it cannot be used'}; {advice}"
            ) from None
        return listening

    @property
    def port(self) -> int | None:
        """The port; None for a Unix socket."""
        return self.address.port if isinstance(self.address, TcpAddress) else None

    def serve(self, build_protocol: Callable[[], asyncio.Protocol]) -> None:
        """Use `build_protocol` for pending and new connections; those already served are not affected."""
        self._build_protocol = build_protocol
        pending, self._pending = self._pending, {}
        for connection in pending:
            connection.switch_to(build_protocol())

    def set_allowed_users(self, uids: Collection[int]) -> None:
        """Let these users connect to our own Unix socket; the server still checks each connection's user.

        Args:
            uids: empty for the owner alone. The owner and root can always connect.
        """
        if not isinstance(self.address, UnixAddress) or self._inherited:
            return
        # It fails if the file was removed; then no client can connect through it any more.
        with contextlib.suppress(OSError):
            open_to_others(self.address.path, others=not {0, os.geteuid()}.issuperset(uids))

    def close(self) -> None:
        """Accept no more connections; those already served stay open."""
        self._stack.close()
        if self._build_protocol is None:
            self.serve(_RejectingProtocol)

    async def _listen(self, inherited: Sequence[socket.socket]) -> None:
        sockets = [self._stack.enter_context(sock) for sock in inherited]
        if isinstance(self.address, UnixAddress):
            if not inherited:
                sockets.append(self._stack.enter_context(bound_unix_socket(self.address.path)))
        else:
            bind = functools.partial(bind_tcp, self.address, {address_of(sock) for sock in inherited})
            bound = await asyncio.to_thread(bind) if needs_lookup(self.address) else bind()
            sockets += [self._stack.enter_context(sock) for sock in bound]
            self.address = TcpAddress(self.address.host, sockets[0].getsockname()[1])
        is_uvloop = type(asyncio.get_running_loop()).__module__.startswith("uvloop")
        for sock in sockets:
            await self._serve_socket(sock)
            for _ in range(ACCEPTS - 1 if is_uvloop else 0):
                await self._serve_socket(self._stack.enter_context(sock.dup()))

    async def _serve_socket(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        create = loop.create_unix_server if isinstance(self.address, UnixAddress) else loop.create_server
        try:
            server = await create(self._accept, sock=sock, backlog=BACKLOG)
        except OSError as error:  # on Linux, two sockets can be bound alike until one of them listens
            raise OSError(error.errno, os.strerror(error.errno or 0), str(address_of(sock))) from None
        self._stack.callback(server.close)

    def _accept(self) -> asyncio.Protocol:
        if self._build_protocol is not None:
            return self._build_protocol()
        return _PendingConnection(self._pending_made, self._pending_lost)

    def _pending_made(self, connection: _PendingConnection) -> None:
        if self._build_protocol is None:
            self._pending[connection] = None
        else:  # since this iteration
            connection.switch_to(self._build_protocol())

    def _pending_lost(self, connection: _PendingConnection) -> None:
        self._pending.pop(connection, None)


def address_of(sock: socket.socket) -> TcpAddress | UnixAddress:
    """Return where a socket listens.

    Raises:
        ListenError: it is neither a TCP socket nor a Unix socket with a path.
    """
    name = sock.getsockname()
    if isinstance(name, tuple):
        return TcpAddress(name[0], name[1])
    if isinstance(name, str) and name.startswith("/"):
        return UnixAddress(name)
    raise ListenError("an inherited socket is neither a TCP socket nor a Unix socket with a path")


def most_exposed(sockets: Sequence[socket.socket]) -> TcpAddress | UnixAddress:
    """Return the address of the socket that other machines can reach, if there is one.

    Raises:
        ListenError: see `address_of`.
    """
    addresses = [address_of(sock) for sock in sockets]
    return next(
        (each for each in addresses if isinstance(each, TcpAddress) and not each.is_loopback), addresses[0]
    )


class ListeningSockets:
    """The listening sockets of one configuration; those of the previous one stay open until `commit`.

    Args:
        previous: of the configuration in use; a socket whose address stays is used again.
        inherited: sockets that the process was given at its start, each with its name.
    """

    def __init__(self, previous: ListeningSockets | None, inherited: list[tuple[str, socket.socket]]) -> None:
        self._previous = {} if previous is None else previous._sockets  # noqa: SLF001 - of the same class
        self._inherited = inherited
        self._sockets: dict[str, ListeningSocket] = {}
        self._used: list[socket.socket] = []

    def unused(self) -> list[TcpAddress | UnixAddress]:
        """Return the addresses of inherited sockets that were not opened."""
        return [address_of(sock) for _, sock in self._inherited if sock not in self._used]

    async def open(self, owner: str, address: TcpAddress | UnixAddress) -> ListeningSocket:
        """Return the socket of `owner`, an account or `admin`.

        Inherited sockets are used if they have the owner's name or, when none has it, the owner's address.

        Raises:
            ListenError
        """
        inherited = [sock for name, sock in self._inherited if name == owner]
        if inherited:
            key, address = f"{owner}: inherited", most_exposed(inherited)
        elif isinstance(address, TcpAddress) and address.port == 0:
            key = f"{owner}: {address}"  # a different port for each owner
        else:
            key = str(address)
            wanted = (
                [TcpAddress(host, address.port) for host in address.hosts]
                if isinstance(address, TcpAddress)
                else [address]
            )
            inherited = [sock for _, sock in self._inherited if address_of(sock) in wanted]
        self._used += inherited
        listening = self._previous.get(key)
        if listening is None:
            # Duplicates, because a later configuration may want the inherited sockets again.
            listening = await ListeningSocket.open(address, [sock.dup() for sock in inherited])
        self._sockets[key] = listening
        return listening

    def rollback(self) -> None:
        """Close the sockets that the previous configuration does not have."""
        for key, listening in self._sockets.items():
            if key not in self._previous:
                listening.close()

    def commit(self) -> None:
        """Close the sockets that only the previous configuration had."""
        for key, listening in self._previous.items():
            if key not in self._sockets:
                listening.close()
        self._previous = {}

    def close(self) -> None:
        """Close every socket; connections stay open."""
        for listening in self._sockets.values():
            listening.close()
