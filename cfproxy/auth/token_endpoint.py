"""The only HTTP client for the authorization server: one form out, one small answer back.

Owns: the connection to the token and revocation endpoints, its limits, and the mapping of every
exception of that connection.
Must not know: stores, retries, what a reply means (`oauth.py`).
Invariants: a form goes to the configured URL once, never to a redirect's or a proxy's; it is never sent
in clear except to loopback; an error says whether the form can have left (`sent`), and carries neither
form nor answer: not in its text, not in its chain, not in its frames' locals.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from cfproxy import __version__
from cfproxy.auth import oauth2 as oauth
from cfproxy.auth.interfaces import TokenReply
from cfproxy.errors import CfproxyError, Misconfigured, TokenEndpointUnavailable, without_traceback
from cfproxy.hosts import is_loopback, render_authority
from cfproxy.secret import Secret

REPLY_MAX_BYTES = 64 * 1024
STEPS = 10  # in which the time for connecting passes
_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # nothing to unpack, so nothing that unpacks to gigabytes
    "Content-Type": "application/x-www-form-urlencoded",
    "User-Agent": f"cfproxy/{__version__}",
}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    content_type: str
    retry_after: str
    body: bytes = field(repr=False)


@dataclass(slots=True)
class _Progress:
    """How far a request came; `sent` turns true just before its first byte is written."""

    may_send: Callable[[], bool] | None = None
    sent: bool = False


class _Unreadable(Exception):
    """There is no answer that can be used; the argument is a fixed text."""


class HttpTokenEndpoint:
    """`ports.TokenEndpoint` over HTTP, for one app.

    Args:
        client_id: sent as a form field, as is `client_secret`; None omits that field.
        client_secret: see `client_id`.
        token_url: https, or http on loopback.
        revocation_url: likewise; None: the server can't revoke.
        scope: what to ask for.
        timeout_s: for a whole request, connecting and reading included.
        connect_timeout_s: for name, connection and TLS.
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
        self._app = (client_id, client_secret, scope)
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        if ssl_context is None and self._token_url.scheme == "https":
            ssl_context = ssl.create_default_context()  # aiohttp's own may be without authorities (`cli.py`)
        self._ssl: ssl.SSLContext | bool = True if ssl_context is None else ssl_context

    async def refresh(self, refresh_token: Secret, may_send: Callable[[], bool] | None = None) -> TokenReply:
        """Spend `refresh_token`; see `ports.TokenEndpoint`."""
        return _given(await self._ask_token(oauth.refresh_form(*self._app, refresh_token), may_send))

    async def client_credentials(self) -> TokenReply:
        """Ask in the app's own name; see `ports.TokenEndpoint`."""
        return _given(await self._ask_token(oauth.client_credentials_form(*self._app)))

    async def exchange(self, code: Secret, redirect_uri: str, verifier: Secret | None) -> TokenReply:
        """Spend an authorization code; see `ports.TokenEndpoint`."""
        return _given(
            await self._ask_token(
                oauth.exchange_form(*self._app, code=code, redirect_uri=redirect_uri, verifier=verifier)
            )
        )

    async def probe(self) -> None:
        """Find out whether the endpoint answers and knows the app, spending nothing.

        Raises:
            Misconfigured, TokenEndpointUnavailable
        """
        form = oauth.probe_form(*self._app)
        _given(await self._ask(self._token_url, "token", form, oauth.parse_probe))

    async def revoke(self, token: Secret, kind: str) -> bool:
        """Revoke `token`; see `ports.TokenEndpoint`."""
        if self._revocation_url is None:
            return False
        return _given(
            await self._ask(
                self._revocation_url,
                "revocation",
                oauth.revoke_form(*self._app[:2], token, kind),
                oauth.parse_revocation,
            )
        )

    # Below here errors are returned, not raised: frames that hold a form stay out of tracebacks.

    async def _ask_token(
        self, form: dict[str, str], may_send: Callable[[], bool] | None = None
    ) -> TokenReply | CfproxyError:
        return await self._ask(self._token_url, "token", form, oauth.parse_reply, may_send)

    async def _ask(
        self,
        url: URL,
        name: str,
        form: dict[str, str],
        parse: Callable[..., _T],
        may_send: Callable[[], bool] | None = None,
    ) -> _T | CfproxyError:
        port = None if url.is_default_port() else url.port
        where = f"the {name} endpoint at {render_authority(url.raw_host or '', port)}"
        answer = await self._send(url, where, form, _Progress(may_send))
        if isinstance(answer, CfproxyError):
            return answer
        try:
            return parse(
                answer.status,
                answer.content_type,
                answer.body,
                retry_after=answer.retry_after,
                where=where,
            )
        except CfproxyError as error:
            return without_traceback(error)

    async def _send(
        self, url: URL, where: str, form: dict[str, str], progress: _Progress
    ) -> _Answer | TokenEndpointUnavailable:
        posting = asyncio.create_task(self._post(url, form, progress))
        try:
            await self._wait(posting, progress)
            return await posting
        except (aiohttp.ClientError, OSError, ValueError, _Unreadable) as error:
            what = _explain(error, sent=progress.sent)
            # Only an answer that came can be unreadable, and only where something was sent.
            answered = progress.sent and isinstance(error, _Unreadable)
        finally:
            await _end(posting)
        return TokenEndpointUnavailable(f"{where} {what}", sent=progress.sent, answered=answered)

    async def _wait(self, posting: asyncio.Task[_Answer], progress: _Progress) -> None:
        """Wait until `posting` is over.

        In steps, of which each counts once, however long it took: when this process stood still, or its
        machine did, the answer may lie in the socket, and what was presented for it is spent.

        Raises:
            TimeoutError: the time for connecting, or for all of it, is over.
        """
        connect_s = min(self._connect_timeout_s, self._timeout_s)
        step_s = connect_s / STEPS
        waited_s = 0.0
        while not posting.done():
            if waited_s >= (self._timeout_s if progress.sent else connect_s):
                raise TimeoutError
            await asyncio.wait({posting}, timeout=step_s)
            waited_s += step_s

    async def _post(self, url: URL, form: dict[str, str], progress: _Progress) -> _Answer:
        # A session for each request: token requests are rare, and nothing can linger between two of them:
        # no cookie, and no pooled connection that may be stale and make a request's fate unclear.
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._ssl, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                auto_decompress=False,
                trust_env=False,
                trace_configs=[_trace(progress)],
            ) as session,
            session.post(
                url,
                # A secret that is no text is the server's to refuse; a UnicodeError would hold it.
                data=urlencode(form, errors="surrogatepass").encode("ascii"),
                headers=_HEADERS,
                allow_redirects=False,
            ) as response,
        ):
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise _Unreadable("compressed its answer although it was asked not to")
            return _Answer(
                status=response.status,
                content_type=response.headers.get("Content-Type", ""),
                retry_after=response.headers.get("Retry-After", ""),
                body=await _read(response),
            )


