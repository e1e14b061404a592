"""The URL of a Redis or Valkey server: `redis://`, `rediss://`, `redis+sentinel://`, `rediss+sentinel://`.

Neither a message nor `str` of an address contains the password. Apart from it, what `str` writes reads back
as the same address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from cfproxy.hosts import parse_authority, render_authority
from cfproxy.secret import Secret

_URL = re.compile(
    r"(?P<scheme>rediss?(?:\+sentinel)?)://"
    r"(?:(?P<user>[^:@/?#]*)(?::(?P<password>[^@/?#]*))?@)?"
    r"(?P<hosts>[^@/?#]+)"
    r"(?P<path>(?:/[^/?#]*){0,2})"
    r"(?:\?(?P<query>[^#]*))?",
    re.IGNORECASE,
)
_WANT = (
    "must be redis://host:port/0 or rediss://… (TLS), with user:password@ in front of the host where needed, "
    "or redis+sentinel://host1,host2/service/0"
)
REPLICAS_MAX = 16


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A server, or the Sentinels that know its address.

    Args:
        hosts: `(host, port)` of one server, or of at least one Sentinel.
        database: the number of the database.
        username: None for the default user.
        password: None for none.
        tls: whether connections use TLS, which also verifies the server.
        service: the server's name in the Sentinels; None without Sentinels.
        replicas: how many replicas must acknowledge a record before it counts as saved.
    """

    hosts: tuple[tuple[str, int], ...]
    database: int = 0
    username: str | None = None
    password: Secret | None = None
    tls: bool = False
    service: str | None = None
    replicas: int = 0

    def __str__(self) -> str:
        scheme = ("rediss" if self.tls else "redis") + ("+sentinel" if self.service else "")
        user = f"{quote(self.username, safe='')}@" if self.username else ""
        hosts = ",".join(render_authority(host, port) for host, port in self.hosts)
        service = f"/{self.service}" if self.service else ""
        replicas = f"?replicas={self.replicas}" if self.replicas else ""
        return f"{scheme}://{user}{hosts}{service}/{self.database}{replicas}"


def is_redis_url(text: str) -> bool:
    """Return whether `text` has one of these schemes."""
    return text.lower().startswith(("redis:", "rediss:", "redis+", "rediss+"))


def parse_redis_url(text: str) -> RedisAddress:
    """Return the address of a URL; user and password are percent-decoded.

    Raises:
        ValueError: it is not such a URL; the message says what is valid and contains none of it.
    """
    match = _URL.fullmatch(text)
    if match is None or not text.isascii() or not text.isprintable():
        raise ValueError(_WANT)
    scheme = match["scheme"].lower()
    sentinel = scheme.endswith("+sentinel")
    parts = match["path"].split("/")[1:]
    service = parts.pop(0) if sentinel and parts else None
    database = parts.pop(0) if parts else ""
    if parts or (sentinel and not service) or not re.fullmatch(r"\d{0,4}", database):
        raise ValueError(_WANT)
    hosts = tuple(_host(part, 26379 if sentinel else 6379) for part in match["hosts"].split(","))
    if len(hosts) > 1 and not sentinel:
        raise ValueError("names several hosts, which only redis+sentinel:// allows")
    password = unquote(match["password"] or "")
    return RedisAddress(
        hosts=hosts,
        database=int(database or 0),
        username=unquote(match["user"] or "") or None,
        password=Secret(password) if password else None,
        tls=scheme.startswith("rediss"),
        service=service,
        replicas=_replicas(match["query"]),
    )


def _host(text: str, default_port: int) -> tuple[str, int]:
    host, port = parse_authority(text, _WANT)
    if port == 0:
        raise ValueError(_WANT)
    return host, port or default_port


def _replicas(query: str | None) -> int:
    if not query:
        return 0
    match = re.fullmatch(r"replicas=(\d{1,2})", query)
    if match is None or int(match[1]) > REPLICAS_MAX:
        raise ValueError(f"may have ?replicas=N (up to {REPLICAS_MAX}) at its end and nothing else")
    return int(match[1])
