"""An account server between raw clients and a raw origin, with fakes for tokens and pacing.

When `proxied` ends, it fails if there was an unhandled exception in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, cast

import structlog
from structlog.testing import LogCapture

from cfproxy.auth.models import Token
from cfproxy.auth.token_source import TokenSource
from cfproxy.http1.stream import BodyStream
from cfproxy.pacing.queue import FairQueue
from cfproxy.proxy.access import AccessRules
from cfproxy.proxy.account_server import AccountServer, ProxySettings
from cfproxy.proxy.exchange import build_connection
from cfproxy.proxy.request_body import Copies, ReplayableBody
from cfproxy.proxy.request_headers import Origin as UpstreamOrigin
from cfproxy.proxy.retry import Forwarder
from cfproxy.secret import Secret
from cfproxy.server.connection_limits import ConnectionLimits
from cfproxy.server.request import Limits
from cfproxy.upstream.client import UpstreamClient
from tests.support.origin import LIMIT_BYTES, Message, Origin, Script, Wire, serving

LIMIT_S = 30.0  # only a hang takes that long


def a_token(number: int) -> Token:
    return Token(Secret(f"token-{number}"), obtained_at=0.0, lifetime_s=3600.0)


class FakeSource:
    """A token source whose tokens are numbered.

    Args:
        journal: records the calls.
    """

    def __init__(self, journal: list[str] | None = None) -> None:
        self.journal: list[str] = [] if journal is None else journal
        self.number = 1
        self.token = a_token(1)
        self.error: Exception | None = None
        self.replace_error: BaseException | None = None
        self.stuck = False

    def renew(self) -> Token:
        self.number += 1
        self.token = a_token(self.number)
        return self.token

    def current(self) -> Token | None:
        if self.error is not None:
            return None
        self.journal.append("get")
        return self.token

    async def get(self) -> Token:
        self.journal.append("get")
        if self.error is not None:
            raise self.error
        return self.token

    async def replace(self, rejected: Token, request: Hashable) -> Token:
        self.journal.append(f"replace {rejected.value.reveal()}")
        if self.replace_error is not None:
            raise self.replace_error
        return rejected if self.stuck else self.renew()

    def reject(self, rejected: Token, request: Hashable) -> None:
        self.journal.append(f"reject {rejected.value.reveal()}")

    def distrust(self, rejected: Token, request: Hashable) -> None:
        self.journal.append(f"distrust {rejected.value.reveal()}")


class FakePacer:
    """Stands in for a `FairQueue`; grants every slot while `gate` is set.

    Args:
        journal: records the calls.
    """

    def __init__(self, journal: list[str] | None = None) -> None:
        self.journal: list[str] = [] if journal is None else journal
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0
        self.flows: list[Hashable] = []
        self.error: Exception | None = None
        self.at_once = True

    def try_acquire(self) -> bool:
        free = self.at_once and self.gate.is_set() and self.error is None
        if free:
            self.journal.append("slot")
        return free

    async def acquire(self, flow: Hashable, waited_s: float = 0.0) -> float:
        self.journal.append("slot")
        self.flows.append(flow)
        if self.error is not None:
            raise self.error
        self.waiting += 1
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        return 0.25

    def throttle(self, pause_s: float, *, step_down: bool) -> None:
        self.journal.append(f"back off {pause_s:g}{' slower' if step_down else ''}")


class FakeBodyStream:
    """A client's body that arrives in these pieces; each has to be waited for.

    Args:
        pieces: what `read` returns, in order.
        then: called instead of reporting the end.
    """

    complete = False

    def __init__(self, *pieces: bytes, then: Callable[[], Awaitable[bytes]] | None = None) -> None:
        self.trailers: list[tuple[bytes, bytes]] = []
        self._pieces = [*pieces]
        self._then = then

    async def read(self) -> bytes:
        if self._pieces:
            return self._pieces.pop(0)
        return b"" if self._then is None else await self._then()


def a_body(
    *pieces: bytes,
    then: Callable[[], Awaitable[bytes]] | None = None,
    memory_bytes: int = 1 << 20,
    max_bytes: int = 1 << 20,
    copies: Copies | None = None,
) -> ReplayableBody:
    """Return a request body that arrives in these pieces (see `FakeBodyStream`)."""
    stream = cast("BodyStream", FakeBodyStream(*pieces, then=then))
    return ReplayableBody(stream, memory_bytes, max_bytes, copies or Copies())


class Client(Wire):
    """The client's side of a connection to the listener."""

    host = b""

    def compose(self, line: bytes, *headers: bytes, body: bytes = b"") -> bytes:
        return b"\r\n".join([line, b"Host: " + self.host, *headers, b"", b""]) + body

    async def ask(self, line: bytes, *headers: bytes, body: bytes = b"") -> Message:
        """Send a request with the right Host and return its final response."""
        await self.send(self.compose(line, *headers, body=body))
        return await self.read_answer(line.split(b" ")[0])


