"""The connections to the API: opened when they are needed, kept while they may be, never more than allowed.

Owns: DNS, TCP and TLS of new connections; which kept one comes next; how long one is kept.
Must not know: what is sent on them.

Invariants:
1. The latest used connection is used first, so that the others grow old and are closed.
2. A kept connection is closed before the upstream would close it, and one that the upstream closed is
   never given out.
3. At most `limit` connections exist. Who waits for one is served in the order of asking.
4. Every new connection asks DNS, so that a changed address is followed; those who ask at the same time
   share the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Iterator

import aiohappyeyeballs
from yarl import URL

from cfproxy.errors import UpstreamError, UpstreamTimeout, UpstreamTls, UpstreamUnreachable
from cfproxy.http1.timeout import IdleTimeout
from cfproxy.http1.write_batch import WriteBatch
from cfproxy.upstream.connection import UpstreamConnection

# Below the idle time of the usual load balancers (60 s), so that it is us who close first.
KEEPALIVE_S = 50.0
# Connections that are being opened at once: a TLS handshake holds some 40 KB until it is done, and a thousand
# of them would end no sooner.
OPENING_MAX = 128
# RFC 8305 §8: the head start of the first address before the next one is tried.
HEAD_START_S = 0.25


class Pool:
    """The connections to one origin.

    Args:
        url: `scheme://host[:port]`; a path in it is not used.
        tls: for https; None uses the system's certificate authorities.
        connect_s: seconds for DNS, TCP and TLS together, and for waiting where the limit is reached.
        idle_s: seconds without a byte after which an answer is given up.
        limit: how many there may be.
    """

    def __init__(
        self, url: str, *, tls: ssl.SSLContext | None, connect_s: float, idle_s: float, limit: int
    ) -> None:
        origin = URL(url).origin()
        assert origin.raw_host is not None  # noqa: S101 - an origin has one
        assert origin.port is not None  # noqa: S101 - http and https have defaults
        self._host, self._port = origin.raw_host, origin.port
        self._numeric = _numeric_address(self._host, self._port)
        self._tls: ssl.SSLContext | None = None
        if origin.scheme == "https":
            self._tls = tls if tls is not None else ssl.create_default_context()
        self._connect_s = connect_s
        self._idle_s = idle_s
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._write_batch = WriteBatch()
        self._all: set[UpstreamConnection] = set()
        self._idle: deque[UpstreamConnection] = deque()  # the latest used at the end
        self._opening = 0
        self._openers = asyncio.Semaphore(OPENING_MAX)
        # Each gets a connection, or None: the place for a new one, counted in `_opening` already.
        self._waiting: deque[asyncio.Future[UpstreamConnection | None]] = deque()
        self._resolving: asyncio.Task[list[aiohappyeyeballs.AddrInfoType]] | None = None
        self._ageing = IdleTimeout(self._close_old)
        self._warming: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._all)

    def set_timeouts(self, connect_s: float, idle_s: float) -> None:
        """Use other timeouts from now on; a connection in use gets them when it is given back."""
        self._connect_s, self._idle_s = connect_s, idle_s
        for connection in self._idle:
            connection.idle_s = idle_s

    async def take(self) -> UpstreamConnection:
        """Return a kept connection or a new one.

        Raises:
            UpstreamUnreachable, UpstreamTls, UpstreamTimeout: `unsent`, since nothing can have been.
        """
        while True:
            if self.ready:
                return self.take_ready()
            if self._has_place():
                self._opening += 1
                return await self._open()
            given = await self._wait()
            if given is None:
                return await self._open()
            if given.usable:
                return given

    @property
    def ready(self) -> bool:
        """Whether `take` would return at once."""
        while self._idle:
            if self._idle[-1].usable:
                return True
            self._idle.pop()
        return False

    def take_ready(self) -> UpstreamConnection:
        """Return a kept connection; only while `ready`."""
        return self._idle.pop()

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection whose exchange is over, or close it if there can be no other one."""
        if connection.finish():
            self._keep(connection)
        else:
            connection.abort()  # a close would first wait until the peer has read what is still to be written

    def warm(self, count: int) -> None:
        """Open connections in the background, ahead of the first requests, until there are `count`.

        A failure is silent: nobody has asked for anything yet.
        """
        if self._warming is None:
            self._warming = self._loop.create_task(self._warm(count))

    async def _warm(self, count: int) -> None:
        while len(self._all) + self._opening < min(count, self._limit):
            self._opening += 1
            try:
                if (connection := await self._open()).usable:
                    self._keep(connection)
            except UpstreamError:
                break
        self._warming = None

    async def aclose(self) -> None:
        """Close every connection."""
        self._ageing.aclose()
        if self._warming is not None:
            self._warming.cancel()
        for connection in list(self._all):
            connection.abort()
        if self._resolving is not None:
            self._resolving.cancel()

    # --- places ---------------------------------------------------------------------------

    def _has_place(self) -> bool:
        return len(self._all) + self._opening < self._limit

    async def _wait(self) -> UpstreamConnection | None:
        waiter: asyncio.Future[UpstreamConnection | None] = self._loop.create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self._connect_s):
                return await waiter
        except TimeoutError:
            self._take_back(waiter)
            raise UpstreamTimeout(
                "no connection to the API became free within timeouts.connect; raise limits.upstream",
                unsent=True,
            ) from None
        except asyncio.CancelledError:
            self._take_back(waiter)
            raise

    def _next_waiter(self) -> asyncio.Future[UpstreamConnection | None] | None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    def _take_back(self, waiter: asyncio.Future[UpstreamConnection | None]) -> None:
        """Take back what somebody got who was gone by then."""
        if not waiter.done() or waiter.cancelled():
            return
        given = waiter.result()
        if given is not None:
            if given.usable:
                self._keep(given)
        else:
            self._opening -= 1
            self._offer_place()

    def _keep(self, connection: UpstreamConnection) -> None:
        """Keep a usable connection, or give it to who waits for one."""
        connection.kept = True
        connection.idle_s = self._idle_s
        if self._waiting and (waiter := self._next_waiter()) is not None:
            waiter.set_result(connection)
            return
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        if len(self._idle) == 1:
            self._ageing.start(KEEPALIVE_S)

    def _offer_place(self) -> None:
        if self._has_place() and (waiter := self._next_waiter()) is not None:
            self._opening += 1
            waiter.set_result(None)

    def _forget(self, connection: UpstreamConnection) -> None:
        self._all.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        self._offer_place()

    def _close_old(self) -> None:
        now = self._loop.time()
        while self._idle and self._idle[0].idle_since + KEEPALIVE_S <= now + 0.001:
            self._idle.popleft().abort()
        if self._idle:
            self._ageing.start(self._idle[0].idle_since + KEEPALIVE_S - now)

    # --- opening --------------------------------------------------------------------------

    async def _open(self) -> UpstreamConnection:
        """Open a connection at the place that is counted in `_opening`."""
        try:
            with _mapped_errors(f"{self._host}:{self._port}"):
                async with asyncio.timeout(self._connect_s), self._openers:
                    connection = await self._connect()
        except BaseException:
            self._opening -= 1
            self._offer_place()
            raise
        self._opening -= 1
        if connection.lost:
            self._offer_place()
        else:
            self._all.add(connection)
        return connection

    async def _connect(self) -> UpstreamConnection:
        sock = await aiohappyeyeballs.start_connection(
            await self._resolve(), happy_eyeballs_delay=HEAD_START_S
        )
        _, connection = await self._loop.create_connection(
            lambda: UpstreamConnection(self._idle_s, self._forget, self._write_batch),
            sock=sock,
            ssl=self._tls,
            server_hostname=None if self._tls is None else self._host,
        )
        return connection

    async def _resolve(self) -> list[aiohappyeyeballs.AddrInfoType]:
        if self._numeric:
            return self._numeric
        if self._resolving is None:
            self._resolving = asyncio.create_task(self._look_up())
            self._resolving.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Shielded: whoever gives up takes the answer from nobody else.
        return await asyncio.shield(self._resolving)

    async def _look_up(self) -> list[aiohappyeyeballs.AddrInfoType]:
        try:
            return list(await self._loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM))
        finally:
            self._resolving = None


def _numeric_address(host: str, port: int) -> list[aiohappyeyeballs.AddrInfoType]:
    """Return the address that `host` is already, nothing for a name."""
    try:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except socket.gaierror:
        return []


@contextlib.contextmanager
def _mapped_errors(where: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError:
        raise UpstreamTls(
            f"{where} has no certificate that this machine trusts; if TLS is intercepted set tls.ca_file",
            unsent=True,
        ) from None
    except TimeoutError:
        raise UpstreamTimeout(
            f"connecting to {where} took longer than timeouts.connect", unsent=True
        ) from None
    except OSError:
        raise UpstreamUnreachable(
            f"no connection to {where}; check the network and the upstream setting", unsent=True
        ) from None
