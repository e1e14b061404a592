"""Syntax of host names and addresses in URLs, `Host` headers and listen addresses.

Invariants: nothing is resolved; results do not depend on the Python version; no error message contains the
text that was parsed.
"""

from __future__ import annotations

import functools
import ipaddress
import re

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_LOOPBACK_V4 = ipaddress.IPv4Network("127.0.0.0/8")
_LOOPBACK_V6 = ipaddress.IPv6Address("::1")


@functools.lru_cache(maxsize=256)  # every new set of request headers asks, nearly always for the same name
def is_loopback(host: str) -> bool:
    """Return whether a name or address, without brackets, always means this machine.

    True for `localhost` and its subdomains (RFC 6761 §6.3), in any case and with a final dot, for
    127.0.0.0/8 and for ::1. False for IPv4-mapped addresses (::ffff:127.0.0.1), which Python versions
    classify differently, for addresses with a zone (::1%1), and for abbreviated addresses (127.1).
    """
    labels = host.lower().removesuffix(".").split(".")
    if labels[-1] == "localhost":
        return all(labels)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address in _LOOPBACK_V4 if address.version == 4 else address == _LOOPBACK_V6


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
    if not match or int(match[2] or 1) not in range(65_536):
        raise ValueError(want)
    return parse_name(match[1]), None if match[2] is None else int(match[2])


def render_authority(host: str, port: int | None) -> str:
    """Return `host`, `host:port` or `[::1]:port`, the inverse of `parse_authority`."""
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port is None else f"{bracketed}:{port}"
