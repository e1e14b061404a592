"""What a connection cuts out of what comes, and who answers it.

Owns: `Request`, the bounds of clients, the roles of who asks and who answers.
Must not know: how requests are read (`connection.py`), what is done with them (`exchange.py`).
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

from cfproxy.errors import BadTarget
from cfproxy.http1.parser import HeadLimits, RequestFields
from cfproxy.http1.stream import BodyStream, StreamProtocol


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


class Caller(StreamProtocol):
    """A client's connection, as who answers its requests sees it."""

    local_address: str | None = None
    remote_address: str | None = None

    @property
    @abstractmethod
    def uid(self) -> int | None:
        """The user at the other end of a Unix socket, as the kernel says."""

    @abstractmethod
    def follow(self) -> None:
        """Have the present request answered, and those that are there behind it, by a task."""

    @abstractmethod
    def answered(self, *, goes_on: bool) -> None:
        """Go on after an answer that took no task.

        Args:
            goes_on: whether the connection may serve another request.
        """

    @abstractmethod
    def cut(self) -> asyncio.Task[None] | None:
        """Give up the present request and end the connection; return what is still to be waited for."""


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

    connection: Caller
    method: bytes
    target: bytes = field(repr=False)
    fields: RequestFields
    body: BodyStream | None = None
    error: BadTarget | None = None

    @property
    def read_whole(self) -> bool:
        """Whether all of it has come."""
        return self.error is None and (self.body is None or self.body.complete)


class Answering(Protocol):
    """One request's way to its answer."""

    def begin(self) -> bool:
        """Begin without a task, if that can be done.

        Returns:
            whether it was; then `Caller.answered` or `follow` is called later, and else `run` is
            to be called.
        """

    def give_up(self) -> None:
        """End what `begin` has begun, without an answer."""

    async def run(self) -> bool:
        """Answer, or go on with what was begun; return whether the connection may serve another request."""
