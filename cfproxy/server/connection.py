"""One client's connection: requests in, in order; their answers are written by `Response`.

Owns: cutting requests out of what comes, the bounds of what is taken before it is wanted, time limits,
and noticing that the client has left.
Must not know: which requests are accepted, what is done with them.

Invariants:
1. One request at a time is worked at; what a client sends ahead waits, up to `Limits.ahead_bytes` and one
   read of the socket, and is answered in the order of asking.
2. A client that leaves takes its request along: its task is cancelled. Leaving is a reset, an end in the
   middle of a request, or an end later than `HALF_CLOSE_S` after it: who ends its side right behind its
   request has said all it wants to say, and waits for the answer.
3. After an answer whose request was not read to its end, nothing more is taken for a request.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable

from cfproxy.errors import BadTarget
from cfproxy.http1.framing import Framing, MalformedBody
from cfproxy.http1.parser import (
    MalformedHead,
    RequestFields,
    build_reader,
    parse_fields,
    request_end,
    split_request,
)
from cfproxy.http1.stream import BodyStream, StreamProtocol
from cfproxy.http1.timeout import IdleTimeout
from cfproxy.http1.write_batch import WriteBatch
from cfproxy.server.connection_limits import Connections
from cfproxy.server.hangup import HangupWatch
from cfproxy.server.request import Limits, Request, RequestHandler
from cfproxy.server.unix_sockets import peer_uid

HALF_CLOSE_S = 0.25
# So long what a client goes on sending after its answer is thrown away: a reset would overtake the answer.
LINGER_S = 5.0
# A head up to this size is remembered, for the next one that is the same; a large one would be kept, and what
# follows from it, for as long as its connection is idle.
REMEMBERED_BYTES = 8 * 1024
_NO_FIELDS = RequestFields((1, 1), (), Framing(None, chunked=False), keep_alive=False)
_NOTHING = (b"", b"\r")  # of a head: an empty line may come before it
_EMPTY_LINES = re.compile(rb"\A(?:\r\n)+")
_NEVER_ENDS = -1
_NOT_HTTP = "the request is not well-formed HTTP/1.1, or its header is too long"


class ClientConnection(StreamProtocol):
    """One client's connection.

    Args:
        handle: returns a handler for each request.
        connections: tracks the listener's connections.
        limits: what this client may use.
        watch: notices that a client has left while its connection is not read from.
        write_batch: shared by the connections of the listener.
    """

    def __init__(
        self,
        handle: Callable[[Request], RequestHandler],
        connections: Connections,
        limits: Limits,
        watch: HangupWatch,
        write_batch: WriteBatch,
    ) -> None:
        super().__init__(write_batch)
        self._handle = handle
        self._connections = connections
        self.local_address: str | None = None
        self.remote_address: str | None = None
        self._limits = limits
        self._watch = watch
        self._idle_timeout = IdleTimeout(self._overdue)
        self._unread: bytes | bytearray = b""
        self._head_bytes = 0  # of the next head, once it is there
        self._seen = 0  # so much of it is the beginning of a head that has no end yet
        self._body: BodyStream | None = None
        self.busy = False  # with a request
        self._request: Request | None = None
        self._handler: RequestHandler | None = None  # as long as it has no task
        self._task: asyncio.Task[None] | None = None
        self._read_at = 0.0  # when the last byte of the present request came
        self._ended = False  # the client's side of the connection
        self._deaf = False  # what still comes is thrown away
        self._last_fields: tuple[bytes, RequestFields] = (b"", _NO_FIELDS)

    # --- the transport's side -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request."""
        super().connection_made(transport)
        local, remote = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        self.local_address = local[0] if isinstance(local, tuple) else None
        self.remote_address = remote[0] if isinstance(remote, tuple) else None
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connections.opened(self)
        self._idle_timeout.start(self._limits.first_byte_s or self._limits.keep_alive_s)

    def data_received(self, data: bytes) -> None:
        """Take what came: of a body, of further requests, or of the next one."""
        if self._deaf:
            return
        if self._body is not None and not self._body.complete:
            data = self._feed_body(data)
            if not data:
                return
        had_some = self._unread not in _NOTHING
        if not self._unread:
            self._unread = data
        else:  # a head that comes byte by byte is not copied for each of them
            self._unread = bytearray(self._unread) if isinstance(self._unread, bytes) else self._unread
            self._unread += data
        if self.busy:
            if len(self._unread) > self._limits.ahead_bytes:
                self.hold_reading()
        elif self._can_begin():
            self._idle_timeout.stop()
            self._connections.request_started(self)
            self.busy = self._take_next()
            if self._handler is not None and not self._handler.start_now():
                self.start_task()
        elif self._unread not in _NOTHING:
            if not had_some:
                self._connections.head_started(self)
                self._idle_timeout.start(self._limits.head_s)
            self._connections.head_grew(self, len(self._unread))

    def eof_received(self) -> bool:
        """Take note that the client sends no more; return whether it may still get an answer."""
        self._ended = True
        if not self.busy or self._deaf:
            return False
        if self._body is not None and not self._body.complete:
            self._body.fail(ConnectionResetError())
        elif self.loop.time() - self._read_at < HALF_CLOSE_S:
            self._watch.watch(self._socket, self.abort, half=False)
            return True
        self.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up what the client is not there for any more."""
        super().connection_lost(exc)
        self._idle_timeout.aclose()
        self._watch.forget(self._socket)
        if self._body is not None:
            self._body.fail(ConnectionResetError())
        self._connections.closed(self)
        self._give_up()
        self._request = None  # which knows this connection: a cycle would be left for the collector

    def abort(self) -> None:
        """End the connection now, behind what it was told before."""
        self.flush()
        super().abort()

    def hold_reading(self) -> None:
        """Read no more for now; a client that hangs up is noticed all the same."""
        super().hold_reading()
        # Then what it sent before is read, and its end behind that.
        self._watch.watch(self._socket, self.release_reading, half=True)

    def release_reading(self) -> None:
        """Read on."""
        if self.reading_held and not self.lost:
            self._watch.forget(self._socket)
            super().release_reading()

    # --- requests -------------------------------------------------------------------------

    def start_task(self) -> None:
        """Handle this request, and those pipelined behind it, in a task."""
        self._task = self.loop.create_task(self._work())

    def request_finished(self, *, keep_alive: bool) -> None:
        """Continue after a response that needed no task; `keep_alive`: the connection may be reused."""
        self._handler = None
        if not keep_alive:
            self._stop_working()
            self._end()
        elif self._unread and self._take_next():  # whoever asks far ahead takes turns with the others
            self.start_task()
        else:
            self._stop_working()
            self._rest()

    async def _work(self) -> None:
        try:
            while self._handler is not None or self._take_next():
                goes_on = await self._run()
                if not goes_on:
                    self._end()
                    return
                if self._unread:  # whoever asks far ahead takes turns with the others, and reads its answers
                    await asyncio.sleep(0)
                    await self.drain(self._limits.idle_s)
        except (TimeoutError, ConnectionError):
            self.abort()  # it reads nothing, or is gone
            return
        except BaseException:
            self.abort()  # nobody would ever look at this connection again
            raise
        finally:
            self._stop_working()
        self._rest()

    async def _run(self) -> bool:
        """Have the present request answered; return whether there can be another one."""
        handler, self._handler = self._handler, None
        assert handler is not None  # noqa: S101 - whoever calls has looked
        goes_on = await handler.run()
        return goes_on and self._request is not None and self._request.read_whole

    def _take_next(self) -> bool:
        """Take the next request, if it is there, to be worked at."""
        request = self._request = self._next_request()
        if request is None:
            return False
        self._handler = self._handle(request)
        return True

    def _stop_working(self) -> None:
        self.busy = False
        self._task = self._body = self._handler = None
        self._connections.request_finished(self)

    def _rest(self) -> None:
        """Wait for a next request, whose beginning may be there."""
        if self._ended:
            self._close()
            return
        if self._unread:
            self._connections.head_started(self)
        self._idle_timeout.start(self._limits.head_s if self._unread else self._limits.keep_alive_s)
        self.release_reading()

    def cancel(self) -> asyncio.Task[None] | None:
        """Cancel the current request and end the connection; return the task still to be waited for."""
        task = self._task
        if not self._give_up():
            self.abort()
        return task

    def _give_up(self) -> bool:
        """Let the present request be given up; return whether its task sees to the connection, too."""
        handler, task = self._handler, self._task
        if handler is not None:  # no task has taken it over yet, and none shall
            self._stop_working()
            handler.cancel()
        if task is not None:
            task.cancel()
        return task is not None and handler is None

    def end(self, cause: str) -> None:
        """Make room for others (see `connections.Client`)."""
        # Before the loop comes to tell of the end it may read a thousand others.
        self._unread, self._deaf = b"", True
        if cause == "idle":
            self._close()
        else:
            self.abort()

    def tarpit(self) -> None:
        """Let a head that did not come in time wait for its end (see `connections.Client`)."""
        self._unread, self._deaf = b"", True
        super().hold_reading()  # nor is its client looked after

    @property
    def uid(self) -> int | None:
        """The user at the other end of a Unix socket, as the kernel says."""
        return None if self.lost else peer_uid(self._socket)

    def _can_begin(self) -> bool:
        """Whether there is a request, or what will never become one."""
        if self._unread in _NOTHING:
            return False
        if self._unread.startswith(b"\r\n"):  # empty lines are no harm (RFC 9112 §2.2)
            self._unread = _EMPTY_LINES.sub(b"", self._unread, count=1)
        try:
            self._head_bytes = request_end(self._unread, self._limits.head, self._seen)
        except MalformedHead:
            self._head_bytes = _NEVER_ENDS
        self._seen = 0 if self._head_bytes else len(self._unread)
        return self._head_bytes != 0

    def _next_request(self) -> Request | None:
        self._body = None
        if not (self._head_bytes or self._can_begin()):
            return None
        end, self._head_bytes = self._head_bytes, 0
        if end == _NEVER_ENDS:
            return self._malformed(BadTarget(_NOT_HTTP))
        self._read_at = self.loop.time()
        try:
            method, target, rest = split_request(bytes(self._unread[:end]), self._limits.head)
            fields = self._parse(rest)
        except MalformedHead:
            return self._malformed(BadTarget(_NOT_HTTP))
        except BadTarget as error:
            return self._malformed(error)
        unread, self._unread = bytes(self._unread[end:]), b""
        self.release_reading()  # held for what was ahead; this request's body may be behind it
        request = Request(self, method, target, fields)
        if fields.framing.has_body:
            request.body = self._body = BodyStream(
                self,
                build_reader(fields.framing),
                self._idle_timeout,
                self._limits.idle_s,
                self._limits.ahead_bytes,
            )
            unread = self._feed_body(unread)
        self._unread = unread
        if len(unread) > self._limits.ahead_bytes:
            self.hold_reading()
        return request

    def _parse(self, rest: bytes) -> RequestFields:
        """Parse a head from behind its target; the same one again costs a comparison."""
        if rest == self._last_fields[0]:
            return self._last_fields[1]
        fields = parse_fields(rest, self._limits.head)
        if len(rest) <= REMEMBERED_BYTES:
            self._last_fields = (rest, fields)
        return fields

    def _malformed(self, error: BadTarget) -> Request:
        self._unread, self._deaf = b"", True
        return Request(self, b"-", b"", _NO_FIELDS, error=error)

    def _feed_body(self, data: bytes) -> bytes:
        """Give the body its part of `data`, return the rest."""
        assert self._body is not None  # noqa: S101 - whoever calls has looked
        try:
            rest = self._body.feed(data)
        except MalformedBody:
            self._deaf = True
            self._body.fail(
                BadTarget("the request body is not well-formed; check Content-Length or the chunks")
            )
            return b""
        self._read_at = self.loop.time()
        return rest

    def _overdue(self) -> None:
        if self.transport is not None and self.transport.is_closing():
            self.abort()  # what is still to be written is not read
        elif self._task is not None and self._body is not None:
            self._body.fail(BadTarget("nothing of the request body came within timeouts.idle"))
        else:
            self._close()

    # --- the end --------------------------------------------------------------------------

    def _end(self) -> None:
        """End the connection behind its last answer."""
        if (
            self._request is None
            or self._request.read_whole
            or self._ended
            or self.transport is None
            or self.lost
        ):
            self._close()
            return
        # The client may be sending still, and a reset on our side would make it lose the answer.
        self._deaf = True
        self.release_reading()
        self.flush()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        self._idle_timeout.start(LINGER_S)

    def _close(self) -> None:
        """Close behind what is still to be written, if the client reads it in time."""
        if self.transport is not None and not self.lost:
            self.close()
            self._idle_timeout.start(self._limits.idle_s)

    @property
    def _socket(self) -> socket.socket:
        assert self.transport is not None  # noqa: S101 - it was there from the first
        sock: socket.socket = self.transport.get_extra_info("socket")
        return sock
