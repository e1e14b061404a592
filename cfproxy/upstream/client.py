"""The HTTP client that talks to the API.

Owns: sending a request over one of the pool's connections, its body included, and sending it again where
that is harmless.
Must not know: tokens beyond one header line, the client's side, retries after a 401.

It works below aiohttp's `ClientSession`, because a session rebuilds the request, follows redirects, keeps
cookies and decodes bodies. Invariants:
1. One origin, given at construction. Redirects are not followed, nothing of the environment is used.
2. A connection goes back to the pool only after a complete answer to a completely sent request.
3. A request is sent again on another connection only if the first one was a reused one that turned out
   to be closed, nothing of an answer came, and sending twice is harmless (RFC 9110 §9.2.2) or nothing was
   sent.
4. A body that waits for 100 Continue is not fetched before the upstream wants it, or has been silent for
   `CONTINUE_S` (RFC 9110 §10.1.1).
5. Bodies that their clients have not sent whole are under way on half of the connections at most.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from cfproxy.auth.models import Token
from cfproxy.errors import UpstreamTimeout, UpstreamUnreachable
from cfproxy.http1.framing import render_chunk, render_last_chunk
from cfproxy.http1.parser import AnswerHead
from cfproxy.http1.stream import BodyStream
from cfproxy.upstream.connection import UpstreamConnection
from cfproxy.upstream.interfaces import BegunAnswer, Call, RequestBody
from cfproxy.upstream.pool import Pool
from cfproxy.upstream.upload_slots import UploadSlot, UploadSlots

CONNECTIONS = 1000
# The first request, and one beside it, need not wait for DNS and TLS. More would be opened for nobody, often.
WARM = 2
CONTINUE_S = 1.0  # as curl and Go have it


class HttpUpstream:
    """One upstream origin (see `ports.Upstream`).

    Args:
        url: `scheme://host[:port]`; a path in it is not used here.
        tls: for https; None uses the system's certificate authorities.
        connect_s: seconds for DNS, TCP and TLS together, and for waiting where `limit` is reached.
        idle_s: seconds without a byte in either direction.
        limit: how many connections there may be.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: ssl.SSLContext | None,
        connect_s: float,
        idle_s: float,
        limit: int = CONNECTIONS,
    ) -> None:
        self.pool = Pool(url, tls=tls, connect_s=connect_s, idle_s=idle_s, limit=limit)
        self._idle_s = idle_s
        self._upload_slots = UploadSlots(max(1, limit // 2), connect_s)

    def set_timeouts(self, connect_s: float, idle_s: float) -> None:
        """Use other timeouts from the next request on."""
        self._idle_s = idle_s
        self._upload_slots.wait_s = connect_s
        self.pool.set_timeouts(connect_s, idle_s)

    def warm(self) -> None:
        """Open connections in the background, ahead of the first requests (see `Pool.warm`)."""
        self.pool.warm(WARM)

    async def aclose(self) -> None:
        """Close every connection."""
        await self.pool.aclose()

    def begin(
        self, call: Call, token: Token, acquire_slot: Callable[[], bool], on_arrival: Callable[[], None]
    ) -> HttpAnswer | None:
        """Send a request without a body, if a connection is at hand (see `ports.Upstream.begin`)."""
        if not self.pool.ready:
            return None
        head = _whole_head(call, token)  # where that can't be built, nothing is taken for it
        if not acquire_slot():
            return None
        connection = self.pool.take_ready()
        answer = HttpAnswer(connection, self.pool, self._idle_s)
        connection.when_arrived(on_arrival)
        answer.ask(call, head)
        return answer

    async def send(self, call: Call, token: Token, begun: BegunAnswer | None = None) -> HttpAnswer:
        """Send the request, return the answer once its head is there (see `ports.Upstream.send`)."""
        assert begun is None or isinstance(begun, HttpAnswer)  # noqa: S101 - it came from `begin`
        while True:
            answer = begun or await self._open_exchange(call)
            connection = answer.connection
            try:
                if begun is None:
                    answer.ask(call, _whole_head(call, token))
                await answer.arrive()
            except BaseException as error:
                await answer.aclose()
                if not (isinstance(error, UpstreamUnreachable) and connection.kept):
                    raise
                if not (error.unsent or _may_repeat(call, connection)):
                    raise
            else:
                return answer
            begun = None
            if call.body is not None:
                call.body.restart()

    async def _open_exchange(self, call: Call) -> HttpAnswer:
        """Return a connection for `call`, with a place for its body if it needs one."""
        place = None if call.body is None else await self._upload_slots.take_place(call.body)
        try:
            connection = await self.pool.take()
        except BaseException:
            if place is not None:
                place.leave()
            raise
        return HttpAnswer(connection, self.pool, self._idle_s, place)


def _whole_head(call: Call, token: Token) -> bytes:
    return b"%bAuthorization: %b\r\n\r\n" % (call.head, token.authorization)


def _may_repeat(call: Call, connection: UpstreamConnection) -> bool:
    if connection.heard or not call.idempotent:
        return False
    return call.body is None or call.body.replayable


class HttpAnswer:
    """One request on its way, and its answer, whose body is still coming (see `ports.Answer`).

    Args:
        connection: for this exchange alone.
        pool: where it came from.
        idle_s: seconds that the API may leave the request unread.
        place: given back as soon as the body is through.
    """

    __slots__ = (
        "_body_stream",
        "_closed",
        "_idle_s",
        "_place",
        "_pool",
        "_sent",
        "_upload",
        "connection",
        "head",
    )

    def __init__(
        self, connection: UpstreamConnection, pool: Pool, idle_s: float, place: UploadSlot | None = None
    ) -> None:
        self.connection = connection
        self._place = place
        self._pool = pool
        self._idle_s = idle_s
        self._upload: asyncio.Task[None] | None = None
        self._sent = False  # the whole request
        self._closed = False
        self.head: AnswerHead
        self._body_stream: BodyStream

    @property
    def status(self) -> int:
        """The status code."""
        return self.head.status

    @property
    def raw_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The header fields as they came, in order."""
        return self.head.raw_headers

    @property
    def exhausted(self) -> bool:
        """Whether the whole body has come and was taken."""
        return self._body_stream.exhausted

    @property
    def trailers(self) -> list[tuple[bytes, bytes]]:
        """What followed a chunked body, once it has been read."""
        return self._body_stream.trailers

    def ask(self, call: Call, head: bytes) -> None:
        """Send the request, or begin to; once.

        Args:
            call: what to send.
            head: complete, with its empty line.

        Raises:
            see `ports.Upstream.send`
        """
        connection = self.connection
        if not connection.usable:
            raise UpstreamUnreachable("the API closed the connection", unsent=True)
        connection.begin(to_head=call.method == "HEAD", on_interim=call.on_interim)
        whole = b"" if call.body is None else None if call.expects else call.body.whole()
        if call.body is not None and whole is None:
            connection.write(head)
            self._upload = asyncio.create_task(self._send_body(call.body, call))
            self._upload.add_done_callback(self._upload_ended)
        else:
            connection.write_soon(head + _framed(whole, call))
            self._sent = True
            self._leave_place()
            connection.expect_answer()

    def arrived_whole(self) -> bool:
        """Return whether head and body are there, waiting for nothing."""
        head, body_stream = self.connection.head, self.connection.body_stream
        if head is None or body_stream is None or not body_stream.complete:
            return False
        self.head, self._body_stream = head, body_stream
        return True

    def close(self) -> None:
        """Do what `aclose` does, where no upload is under way."""
        if not self._closed:
            self._closed = True
            self._pool.give_back(self.connection)

    async def arrive(self) -> None:
        """Wait for the answer's head.

        Raises:
            see `ports.Upstream.send`
        """
        connection = self.connection
        self.head = await connection.read_head()
        assert connection.body_stream is not None  # noqa: S101 - it comes with the head
        self._body_stream = connection.body_stream
        if self._upload is not None and not self._upload.done() and self.head.status >= 400:
            # It has said no: what is still to come of the body is of no use to it (RFC 9112 §9.5).
            await self._stop_upload()

    def take(self) -> bytes:
        """Return what has come of the body and was not taken yet, without waiting."""
        return self._body_stream.take()

    async def read(self) -> bytes:
        """Return the next piece of the body, b"" after the last one."""
        return await self._body_stream.read()

    async def finish_upload(self) -> None:
        """Let the rest of the request's body go up behind its answer, if the API still takes it."""
        if self._upload is not None and not self._upload.done() and self.head.keep_alive:
            await asyncio.wait({self._upload})

    async def aclose(self) -> None:
        """Keep the connection if the exchange is complete, cut it otherwise; once is enough."""
        if self._closed:
            return
        self._closed = True
        self.connection.when_arrived(None)
        if self._sent:
            self._pool.give_back(self.connection)
        else:
            self.connection.finish()  # it forgets whom to tell, and is not kept, whatever it says
            self.connection.abort()
            await self._stop_upload()
        self._leave_place()

    def _leave_place(self) -> None:
        if self._place is not None:
            self._place.leave()

    async def _send_body(self, body: RequestBody, call: Call) -> None:
        connection = self.connection
        if call.expects and not await connection.wait_to_go_on(CONTINUE_S):
            return  # the answer is there
        while piece := await body.read():
            if not await self._write(render_chunk(piece) if call.chunked else piece):
                return
        if call.chunked and not await self._write(render_last_chunk(body.trailers)):
            return
        self._sent = True
        connection.expect_answer()

    async def _write(self, data: bytes) -> bool:
        """Send a part of the body; False when the API has hung up.

        Whether it answered before that is for the reading side to see.
        """
        connection = self.connection
        try:
            connection.write(data)
            connection.idle_timeout.touch()
            await connection.drain(self._idle_s)
        except TimeoutError:
            raise UpstreamTimeout("the API stopped reading the request") from None
        except ConnectionError:
            return False
        return True

    def _upload_ended(self, upload: asyncio.Task[None]) -> None:
        self._leave_place()
        self._upload = None  # it knows this answer
        error = None if upload.cancelled() else upload.exception()
        if error is not None:
            # The request can't be completed: wake whoever waits for the answer.
            self.connection.fail(error)
            self.connection.abort()

    async def _stop_upload(self) -> None:
        if self._upload is not None and not self._upload.done():
            self._upload.cancel()
            await asyncio.wait({self._upload})


def _framed(body: bytes | None, call: Call) -> bytes:
    """Return a whole body as it goes over the wire."""
    if not body and not call.chunked:
        return b""
    if not call.chunked:
        return body or b""
    assert call.body is not None  # noqa: S101 - it is what is chunked
    return (render_chunk(body) if body else b"") + render_last_chunk(call.body.trailers)
