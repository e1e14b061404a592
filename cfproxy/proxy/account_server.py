"""The proxy listener of one account: its connections, and what serves the requests that come on them.

Owns: which settings and forwarder are in use, what is in flight, draining and the end.
Must not know: what is done with a request (`exchange.py`), how requests are read (`connection.py`).

There is no router and no reserved path: every target belongs to the upstream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from structlog.typing import FilteringBoundLogger

from cfproxy.errors import NotAllowed, UpstreamError
from cfproxy.http1.write_batch import WriteBatch
from cfproxy.proxy.admission import Exchanging, ProxySettings
from cfproxy.proxy.exchange import Exchange
from cfproxy.proxy.request_id import request_id_factory
from cfproxy.proxy.retry import Forwarder
from cfproxy.secret import Secret
from cfproxy.server.connection import ClientConnection
from cfproxy.server.connection_limits import Connections
from cfproxy.server.hangup import HangupWatch
from cfproxy.server.request import Request

CUT_S = 0.1  # for a request that is on its way on a kept connection


class AccountServer:
    """Handles the requests of one account's listener (see `admission.Server`).

    Args:
        settings: see there.
        forwarder: sends what was accepted.
        log: where the request lines go.
        others: those of all accounts by name, for keys that lead to one of them; may change at any time.
    """

    def __init__(
        self,
        settings: ProxySettings,
        forwarder: Forwarder,
        log: FilteringBoundLogger,
        others: Mapping[str, AccountServer] = MappingProxyType({}),
    ) -> None:
        self.settings = settings
        self.forwarder = forwarder
        self._others = others
        self.log = log.bind(account=settings.account)
        self.make_id = request_id_factory()
        self._watch: HangupWatch | None = None
        self._write_batch = WriteBatch()
        loop = asyncio.get_running_loop()
        self.connections = Connections(
            settings.connection_limits, loop.time, loop.call_later, self._note_ended
        )
        self.port: int | None = None  # set once it listens; None for a Unix socket
        self.draining = False
        self.refusing = False
        self.failure: UpstreamError | None = None  # why the API did not answer the latest request
        self._exchanges: set[Exchanging] = set()
        self._earlier: list[tuple[set[Exchanging], asyncio.Event]] = []  # what began before a switch
        self.idle = asyncio.Event()  # set when nothing is in flight any more after `drain`

    @property
    def in_flight(self) -> int:
        """How many requests are being worked at."""
        return len(self._exchanges)

    def switch(self, settings: ProxySettings, forwarder: Forwarder) -> asyncio.Event:
        """Serve requests that come from now on with these, whatever connection they come on.

        Returns:
            what is set once every earlier request has its answer.
        """
        self.settings, self.forwarder = settings, forwarder
        self.connections.limits = settings.connection_limits
        ended = asyncio.Event()
        if self._exchanges:
            self._earlier.append((set(self._exchanges), ended))
        else:
            ended.set()
        return ended

    def drain(self, *, refuse: bool = True) -> None:
        """Let each connection end with the request it is at, and refuse requests that still come."""
        self.draining = True
        self.refusing = refuse
        if not self.in_flight:
            self.idle.set()

    async def aclose(self) -> None:
        """Cut what is still open."""
        self.drain(refuse=self.refusing)
        # Among them may be some on connections of another listener, whose callers' keys lead here.
        busy = {connection for connection in self.connections if connection.busy}
        await _cut(busy | {exchange.connection for exchange in self._exchanges})
        if self.connections:
            await asyncio.sleep(CUT_S)
        await _cut(list(self.connections))
        self.connections.aclose()
        if self._watch is not None:
            self._watch.aclose()

    # --- connections ----------------------------------------------------------------------

    def build_connection(self) -> ClientConnection:
        """Return the protocol of one more connection, for `loop.create_server`."""
        if self._watch is None:
            self._watch = HangupWatch()
        return ClientConnection(
            self.handle, self.connections, self.settings.limits, self._watch, self._write_batch
        )

    def _note_ended(self, causes: dict[str, int]) -> None:
        self.log.warning("connections.ended", **causes)

    # --- requests -------------------------------------------------------------------------

    def handle(self, request: Request) -> Exchange:
        """Return the handler of a request."""
        return Exchange(self, request)

    def led_to_by(self, key: Secret) -> AccountServer:
        """Return who serves the account that an access key leads to (see `admission.Server`)."""
        account = self.settings.rules.bound.get(key)
        if account is None:
            return self
        if account not in self._others:
            raise NotAllowed("the account that this access key leads to is not served here")
        return self._others[account]

    def key_digests(self) -> frozenset[bytes]:
        """Return the digests of all accounts' access keys."""
        servers = (self, *self._others.values())
        return frozenset(digest for server in servers for digest in server.settings.rules.key_digests)

    def begun(self, exchange: Exchanging) -> None:
        """Take note of a request that is worked at."""
        self._exchanges.add(exchange)

    def ended(self, exchange: Exchanging) -> None:
        """Take note of its end."""
        self._exchanges.discard(exchange)
        if self.draining and not self._exchanges:
            self.idle.set()
        if self._earlier:
            for exchanges, ended in self._earlier:
                exchanges.discard(exchange)
                if not exchanges:
                    ended.set()
            self._earlier = [entry for entry in self._earlier if entry[0]]


async def _cut(connections: Iterable[ClientConnection]) -> None:
    tasks = [task for connection in connections if (task := connection.cancel()) is not None]
    if tasks:
        await asyncio.wait(tasks)
