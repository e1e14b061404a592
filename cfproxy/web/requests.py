"""What a connection cuts out of what comes, and who answers it.

Owns: `Request`, the bounds of clients, the roles of those who answer.
Must not know: how requests are read (`connection.py`), what is done with them (`exchange.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from cfproxy.errors import BadTarget
from cfproxy.flow import Inflow
from cfproxy.heads import Fields, HeadLimits

if TYPE_CHECKING:
    from cfproxy.web.connection import ClientConnection


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take up.

    Args:
        head: of a request.
        head_s: for a whole head, from its first byte.
        keep_alive_s: for the next request.
        idle_s: without a byte of a body that is wanted.
        ahead_bytes: of a body or of further requests, read before they are wanted.
    """

    head: HeadLimits = field(default_factory=HeadLimits)
    head_s: float = 10.0
    keep_alive_s: float = 75.0
    idle_s: float = 300.0
    ahead_bytes: int = 64 * 1024


@dataclass(slots=True)
class Request:
    """One request, its body still coming.

    Args:
        connection: where it came from.
        method, target: as they came.
        fields: the rest of its head.
        body: None when there is none.
        error: why it can't be accepted, found before anybody looked at it; then the rest says nothing.
    """

    connection: ClientConnection
    method: bytes
    target: bytes = field(repr=False)
    fields: Fields
    body: Inflow | None = None
    error: BadTarget | None = None

    @property
    def read_whole(self) -> bool:
        """Whether all of it has come."""
        return self.error is None and (self.body is None or self.body.complete)


class Listener(Protocol):
    """Who answers requests."""

    def opened(self, connection: ClientConnection) -> None:
        """Take note of a new connection."""

    def closed(self, connection: ClientConnection) -> None:
        """Take note of its end."""

    def began(self, connection: ClientConnection) -> None:
        """Take note that a part of a head is there."""

    def holds(self, connection: ClientConnection, size_bytes: int) -> None:
        """Take note of how much of a head is there that is not whole."""

    def working(self, connection: ClientConnection) -> None:
        """Take note that a whole head is there."""

    def waiting(self, connection: ClientConnection) -> None:
        """Take note that nothing is there to be worked at."""

    def take(self, request: Request) -> Answering:
        """Return what answers `request` on its connection."""


class Answering(Protocol):
    """One request's way to its answer."""

    def begin(self) -> bool:
        """Begin without a task, if that can be done.

        Returns:
            whether it was; then `ClientConnection.answered` or `follow` is called later, and else `run` is
            to be called.
        """

    def give_up(self) -> None:
        """End what `begin` has begun, without an answer."""

    async def run(self) -> bool:
        """Answer, or go on with what was begun; return whether the connection may serve another request."""
