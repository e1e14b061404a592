"""The HTTP client that talks to the API.

Owns: connections, writing a request, reading an answer; the only place that knows aiohttp's client here.
Must not know: tokens beyond one header line, the client's side, retries after a 401.

It works below `ClientSession`, on aiohttp's connector and its response parser, because a session rebuilds
the request, follows redirects, keeps cookies and decodes bodies. Invariants:
1. One origin, given at construction. Redirects are not followed, nothing of the environment is used.
2. A connection goes back to the pool only after a complete answer to a completely sent request.
3. A request is sent again on a new connection only if the first one was a reused one that turned out
   to be closed, nothing of an answer came, and sending twice is harmless (RFC 9110 §9.2.2).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage, StreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader
from yarl import URL

from cfproxy.errors import (
    UpstreamProtocol,
    UpstreamTimeout,
    UpstreamTls,
    UpstreamUnreachable,
)
from cfproxy.ports import Call, RequestBody
from cfproxy.token import Token

IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
# Below the idle time of the usual load balancers (60 s), so that it is us who close first.
KEEPALIVE_S = 50.0
DNS_TTL_S = 30
MAX_HEADER_BYTES = 32 * 1024
READ_BUFFER_BYTES = 64 * 1024


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
            connection = await self._connect()
            # The connector does not tell a reused connection from a new one.
            marks = vars(connection.protocol)
            reused = marks.get("cfproxy_used", False)
            marks["cfproxy_used"] = True
            exchange = _Exchange(connection, self._idle_s)
            try:
                return await exchange.run(call, head)
            except UpstreamUnreachable as error:
                if not reused or not (error.unsent or self._may_repeat(call)):
                    raise
            finally:
                if exchange.answer is None:
                    await exchange.abandon()
            if call.body is not None:
                call.body.restart()

    @staticmethod
    def _may_repeat(call: Call) -> bool:
        return call.method in IDEMPOTENT and (call.body is None or call.body.replayable)

    async def _connect(self) -> Connection:
        host = self._url.host
        with _mapped_connect_errors(f"{host}:{self._url.port}"):
            return await self._connector.connect(self._address, [], self._timeout)


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

    async def read(self) -> bytes:
        """Return the next piece of the body, b"" after the last one."""
        try:
            return await self._payload.readany()
        except TimeoutError:
            raise UpstreamTimeout("the API stopped sending in the middle of its answer") from None
        except (aiohttp.ClientError, HttpProcessingError, OSError):
            raise UpstreamProtocol("the API's answer broke off in the middle") from None

    async def aclose(self) -> None:
        """Keep the connection if the exchange is complete, cut it otherwise."""
        if self._payload.is_eof() and self._payload.exception() is None and self._exchange.fully_sent:
            self._exchange.connection.release()
        else:
            await self._exchange.abandon()


class _Exchange:
    """One request and its answer on one connection."""

    def __init__(self, connection: Connection, idle_s: float) -> None:
        assert connection.protocol is not None  # noqa: S101 - the connector gives open connections
        self.connection = connection
        self.answer: HttpAnswer | None = None
        self._protocol: ResponseHandler = connection.protocol
        self._idle_s = idle_s
        self._upload: asyncio.Task[None] | None = None

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
        await self._stop_upload()
        self.connection.close()

    async def _read_head(self) -> tuple[RawResponseMessage, StreamReader]:
        try:
            while True:
                message, payload = await self._protocol.read()
                # RFC 9110 §15.2: any number of interim answers may precede the final one.
                if not 100 <= message.code <= 199:
                    return message, payload
                if message.code == 101:
                    raise UpstreamProtocol("the API switched protocols although nobody asked")
        except TimeoutError:
            raise UpstreamTimeout("the API did not answer within timeouts.idle") from None
        except HttpProcessingError:
            raise UpstreamProtocol("the API's answer is not well-formed HTTP") from None
        except (aiohttp.ClientError, OSError):
            self._raise_what_the_upload_met()
            raise UpstreamUnreachable("the API closed the connection before it answered") from None

    def _raise_what_the_upload_met(self) -> None:
        if self._upload is not None and self._upload.done() and not self._upload.cancelled():
            error = self._upload.exception()
            if error is not None:
                raise error

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
        if not upload.cancelled() and upload.exception() is not None:
            # Wake whoever waits for the answer: the request can't be completed.
            self.connection.close()

    async def _stop_upload(self) -> None:
        if self._upload is not None and not self._upload.done():
            self._upload.cancel()
            await asyncio.wait({self._upload})


@contextlib.contextmanager
def _mapped_connect_errors(where: str) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError):
        raise UpstreamTls(
            f"{where} has no certificate that this machine trusts; run: cfproxy doctor, or set tls.ca_file",
            unsent=True,
        ) from None
    except TimeoutError:
        raise UpstreamTimeout(
            f"connecting to {where} took longer than timeouts.connect", unsent=True
        ) from None
    except (aiohttp.ClientError, OSError):
        raise UpstreamUnreachable(f"no connection to {where}; run: cfproxy doctor", unsent=True) from None
