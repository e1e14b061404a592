"""A client's request, the limits on what a client may use, and the interface of request handlers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from cfproxy.errors import Refusal
from cfproxy.http1.parser import HeadLimits, RequestFields
from cfproxy.http1.stream import BodyStream

if TYPE_CHECKING:
    from cfproxy.server.connection import ClientConnection


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client connection may use.

    Args:
        head: size of a request head.
        head_s: time for a complete head, counted from its first byte.
        keep_alive_s: time an idle connection waits for the next request.
        first_byte_s: time a new connection waits for its first request; None: `keep_alive_s`.
        idle_s: time without a byte while a request body is being read.
        ahead_bytes: how much of a body, or of pipelined requests, is buffered before it is needed.
    """

    head: HeadLimits = field(default_factory=HeadLimits)
    head_s: float = 10.0
    keep_alive_s: float = 75.0
    first_byte_s: float | None = None
    idle_s: float = 300.0
    ahead_bytes: int = 64 * 1024


@dataclass(slots=True)
class Request:
    """One request whose body may still be arriving.

    Args:
        connection: the connection it arrived on.
        method: as received.
        target: as received, but for the scheme and the authority of a URL.
        fields: the rest of the head; `Host` is that authority, if there was one.
        body: None when there is none.
        error: set when the head is malformed; nothing more is read then, and the rest may be placeholders.
    """

    connection: ClientConnection
    method: bytes
    target: bytes = field(repr=False)
    fields: RequestFields
    body: BodyStream | None = None
    error: Refusal | None = None

    @property
    def read_whole(self) -> bool:
        """Whether the whole request has arrived."""
        return self.error is None and (self.body is None or self.body.complete)


class RequestHandler(Protocol):
    """Handles one request and writes its response.

    A connection first calls `start_now`. If that returns False it creates a task that calls `run`.
    """

    def start_now(self) -> bool:
        """Start without a task, if the handler need not wait.

        Returns:
            True if the request is being handled; the handler then calls
            `ClientConnection.request_finished` or `start_task` later. False if it has not started.
        """

    async def run(self) -> bool:
        """Handle the request, or continue what `start_now` started.

        Returns:
            whether the connection may serve another request.
        """

    def cancel(self) -> None:
        """Abandon what `start_now` started; never called once `run` has been called."""
