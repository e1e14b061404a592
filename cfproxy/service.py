"""The composition root: from settings to a running proxy, and back to rest.

Owns: what is put together from what, the order of starting and draining.
Invariant: whatever was opened is closed in reverse order, whichever step fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from cfproxy.access import AccessRules
from cfproxy.broker import Broker, BrokerState
from cfproxy.building import (
    SystemClock,
    build_app,
    build_broker,
    build_origin,
    build_store,
    build_tls,
)
from cfproxy.config import Account, Settings, TcpAddress, UnixAddress
from cfproxy.errors import ListenError
from cfproxy.forward import Forwarder
from cfproxy.metrics import Metrics
from cfproxy.pacing import Pace
from cfproxy.ports import TokenStore
from cfproxy.shaper import Shaper
from cfproxy.sockets import bound_unix_socket
from cfproxy.token import App
from cfproxy.upstream import HttpUpstream
from cfproxy.web.admin import Admin, AdminRules
from cfproxy.web.proxy import ProxyListener, ProxySettings
from cfproxy.web.server import build_connection

BACKLOG = 4096


@dataclass
class RunningAccount:
    """One account of a running proxy (see `web.admin.Account`)."""

    settings: Account
    app: App
    broker: Broker
    listener: ProxyListener
    store_location: str
    listen: str = ""
    servers: list[asyncio.Server] = field(default_factory=list)

    @property
    def upstream_url(self) -> str:
        """Where requests go."""
        return self.settings.upstream

    @property
    def url(self) -> str:
        """Where clients call; a Unix socket's path for one."""
        return self.listen if self.listen.startswith("unix:") else f"http://{self.listen}"

    async def look(self) -> BrokerState:
        """Return the broker's state."""
        return await self.broker.look()


