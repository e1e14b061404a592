"""Host names and addresses in URLs, `Host` headers and listen addresses: syntax, look-ups and connections.

Invariants:
1. Without TLS, connections are made to this machine only: what a name means shows when it is looked up.
2. Results do not depend on the Python version, and no error message contains the text that was parsed.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import aiohappyeyeballs

_P = TypeVar("_P", bound=asyncio.Protocol)
Addresses = list[aiohappyeyeballs.AddrInfoType]

HEAD_START_S = 0.25  # before the next address is tried as well (RFC 8305 §8)
_NAME_MAX, _PORT_MAX = 253, 65_535
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_BELOW_LOCALHOST = re.compile(rf"(?:{_LABEL}\.)+localhost\.?", re.IGNORECASE)
# Only IPv6 addresses have brackets, a name ends with one dot at most, and only ASCII digits make a port.
_HOST = re.compile(
    r"(?:\[([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\]|([^:\[\]\s/@]*[^:\[\]\s/@.])\.?)(?::([0-9]{1,5}))?"
)
_LOOPBACK_V4 = ipaddress.IPv4Network("127.0.0.0/8")
_LOOPBACK_V6 = ipaddress.IPv6Address("::1")


@functools.lru_cache(maxsize=256)  # every new set of request headers asks, nearly always for the same name
def is_loopback(host: str) -> bool:
    """Return whether a name or address, without brackets, always means this machine.

    True for `localhost`, in any case and with a final dot, for 127.0.0.0/8 and for ::1. False for names below
    `localhost`, which many systems look up in DNS (see `is_below_localhost`), for IPv4-mapped addresses
    (::ffff:127.0.0.1), which Python versions classify differently, for addresses with a zone (::1%1), and for
    abbreviated addresses (127.1).
    """
    if host.lower().removesuffix(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address in _LOOPBACK_V4 if address.version == 4 else address == _LOOPBACK_V6


def is_below_localhost(host: str) -> bool:
    """Return whether a name is a subdomain of `localhost`.

    It should mean this machine (RFC 6761 §6.3), but only its addresses tell whether it does.
    """
    return len(host) <= _NAME_MAX and _BELOW_LOCALHOST.fullmatch(host) is not None


def may_be_loopback(host: str) -> bool:
    """Return whether a host means this machine unless a look-up shows otherwise; connecting needs one."""
    return is_loopback(host) or is_below_localhost(host)


def are_loopback(found: Iterable[tuple[Any, ...]]) -> bool:
    """Return whether `getaddrinfo` found addresses, and only of this machine's loopback.

    One that is not makes all of them suspect: that is how DNS rebinding begins.
    """
    addresses = [str(place[0]) for *_, place in found]
    return bool(addresses) and all(map(is_loopback, addresses))


async def look_up(host: str, port: int | None) -> Addresses:
    """Return a host's addresses; a literal one needs no thread.

    Raises:
        OSError, UnicodeError: there are none.
    """
    try:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        return list(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))


async def resolves_here(name: str) -> bool:
    """Return whether a name resolves to loopback addresses, and to no others."""
    try:
        return are_loopback(await look_up(name, None))
    except (OSError, UnicodeError):
        return False


class NotLocal(Exception):
    """A host is not this machine, and TLS is off."""


async def connect(
    build: Callable[[], _P], host: str, addresses: Addresses, tls: ssl.SSLContext | None
) -> tuple[asyncio.Transport, _P]:
    """Connect to one of a host's addresses, TLS included.

    Args:
        build: returns the connection's protocol.
        host: what a certificate must name.
        addresses: from `look_up`.
        tls: None for none.

    Raises:
        NotLocal
        OSError: no connection; `ssl.SSLError` is one.
    """
    if tls is None and not are_loopback(addresses):
        raise NotLocal
    sock = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=HEAD_START_S)
    return await asyncio.get_running_loop().create_connection(
        build, sock=sock, ssl=tls, server_hostname=None if tls is None else host
    )


def split_host(host: str) -> tuple[str, int | None]:
    """Return a `Host`'s lower-cased name without brackets and final dot, and its port if there is one.

    The name is empty if the value is malformed.
    """
    match = _HOST.fullmatch(host)
    if match is None or int(match[3] or 0) > _PORT_MAX:
        return "", None
    name = (match[1] or match[2]).lower()
    return name, int(match[3]) if match[3] else None


def parse_name(text: str) -> str:
    """Return a host name or IP address in lower case, without brackets.

    Raises:
        ValueError: it is neither.
    """
    want = "must have a valid host name or IP address"
    try:
        if text.startswith("["):
            return str(ipaddress.IPv6Address(text[1:-1]))
        if text.rsplit(".", 1)[-1].isdigit():
            return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError(want) from None
    name = text.lower().removesuffix(".")
    if not re.fullmatch(rf"{_LABEL}(?:\.{_LABEL})*", name):
        raise ValueError(want)
    return name


def parse_authority(text: str, want: str) -> tuple[str, int | None]:
    """Return host and port of `host`, `host:port` or `[::1]:port`; `want` is the ValueError's message."""
    match = _AUTHORITY.fullmatch(text)
    if not match or int(match[2] or 0) > _PORT_MAX:
        raise ValueError(want)
    return parse_name(match[1]), None if match[2] is None else int(match[2])


def render_authority(host: str, port: int | None) -> str:
    """Return `host`, `host:port` or `[::1]:port`, the inverse of `parse_authority`."""
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port is None else f"{bracketed}:{port}"
