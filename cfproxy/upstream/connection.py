"""One connection to the API, and the exchange in progress on it.

Invariants:
1. One exchange at a time: `start_exchange`, one final head, its body, `finish_exchange`.
2. A connection is reused only after a complete response with nothing behind it. Data that arrives outside an
   exchange ends the connection, because it would be taken for the response to the next request.
3. Every wait ends with the response, with the end of the connection, or with the timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from cfproxy.errors import (
    UpstreamError,
    UpstreamProtocol,
    UpstreamTimeout,
    UpstreamUnreachable,
    without_traceback,
)
from cfproxy.http1.framing import MalformedBody, TinyChunks
from cfproxy.http1.headers import RawHeaders
from cfproxy.http1.parser import (
    HeadLimits,
    HeadTooLong,
    MalformedHead,
    ResponseHead,
    parse_response_head,
    response_head_end,
)
from cfproxy.http1.stream import BodyStream, IdleTimeout, StreamProtocol
from cfproxy.http1.turns import Backlogs, WriteBatch

# Browsers and curl accept heads of about this size (Chromium 256 KiB, curl 300 KB with 100 KB per line).
LIMITS = HeadLimits(line_bytes=128 * 1024, head_bytes=256 * 1024, headers=1000)
INTERIM_MAX_BYTES = (
    LIMITS.head_bytes
)  # of all interim responses to a request, so that they can't go on for ever
TURN_HEADS = 16  # how many heads of interim responses are handled in one turn
_INCOMPLETE = "the API's response is incomplete"
_TOO_LONG = (
    "the head of the API's response is too long; request less at a time: cfproxy accepts "
    f"{LIMITS.head_bytes // 1024} KiB, {LIMITS.line_bytes // 1024} KiB per line and {LIMITS.headers} lines"
)


class UpstreamConnection(StreamProtocol):
    """A connection to the API.

    Args:
        on_lost: called when the connection has ended.
        write_batch, backlogs: shared with other connections; its own when None.
    """

    def __init__(
        self,
        on_lost: Callable[[UpstreamConnection], None],
        write_batch: WriteBatch | None = None,
        backlogs: Backlogs | None = None,
    ) -> None:
        super().__init__(write_batch, backlogs)
        self._on_lost = on_lost
        self.timeout = IdleTimeout(self._timed_out)
        self.reused = False  # whether it has been idle, so that the API may have closed it
        self.idle_since = 0.0
        # The exchange in progress.
        self.received_any = False
        self.head: ResponseHead | None = None  # the final one, once it has arrived
        self.body: BodyStream | None = None  # likewise
        self.on_response: Callable[[], None] | None = None  # called once `read_head` would not wait
        self._in_exchange = False
        self._idle_s = 0.0
        self._to_head = False
        self._on_interim: Callable[[int, bytes, RawHeaders], None] | None = None
        self._unread = bytearray()  # the start of a head; copied for no piece of it
        self._interim_bytes = 0
        self._surplus = False  # there were bytes behind the response
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._continue = asyncio.Event()  # set by 100 Continue, or by a final response

    @property
    def usable(self) -> bool:
        """Whether a request can be sent."""
        return not self._surplus and self.writable

    def start_exchange(
        self, idle_s: float, *, to_head: bool, on_interim: Callable[[int, bytes, RawHeaders], None] | None
    ) -> None:
        """Expect a response.

        Args:
            idle_s: how long to wait for each byte of it.
            to_head: whether the request is a HEAD, whose response has no body.
            on_interim: called with status, reason and headers of each 1xx.
        """
        self._in_exchange = True
        self.received_any = False
        self._interim_bytes = 0
        self._idle_s = idle_s
        self._to_head = to_head
        self._on_interim = on_interim
        if self._continue.is_set():
            self._continue.clear()

    def finish_exchange(self) -> bool:
        """End the exchange; return whether the connection can be reused."""
        head, body = self.head, self.body
        self._in_exchange = False
        self.head = self.body = self._on_interim = self.on_response = None
        if head is None or body is None:
            return False
        return body.exhausted and head.keep_alive and self.usable and not self.reading_held

    async def read_head(self) -> ResponseHead:
        """Return the head of the final response.

        Raises:
            UpstreamUnreachable, UpstreamProtocol, UpstreamTimeout, or the error that `fail` was given.
        """
        if self.head is None and self._error is None:
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
                self.timeout.stop()
        if self.head is None:
            assert self._error is not None  # noqa: S101 - only a head or an error wakes the waiter
            raise without_traceback(self._error)
        return self.head

    async def wait_for_continue(self, limit_s: float) -> bool:
        """Wait at most `limit_s` seconds for 100 Continue; return whether to send the body."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._continue.wait()
        return self.head is None

    def start_timeout(self) -> None:
        """Start the idle timeout, once the whole request has been sent."""
        if self.head is None:
            self.timeout.start(self._idle_s)

    def fail(self, error: BaseException) -> None:
        """Raise `error` in `read_head`; once the head was read, report an incomplete body instead."""
        self._error = self._error or without_traceback(error)
        if self.body is not None:
            self.body.fail(UpstreamProtocol(_INCOMPLETE))
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Handle received data: heads, a part of the body, or data that should not be there."""
        self.received_any = True
        try:
            if self.body is not None:
                self._feed_body(self.body, data)
            elif self._in_exchange and not self.unsent:
                if seen := len(self._unread):
                    self._unread += data
                self._read_heads(self._unread if seen else data, seen)
            else:
                self._surplus = True
                self.abort()
        except HeadTooLong:
            self.fail(UpstreamProtocol(_TOO_LONG))
            self.abort()
        except (MalformedHead, MalformedBody) as error:
            tiny = isinstance(error, TinyChunks)
            fault = "comes in too many tiny chunks" if tiny else "is not well-formed HTTP"
            self.fail(UpstreamProtocol(f"the API's response {fault}"))
            self.abort()
        except UpstreamError as error:
            self.fail(error)
            self.abort()

    def eof_received(self) -> None:
        """Handle an orderly end, which may be the end of the body."""
        if self.body is not None and not self.backlog:  # TLS may report the end before the backlog is handled
            try:
                self.body.end()
            except MalformedBody:
                self.body.fail(UpstreamProtocol(_INCOMPLETE))

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake whatever waits, with an error."""
        super().connection_lost(exc)
        self.timeout.aclose()
        if self.body is not None or self._unread:
            self.fail(UpstreamProtocol(_INCOMPLETE))
        else:
            self.fail(
                UpstreamUnreachable(
                    "the API closed the connection before it responded", unsent=bool(self.unsent)
                )
            )
        self._on_lost(self)

    def _read_heads(self, data: bytes | bytearray, seen: int) -> None:
        heads = 0
        while end := response_head_end(data, LIMITS, seen):
            heads += 1
            if heads > TURN_HEADS:
                self._unread = bytearray()
                self.wait_for_turn(bytes(data))
                return
            head = parse_response_head(bytes(data[:end]), LIMITS, to_head=self._to_head)
            data, seen = bytes(data[end:]), 0
            if head.status >= 200:
                self._unread = bytearray()
                self._start_body(head, data)
                return
            self._interim_bytes += end
            if self._interim_bytes > INTERIM_MAX_BYTES:
                raise UpstreamProtocol("the API sends too many interim responses")
            self._handle_interim(head)
        self._unread = data if isinstance(data, bytearray) else bytearray(data)
        self.timeout.restart()

    def _start_body(self, head: ResponseHead, data: bytes) -> None:
        self.head = head
        self.body = BodyStream(self, head.build_reader(), self.timeout, self._idle_s)
        if data:
            self._feed_body(self.body, data)
        self._wake()

    def _feed_body(self, body: BodyStream, data: bytes) -> None:
        rest = body.feed(data)
        if body.complete:
            self._surplus |= bool(rest)
        elif rest:
            self.wait_for_turn(rest)

    def _handle_interim(self, head: ResponseHead) -> None:
        if head.status < 100:
            raise UpstreamProtocol("the API's response has no status code")
        if head.status == 101:
            raise UpstreamProtocol("the API switched protocols although no upgrade was requested")
        if head.status == 100:
            self._continue.set()
        if self._on_interim is not None:
            self._on_interim(head.status, head.reason, head.raw_headers)

    def _timed_out(self) -> None:
        if self.body is not None:
            self.body.fail(UpstreamTimeout("the API stopped sending in the middle of its response"))
        else:
            self.fail(UpstreamTimeout("the API did not respond within timeouts.idle"))

    def _wake(self) -> None:
        self._continue.set()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.on_response is not None:
            on_response, self.on_response = self.on_response, None
            self.timeout.stop()
            on_response()