async def _end(posting: asyncio.Task[_Answer]) -> None:
    """Return when it is over, whatever came of it."""
    posting.cancel()
    await asyncio.wait({posting})
    if not posting.cancelled():
        posting.exception()  # or asyncio would tell of it, with its frames


def _given(outcome: _T | CfproxyError) -> _T:
    if isinstance(outcome, CfproxyError):
        raise outcome
    return outcome


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
    if url.scheme == "http" and not is_loopback(host):
        raise Misconfigured(f"{key} must be https, or the client secret would travel in clear")
    return url


def _trace(progress: _Progress) -> aiohttp.TraceConfig:
    """Return the hook that aiohttp calls once the connection stands, before it writes anything."""

    async def on_request_headers_sent(*_: object) -> None:
        if progress.may_send is not None and not progress.may_send():
            raise _Unreadable("was not asked: another cfproxy has taken this refresh over")
        progress.sent = True

    config = aiohttp.TraceConfig()
    config.on_request_headers_sent.append(on_request_headers_sent)
    return config


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > REPLY_MAX_BYTES:
            response.close()
            raise _Unreadable(f"answered with more than {REPLY_MAX_BYTES // 1024} KiB: check the URL")
    return bytes(body)


def _explain(error: Exception, *, sent: bool) -> str:
    if isinstance(error, _Unreadable):
        return str(error)
    if sent:
        if isinstance(error, TimeoutError):
            return "gave no whole answer in time"
        if isinstance(error, aiohttp.ClientResponseError):
            return "did not answer in HTTP: check the URL in the configuration"
        return "broke off the connection before its answer was whole"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "cannot be found: its name does not resolve; check the network and the URL"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "shows a certificate that is not trusted; check the clock, tls.ca_file and who intercepts TLS"
    if isinstance(error, aiohttp.ClientSSLError):
        return "does not complete the TLS handshake; check the URL and who intercepts TLS"
    if isinstance(error, TimeoutError):
        return "accepted no connection in time; check the network"
    return "cannot be reached; check the network and the URL"
