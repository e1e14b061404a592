"""The connection pool for the API.

Invariants:
1. The most recently used connection is used first, so that the others become old and are closed.
2. An idle connection is closed before the API would close it; one that the API has closed is never used.
3. There are never more than `limit` connections. Requests that wait for one are served in order.
4. Every new connection resolves the host name again, so that changed addresses are noticed. Simultaneous
   look-ups share one result.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Iterator

from yarl import URL

from cfproxy.errors import UpstreamError, UpstreamTimeout, UpstreamTls, UpstreamUnreachable
from cfproxy.hosts import Addresses, NotLocal, connect, look_up
from cfproxy.http1.stream import IdleTimeout
from cfproxy.http1.turns import Backlogs, WriteBatch
from cfproxy.upstream.connection import UpstreamConnection

# Below the idle timeout of common load balancers (60 s), so that we close first.
KEEPALIVE_S = 50.0
# Connections opened at once. Each TLS handshake holds about 40 KB, and a thousand at once finish no sooner.
OPENING_MAX = 128


class Pool:
    """The connections to one origin.

    Args:
        url: `scheme://host[:port]`; a path is ignored.
        tls: for https; None uses the system's certificate authorities.
        connect_s: timeout for DNS, TCP and TLS together, and for waiting when the limit is reached.
        limit: maximum number of connections.
    """

    def __init__(self, url: str, *, tls: ssl.SSLContext | None, connect_s: float, limit: int) -> None:
        origin = URL(url).origin()
        assert origin.raw_host is not None  # noqa: S101 - an origin has one
        assert origin.port is not None  # noqa: S101 - http and https have defaults
        self._host, self._port = origin.raw_host, origin.port
        self._tls: ssl.SSLContext | None = None
        if origin.scheme == "https":
            self._tls = tls if tls is not None else ssl.create_default_context()
        self.connect_s = connect_s
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._write_batch, self._backlogs = WriteBatch(), Backlogs()
        self._all: set[UpstreamConnection] = set()
        self._idle: deque[UpstreamConnection] = deque()  # most recently used last
        self._opening = 0
        self._openers = asyncio.Semaphore(OPENING_MAX)
        # Each gets a connection, or None as permission to open one, which `_opening` then includes.
        self._waiting: deque[asyncio.Future[UpstreamConnection | None]] = deque()
        self._resolving: asyncio.Task[Addresses] | None = None
        self._expiry = IdleTimeout(self._close_expired)
        self._warming: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._all)

    async def acquire(self) -> UpstreamConnection:
        """Return an idle connection or a new one, waiting if the limit is reached.

        Raises:
            UpstreamUnreachable, UpstreamTls, UpstreamTimeout: all `unsent`.
        """
        while True:
            if self.has_idle():
                return self.acquire_idle()
            if self._below_limit():
                self._opening += 1
                return await self._open()
            connection = await self._wait()
            if connection is None:
                return await self._open()
            if connection.usable:
                return connection

    def has_idle(self) -> bool:
        """Return whether `acquire` would not have to wait."""
        while self._idle:
            if self._idle[-1].usable:
                return True
            self._idle.pop()
        return False

    def acquire_idle(self) -> UpstreamConnection:
        """Return an idle connection; only if `has_idle`."""
        return self._idle.pop()

    def release(self, connection: UpstreamConnection) -> None:
        """End the exchange on a connection; keep the connection if it can be reused, close it if not."""
        if connection.finish_exchange():
            self._add_idle(connection)
        else:
            connection.abort()  # `close` would wait until the API has read the rest of the request

    def warm(self, count: int) -> None:
        """Open connections in the background until there are `count`; ignore failures.

        The first request that needs a connection will report them.
        """
        if self._warming is None:
            self._warming = self._loop.create_task(self._warm(count))

    async def _warm(self, count: int) -> None:
        while len(self._all) + self._opening < min(count, self._limit):
            self._opening += 1
            try:
                if (connection := await self._open()).usable:
                    self._add_idle(connection)
            except UpstreamError:
                break
        self._warming = None

    async def aclose(self) -> None:
        """Close every connection."""
        self._expiry.aclose()
        if self._warming is not None:
            self._warming.cancel()
        for connection in list(self._all):
            connection.abort()
        if self._resolving is not None:
            self._resolving.cancel()

    # --- waiting --------------------------------------------------------------------------

    def _below_limit(self) -> bool:
        return len(self._all) + self._opening < self._limit

    async def _wait(self) -> UpstreamConnection | None:
        waiter: asyncio.Future[UpstreamConnection | None] = self._loop.create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self.connect_s):
                return await waiter
        except TimeoutError:
            self._pass_on(waiter)
            raise UpstreamTimeout(
                "no connection to the API became free within timeouts.connect; raise limits.upstream",
                unsent=True,
            ) from None
        except asyncio.CancelledError:
            self._pass_on(waiter)
            raise

    def _next_waiter(self) -> asyncio.Future[UpstreamConnection | None] | None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                return waiter
        return None

    def _pass_on(self, waiter: asyncio.Future[UpstreamConnection | None]) -> None:
        """Pass on what a cancelled waiter received to the next one."""
        if not waiter.done() or waiter.cancelled():
            return
        connection = waiter.result()
        if connection is None:
            self._opening -= 1
            self._permit_opening()
        elif connection.usable:
            self._add_idle(connection)

    def _add_idle(self, connection: UpstreamConnection) -> None:
        """Give a reusable connection to the first waiter, or keep it."""
        connection.reused = True
        if self._waiting and (waiter := self._next_waiter()) is not None:
            waiter.set_result(connection)
            return
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        if len(self._idle) == 1:
            self._expiry.start(KEEPALIVE_S)

    def _permit_opening(self) -> None:
        if self._below_limit() and (waiter := self._next_waiter()) is not None:
            self._opening += 1
            waiter.set_result(None)

    def _forget(self, connection: UpstreamConnection) -> None:
        self._all.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)
        self._permit_opening()

    def _close_expired(self) -> None:
        now = self._loop.time()
        while self._idle and self._idle[0].idle_since + KEEPALIVE_S <= now + 0.001:
            self._idle.popleft().abort()
        if self._idle:
            self._expiry.start(self._idle[0].idle_since + KEEPALIVE_S - now)

    # --- opening --------------------------------------------------------------------------

    async def _open(self) -> UpstreamConnection:
        """Open a connection, which `_opening` already includes."""
        try:
            with _mapped_errors(f"{self._host}:{self._port}"):
                async with asyncio.timeout(self.connect_s), self._openers:
                    connection = await self._connect()
        except BaseException:
            self._opening -= 1
            self._permit_opening()
            raise
        self._opening -= 1
        if connection.lost:
            self._permit_opening()
        else:
            self._all.add(connection)
        return connection

    async def _connect(self) -> UpstreamConnection:
        if self._resolving is None:
            self._resolving = asyncio.create_task(self._resolve())
            self._resolving.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Shielded, because other requests may wait for the same look-up.
        addresses = await asyncio.shield(self._resolving)
        _, connection = await connect(
            lambda: UpstreamConnection(self._forget, self._write_batch, self._backlogs),
            self._host,
            addresses,
            self._tls,
        )
        return connection

    async def _resolve(self) -> Addresses:
        try:
            return await look_up(self._host, self._port)
        finally:
            self._resolving = None


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
    except NotLocal:
        raise UpstreamUnreachable(
            f"{where} is not this machine, and no other gets the token without TLS; use https", unsent=True
        ) from None
    except OSError:
        raise UpstreamUnreachable(
            f"no connection to {where}; check the network and the upstream setting", unsent=True
        ) from None
