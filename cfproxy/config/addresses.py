"""Listen addresses, URLs, redirect URIs, Host values and origins: a parser and a JSON Schema for each.

A URL to which tokens may be sent is https, or http to this machine, and has neither credentials nor dot
segments. No message contains the value. What `str` of an address writes can be read back.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from cfproxy.config.types import STRING, is_off, parse_text
from cfproxy.hosts import may_be_loopback, parse_authority, render_authority

LOOPBACKS = ("127.0.0.1", "::1")
UNIX_PATH_MAX_BYTES = 103  # macOS has room for 104 with the final NUL, Linux for 108

_DEFAULT_PORTS = {"http": 80, "https": 443}
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_PORT_SCHEMA = {"type": "integer", "minimum": 0, "maximum": 65_535}


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP listen address: `host` without brackets; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return render_authority(self.host, self.port)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return may_be_loopback(self.host)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The host, or both loopback addresses for `localhost` and its subdomains (RFC 6761 §6.3)."""
        return LOOPBACKS if self.is_loopback and self.host.endswith("localhost") else (self.host,)


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket to listen on: an absolute path."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


def parse_tcp_address(value: object) -> TcpAddress:
    """Return the address of `host:port`, `[::1]:8080`, `:8080` or `8080`; no host means localhost."""
    if isinstance(value, TcpAddress):
        return value
    want = "must be an address such as localhost:8080, :8080, 127.0.0.1:8080 or [::1]:8080"
    text = parse_text(value, want).removeprefix(":")
    host, port = parse_authority(f"localhost:{text}" if text.isdigit() else text, want)
    if port is None:
        raise ValueError(want)
    return TcpAddress(host, port)


def parse_listen(value: object) -> TcpAddress | UnixAddress | None:
    """Return a TCP address, the socket of `unix:/path`, or None for `off`."""
    if isinstance(value, UnixAddress):
        return value
    if is_off(value):
        return None
    if not isinstance(value, str) or not value.strip().startswith("unix:"):
        return parse_tcp_address(value)
    path = value.strip().removeprefix("unix:")
    if not path.startswith("/") or not path.isprintable():
        raise ValueError("must name an absolute path: unix:/path/to.sock")
    if len(os.fsencode(path)) > UNIX_PATH_MAX_BYTES:
        raise ValueError(
            f"has a path longer than {UNIX_PATH_MAX_BYTES} bytes, which is too long for a socket"
        )
    return UnixAddress(path)


def _render_address(address: TcpAddress | UnixAddress | None) -> str:
    return "off" if address is None else str(address)


def parse_admin(value: object) -> TcpAddress | None:
    """Return a TCP address, or None for `off`."""
    if is_off(value):
        return None
    if isinstance(value, str) and value.strip().startswith("unix:"):
        raise ValueError("must be a TCP address such as localhost:8081, or off")
    return parse_tcp_address(value)


Listen = Annotated[
    TcpAddress | UnixAddress | None,
    PlainValidator(parse_listen),
    PlainSerializer(_render_address),
    WithJsonSchema({"anyOf": [STRING, _PORT_SCHEMA, {"const": False}]}),
]
Admin = Annotated[
    TcpAddress | None,
    PlainValidator(parse_admin),
    PlainSerializer(_render_address),
    WithJsonSchema({"anyOf": [STRING, _PORT_SCHEMA, {"const": False}]}),
]


# --- servers and pages ------------------------------------------------------------------------


def _split_url(value: object, want: str) -> tuple[str, str, int | None, str]:
    text = parse_text(value, want)
    scheme, colon, rest = text.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if not _VISIBLE.fullmatch(text) or not colon or scheme.lower() not in {"http", "https"} or "\\" in text:
        raise ValueError(want)
    if "@" in authority:
        raise ValueError("must not contain a user name or password")
    host, port = parse_authority(authority, want)
    if port == 0:
        raise ValueError(want)
    return scheme.lower(), host, port, rest[len(authority) :]


def parse_url(value: object) -> str:
    """Return a URL to which tokens may be sent: https, or http to this machine (RFC 6749 §3.1, §3.2)."""
    want = "must be an https:// URL (http:// only to localhost, 127.0.0.1 or [::1])"
    scheme, host, port, path = _split_url(value, want)
    # Whoever connects to a name checks its addresses.
    if scheme == "http" and not may_be_loopback(host):
        raise ValueError(want)
    if "?" in path or "#" in path:
        raise ValueError("must have no query and no fragment")
    if {".", ".."} & set(path.lower().replace("%2e", ".").split("/")):
        raise ValueError("must have no . or .. in its path")
    return f"{scheme}://{render_authority(host, port)}{path}"


def parse_upstream(value: object) -> str:
    """Return a URL without a trailing slash, so that a request target can follow."""
    return parse_url(value).rstrip("/")


def parse_redirect_uri(value: object) -> str:
    """Return the text unchanged: servers compare redirect URIs as strings (RFC 6749 §3.1.2)."""
    want = "must be an absolute http:// or https:// URL"
    if "#" in _split_url(value, want)[3]:
        raise ValueError("must have no fragment")
    return parse_text(value, want)


def url_origin(url: str) -> str:
    """Return `scheme://host:port` of a parsed URL, always with the port."""
    scheme, host, port, _ = _split_url(url, "must be a URL")
    return f"{scheme}://{render_authority(host, port or _DEFAULT_PORTS[scheme])}"


def parse_host(value: object) -> str:
    """Return `host` or `host:port` in lower case, as in a Host header."""
    want = "must be host or host:port, without http://"
    host, port = parse_authority(parse_text(value, want), want)
    return render_authority(host, port)


def parse_origin(value: object) -> str:
    """Return the origin as browsers send it: lower case, no default port (RFC 6454 §6.2)."""
    want = "must be an origin such as https://app.example.com, without a path ('null' is never allowed)"
    match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([^/]+)", parse_text(value, want).lower())
    if not match:
        raise ValueError(want)
    host, port = parse_authority(match[2], want)
    shown = None if port == _DEFAULT_PORTS.get(match[1]) else port
    return f"{match[1]}://{render_authority(host, shown)}"


Url = Annotated[str, PlainValidator(parse_url), WithJsonSchema({**STRING, "format": "uri"})]
Upstream = Annotated[str, PlainValidator(parse_upstream), WithJsonSchema({**STRING, "format": "uri"})]
RedirectUri = Annotated[str, PlainValidator(parse_redirect_uri), WithJsonSchema(STRING)]
Host = Annotated[str, PlainValidator(parse_host), WithJsonSchema(STRING)]
Origin = Annotated[str, PlainValidator(parse_origin), WithJsonSchema(STRING)]
