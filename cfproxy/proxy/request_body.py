"""A client's request body that can be sent a second time.

What was read is copied to memory and, beyond a limit, to a temporary file. Copying never delays the upload:
if it fails, for example because the disk is full, the body can't be replayed, but the request goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from cfproxy.http1.stream import BodyStream

REPLAY_READ_BYTES = 64 * 1024
# Of all copies together, in memory and in files: a temporary folder is often in memory, too.
COPIES_MAX_BYTES = 256 * 1024 * 1024

Trailers = list[tuple[bytes, bytes]]


@dataclass(slots=True, eq=False)
class Copies:
    """The size of all copies that a process holds."""

    held_bytes: int = 0


@dataclass(slots=True, eq=False)
class ReplayableBody:
    """A request body that is copied, up to a limit, while it streams.

    Args:
        stream: the body as the client sends it.
        memory_bytes: size up to which the copy stays in memory; beyond, it moves to a temporary file.
        max_bytes: size beyond which the copy is dropped and the body can't be replayed; 0 copies nothing.
        copies: shared by all bodies, whose copies together have at most `COPIES_MAX_BYTES`, or `max_bytes` if
            that is more; beyond it this copy is dropped.
        before_read: called before each read from the client, to send `100 Continue`.
        filter_trailers: returns those of the client's trailers that may be forwarded.

    Attributes:
        received_bytes: from the client; replays don't count.
    """

    stream: BodyStream
    memory_bytes: int
    max_bytes: int
    copies: Copies = field(default_factory=Copies)
    before_read: Callable[[], None] = lambda: None
    filter_trailers: Callable[[Trailers], Trailers] = lambda trailers: trailers
    received_bytes: int = field(init=False, default=0)
    _copy: IO[bytes] | None = field(init=False, default=None)
    _copied_bytes: int = field(init=False, default=0)
    _replayed_bytes: int = field(init=False, default=0)
    _started: bool = field(init=False, default=False)
    _dropped: bool = field(init=False)

    def __post_init__(self) -> None:
        self._dropped = self.max_bytes <= 0

    @property
    def replayable(self) -> bool:
        """Whether everything read so far can be read again."""
        return not self._dropped or not self._started

    @property
    def arrived(self) -> bool:
        """Whether the client has sent the whole body."""
        return self.stream.complete

    @property
    def trailers(self) -> Trailers:
        """The trailers to forward behind a chunked body; known once the body was read to its end."""
        return self.filter_trailers(self.stream.trailers)

    def restart(self) -> None:
        """Read from the first byte again.

        Raises:
            ValueError: the body is not `replayable`.
        """
        if not self.replayable:
            raise ValueError("the body can't be replayed: its copy was dropped")
        self._replayed_bytes = 0

    def whole(self) -> bytes | None:
        """Return the whole body if it has arrived and nothing of it was read yet; None otherwise."""
        if self._started or not self.stream.complete:
            return None
        self._started = True
        data = self.stream.read_available()
        self._note_received(data)
        return data

    async def read(self) -> bytes:
        """Return the next piece, b"" at the end: first from the copy, then from the client.

        Raises:
            BadTarget: the body is malformed, or the client sent nothing for too long.
            ConnectionError: the client left.
        """
        if self._copy is not None and self._replayed_bytes < self._copied_bytes:
            self._copy.seek(self._replayed_bytes)
            data = self._copy.read(REPLAY_READ_BYTES)
            self._replayed_bytes += len(data)
            if self._dropped:
                self.stop_copying()
            return data
        self.before_read()
        data = await self.stream.read()
        self._started = True
        self._note_received(data)
        return data

    def stop_copying(self) -> None:
        """Copy no more, since there will be no retry; drop the copy once a replay has read all of it."""
        self._dropped = True
        if self._replayed_bytes >= self._copied_bytes:
            self.close()

    def close(self) -> None:
        """Drop the copy."""
        self._dropped = True
        if self._copy is not None:
            self.copies.held_bytes -= self._copied_bytes
            self._copy.close()
            self._copy = None

    def _note_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        if not data or self._dropped:
            return
        too_much = self.copies.held_bytes + len(data) > max(COPIES_MAX_BYTES, self.max_bytes)
        if too_much or self._copied_bytes + len(data) > self.max_bytes:
            self.close()
            return
        try:
            if self._copy is None:
                in_memory = max(1, self.memory_bytes)  # 0 would mean unlimited
                self._copy = tempfile.SpooledTemporaryFile(in_memory)  # noqa: SIM115 - closed by close()
            self._copy.seek(self._copied_bytes)
            self._copy.write(data)
        except OSError:
            self.close()  # a full disk costs the retry, not the request
            return
        self._copied_bytes += len(data)
        self.copies.held_bytes += len(data)
        self._replayed_bytes = self._copied_bytes
