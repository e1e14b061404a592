"""The HTTP client that talks to the API.

Owns: connections to it, writing a request, reading an answer.
Must not know: tokens beyond one header line, the client's side, retries after a 401.

It works below `ClientSession`, on aiohttp's connector and its response parser, because a session rebuilds
the request, follows redirects, keeps cookies and decodes bodies. Invariants:
1. One origin, given at construction. Redirects are not followed, nothing of the environment is used.
2. A connection goes back to the pool only after a complete answer to a completely sent request.
3. A request is sent again on a new connection only if the first one was a reused one that turned out
   to be closed, nothing of an answer came, and sending twice is harmless (RFC 9110 §9.2.2).
4. A connection on which anything came unasked is not used again: it would be taken for the next answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import ssl
from collections.abc import Iterator
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage, StreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from yarl import URL

from cfproxy.errors import (
    UpstreamProtocol,
    UpstreamTimeout,
    UpstreamTls,
    UpstreamUnreachable,
)
from cfproxy.ports import Call, RequestBody
from cfproxy.token import Token
from cfproxy.wire import IDEMPOTENT

# Below the idle time of the usual load balancers (60 s), so that it is us who close first.
KEEPALIVE_S = 50.0
DNS_TTL_S = 30
MAX_HEADER_BYTES = 32 * 1024
READ_BUFFER_BYTES = 64 * 1024
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class HttpUpstream:
    """One upstream origin (see `ports.Upstream`).

    Args:
        url: `scheme://host[:port]`; a path in it is not used here.
        tls: for https; None uses the system's certificate authorities.
        connect_s: seconds for DNS, TCP and TLS together.
        idle_s: seconds without a byte in either direction.
    """

    def __init__(self, url: str, *, tls: ssl.SSLContext | None, connect_s: float, idle_s: float) -> None:
        self._url = URL(url).origin()
        self._idle_s = idle_s
        self._timeout = aiohttp.ClientTimeout(connect=connect_s, sock_connect=connect_s)
        self._connector = aiohttp.TCPConnector(
            limit=0,  # pacing bounds how many are under way; a second bound would only hide in front of it
            keepalive_timeout=KEEPALIVE_S,
            ttl_dns_cache=DNS_TTL_S,
            ssl=tls if tls is not None else True,
        )
        # The one place to hang our marks on: the connector makes the protocols.
        factory = functools.partial(_Protocol, loop=asyncio.get_running_loop())
        self._connector._factory = factory  # type: ignore[assignment] # noqa: SLF001 - a subclass will do
        # What the connector asks for: an address. It is never sent.
        self._address = ClientRequest("GET", self._url, loop=asyncio.get_running_loop())

    async def aclose(self) -> None:
        """Close every connection."""
        await self._connector.close()

    async def send(self, call: Call, token: Token) -> HttpAnswer:
        """Send the request, return the answer once its head is there (see `ports.Upstream.send`)."""
        authorization = token.value.reveal().encode("ascii")
        head = b"%sAuthorization: Bearer %s\r\n\r\n" % (call.head, authorization)
        while True:
            exchange = _Exchange(await self._connect(), self._idle_s)
            try:
                return await exchange.run(call, head)
            except UpstreamUnreachable as error:
                if not exchange.reused or not (error.unsent or self._may_repeat(call, exchange)):
                    raise
            finally:
                if exchange.answer is None:
                    await exchange.abandon()
            if call.body is not None:
                call.body.restart()

    @staticmethod
    def _may_repeat(call: Call, exchange: _Exchange) -> bool:
        if exchange.heard or call.method not in IDEMPOTENT:
            return False
        return call.body is None or call.body.replayable

    async def _connect(self) -> Connection:
        host = self._url.host
        while True:
            with _mapped_connect_errors(f"{host}:{self._url.port}"):
                connection = await self._connector.connect(self._address, [], self._timeout)
            if not _protocol_of(connection).heard:
                return connection
            connection.close()


class _Protocol(ResponseHandler):
    """aiohttp's reading side, with what its pool does not tell."""

    used = False  # whether a request was sent before
    heard = False  # whether anything came since the last exchange ended

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self.heard = True
        super().data_received(data)

    def set_exception(self, exc: BaseException, *args: Any) -> None:
        """Take note of a failure; of a malformed one aiohttp tells nobody who has the head already."""
        super().set_exception(exc, *args)
        if isinstance(exc, HttpProcessingError) and self._payload is not None:
            self._payload.set_exception(exc)


class HttpAnswer:
    """One answer, its body still coming (see `ports.Answer`).

    Args:
        message: the parsed head.
        payload: the body.
        exchange: what it is part of.
    """

    def __init__(self, message: RawResponseMessage, payload: StreamReader, exchange: _Exchange) -> None:
        self.status: int = message.code
        self.reason: str = message.reason
        self.raw_headers = message.raw_headers
        self.chunked: bool = message.chunked
        self._payload = payload
        self._exchange = exchange
        self._closed = False
        # RFC 9112 §6.3: then the end of the connection is the end of the body.
        self._until_close = (
            payload is not EMPTY_PAYLOAD and not message.chunked and "Content-Length" not in message.headers
        )

    async def read(self) -> bytes:
        """Return the next piece of the body, b"" after the last one."""
        try:
            piece = await self._payload.readany()
        except TimeoutError:
            raise UpstreamTimeout("the API stopped sending in the middle of its answer") from None
        except (aiohttp.ClientError, HttpProcessingError, OSError):
            raise UpstreamProtocol("the API's answer broke off in the middle") from None
        if not piece and self._until_close and self._exchange.was_reset:
            raise UpstreamProtocol("the API's answer broke off in the middle")
        return piece

    async def aclose(self) -> None:
        """Keep the connection if the exchange is complete, cut it otherwise; once is enough."""
        if self._closed:
            return
        self._closed = True
        if self._payload.is_eof() and self._payload.exception() is None and self._exchange.fully_sent:
            self._exchange.release()
        else:
            await self._exchange.abandon()


