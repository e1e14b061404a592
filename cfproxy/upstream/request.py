"""A request as the upstream client sends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})  # RFC 9110 §9.2.2


class RequestBody(Protocol):
    """A request body that may have to be sent more than once."""

    @property
    def replayable(self) -> bool:
        """Whether everything read so far can be read again."""

    @property
    def trailers(self) -> list[tuple[bytes, bytes]]:
        """The trailers of a chunked body; known once the body was read to its end."""

    @property
    def arrived(self) -> bool:
        """Whether the client has sent the whole body."""

    def restart(self) -> None:
        """Read from the first byte again; only while `replayable`."""

    def whole(self) -> bytes | None:
        """Return the whole body if it has arrived and nothing of it was read yet; None otherwise."""

    async def read(self) -> bytes:
        """Return the next piece, b"" after the last one.

        Raises:
            BadTarget: the client's body is malformed.
        """


@dataclass(slots=True)
class Call:
    """One request to the upstream, without its token.

    Args:
        method: as the client sent it.
        head: request line and headers, up to where `Authorization` follows.
        body: None when there is none.
        chunked: whether the body is sent in chunks; if not, `head` contains its length.
        expects: whether the client waits for 100 Continue before it sends the body.
        idempotency_key: whether the request carries a key by which the upstream recognizes duplicates.
        on_interim: called with status, reason and headers of each 1xx response.
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
        """Whether sending it twice has the same effect as sending it once (RFC 9110 §9.2.2)."""
        return self.idempotency_key or self.method in IDEMPOTENT_METHODS