@dataclass
class Proxied:
    """The servers and fakes of one test."""

    origin: Origin
    listener: AccountServer
    source: FakeSource
    pacer: FakePacer
    port: int
    events: list[Any]
    counted: list[tuple[str, int]]
    crashes: list[dict[str, Any]] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    async def client(self, *, receive_bytes: int | None = None) -> Client:
        """Open a connection; `receive_bytes` limits what the kernel buffers while nothing is read."""
        sock = socket.socket()
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        limit = LIMIT_BYTES if receive_bytes is None else receive_bytes
        reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
        client = Client(reader, writer)
        client.host = b"localhost:%d" % self.port
        self.clients.append(client)
        return client

    async def ask(self, line: bytes, *headers: bytes, body: bytes = b"") -> Message:
        """Send one request on a new connection."""
        return await (await self.client()).ask(line, *headers, body=body)


@contextlib.asynccontextmanager
async def proxied(
    script: Script,
    *,
    rules: AccessRules | None = None,
    base_path: bytes = b"",
    retry: bool = True,
    memory_bytes: int = 256 * 1024,
    max_bytes: int = 64 * 1024 * 1024,
    idle_s: float = 20.0,
    server_timing: bool = False,
    sends_id: bool = False,
    keeps_line: Callable[[], bool] = lambda: True,
    connection_limits: ConnectionLimits | None = None,
    upstream_url: str | None = None,
    tls: ssl.SSLContext | None = None,
    warm: bool = False,
    connections: int = 1000,
    limits: Limits | None = None,
) -> AsyncIterator[Proxied]:
    """Run an origin with `script` and a listener in front of it, or of `upstream_url` instead.

    With `warm` a connection to the origin is there already, so that a request can leave at once.
    """
    loop = asyncio.get_running_loop()
    capture = LogCapture()
    log = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    counted: list[tuple[str, int]] = []
    async with asyncio.timeout(LIMIT_S), serving(script) as origin:
        url = upstream_url or origin.url
        scheme, _, authority = url.partition("://")
        source, pacer = FakeSource(), FakePacer()
        upstream = UpstreamClient(url, tls=tls, connect_s=5.0, idle_s=idle_s, limit=connections)
        settings = ProxySettings(
            account="default",
            origin=UpstreamOrigin(scheme, authority.encode(), base_path, via=b"cfproxy-test"),
            rules=rules or AccessRules(),
            body_memory_bytes=memory_bytes,
            body_max_bytes=max_bytes,
            idle_s=idle_s,
            limits=limits or Limits(idle_s=idle_s),
            connection_limits=connection_limits or ConnectionLimits(),
            server_timing=server_timing,
            sends_id=sends_id,
            keeps_line=keeps_line,
            record=lambda method, _path, status, *_: counted.append((method, status)),
        )
        forwarder = Forwarder(
            cast("TokenSource", source),
            cast("FairQueue", pacer),
            upstream,
            retry_unauthorized=retry,
            retry_too_many=retry,
        )
        listener = AccountServer(settings, forwarder, log)
        server = await loop.create_server(functools.partial(build_connection, listener), "127.0.0.1", 0)
        listener.port = server.sockets[0].getsockname()[1]
        world = Proxied(origin, listener, source, pacer, listener.port, capture.entries, counted)
        loop.set_exception_handler(lambda _, context: world.crashes.append(context))
        if warm:
            upstream.warm()
            while not upstream.pool.has_idle():
                await asyncio.sleep(0)
        try:
            yield world
        finally:
            for client in world.clients:
                client.abort()
            await until_none_left(listener)
            server.close()
            await listener.aclose()
            await upstream.aclose()
    assert not world.crashes


async def until_none_left(listener: AccountServer) -> None:
    """Wait until no request is in flight."""
    while listener.in_flight:
        await asyncio.sleep(0)
