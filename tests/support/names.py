"""A resolver for tests: names with the addresses that a DNS server would give them."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Names:
    """What names resolve to.

    Args:
        addresses: by name; a name that is missing does not resolve. Others may be added at any time.
        asked: the names that were looked up, in order.
        gate: look-ups wait while it is not set.
    """

    addresses: dict[str, list[str]]
    asked: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def getaddrinfo(self, host: str, port: Any, **_: Any) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        await self.gate.wait()
        if host not in self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port or 0, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port or 0))
            for address in self.addresses[host]
        ]


def resolve_by(monkeypatch: pytest.MonkeyPatch, **addresses: list[str]) -> Names:
    """Replace the running loop's resolver; `a__localhost` stands for a.localhost."""
    names = Names({name.replace("__", "."): found for name, found in addresses.items()})
    names.gate.set()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", names.getaddrinfo)
    return names
