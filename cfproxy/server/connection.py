"""One client connection: splits the received bytes into requests and has them handled in order.

Each request gets a handler (see `request.RequestHandler`). There are two ways to run it, because a task costs
a tenth of a request's processor time and most requests need none:

- Without a task: `data_received` calls `start_now`. If the handler has to wait for nothing but the API,
  it sends the request, returns True, and later calls `request_finished`.
- With a task: if `start_now` returns False, or if the handler calls `start_task` later because it has to
  wait after all, a task calls `run`. It also handles the requests that are pipelined behind this one.

The two meet in three places. `_start_next` creates every handler. `_handler` is set as long as no task runs
it, so exactly one side owns a handler, and `cancel` knows which. Both end in `_stop_working`, and either wait
for the next request or close the connection.

Invariants:
1. Requests are handled one at a time, in order. What a client sends ahead is buffered, up to
   `Limits.ahead_bytes` and one read of the socket.
2. A client that leaves cancels its request. Leaving means a reset, an end of its side in the middle of a
   request, or an end later than `HALF_CLOSE_S` after the request. A client that ends its side right behind a
   request is still waiting for the response.
3. After the response to a request that was not received completely, no further data is read as a request.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from cfproxy.errors import BadTarget
from cfproxy.http1.framing import MalformedBody, TinyChunks
from cfproxy.http1.parser import build_reader
from cfproxy.http1.request_buffer import RequestBuffer
from cfproxy.http1.stream import BodyStream, IdleTimeout, StreamProtocol
from cfproxy.server.connection_limits import Connections
from cfproxy.server.request import Limits, Request, RequestHandler
from cfproxy.server.unix_sockets import peer_uid

HALF_CLOSE_S = 0.25
# How long data is discarded after the last response: a reset would make the client lose the response.
LINGER_S = 5.0
DISCARD_PAUSE_S = 0.01  # between two reads of what is discarded


class ClientConnection(StreamProtocol):
    """One client's connection.

    Args:
        handle: returns a handler for each request.
        connections: tracks the listener's connections.
        limits: what this client may use.
    """

    def __init__(
        self, handle: Callable[[Request], RequestHandler], connections: Connections, limits: Limits
    ) -> None:
        super().__init__(connections.write_batch, connections.backlogs)
        self._handle = handle
        self._connections = connections
        self._limits = limits
        self._watch = connections.watch  # while this connection is not read from
        self._timeout = IdleTimeout(self._timed_out)
        self._buffer = RequestBuffer(limits.head)
        # What the client may call this end: its IP address, and a name (see `LocalNames`).
        self.own_names: tuple[str, ...] = ()
        self.remote_address: str | None = None
        self.busy = False  # with a request
        self._body: BodyStream | None = None
        self._handler: RequestHandler | None = None  # as long as no task runs it
        self._task: asyncio.Task[None] | None = None
        self._received_at = 0.0  # when the last byte of the present request arrived
        self._eof = False  # the client has ended its side
        self._discarding = False  # whatever still arrives

    # --- called by the transport ----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request."""
        super().connection_made(transport)
        local, remote = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        # A socket for both families shows IPv4 addresses as mapped ones.
        self.own_names = (local[0].removeprefix("::ffff:"),) if isinstance(local, tuple) else ()
        self.remote_address = remote[0] if isinstance(remote, tuple) else None
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connections.opened(self)
        self._timeout.start(self._limits.first_byte_s or self._limits.keep_alive_s)

    def data_received(self, data: bytes) -> None:
        """Handle received data: a part of a body, pipelined requests, or the next request."""
        if self._discarding:
            super().hold_reading()  # or the loop would read megabytes in each iteration
            self.loop.call_later(DISCARD_PAUSE_S, super().release_reading)
            return
        if self._body is not None and not self._body.complete:
            data = self._feed_body(data)
            if not data:
                return
        buffer = self._buffer
        had_started = buffer.started
        buffer.append(data)
        if self.busy:
            if len(buffer.data) > self._limits.ahead_bytes:
                self.hold_reading()
        elif buffer.has_head():
            self._timeout.stop()
            self._connections.request_started(self)
            self.busy = self._start_next()
            if self._handler is not None and not self._handler.start_now():
                self.start_task()
        elif buffer.started:
            if not had_started:
                self._connections.head_started(self)
                self._timeout.start(self._limits.head_s)
            self._connections.head_grew(self, len(buffer.data))

    def eof_received(self) -> bool:
        """Handle the end of the client's side; return whether to keep the connection for the response."""
        self._eof = True
        if not self.busy or self._discarding:
            return False
        if self._body is not None and not self._body.complete:
            self._body.fail(ConnectionResetError())
        elif self.loop.time() - self._received_at < HALF_CLOSE_S:
            self._watch.watch(self._socket, self.abort, half=False)
            return True
        self.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request."""
        super().connection_lost(exc)
        self.backlog = b""
        self._timeout.aclose()
        self._watch.forget(self._socket)
        if self._body is not None:
            self._body.fail(ConnectionResetError())
        self._connections.closed(self)
        self._cancel_request()

    # --- called by request handlers -------------------------------------------------------

    def start_task(self) -> None:
        """Run the handler in a task."""
        self._task = self.loop.create_task(self._run_handlers())

    def request_finished(self, *, keep_alive: bool) -> None:
        """Continue after a response that needed no task; `keep_alive`: the connection may be reused."""
        self._handler = None
        if not keep_alive:
            self._end()
            self._stop_working()
        elif self._buffer.data and self._start_next():
            self.start_task()  # pipelined requests take turns with other connections
        else:
            self._stop_working()
            self._wait_for_request()

    @property
    def waits_for_client(self) -> bool:
        """Whether the client has to send the rest of a body, or to read what was written."""
        return self.writing_paused or (self._body is not None and not self._body.complete)

    @property
    def uid(self) -> int | None:
        """The user at the other end of a Unix socket, as reported by the kernel."""
        return None if self.lost else peer_uid(self._socket)

    def hold_reading(self) -> None:
        """Stop reading for now; a client that hangs up is noticed nevertheless."""
        super().hold_reading()
        # Then everything it sent before is read, and the end behind it.
        self._watch.watch(self._socket, self._read_to_end, half=True)

    def release_reading(self) -> None:
        """Read again, unless the client has sent too much ahead of the present request."""
        if not (self.busy and len(self._buffer.data) > self._limits.ahead_bytes):
            self._read_to_end()

    def _read_to_end(self) -> None:
        if self.reading_held and not self.lost:
            self._watch.forget(self._socket)
            super().release_reading()

    # --- called by owners of the connection -----------------------------------------------

    def cancel(self) -> asyncio.Task[None] | None:
        """Cancel the current request and close the connection; return the task to wait for, if any."""
        task = self._task
        if not self._cancel_request():
            self.abort()
        return task

    def end(self, cause: str) -> None:
        """Close the connection, because there are too many (see `Connections`)."""
        # Up to a thousand other connections may be read before the loop reports this one's end.
        self._discard()
        if cause == "idle":
            self._close()
        else:
            self.abort()

    def tarpit(self) -> None:
        """Discard the incomplete head and read no more; the connection ends when the head's time is up."""
        self._discard()
        super().hold_reading()  # without watching for a hang-up

    def abort(self) -> None:
        """Close the connection now, but send deferred writes first."""
        self.flush()
        super().abort()

    # --- requests -------------------------------------------------------------------------

    async def _run_handlers(self) -> None:
        """Run the current handler, then those of pipelined requests."""
        try:
            while self._handler is not None or self._start_next():
                handler, self._handler = self._handler, None
                assert handler is not None  # noqa: S101 - the condition above
                keep_alive = await handler.run()
                if not (keep_alive and self._received_request()) or self.lost:
                    self._end()
                    return
                if self._buffer.data:  # take turns with other connections, and wait for a slow reader
                    await asyncio.sleep(0)
                    await self.drain(self._limits.idle_s)
        except (TimeoutError, ConnectionError):
            self.abort()  # the client reads nothing, or has left
            return
        except BaseException:
            self.abort()  # or the connection would stay open for ever
            raise
        finally:
            self._stop_working()
        self._wait_for_request()

    def _start_next(self) -> bool:
        """Take the next request from the buffer, if its head is complete, and create its handler."""
        self._body = None
        if not self._buffer.has_head():
            return False
        self._handler = self._handle(self._next_request())
        return True

    def _next_request(self) -> Request:
        """Return the next request; one with an `error` if it is malformed, and then nothing more is read."""
        self._received_at = self.loop.time()
        buffer, limits = self._buffer, self._limits
        method, target, fields, error = buffer.pop_head()
        if error is not None:
            self._discard()
            return Request(self, method, target, fields, error=error)
        self.release_reading()  # the body of this request may follow
        request = Request(self, method, target, fields)
        if fields.framing.has_body:
            reader = build_reader(fields.framing)
            request.body = BodyStream(self, reader, self._timeout, limits.idle_s, limits.ahead_bytes)
            self._body = request.body
            unread, buffer.data = bytes(buffer.data), b""
            buffer.data = self._feed_body(unread)
        if len(buffer.data) > limits.ahead_bytes:
            self.hold_reading()
        return request

    def _received_request(self) -> bool:
        """Return whether the current request has arrived completely, and is well-formed."""
        return not self._discarding and (self._body is None or self._body.complete)

    def _feed_body(self, data: bytes) -> bytes:
        """Give the body its part of `data`; return what follows the body."""
        body = self._body
        assert body is not None  # noqa: S101 - checked by the callers
        try:
            rest = body.feed(data)
        except MalformedBody as error:
            self._discarding = True
            tiny = "the request body comes in too many tiny chunks; send larger ones"
            malformed = "the request body is not well-formed; check Content-Length or the chunks"
            body.fail(BadTarget(tiny if isinstance(error, TinyChunks) else malformed))
            return b""
        self._received_at = self.loop.time()
        if rest and not body.complete:
            self.wait_for_turn(rest)
            return b""
        return rest

    def _cancel_request(self) -> bool:
        """Cancel the current request; return whether its task will close the connection."""
        handler, task = self._handler, self._task
        if handler is not None:  # no task runs it, and none must start to
            self._stop_working()
            handler.cancel()
        if task is not None:
            task.cancel()
        return task is not None and handler is None

    def _stop_working(self) -> None:
        self.busy = False
        self._task = self._body = self._handler = None
        self._connections.request_finished(self)

    def _wait_for_request(self) -> None:
        """Wait for the next request, which may have started to arrive."""
        if self._eof:
            self._close()
            return
        started = bool(self._buffer.data)
        if started:
            self._connections.head_started(self)
        self._timeout.start(self._limits.head_s if started else self._limits.keep_alive_s)
        self.release_reading()

    # --- the end --------------------------------------------------------------------------

    def _discard(self) -> None:
        """Discard what has arrived, and whatever still arrives."""
        self._buffer.clear()
        self.backlog = b""
        self._discarding = True

    def _end(self) -> None:
        """Close the connection after its last response."""
        if self._received_request() or self._eof or not self.writable:
            self._close()
            return
        # The client may still be sending. A reset would make it lose the response.
        self._discard()
        self.release_reading()
        self.flush()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timeout.start(LINGER_S)

    def _close(self) -> None:
        """Close the connection after everything written has been sent, if the client reads it in time."""
        if not self.lost:
            self.close()
            self._timeout.start(self._limits.idle_s)

    def _timed_out(self) -> None:
        if self.transport.is_closing():
            self.abort()  # the client does not read the rest
        elif self._task is not None and self._body is not None:
            self._body.fail(BadTarget("no data of the request body arrived within timeouts.idle"))
        else:
            self._close()