class _Exchange:
    """One request and its answer on one connection."""

    def __init__(self, connection: Connection, idle_s: float) -> None:
        self.answer: HttpAnswer | None = None
        self._connection = connection
        self._protocol = _protocol_of(connection)
        self.reused = self._protocol.used
        self._protocol.used = True
        self._idle_s = idle_s
        self._upload: asyncio.Task[None] | None = None

    @property
    def heard(self) -> bool:
        return self._protocol.heard

    @property
    def was_reset(self) -> bool:
        """Whether the connection ended otherwise than by an orderly close."""
        error = self._protocol.exception()
        return error is not None and not isinstance(error, aiohttp.ServerDisconnectedError)

    @property
    def fully_sent(self) -> bool:
        return self._upload is None or (self._upload.done() and not self._upload.cancelled())

    async def run(self, call: Call, head: bytes) -> HttpAnswer:
        protocol = self._protocol
        protocol.set_response_params(
            skip_payload=call.method == "HEAD",
            read_until_eof=True,
            auto_decompress=False,
            read_timeout=self._idle_s,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        transport = protocol.transport
        if transport is None or transport.is_closing():
            raise UpstreamUnreachable("the API closed the connection", unsent=True)
        transport.write(head)
        if call.body is not None:
            self._upload = asyncio.create_task(self._send_body(call.body, chunked=call.chunked))
            self._upload.add_done_callback(self._upload_ended)
        else:
            protocol.start_timeout()
        message, payload = await self._read_head()
        if self._upload is not None and not self._upload.done() and message.code >= 400:
            # It has said no: what is still to come of the body is of no use to it (RFC 9112 §9.5).
            await self._stop_upload()
        self.answer = HttpAnswer(message, payload, self)
        return self.answer

    async def abandon(self) -> None:
        """Stop sending and cut the connection."""
        try:
            await self._stop_upload()
        finally:
            if self._protocol.transport is not None:
                # Not just closed: that would first wait until the peer has read what is still to be written.
                self._protocol.transport.abort()
            self._connection.close()

    def release(self) -> None:
        """Give the connection back for the next exchange."""
        self._protocol.heard = False
        self._connection.release()

    async def _read_head(self) -> tuple[RawResponseMessage, StreamReader]:
        try:
            while True:
                message, payload = await self._protocol.read()
                # RFC 9110 §15.2: any number of interim answers may precede the final one.
                if message.code >= 200:
                    if _CONTROL.search(message.reason):
                        raise UpstreamProtocol("the API's answer has a control byte in its reason")
                    return message, payload
                if message.code == 101:
                    raise UpstreamProtocol("the API switched protocols although nobody asked")
                if message.code < 100:
                    raise UpstreamProtocol("the API's answer has no status code")
                if self._upload is None or self._upload.done():
                    self._protocol.start_timeout()  # the parser stops it after every head without a body
        except TimeoutError:
            raise UpstreamTimeout("the API did not answer within timeouts.idle") from None
        except HttpProcessingError:
            raise UpstreamProtocol("the API's answer is not well-formed HTTP") from None
        except (aiohttp.ClientError, OSError):
            raise UpstreamUnreachable("the API closed the connection before it answered") from None

    async def _send_body(self, body: RequestBody, *, chunked: bool) -> None:
        writer = StreamWriter(self._protocol, asyncio.get_running_loop())
        transport = self._protocol.transport
        while piece := await body.read():
            if transport is None or transport.is_closing():
                return
            transport.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            try:
                async with asyncio.timeout(self._idle_s):
                    await writer.drain()
            except TimeoutError:
                raise UpstreamTimeout("the API stopped reading the request") from None
            except OSError:
                return  # whether it answered before it hung up is for the reading side to see
        if transport is not None and not transport.is_closing():
            if chunked:
                transport.write(b"0\r\n\r\n")
            self._protocol.start_timeout()

    def _upload_ended(self, upload: asyncio.Task[None]) -> None:
        error = None if upload.cancelled() else upload.exception()
        if error is not None:
            # Wake whoever waits for the answer: the request can't be completed.
            self._protocol.set_exception(error)
            if self._protocol.transport is not None:
                self._protocol.transport.abort()

    async def _stop_upload(self) -> None:
        if self._upload is not None and not self._upload.done():
            self._upload.cancel()
            await asyncio.wait({self._upload})


def _protocol_of(connection: Connection) -> _Protocol:
    assert isinstance(connection.protocol, _Protocol)  # noqa: S101 - the connector makes no other ones
    return connection.protocol


@contextlib.contextmanager
def _mapped_connect_errors(where: str) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError):
        raise UpstreamTls(
            f"{where} has no certificate that this machine trusts; if TLS is intercepted set tls.ca_file",
            unsent=True,
        ) from None
    except TimeoutError:
        raise UpstreamTimeout(
            f"connecting to {where} took longer than timeouts.connect", unsent=True
        ) from None
    except (aiohttp.ClientError, OSError):
        raise UpstreamUnreachable(
            f"no connection to {where}; check the network and the upstream setting", unsent=True
        ) from None
