"""TCP sockets to listen on: the addresses that a host means, and one port for all of them.

Invariant: `localhost` is never looked up. It means both loopback addresses, because some programs try ::1
first and others 127.0.0.1. A machine without one of the two address families listens on the other.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Collection

from cfproxy.config import TcpAddress

_NO_SUCH_FAMILY = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
_PORTS_TO_TRY = 16  # a port that the system chose for one address may be in use on the other


def bind_tcp(address: TcpAddress, skip: Collection[object] = ()) -> list[socket.socket]:
    """Return a bound socket for each address that the host means; port 0 becomes one port for all.

    Args:
        address: its host may be a name.
        skip: addresses that need no socket.

    Raises:
        OSError: its `filename` is the address that can't be used.
    """
    for _ in range(_PORTS_TO_TRY if address.port == 0 else 1):
        try:
            return _bind_all(address, skip)
        except OSError as error:
            failure = error
            if error.errno != errno.EADDRINUSE:
                break
    raise failure


def _bind_all(address: TcpAddress, skip: Collection[object]) -> list[socket.socket]:
    absent: OSError | None = None
    bound: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        for literal in literal_addresses(address):
            if literal in skip:
                continue
            port = bound[0].getsockname()[1] if bound else address.port
            try:
                bound.append(undo.enter_context(bind_literal(TcpAddress(literal.host, port))))
            except OSError as error:
                if not is_optional(address, error):
                    raise
                absent = error
        if absent is not None and not bound and not skip:
            raise absent
        undo.pop_all()
    return bound


def literal_addresses(address: TcpAddress) -> list[TcpAddress]:
    """Return the literal addresses to bind; a name other than localhost is looked up, which may take a while.

    Raises:
        OSError: there is no such name.
    """
    if not needs_lookup(address):
        return [TcpAddress(host, address.port) for host in address.hosts]
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(address)) from None
    return [TcpAddress(host, address.port) for host in dict.fromkeys(str(place[0]) for *_, place in found)]


def is_optional(address: TcpAddress, error: OSError) -> bool:
    """Whether a failure to bind one of an address's literals only means that an address family is missing."""
    return len(address.hosts) > 1 and error.errno in _NO_SUCH_FAMILY


def bind_literal(literal: TcpAddress) -> socket.socket:
    """Return a socket bound to a literal address; `::` takes IPv4 connections, too, where the system can.

    Raises:
        OSError: its `filename` is the address.
    """
    family = socket.AF_INET6 if ":" in literal.host else socket.AF_INET
    try:
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setblocking(False)
            if os.name == "posix" and sys.platform != "cygwin":  # elsewhere it would share the port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                with contextlib.suppress(OSError):  # OpenBSD's are always for IPv6 only
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(literal.host != "::"))
            sock.bind((literal.host, literal.port))
            undo.pop_all()
            return sock
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(literal)) from None


def needs_lookup(address: TcpAddress) -> bool:
    """Whether the host is a name that has to be looked up."""
    try:
        ipaddress.ip_address(address.hosts[0])
    except ValueError:
        return True
    return False
