"""The HTTP client for the token and revocation endpoints: sends a form, reads a small reply.

It writes and reads HTTP itself, because a library's client throws a response away that it finds odd (see
`token_response.py`), and retries or follows what must be sent once.

Invariants:
1. A form goes once, to the configured URL: no redirect and no proxy is followed. It is never sent unencrypted
   except to loopback.
2. An error says whether the form may have been sent (`sent`). It holds neither form nor reply: not in its
   text, not in its chain, not in the locals of its frames.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar
from urllib.parse import urlencode

from yarl import URL

from cfproxy import __version__
from cfproxy.auth import oauth2
from cfproxy.auth.models import TokenReply
from cfproxy.auth.token_response import RESPONSE_MAX_BYTES, EndpointResponse, Unreadable, read_response
from cfproxy.errors import CfproxyError, Misconfigured, TokenEndpointUnavailable, without_traceback
from cfproxy.hosts import NotLocal, connect, look_up, may_be_loopback
from cfproxy.secret import Secret

STEPS = 10  # of waiting, while connecting
# Each request has a connection of its own. Token requests are rare, and nothing may linger between two of
# them: no cookie, and no stale connection that leaves the fate of a request unclear.
_HEAD = (
    "POST {target} HTTP/1.1\r\n"
    "Host: {host}\r\n"
    "Accept: application/json\r\n"
    "Accept-Encoding: identity\r\n"
    "Connection: close\r\n"
    "Content-Type: application/x-www-form-urlencoded\r\n"
    "Content-Length: {length}\r\n"
    f"User-Agent: cfproxy/{__version__}\r\n\r\n"
)

PAUSES = 9  # reading a response that comes in tiny pieces takes a tenth of the time at most

_T = TypeVar("_T")


@dataclass(slots=True)
class _Request:
    """One form and its progress; `sent` becomes true just before its first byte is written."""

    url: URL
    name: str  # of the endpoint
    fields: oauth2.Fields
    may_send: Callable[[], bool] | None = None
    sent: bool = False

    @property
    def where(self) -> str:
        return f"the {self.name} endpoint at {self.url.host_port_subcomponent}"


class _Reception(asyncio.Protocol):
    """Receives one response.

    Attributes:
        done: its result is True once the response is complete, False if the connection ended before.
        response: as far as it has come.
        unreadable: why it can't be read.
    """

    def __init__(self) -> None:
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.response: EndpointResponse | None = None
        self.unreadable: Unreadable | None = None
        self._data = bytearray()
        self._read_bytes = 0  # of it
        self._pause: asyncio.TimerHandle | None = None  # before it is read again

    def data_received(self, data: bytes) -> None:
        if not self.done.done():
            self._data += data
            if self._pause is None or len(self._data) > RESPONSE_MAX_BYTES:
                self._read_next()

    def _read_next(self) -> None:
        """Read what has come, if that is more than before; each time it is read from the start."""
        self._pause = None
        if self._read_bytes < len(self._data):
            self._read_bytes = len(self._data)
            loop = asyncio.get_running_loop()
            started_at = loop.time()
            self.read(ended=False)
            self._pause = loop.call_later(PAUSES * (loop.time() - started_at), self._read_next)

    def eof_received(self) -> None:
        self.read(ended=True)

    def connection_lost(self, _: Exception | None) -> None:
        self.read(ended=True)

    def read(self, *, ended: bool) -> None:
        """Read what has come; after `ended` no more is accepted."""
        if self.done.done():
            return
        try:
            self.response = read_response(bytes(self._data), ended=ended)
        except Unreadable as error:
            self.unreadable = without_traceback(error)
        if ended or self.response is not None or self.unreadable is not None:
            self.done.set_result(self.response is not None and self.response.complete)


class HttpTokenEndpoint:
    """A `TokenEndpoint` over HTTP, for one app.

    Args:
        client_id: sent as a form field.
        client_secret: likewise; None omits the field.
        token_url: https, or http on loopback.
        revocation_url: likewise; None if the server can't revoke.
        scope: what to request.
        timeout_s: for a whole request, including connecting and reading.
        connect_timeout_s: for DNS, TCP and TLS.
        ssl_context: verifies the server; None uses the system's certificate authorities.

    Raises:
        Misconfigured: a URL to which secrets must not be sent.
    """

    def __init__(
        self,
        *,
        client_id: str,
        client_secret: Secret | None,
        token_url: str,
        revocation_url: str | None,
        scope: str,
        timeout_s: float,
        connect_timeout_s: float,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._token_url = _checked("token_url", token_url)
        self._revocation_url = None if revocation_url is None else _checked("revocation_url", revocation_url)
        self._client_id = client_id
        self._client_secret = client_secret
        self._scope = scope
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._ssl = ssl_context

    async def refresh(self, refresh_token: Secret, may_send: Callable[[], bool] | None = None) -> TokenReply:
        """Send `refresh_token` and return its successor (RFC 6749 §6)."""
        fields: oauth2.Fields = {
            "grant_type": "refresh_token",
            "refresh_token": refresh_token,
            "scope": self._scope,
        }
        parse = partial(oauth2.parse_reply, refreshing=True)
        return await self._parsed(parse, _Request(self._token_url, "token", fields, may_send))

    async def client_credentials(self) -> TokenReply:
        """Request a token in the app's own name (RFC 6749 §4.4.2)."""
        return await self._request_token(grant_type="client_credentials", scope=self._scope)

    async def exchange(self, code: Secret, redirect_uri: str, verifier: Secret | None) -> TokenReply:
        """Exchange an authorization code (RFC 6749 §4.1.3, RFC 7636 §4.5)."""
        return await self._request_token(
            grant_type="authorization_code",
            code=code,
            redirect_uri=redirect_uri,
            scope=self._scope,
            code_verifier=verifier,
        )

    async def probe(self) -> None:
        """Check whether the endpoint responds and knows the app, without using anything up.

        Raises:
            Misconfigured, TokenEndpointUnavailable
        """
        fields: oauth2.Fields = {"grant_type": oauth2.PROBE_GRANT}
        await self._parsed(oauth2.parse_probe, _Request(self._token_url, "token", fields))

    async def revoke(self, token: Secret, kind: str) -> bool:
        """Revoke `token`; `kind` is its token_type_hint (RFC 7009 §2.1)."""
        if self._revocation_url is None:
            return False
        fields: oauth2.Fields = {"token": token, "token_type_hint": kind}
        return await self._parsed(
            oauth2.parse_revocation, _Request(self._revocation_url, "revocation", fields)
        )

    async def _request_token(self, **fields: str | Secret | None) -> TokenReply:
        return await self._parsed(oauth2.parse_reply, _Request(self._token_url, "token", fields))

    async def _parsed(self, parse: Callable[[EndpointResponse], _T], request: _Request) -> _T:
        # Errors are raised here only. The methods below return them, which keeps their frames, with the form
        # and the response, out of the traceback.
        outcome = await self._outcome(parse, request)
        if isinstance(outcome, CfproxyError):
            raise outcome
        return outcome

    async def _outcome(self, parse: Callable[[EndpointResponse], _T], request: _Request) -> _T | CfproxyError:
        response = await self._send(request)
        if isinstance(response, EndpointResponse) and response.refuses_client and await self._read_secret():
            request.sent = False  # a refused app has used nothing up (RFC 6749 §5.2)
            response = await self._send(request)
        if isinstance(response, CfproxyError):
            return response
        try:
            return parse(response)
        except CfproxyError as error:
            return without_traceback(error)

    async def _read_secret(self) -> bool:
        """Return whether the source of the client secret has another one now, and use that."""
        before = self._client_secret
        if before is not None:
            self._client_secret = await asyncio.to_thread(before.reread)
        return self._client_secret != before

    async def _send(self, request: _Request) -> EndpointResponse | TokenEndpointUnavailable:
        reception = _Reception()
        posting = asyncio.create_task(self._post(request, reception))
        what = ""
        try:
            await self._wait(posting, request)
            if not await posting:
                what = "closed the connection before its response was complete"
        except (OSError, ValueError, NotLocal, Unreadable) as error:
            what = _describe_failure(error, sent=request.sent)
        finally:
            await _end(posting)
        reception.read(ended=True)
        if request.sent and (came := reception.response) is not None:
            response = replace(came, where=request.where)
            if came.complete or response.parse_object():
                return response
        if reception.unreadable is not None:
            what = str(reception.unreadable)
        return TokenEndpointUnavailable(f"{request.where} {what}", sent=request.sent)

    async def _wait(self, posting: asyncio.Task[bool], request: _Request) -> None:
        """Wait until `posting` has ended.

        The time is counted in steps, each of them once, however long it took. After a suspend the response
        may be in the socket already, and the refresh token that was sent is used up: it must still be read.

        Raises:
            TimeoutError: the time for connecting, or for the whole request, is over.
        """
        connect_s = min(self._connect_timeout_s, self._timeout_s)
        step_s = connect_s / STEPS
        waited_s = 0.0
        while not posting.done():
            if waited_s >= (self._timeout_s if request.sent else connect_s):
                raise TimeoutError
            await asyncio.wait({posting}, timeout=step_s)
            waited_s += step_s

    async def _post(self, request: _Request, reception: _Reception) -> bool:
        """Send the form; return whether a complete response came."""
        url, host = request.url, request.url.raw_host or ""
        form = oauth2.build_form(self._client_id, self._client_secret, request.fields)
        # Not strict: a UnicodeError would hold the secret. The server refuses it anyway.
        body = urlencode(form, errors="surrogatepass").encode("ascii")
        head = _HEAD.format(target=url.raw_path_qs, host=url.host_port_subcomponent, length=len(body))
        tls = None if url.scheme == "http" else self._ssl or ssl.create_default_context()
        transport, _ = await connect(lambda: reception, host, await look_up(host, url.port), tls)
        try:
            if request.may_send is not None and not request.may_send():
                raise Unreadable("was not called: another cfproxy has taken over this refresh")
            request.sent = True
            transport.write(head.encode("ascii") + body)
            return await asyncio.shield(reception.done)
        finally:
            transport.abort()


