"""Byte streams over one connection, with back-pressure and idle timeouts in both directions.

Invariants:
1. Data received and not yet read is bounded by the limit of its `BodyStream` plus one read of the socket.
   What is received in small pieces is handled in turns (see `turns.Backlogs`).
2. Everything received before an error is delivered before the error.
3. Every wait has a timeout, which restarts with each byte transferred.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from cfproxy.errors import without_traceback
from cfproxy.http1.framing import BodyReader
from cfproxy.http1.turns import Backlogs, WriteBatch

# Reading is paused once this much of a body is buffered.
HIGH_BYTES = 128 * 1024
# Smaller pieces are joined, so that they are forwarded in one write; larger ones are not worth the copy.
LARGE_BYTES = 64 * 1024


@dataclass(slots=True, eq=False)
class IdleTimeout:
    """A timer that is cheap to restart: a restart moves the due time, and leaves the loop's timer alone.

    Args:
        on_due: called when the time is up.
    """

    on_due: Callable[[], None] | None
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop, init=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    _timer_at: float = field(default=math.inf, init=False)
    _due_at: float = field(default=math.inf, init=False)
    _limit_s: float = field(default=math.inf, init=False)

    def start(self, limit_s: float) -> None:
        """Call back `limit_s` seconds from now, whatever was set before."""
        self._limit_s = limit_s
        self._due_at = self._loop.time() + limit_s
        if self._due_at < self._timer_at:
            self._set_timer()

    def restart(self) -> None:
        """Start over if it is running."""
        if self._due_at != math.inf:
            self._due_at = self._loop.time() + self._limit_s

    def stop(self) -> None:
        """Don't call back. The loop's timer stays, and has no effect when it fires."""
        self._due_at = math.inf

    def aclose(self) -> None:
        """Cancel the timer and drop the callback, which usually belongs to this object's owner."""
        self._due_at, self.on_due = math.inf, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._timer_at = math.inf

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._due_at
        self._timer = self._loop.call_at(self._due_at, self._fire)

    def _fire(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if self._due_at == math.inf or self.on_due is None:
            return
        # uvloop may fire a timer a millisecond early.
        if self._due_at > self._loop.time() + 0.001:
            self._set_timer()
            return
        self._due_at = math.inf
        self.on_due()


class StreamProtocol(asyncio.Protocol):
    """A connection with back-pressure in both directions.

    Args:
        write_batch, backlogs: shared with other connections; its own when None.

    Attributes:
        backlog: received, and to be handled in a later turn, because it comes in small pieces.
        awaits_turn: whether reading is held until then.
    """

    transport: asyncio.Transport

    def __init__(self, write_batch: WriteBatch | None = None, backlogs: Backlogs | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self._write_batch = WriteBatch() if write_batch is None else write_batch
        self._backlogs = Backlogs() if backlogs is None else backlogs
        self.backlog, self.awaits_turn = b"", False
        self.unsent = b""  # given to `write_soon`, and not written yet
        self.lost = False
        self.reading_held = False
        self.writing_paused = False
        self._drained: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports are not subclasses of asyncio's.
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the interface's signature
        """Wake the writer."""
        self.lost = True
        self.resume_writing()

    def pause_writing(self) -> None:
        """Make `drain` wait: the peer reads more slowly than we write."""
        self.writing_paused = True

    def resume_writing(self) -> None:
        """Let the writer continue."""
        self.writing_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    @property
    def writable(self) -> bool:
        """Whether data written now may still reach the peer."""
        return not (self.lost or self.transport.is_closing())

    def write(self, data: bytes) -> None:
        """Write `data`.

        Raises:
            ConnectionResetError: the connection has ended.
        """
        if not self.writable:
            raise ConnectionResetError
        if self.unsent:
            data, self.unsent = self.unsent + data, b""
        self.transport.write(data)

    def write_soon(self, data: bytes) -> None:
        """Write `data` in this iteration of the loop, and before anything written later.

        Raises:
            ConnectionResetError: the connection has ended.
        """
        if not self.writable:
            raise ConnectionResetError
        if self.unsent or self._write_batch.defer(self.flush):
            self.unsent += data
        else:
            self.transport.write(data)

    def flush(self) -> None:
        """Write what `write_soon` deferred, if the peer can still receive it."""
        if self.unsent and self.writable:
            self.write(b"")

    async def drain(self, limit_s: float) -> None:
        """Wait until most of what was written has been sent; for one caller at a time.

        Raises:
            TimeoutError: the peer read nothing for `limit_s` seconds.
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
        """Stop reading for now."""
        if not (self.reading_held or self.lost):
            self.reading_held = True
            self.transport.pause_reading()

    def release_reading(self) -> None:
        """Read again."""
        if self.reading_held and not self.lost:
            self.reading_held = False
            if not self.awaits_turn:
                self.transport.resume_reading()

    def wait_for_turn(self, backlog: bytes) -> None:
        """Pass `backlog` to `data_received` in a later turn, and read nothing before that."""
        self.backlog = backlog
        if not (self.awaits_turn or self.lost):
            self.transport.pause_reading()
        self.awaits_turn = True
        self._backlogs.add(self.take_turn)

    def take_turn(self) -> None:
        """Handle the backlog, or its next part."""
        backlog, self.backlog, self.awaits_turn = self.backlog, b"", False
        if backlog:
            self.data_received(backlog)
        if not (self.awaits_turn or self.reading_held or self.lost):
            self.transport.resume_reading()

    def close(self) -> None:
        """Close the connection after everything written has been sent."""
        self.flush()
        self.transport.close()

    def abort(self) -> None:
        """Close the connection now, discarding what has not been sent."""
        self.transport.abort()


@dataclass(slots=True, eq=False)
class BodyStream:
    """A message body that is being received: the part that arrived and was not read yet.

    Args:
        connection: reading from it is paused while too much is buffered here.
        reader: finds the body in the received bytes.
        timeout: runs while `read` waits; its owner calls `fail` when the time is up.
        idle_s: its duration.
        high_bytes: reading is paused beyond this much.
    """

    connection: StreamProtocol
    reader: BodyReader
    timeout: IdleTimeout
    idle_s: float
    high_bytes: int = HIGH_BYTES
    _pieces: deque[bytes] = field(default_factory=deque, init=False)
    _bytes: int = field(default=0, init=False)
    _error: BaseException | None = field(default=None, init=False)
    _waiter: asyncio.Future[None] | None = field(default=None, init=False)

    @property
    def complete(self) -> bool:
        """Whether the whole body has arrived, read or not."""
        return self.reader.done

    @property
    def exhausted(self) -> bool:
        """Whether the whole body has arrived and was read."""
        return self.reader.done and not self._pieces

    @property
    def trailers(self) -> list[tuple[bytes, bytes]]:
        """The trailers of a chunked body, once it is complete."""
        return self.reader.trailers

    def feed(self, data: bytes) -> bytes:
        """Add the body's part of `data`; return what follows the body, or what to feed in a later turn.

        Raises:
            MalformedBody
        """
        piece, rest = self.reader.feed(data)
        if piece:
            self._pieces.append(piece)
            self._bytes += len(piece)
            # A waiting reader takes everything, but in the next iteration: uvloop may read more in this one.
            if self._bytes > self.high_bytes and (self._waiter is None or self._waiter.done()):
                self.connection.hold_reading()
        self._wake()
        return rest

    def end(self) -> None:
        """Tell the reader that the peer has closed its side.

        Raises:
            MalformedBody: the body is not complete.
        """
        self.reader.end()
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Make `read` raise `error` after what has arrived, unless the body is complete or has failed."""
        if self._error is None and not self.reader.done:
            self._error = error
            self._wake()

    def read_available(self) -> bytes:
        """Return what has arrived, without waiting."""
        pieces = self._pieces
        data = pieces.popleft() if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._bytes = 0
        if self.connection.reading_held:
            self.connection.release_reading()
        return data

    async def read(self) -> bytes:
        """Return the next piece, waiting for it if necessary; b"" at the end of the body.

        Raises:
            the error that `fail` was given
        """
        while not self._pieces:
            if self.connection.reading_held:
                self.connection.release_reading()
            if self.reader.done:
                return b""
            if self._error is not None and not self.connection.backlog:
                raise without_traceback(self._error)
            self._waiter = self.connection.loop.create_future()
            self.timeout.start(self.idle_s)
            try:
                await self._waiter
            finally:
                self._waiter = None
                self.timeout.stop()
        if len(self._pieces) == 1 or len(self._pieces[0]) < LARGE_BYTES:
            return self.read_available()
        piece = self._pieces.popleft()
        self._bytes -= len(piece)
        return piece

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