class Service:
    """A running proxy, used as an async context manager.

    Args:
        settings: the whole configuration.
        names: accounts to serve; all when empty.
        log: where events go.
        stores: stores to use instead of the configured ones, by account.
    """

    def __init__(
        self,
        settings: Settings,
        names: tuple[str, ...],
        log: FilteringBoundLogger,
        stores: dict[str, TokenStore] | None = None,
    ) -> None:
        self._settings = settings
        self._chosen = [a for name, a in settings.accounts.items() if not names or name in names]
        self._log = log
        self._stores = stores or {}
        self._shapers: dict[str, Shaper] = {}
        self._stack = contextlib.AsyncExitStack()
        self._metrics = Metrics()
        self.accounts: list[RunningAccount] = []
        self.admin: Admin | None = None
        self.admin_url: str | None = None
        self.stopped = asyncio.Event()

    async def __aenter__(self) -> Self:
        async with self._stack:
            for account in self._chosen:
                self.accounts.append(await self._start_account(account))
            await self._start_admin()
            self._stack = self._stack.pop_all()
        if self.admin is not None:
            self.admin.started = True
        for running in self.accounts:
            self._log.info(
                "proxy.started",
                account=running.app.account,
                listen=running.listen,
                upstream=running.upstream_url,
            )
            if (error := running.broker.state().error) is not None:
                self._log.warning("account.not_ready", account=running.app.account, reason=error.message)
        if self.admin_url is not None:
            self._log.info("admin.started", listen=self.admin_url.removeprefix("http://"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._drain()
        await self._stack.aclose()
        self._log.info("proxy.stopped")

    def stop(self) -> None:
        """Ask for the end; whoever waits on `stopped` ends the context."""
        self.stopped.set()

    async def _start_account(self, account: Account) -> RunningAccount:
        store = self._stores.get(account.name) or build_store(account)
        self._stack.push_async_callback(store.aclose)
        broker = build_broker(account, store, self._log)
        self._stack.push_async_callback(broker.aclose)
        self._metrics.accounts[account.name] = broker.state
        upstream = HttpUpstream(
            account.upstream,
            tls=build_tls(account),
            connect_s=account.timeouts.connect_s,
            idle_s=account.timeouts.idle_s,
        )
        self._stack.push_async_callback(upstream.aclose)
        forwarder = Forwarder(
            broker,
            self._shaper(account),
            upstream,
            retry_unauthorized=account.retry.unauthorized,
            retry_too_many=account.retry.too_many_requests,
        )
        listen = account.listen
        any_retry = account.retry.unauthorized or account.retry.too_many_requests
        settings = ProxySettings(
            account=account.name,
            origin=build_origin(account.upstream),
            rules=AccessRules(
                hosts=account.access.hosts,
                origins=account.access.origins,
                keys=tuple(key.secret for key in account.access.keys),
                methods=account.access.methods,
                paths=account.access.paths,
            ),
            body_memory_bytes=account.retry.body_memory_bytes,
            body_max_bytes=account.retry.body_max_bytes if any_retry else 0,
            idle_s=account.timeouts.idle_s,
            server_timing=self._settings.log.server_timing,
            on_request=functools.partial(self._metrics.count_request, account.name),
        )
        listener = ProxyListener(settings, forwarder, self._log)
        running = RunningAccount(account, build_app(account), broker, listener, store.location)
        running.listen = "off"
        if listen is not None:
            running.listen, listener.port = await self._listen(
                listen, listener.build_server(), running.servers
            )
        # Last: a proxy that finds its port taken must not have spent a one-time refresh token.
        await broker.start()
        return running

    def _shaper(self, account: Account) -> Shaper:
        # The API counts per IP address: accounts that share an upstream share its limit.
        origin = account.upstream_origin
        if origin not in self._shapers:
            pacing = account.pacing
            shaper = Shaper(Pace(pacing.rate, pacing.per_s), SystemClock(), pacing.queue, pacing.max_wait_s)
            shaper.on_back_off = lambda pause_s, stepped: self._log.warning(
                "pacing.backed_off",
                upstream=origin,
                pause_s=round(pause_s, 1),
                stepped=stepped,
                rate=shaper.state().rate,
            )
            self._shapers[origin] = shaper
            self._metrics.pacing[origin] = shaper.state
        return self._shapers[origin]

    async def _start_admin(self) -> None:
        address = self._settings.admin
        if address is None:
            return
        self.admin = Admin(list(self.accounts), self._metrics, self._admin_rules(address), self.stop)
        runner = web.AppRunner(self.admin.build_app(), access_log=None, handle_signals=False)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        assert runner.server is not None  # noqa: S101 - set up a line above
        servers: list[asyncio.Server] = []
        name, port = await self._listen(address, functools.partial(build_connection, runner.server), servers)
        self.admin.port = port or 0
        self.admin_url = f"http://{name}"

    def _admin_rules(self, address: TcpAddress) -> AdminRules:
        """Return who may ask and act: all accounts are concerned, so only keys that all of them share."""
        all_access = [running.settings.access for running in self.accounts]
        everywhere = [{key.secret for key in access.keys if key.account is None} for access in all_access]
        keys = tuple(set.intersection(*everywhere))
        keyed = any(access.keys for access in all_access)
        if keyed and not keys and not address.is_loopback:
            raise ListenError(
                f"admin {address} is reachable from other machines and no key is shared by all accounts; "
                "put one into access.keys at the top level, or set admin to a loopback address"
            )
        hosts = tuple(host for access in all_access for host in access.hosts)
        return AdminRules(
            looking=AccessRules(hosts=hosts, keys=() if address.is_loopback else keys),
            keyed=keyed,
            keys=keys,
        )

    async def _listen(
        self,
        address: TcpAddress | UnixAddress,
        protocols: Callable[[], asyncio.BaseProtocol],
        servers: list[asyncio.Server],
    ) -> tuple[str, int | None]:
        loop = asyncio.get_running_loop()
        try:
            if isinstance(address, UnixAddress):
                bound = self._stack.enter_context(bound_unix_socket(address.path))
                server = await loop.create_unix_server(protocols, sock=bound, backlog=BACKLOG)
            else:
                server = await loop.create_server(protocols, address.host, address.port, backlog=BACKLOG)
        except OSError as error:
            # asyncio wraps the system's words in its own, which repeat the address.
            reason = os.strerror(error.errno) if error.errno else error.strerror or "it cannot be used"
            raise ListenError(
                f"cannot listen on {address}: {reason}; stop what uses it, or set another address"
            ) from None
        servers.append(server)
        self._stack.callback(server.close)
        if isinstance(address, UnixAddress):
            return str(address), None
        port: int = server.sockets[0].getsockname()[1]
        return str(TcpAddress(address.host, port)), port

    async def _drain(self) -> None:
        """Stop accepting, then let requests in flight finish within `timeouts.drain`."""
        if self.admin is not None:
            self.admin.draining = True
        for running in self.accounts:
            for server in running.servers:
                server.close()
            running.listener.drain()
        limit_s = max(running.settings.timeouts.drain_s for running in self.accounts)
        try:
            async with asyncio.timeout(limit_s):
                for running in self.accounts:
                    await running.listener.idle.wait()
        except TimeoutError:
            left = sum(running.listener.in_flight for running in self.accounts)
            self._log.warning("proxy.drain_cut", requests=left)
        for running in self.accounts:
            await running.listener.aclose()
