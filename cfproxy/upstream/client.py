"""The HTTP client for the API.

It does not use aiohttp's `ClientSession`, because a session rebuilds requests, follows redirects, keeps
cookies and decodes bodies.

Invariants:
1. It sends to one origin, given at construction. It follows no redirects and reads no environment variables.
2. A connection returns to the pool only after a complete response to a completely sent request.
3. A request is sent again on another connection only if the first one was a reused one that turned out to be
   closed, no byte of a response arrived, and either nothing was sent or the request is idempotent
   (RFC 9110 §9.2.2).
4. A body whose client waits for 100 Continue is not read before the API asks for it or has been silent for
   `CONTINUE_S` (RFC 9110 §10.1.1).
5. At most half of the connections are busy with bodies that their clients are still sending.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from cfproxy.auth.models import Token
from cfproxy.errors import UpstreamTimeout, UpstreamUnreachable
from cfproxy.http1.framing import render_chunk, render_last_chunk
from cfproxy.http1.parser import ResponseHead
from cfproxy.http1.stream import BodyStream
from cfproxy.upstream.connection import UpstreamConnection
from cfproxy.upstream.pool import Pool
from cfproxy.upstream.request import Call, RequestBody
from cfproxy.upstream.upload_slots import UploadSlot, UploadSlots

CONNECTIONS = 1000
# Opened ahead, so that the first two requests need not wait for DNS and TLS. More would often stay unused.
WARM_CONNECTIONS = 2
CONTINUE_S = 1.0  # the same as curl and Go


class UpstreamClient:
    """A client for one origin.

    Args:
        url: `scheme://host[:port]`; a path is ignored.
        tls: for https; None uses the system's certificate authorities.
        connect_s: timeout for DNS, TCP and TLS together, and for waiting when `limit` is reached.
        idle_s: timeout without a byte in either direction.
        limit: maximum number of connections.
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
        self.pool = Pool(url, tls=tls, connect_s=connect_s, limit=limit)
        self._idle_s = idle_s
        self._upload_slots = UploadSlots(max(1, limit // 2), connect_s)

    def set_timeouts(self, connect_s: float, idle_s: float) -> None:
        """Use other timeouts from the next request on."""
        self._idle_s = idle_s
        self.pool.connect_s = self._upload_slots.wait_s = connect_s

    def warm(self) -> None:
        """Open connections in the background, ahead of the first requests (see `Pool.warm`)."""
        self.pool.warm(WARM_CONNECTIONS)

    async def aclose(self) -> None:
        """Close every connection."""
        await self.pool.aclose()

    def try_send_now(
        self,
        call: Call,
        token: Token,
        acquire_slot: Callable[[], bool],
        on_response: Callable[[], None],
    ) -> UpstreamResponse | None:
        """Send a request without a body, if a connection is idle.

        Args:
            call: what to send.
            token: the access token to send with it.
            acquire_slot: called last; nothing is sent if it returns False.
            on_response: called once the head of the response has arrived, or will not arrive.

        Returns:
            the response to wait for, to be passed to `send`; None if nothing was sent.
        """
        if not self.pool.has_idle():
            return None
        head = _complete_head(call, token)  # if this fails, no slot must have been acquired
        if not acquire_slot():
            return None
        response = UpstreamResponse(self.pool.acquire_idle(), self.pool, self._idle_s)
        response.connection.on_response = on_response
        response.send_request(call, head)
        return response

    async def send(
        self, call: Call, token: Token, response: UpstreamResponse | None = None
    ) -> UpstreamResponse:
        """Send a request; return its response as soon as the head has arrived.

        Args:
            call: what to send.
            token: the access token to send with it.
            response: returned by `try_send_now`, which has sent the request already.

        Raises:
            UpstreamUnreachable, UpstreamTls, UpstreamProtocol, UpstreamTimeout
            BadTarget: from the request body.
        """
        while True:
            sent = response is not None
            response = response or await self._open_exchange(call)
            try:
                if not sent:
                    response.send_request(call, _complete_head(call, token))
                await response.wait_for_head()
            except BaseException as error:
                await response.aclose()
                if not (isinstance(error, UpstreamUnreachable) and response.connection.reused):
                    raise
                if not (error.unsent or _may_resend(call, response.connection)):
                    raise
            else:
                return response
            response = None
            if call.body is not None:
                call.body.restart()

    async def _open_exchange(self, call: Call) -> UpstreamResponse:
        """Acquire a connection for `call`, and an upload slot if it needs one."""
        body = call.body
        slot = None if body is None or body.arrived else await self._upload_slots.acquire(body)
        try:
            connection = await self.pool.acquire()
        except BaseException:
            if slot is not None:
                slot.release()
            raise
        return UpstreamResponse(connection, self.pool, self._idle_s, slot)


def _complete_head(call: Call, token: Token) -> bytes:
    return b"%bAuthorization: %b\r\n\r\n" % (call.head, token.authorization)


def _may_resend(call: Call, connection: UpstreamConnection) -> bool:
    if connection.received_any or not call.idempotent:
        return False
    return call.body is None or call.body.replayable


class UpstreamResponse:
    """A request being sent, and its response, whose body may still be arriving.

    Args:
        connection: used by this exchange alone.
        pool: gets the connection back.
        idle_s: how long the API may leave the request unread.
        slot: released as soon as the request body has been sent.
    """

    __slots__ = ("_closed", "_idle_s", "_pool", "_sent", "_slot", "_upload", "body", "connection", "head")

    head: ResponseHead  # as soon as it has arrived, like `body`
    body: BodyStream

    def __init__(
        self, connection: UpstreamConnection, pool: Pool, idle_s: float, slot: UploadSlot | None = None
    ) -> None:
        self.connection = connection
        self._slot = slot
        self._pool = pool
        self._idle_s = idle_s
        self._upload: asyncio.Task[None] | None = None
        self._sent = False  # the whole request
        self._closed = False

    @property
    def status(self) -> int:
        """The status code; never 1xx."""
        return self.head.status

    def send_request(self, call: Call, head: bytes) -> None:
        """Send the request, or start to send it; may be called once.

        Args:
            call: what to send.
            head: complete, with its empty line.

        Raises:
            UpstreamUnreachable: the connection has been closed; `unsent`.
        """
        connection = self.connection
        if not connection.usable:
            raise UpstreamUnreachable("the API closed the connection", unsent=True)
        connection.start_exchange(self._idle_s, to_head=call.method == "HEAD", on_interim=call.on_interim)
        body = call.body
        whole = b"" if body is None else None if call.expects else body.whole()
        if body is not None and whole is None:
            connection.write(head)
            self._upload = asyncio.create_task(self._send_body(body, call))
            self._upload.add_done_callback(self._upload_ended)
            return
        if body is not None and call.chunked:
            whole = (render_chunk(whole) if whole else b"") + render_last_chunk(body.trailers)
        connection.write_soon(head + whole if whole else head)
        self._sent = True
        self._release_slot()
        connection.start_timeout()

    def arrived(self) -> bool:
        """Return whether the complete response has arrived."""
        head, body = self.connection.head, self.connection.body
        if head is None or body is None or not body.complete:
            return False
        self.head, self.body = head, body
        return True

    async def wait_for_head(self) -> None:
        """Wait until the head of the response has arrived.

        Raises:
            UpstreamUnreachable, UpstreamProtocol, UpstreamTimeout
            BadTarget: from the request body.
        """
        connection = self.connection
        self.head = await connection.read_head()
        assert connection.body is not None  # noqa: S101 - it is set with the head
        self.body = connection.body
        if self.head.status >= 400:
            # The API has refused the request and has no use for the rest of the body (RFC 9112 §9.5).
            await self._stop_upload()

    async def finish_upload(self) -> None:
        """Wait until the rest of the request body has been sent, if the API still accepts it."""
        if self._upload is not None and self.head.keep_alive:
            await asyncio.wait({self._upload})

    def close(self) -> None:
        """Do the same as `aclose`, for a request without a body."""
        if not self._closed:
            self._closed = True
            self._pool.release(self.connection)

    async def aclose(self) -> None:
        """Return the connection to the pool if the exchange is complete, abort it if not; may be repeated."""
        if self._closed:
            return
        self._closed = True
        self.connection.on_response = None
        if self._sent:
            self._pool.release(self.connection)
        else:
            self.connection.finish_exchange()  # drops the callbacks; the connection is not reused
            self.connection.abort()
            await self._stop_upload()
        self._release_slot()

    def _release_slot(self) -> None:
        if self._slot is not None:
            self._slot.release()

    async def _send_body(self, body: RequestBody, call: Call) -> None:
        connection = self.connection
        if call.expects and not await connection.wait_for_continue(CONTINUE_S):
            return  # there is a final response
        while piece := await body.read():
            if not await self._write(render_chunk(piece) if call.chunked else piece):
                return
        if call.chunked and not await self._write(render_last_chunk(body.trailers)):
            return
        self._sent = True
        connection.start_timeout()

    async def _write(self, data: bytes) -> bool:
        """Send a part of the body; return False if the API has closed the connection.

        Whether it has responded before that is decided by the reading side.
        """
        connection = self.connection
        try:
            connection.write(data)
            connection.timeout.restart()
            await connection.drain(self._idle_s)
        except TimeoutError:
            raise UpstreamTimeout("the API stopped reading the request") from None
        except ConnectionError:
            return False
        return True

    def _upload_ended(self, upload: asyncio.Task[None]) -> None:
        self._release_slot()
        self._upload = None  # the task refers to this object
        error = None if upload.cancelled() else upload.exception()
        if error is not None:
            # The request can't be completed: wake whatever waits for the response.
            self.connection.fail(error)
            self.connection.abort()

    async def _stop_upload(self) -> None:
        if self._upload is not None:
            self._upload.cancel()
            await asyncio.wait({self._upload})
