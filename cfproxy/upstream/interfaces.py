"""Split out of ports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from cfproxy.auth.models import Token


class Answer(Protocol):
    """One response, its body still coming."""

    @property
    def status(self) -> int:
        """The status code; never 1xx."""

    @property
    def raw_headers(self) -> Iterable[tuple[bytes, bytes]]:
        """The header fields as they came, in order."""

    async def read(self) -> bytes:
        """Return the next piece of the body as it came, b"" after the last one.

        Raises:
            UpstreamProtocol, UpstreamTimeout: it stopped in the middle.
        """

    async def aclose(self) -> None:
        """Let go: the connection is kept for reuse if the exchange is complete, cut otherwise.

        A second call does nothing.
        """


class BegunAnswer(Answer, Protocol):
    """The answer to a request without a body that was sent by `Upstream.begin`."""

    def arrived_whole(self) -> bool:
        """Return whether head and body are there, waiting for nothing."""

    def close(self) -> None:
        """Do what `aclose` does."""


class RequestBody(Protocol):
    """A request body that may have to be sent more than once."""

    def restart(self) -> None:
        """Begin again with the first byte; only while `replayable`."""

    @property
    def replayable(self) -> bool:
        """Whether everything that was read so far is still at hand."""

    @property
    def trailers(self) -> list[tuple[bytes, bytes]]:
        """What goes behind a chunked body; known once the body was read to its end."""

    @property
    def arrived(self) -> bool:
        """Whether all of it is here, so that nobody waits for the client to send it."""

    def whole(self) -> bytes | None:
        """Return all of it if it is there already and nothing of it was read; None otherwise."""

    async def read(self) -> bytes:
        """Return the next piece, b"" after the last one.

        Raises:
            BadTarget: the client's body is not well-formed.
        """


@dataclass(slots=True)
class Call:
    """One request as it goes up, but for its token.

    Args:
        method: as the client sent it.
        head: request line and headers, up to where `Authorization` follows.
        body: None when there is none.
        chunked: whether the body goes in chunks; else its length stands in `head`.
        expects: whether the client waits for 100 Continue before it sends the body.
        idempotency_key: whether it names itself, so that the upstream knows it when it comes twice.
        on_interim: called with status, reason and headers of each 1xx that the client should see.
    """

    method: str
    head: bytes
    body: RequestBody | None
    chunked: bool
    expects: bool = False
    idempotency_key: bool = False
    on_interim: Callable[[int, bytes, Iterable[tuple[bytes, bytes]]], None] | None = None

    @property
    def idempotent(self) -> bool:
        """Whether sending it twice does no more than sending it once (RFC 9110 §9.2.2)."""
        return self.idempotency_key or self.method in IDEMPOTENT


# RFC 9110 §9.2.2: sending them twice does no more than sending them once.
IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})


class Upstream(Protocol):
    """The API."""

    def begin(
        self, call: Call, token: Token, acquire_slot: Callable[[], bool], on_arrival: Callable[[], None]
    ) -> BegunAnswer | None:
        """Send a request without a body, if that can be done without waiting.

        Args:
            call: what to send.
            token: see `send`.
            acquire_slot: called last; nothing is sent if it returns False.
            on_arrival: called once the answer's head is there, or will not come.

        Returns:
            the answer to come, for `send`; None when nothing was sent.
        """

    async def send(self, call: Call, token: Token, begun: BegunAnswer | None = None) -> Answer:
        """Send the request, return the answer as soon as its head is there.

        Args:
            call: what to send.
            token: goes with it.
            begun: what `begin` returned for this request, which is on its way then.

        Raises:
            UpstreamUnreachable, UpstreamTls, UpstreamProtocol, UpstreamTimeout
            BadTarget: from the request body.
        """