async def _end(posting: asyncio.Task[bool]) -> None:
    """Cancel the task and wait for its end."""
    posting.cancel()
    await asyncio.wait({posting})
    if not posting.cancelled():
        posting.exception()  # retrieved, or asyncio would log it with its frames


def _checked(key: str, text: str) -> URL:
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    host = url.raw_host
    if not host or url.scheme not in {"http", "https"}:
        raise Misconfigured(f"{key} is not an absolute https URL; correct it in the configuration")
    if url.raw_user is not None or url.raw_password is not None or url.raw_fragment:
        raise Misconfigured(f"{key} must have neither a user nor a fragment; correct it in the configuration")
    if url.scheme == "http" and not may_be_loopback(host):
        raise Misconfigured(f"{key} must be https, or the client secret would be sent in the clear")
    return url


def _describe_failure(error: Exception, *, sent: bool) -> str:
    if isinstance(error, Unreadable):
        return str(error)
    if isinstance(error, NotLocal):
        return "is not on this machine, and no other gets a form without TLS: use https"
    if sent:
        if isinstance(error, TimeoutError):
            return "sent no complete response in time"
        return "closed the connection before its response was complete"
    if isinstance(error, socket.gaierror | UnicodeError):
        return "cannot be found: its name does not resolve; check the network and the URL"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "shows a certificate that is not trusted; check the clock, tls.ca_file and what intercepts TLS"
    if isinstance(error, ssl.SSLError):
        return "does not complete the TLS handshake; check the URL and what intercepts TLS"
    if isinstance(error, TimeoutError):
        return "accepted no connection in time; check the network"
    return "cannot be reached; check the network and the URL"
