"""The server of one account: its settings, its client connections, and the requests in flight.

There is no router and no reserved path: every target belongs to the upstream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from structlog.typing import FilteringBoundLogger

from cfproxy.errors import NotAllowed, UpstreamError
from cfproxy.proxy.access import AccessRules
from cfproxy.proxy.request_body import Copies
from cfproxy.proxy.request_headers import Origin, request_id_factory
from cfproxy.proxy.retry import Forwarder
from cfproxy.secret import Secret
from cfproxy.server.connection import ClientConnection
from cfproxy.server.connection_limits import ConnectionLimits, Connections, cancel_all
from cfproxy.server.local_names import LocalNames
from cfproxy.server.request import Limits, Request, RequestHandler

CUT_S = 0.1  # for a request that is already on its way on an idle connection


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """The settings of one account's server.

    Args:
        account: name of the account whose token is added.
        origin: the upstream.
        rules: who may call.
        body_memory_bytes, body_max_bytes: limits of the copy of a request body that is kept for a retry.
        idle_s: seconds that a client may leave a response unread.
        limits: of one client connection.
        connection_limits: of all client connections together.
        server_timing: whether responses carry `Server-Timing`.
        record: called after every request (see `RequestStats.record`).
        keeps_line: returns whether to write the log line of the next ordinary request.
        sends_id: whether the upstream and the client get the request ID as `X-Request-Id`.
        copies: see `ReplayableBody`.
    """

    account: str
    origin: Origin
    rules: AccessRules
    body_memory_bytes: int
    body_max_bytes: int
    idle_s: float
    limits: Limits
    connection_limits: ConnectionLimits
    server_timing: bool
    record: Callable[..., None]
    keeps_line: Callable[[], bool] = lambda: True
    sends_id: bool = False
    copies: Copies = field(default_factory=Copies)

    def replay_limit(self, content_length: int | None) -> int:
        """Return how many bytes of a request body are kept for a retry.

        A body that is known to exceed the limit is kept in memory only, for a 401 that comes early.
        """
        limit = self.body_max_bytes
        if content_length is not None and content_length > limit:
            return min(limit, self.body_memory_bytes)
        return limit


class AccountServer:
    """Serves one account's listener, and requests of other listeners whose access key selects the account.

    Args:
        settings: used for requests from now on; see `switch`.
        forwarder: sends the requests that were admitted.
        log: for request log lines.
        others: the servers of all accounts by name; may change at any time.
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
        self.make_request_id = request_id_factory()
        self.connections = Connections(
            settings.connection_limits, asyncio.get_running_loop(), self._log_ended
        )
        self.local_names = LocalNames()
        self.port: int | None = None  # of the listener; None for a Unix socket, or until it listens
        self.generation = object()  # of the settings of all accounts; see `accounts_changed`
        self.draining = False
        self.refusing = False
        self.failure: UpstreamError | None = None  # why the latest request got no response
        # Connections with a request in flight, of which each has one at a time; and those among them whose
        # request started before a `switch`.
        self._busy: set[ClientConnection] = set()
        self._switched: list[tuple[set[ClientConnection], asyncio.Event]] = []
        self.idle = asyncio.Event()  # set when nothing is in flight after `drain`

    @property
    def in_flight(self) -> int:
        """The number of requests in flight."""
        return len(self._busy)

    def switch(self, settings: ProxySettings, forwarder: Forwarder) -> asyncio.Event:
        """Use other settings for requests from now on, also on open connections.

        Returns:
            an event that is set once every earlier request has ended.
        """
        self.settings, self.forwarder = settings, forwarder
        self.accounts_changed()
        self.connections.limits = settings.connection_limits
        ended = asyncio.Event()
        if self._busy:
            self._switched.append((set(self._busy), ended))
        else:
            ended.set()
        return ended

    def accounts_changed(self) -> None:
        """Discard cached admissions, which may depend on the settings of the changed accounts."""
        self.generation = object()

    def drain(self, *, refuse: bool = True) -> None:
        """Close each connection after its current request; with `refuse`, refuse further requests."""
        self.draining = True
        self.refusing = refuse
        if not self._busy:
            self.idle.set()

    async def aclose(self) -> None:
        """Cut all requests and connections."""
        self.drain(refuse=self.refusing)
        # `_busy` includes connections of other listeners.
        await cancel_all(self._busy | {connection for connection in self.connections if connection.busy})
        if self.connections:
            await asyncio.sleep(CUT_S)
        await cancel_all(list(self.connections))
        self.connections.aclose()

    # --- connections ----------------------------------------------------------------------

    def build_connection(self, handle: Callable[[Request], RequestHandler]) -> ClientConnection:
        """Return the protocol of a new client connection.

        Args:
            handle: returns the handler of a request.
        """
        return ClientConnection(handle, self.connections, self.settings.limits)

    def _log_ended(self, causes: dict[str, int]) -> None:
        self.log.warning("connections.ended", **causes)

    # --- requests -------------------------------------------------------------------------

    def account_for(self, key: Secret) -> AccountServer:
        """Return the server of the account that an access key selects.

        Raises:
            NotAllowed: that account is not served by this process.
        """
        account = self.settings.rules.bound.get(key)
        if account is None:
            return self
        if account not in self._others:
            raise NotAllowed("the account of this access key is not served here")
        return self._others[account]

    def key_digests(self) -> frozenset[bytes]:
        """Return the digests of all accounts' access keys."""
        servers = (self, *self._others.values())
        return frozenset(digest for server in servers for digest in server.settings.rules.key_digests)

    def request_started(self, connection: ClientConnection) -> None:
        """Note that a request on `connection` is in flight; a second call does nothing."""
        self._busy.add(connection)

    def request_finished(self, connection: ClientConnection) -> None:
        """Note that the request on `connection` has ended."""
        self._busy.discard(connection)
        if self.draining and not self._busy:
            self.idle.set()
        if self._switched:
            for busy, ended in self._switched:
                busy.discard(connection)
                if not busy:
                    ended.set()
            self._switched = [entry for entry in self._switched if entry[0]]
