"""How bytes flow through one connection, with back-pressure both ways.

Owns: `StreamProtocol`, common to both kinds of connections; `BodyStream`, a body on its way in.
Must not know: HTTP's heads, which side of the proxy a connection is on.

Invariants:
1. What was received and not taken is bounded: `HIGH_BYTES` and one read of the socket.
2. No data is lost before an error: whatever came whole is given out first.
3. Nothing waits for ever: whoever reads or writes has a time limit that starts anew with every byte.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

from cfproxy.errors import without_traceback
from cfproxy.http1.framing import BodyReader
from cfproxy.http1.timeout import IdleTimeout
from cfproxy.http1.write_batch import WriteBatch

# A reader that is slower than its source lets so much lie before the source is stopped.
HIGH_BYTES = 128 * 1024
# Pieces are joined, so that small ones go on as one; for a large one that would be a copy for nothing.
LARGE_BYTES = 64 * 1024


class StreamProtocol(asyncio.Protocol):
    """A connection whose writers wait for a slow peer, and whose reading can be held.

    Args:
        outbox: of the connections that it sends side by side with; its own when None.
    """

    def __init__(self, write_batch: WriteBatch | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self._write_batch = WriteBatch() if write_batch is None else write_batch
        self.unsent = b""  # of `write_soon`
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self.reading_held = False
        self.writing_paused = False
        self._drained: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # uvloop's transports have the methods without the ancestry.
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the interface's signature
        """Wake whoever waits to write."""
        self.lost = True
        self.resume_writing()

    def pause_writing(self) -> None:
        """Take note that the peer reads slower than we write."""
        self.writing_paused = True

    def resume_writing(self) -> None:
        """Let the writer go on."""
        self.writing_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _open_transport(self) -> asyncio.Transport | None:
        """Return the transport as long as it takes something to write."""
        transport = self.transport
        return None if transport is None or self.lost or transport.is_closing() else transport

    def write(self, data: bytes) -> None:
        """Write `data`.

        Raises:
            ConnectionResetError: the connection has ended.
        """
        if (transport := self._open_transport()) is None:
            raise ConnectionResetError
        if self.unsent:
            data, self.unsent = self.unsent + data, b""
        transport.write(data)

    def write_soon(self, data: bytes) -> None:
        """Write `data`, before this turn of the loop is over and before whatever is written next.

        Raises:
            ConnectionResetError: the connection has ended.
        """
        if (transport := self._open_transport()) is None:
            raise ConnectionResetError
        if self.unsent or self._write_batch.holds(self):
            self.unsent += data
        else:
            transport.write(data)

    def flush(self) -> None:
        """Write what `write_soon` was given, where there is still somebody to read it."""
        if self.unsent and self._open_transport() is not None:
            self.write(b"")

    async def drain(self, limit_s: float) -> None:
        """Wait until the peer has taken most of what was written; one at a time.

        Raises:
            TimeoutError: it took nothing for `limit_s` seconds.
            ConnectionResetError: the connection has ended.
        """
        if self.writing_paused:
            self._drained = self.loop.create_future()
            try:
                async with asyncio.timeout(limit_s):
                    await self._drained
            finally:
                self._drained = None
        if self.lost:
            raise ConnectionResetError

    def hold_reading(self) -> None:
        """Read no more for now."""
        if not self.reading_held and self.transport is not None and not self.lost:
            self.reading_held = True
            self.transport.pause_reading()

    def release_reading(self) -> None:
        """Read on."""
        if self.reading_held and self.transport is not None and not self.lost:
            self.reading_held = False
            self.transport.resume_reading()

    def close(self) -> None:
        """End the connection behind what is still to be written."""
        self.flush()
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """End the connection now, whatever is still to be written."""
        if self.transport is not None:
            self.transport.abort()


class BodyStream:
    """A body on its way in: what came and was not taken yet.

    Args:
        connection: reading from it is held while too much lies here.
        reader: finds the body in what comes.
        deadline: runs while somebody waits; whoever owns it calls `fail` when it rings.
        idle_s: its time.
        high_bytes: so much lies here at the most, and what one read of the socket gives.
    """

    __slots__ = (
        "_bytes",
        "_connection",
        "_error",
        "_high_bytes",
        "_idle_s",
        "_idle_timeout",
        "_pieces",
        "_reader",
        "_waiter",
    )

    def __init__(
        self,
        connection: StreamProtocol,
        reader: BodyReader,
        idle_timeout: IdleTimeout,
        idle_s: float,
        high_bytes: int = HIGH_BYTES,
    ) -> None:
        self._connection = connection
        self._high_bytes = high_bytes
        self._reader = reader
        self._idle_timeout = idle_timeout
        self._idle_s = idle_s
        self._pieces: deque[bytes] = deque()
        self._bytes = 0
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def complete(self) -> bool:
        """Whether the whole body has come, taken or not."""
        return self._reader.done

    @property
    def exhausted(self) -> bool:
        """Whether the whole body has come and was taken."""
        return self._reader.done and not self._pieces

    @property
    def trailers(self) -> list[tuple[bytes, bytes]]:
        """What followed a chunked body, once it is complete."""
        return self._reader.trailers

    def feed(self, data: bytes) -> bytes:
        """Take the body's part of `data` and return what follows the body.

        Raises:
            MalformedBody
        """
        piece, rest = self._reader.feed(data)
        if piece:
            self._pieces.append(piece)
            self._bytes += len(piece)
            # Who waits takes all of it, but only in the loop's next turn: uvloop reads on within this one.
            if self._bytes > self._high_bytes and (self._waiter is None or self._waiter.done()):
                self._connection.hold_reading()
        self._wake()
        return rest

    def end(self) -> None:
        """Take note of the connection's orderly end.

        Raises:
            MalformedBody: the body is not complete.
        """
        self._reader.end()
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Let whoever reads have `error` after what came; the first one counts, and none after the end."""
        if self._error is None and not self._reader.done:
            self._error = error
            self._wake()

    def take(self) -> bytes:
        """Return what is there now."""
        pieces = self._pieces
        taken = pieces.popleft() if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._bytes = 0
        if self._connection.reading_held:
            self._connection.release_reading()
        return taken

    async def read(self) -> bytes:
        """Return something of what is there, waiting for it if need be; b"" at the end of the body.

        Raises:
            whatever `fail` was given
        """
        while not self._pieces:
            if self._reader.done:
                return b""
            if self._error is not None:
                raise without_traceback(self._error)
            self._waiter = self._connection.loop.create_future()
            self._idle_timeout.start(self._idle_s)
            try:
                await self._waiter
            finally:
                self._waiter = None
                self._idle_timeout.stop()
        if len(self._pieces) == 1 or len(self._pieces[0]) < LARGE_BYTES:
            return self.take()
        piece = self._pieces.popleft()
        self._bytes -= len(piece)
        return piece

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
