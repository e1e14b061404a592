"""One connection to the API, and the exchange that is on it.

Owns: reading answers, interim ones included; whether the connection can serve another exchange.
Must not know: how connections are opened and kept (`pool.py`), what is sent and what is sent again
(`upstream.py`), the client's side.

Invariants:
1. One exchange at a time: `begin`, one final head, its body, `finish`.
2. A connection is used again only after a complete answer and nothing behind it. What comes while nobody
   asked is no answer: it would be taken for the next one's, so it ends the connection.
3. Whoever waits is woken by the answer, by the end of the connection or by the deadline.
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
from cfproxy.http1.framing import MalformedBody
from cfproxy.http1.headers import RawHeaders
from cfproxy.http1.parser import AnswerHead, HeadLimits, MalformedHead, answer_end, parse_answer
from cfproxy.http1.stream import BodyStream, StreamProtocol
from cfproxy.http1.timeout import IdleTimeout
from cfproxy.http1.write_batch import WriteBatch

LIMITS = HeadLimits(headers=1000)
# All interim answers to one request together: a flood of them is not an answer that takes its time.
INTERIM_MAX = 64 * 1024
_BROKE_OFF = "the API's answer broke off in the middle"


class UpstreamConnection(StreamProtocol):
    """A connection to the API.

    Args:
        idle_s: seconds without a byte after which a wait for the answer is given up.
        on_lost: called when the connection has ended.
        outbox: of the connections that it sends side by side with; its own when None.
    """

    def __init__(
        self,
        idle_s: float,
        on_lost: Callable[[UpstreamConnection], None],
        write_batch: WriteBatch | None = None,
    ) -> None:
        super().__init__(write_batch)
        self._on_lost = on_lost
        self.kept = False  # whether it has lain idle, so that the other side may have closed it
        self.heard = False  # whether anything came since `begin`
        self.idle_since = 0.0
        self.idle_timeout = IdleTimeout(self._overdue)
        self.body_stream: BodyStream | None = None  # the answer's body, once its head is there
        self.idle_s = idle_s
        self._asked = False
        self._to_head = False
        self._on_interim: Callable[[int, bytes, RawHeaders], None] | None = None
        self._unread = b""
        self._interim_bytes = 0
        self._surplus = False
        self.head: AnswerHead | None = None  # of the final answer, once it is there
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_arrival: Callable[[], None] | None = None
        self._told_to_go_on = asyncio.Event()  # 100 Continue, or an answer instead of it

    @property
    def usable(self) -> bool:
        """Whether a request can be sent."""
        return not self._surplus and self._open_transport() is not None

    def begin(self, *, to_head: bool, on_interim: Callable[[int, bytes, RawHeaders], None] | None) -> None:
        """Expect an answer.

        Args:
            to_head: to a HEAD, so that no body follows.
            on_interim: called with status, reason and headers of each 1xx.
        """
        self._asked = True
        self.heard = False
        self._interim_bytes = 0
        self._to_head = to_head
        self._on_interim = on_interim
        if self._told_to_go_on.is_set():
            self._told_to_go_on.clear()

    def finish(self) -> bool:
        """End the exchange; return whether there can be another one."""
        head, body_stream = self.head, self.body_stream
        self._asked = False
        self.head = self.body_stream = self._on_interim = self._on_arrival = None
        if (
            head is None
            or body_stream is None
            or not (body_stream.exhausted and head.keep_alive and self.usable)
        ):
            return False
        return not self.reading_held

    def when_arrived(self, on_arrival: Callable[[], None] | None) -> None:
        """Have `on_arrival` called, once, as soon as `read_head` need not wait; None takes that back."""
        self._on_arrival = on_arrival

    async def read_head(self) -> AnswerHead:
        """Return the final answer's head.

        Raises:
            UpstreamUnreachable, UpstreamProtocol, UpstreamTimeout, and what `fail` was given.
        """
        if self.head is None and self._error is None:
            self._waiter = self.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
                self.idle_timeout.stop()
        if self.head is None:
            assert self._error is not None  # noqa: S101 - what else would have woken us
            raise without_traceback(self._error)
        return self.head

    async def wait_to_go_on(self, limit_s: float) -> bool:
        """Wait for 100 Continue, `limit_s` seconds at most; return whether the body is to be sent."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._told_to_go_on.wait()
        return self.head is None

    def expect_answer(self) -> None:
        """Count the silence from now on: everything has been sent."""
        if self.head is None:
            self.idle_timeout.start(self.idle_s)

    def fail(self, error: BaseException) -> None:
        """Let whoever waits have `error`; within an answer it can only be told that this one broke off."""
        self._error = self._error or without_traceback(error)
        if self.body_stream is not None:
            self.body_stream.fail(UpstreamProtocol(_BROKE_OFF))
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self.heard = True
        try:
            if self.body_stream is not None:
                self._surplus |= bool(self.body_stream.feed(data))
            elif self._asked and not self.unsent:
                self._read_heads(self._unread + data if self._unread else data)
            else:
                self._surplus = True
                self.abort()
        except (MalformedHead, MalformedBody):
            self.fail(UpstreamProtocol("the API's answer is not well-formed HTTP"))
            self.abort()
        except UpstreamError as error:
            self.fail(error)
            self.abort()

    def eof_received(self) -> None:
        """Take note of an orderly end, which may be the end of the body."""
        if self.body_stream is not None:
            try:
                self.body_stream.end()
            except MalformedBody:
                self.body_stream.fail(UpstreamProtocol(_BROKE_OFF))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        super().connection_lost(exc)
        self.idle_timeout.aclose()
        if self.body_stream is not None or self._unread:
            self.fail(UpstreamProtocol(_BROKE_OFF))
        else:
            self.fail(
                UpstreamUnreachable(
                    "the API closed the connection before it answered", unsent=bool(self.unsent)
                )
            )
        self._on_lost(self)

    def _read_heads(self, data: bytes) -> None:
        while end := answer_end(data, LIMITS):
            head = parse_answer(data[:end], LIMITS, to_head=self._to_head)
            data = data[end:]
            if head.status >= 200:
                self._unread = b""
                self._take_final(head, data)
                return
            self._interim_bytes += end
            if self._interim_bytes > INTERIM_MAX:
                raise UpstreamProtocol("the API sends interim answers without end")
            self._take_interim(head)
        self._unread = data
        self.idle_timeout.touch()

    def _take_final(self, head: AnswerHead, data: bytes) -> None:
        self.head = head
        self.body_stream = BodyStream(self, head.build_reader(), self.idle_timeout, self.idle_s)
        if data:
            self._surplus |= bool(self.body_stream.feed(data))
        self._wake()

    def _take_interim(self, head: AnswerHead) -> None:
        if head.status < 100:
            raise UpstreamProtocol("the API's answer has no status code")
        if head.status == 101:
            raise UpstreamProtocol("the API switched protocols although nobody asked")
        if head.status == 100:
            self._told_to_go_on.set()
        if self._on_interim is not None:
            self._on_interim(head.status, head.reason, head.raw_headers)

    def _overdue(self) -> None:
        if self.body_stream is not None:
            self.body_stream.fail(UpstreamTimeout("the API stopped sending in the middle of its answer"))
        else:
            self.fail(UpstreamTimeout("the API did not answer within timeouts.idle"))

    def _wake(self) -> None:
        self._told_to_go_on.set()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._on_arrival is not None:
            on_arrival, self._on_arrival = self._on_arrival, None
            self.idle_timeout.stop()
            on_arrival()
