"""One account of a running proxy: the parts that serve it, and how a reload replaces them.

Invariants:
1. Neither the store nor the token source of the same app is replaced: they hold the newest token.
2. Building does not change the parts in use, so a reload can be abandoned at any point.
3. A reload rebuilds only the parts whose settings changed; if none did, the account stays the same object.
4. A request is served to its end by the parts that it began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from structlog.typing import FilteringBoundLogger

from cfproxy.auth.expiry import WarnOnce
from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.login import LoginPlan
from cfproxy.auth.models import App
from cfproxy.auth.token_endpoint import HttpTokenEndpoint
from cfproxy.auth.token_source import TokenSource
from cfproxy.clock import Clock
from cfproxy.config import Account
from cfproxy.pacing.queue import FairQueue
from cfproxy.proxy.account_server import AccountServer, ProxySettings
from cfproxy.proxy.exchange import build_connection
from cfproxy.proxy.retry import Forwarder
from cfproxy.runtime.factory import (
    ServerOptions,
    build_app,
    build_endpoint,
    build_forwarder,
    build_login_plan,
    build_origin,
    build_proxy_settings,
    build_rules,
    build_store,
    build_token_source,
    build_upstream,
    read_ca_file,
)
from cfproxy.secret import Secret
from cfproxy.server.listener import ListeningSocket
from cfproxy.upstream.client import UpstreamClient

EXPIRY_LOOK_S = 60.0

# The settings that a part depends on. A token source and its endpoint also depend on the app.
_OF_ENDPOINT = attrgetter("client_secret", "timeouts.token_s", "timeouts.connect_s")
_OF_UPSTREAM = attrgetter("upstream", "limits.upstream")
_OF_FORWARDER = attrgetter("retry")
_OF_ORIGIN = attrgetter("upstream")
_OF_RULES = attrgetter("access")


@dataclass(frozen=True, eq=False)
class RunningAccount:
    """One account of a running proxy.

    Args:
        settings: its configuration.
        app: its OAuth app.
        store: keeps its login.
        endpoint: its token endpoint.
        token_source: its access token.
        ca_file: content of `tls.ca_file`.
        queue: the queue of its upstream, which other accounts may share.
        upstream: client of its upstream.
        forwarder: sends its requests.
        options: see there.
        proxy_settings: the settings of `server` once this is in use.
        socket: where its server listens; None if it is reachable only by access key, through other listeners.
        server: handles its requests.
        warnings: which warnings of the login's end were given.
    """

    settings: Account
    app: App
    store: TokenStore
    endpoint: HttpTokenEndpoint
    token_source: TokenSource
    ca_file: bytes | None
    queue: FairQueue
    upstream: UpstreamClient
    forwarder: Forwarder
    options: ServerOptions
    proxy_settings: ProxySettings
    socket: ListeningSocket | None
    server: AccountServer
    warnings: WarnOnce

    @property
    def name(self) -> str:
        """The account's name."""
        return self.settings.name

    @property
    def redirect_uri(self) -> str | None:
        """Where its login sends the browser; None without a login in a browser."""
        return None if self.app.grant == "client_credentials" else self.settings.redirect_uri

    @property
    def login_plan(self) -> LoginPlan:
        """What a login needs."""
        return build_login_plan(self.settings, self.store)

    @property
    def access_keys(self) -> tuple[Secret, ...]:
        """The access keys that select this account."""
        return tuple(key.secret for key in self.settings.access.keys if key.account in {None, self.name})

    @property
    def listen(self) -> str:
        """The address of its listener, or `off`."""
        return "off" if self.socket is None else str(self.socket.address)

    @property
    def url(self) -> str:
        """Where clients call; the path of a Unix socket as `unix:PATH`."""
        return self.listen if self.listen.startswith("unix:") else f"http://{self.listen}"

    def activate(self, before: RunningAccount | None) -> Coroutine[Any, Any, None] | None:
        """Serve every request that comes from now on; nothing here fails or waits.

        Returns:
            what closes the parts of `before` that are not used any more, once its last request has its
            response; None if all parts stay.
        """
        timeouts = self.settings.timeouts
        if self.socket is not None:
            self.socket.set_allowed_users(self.proxy_settings.rules.uids)
            if before is None or self.server is not before.server:
                self.server.port = self.socket.port
                self.socket.serve(functools.partial(build_connection, self.server))
        if before is None:
            return None
        if self.token_source is before.token_source and self.endpoint is not before.endpoint:
            self.token_source.use_endpoint(self.endpoint, timeouts.token_s)
        if self.upstream is before.upstream and timeouts != before.settings.timeouts:
            self.upstream.set_timeouts(timeouts.connect_s, timeouts.idle_s)
        answered = before.server.switch(self.proxy_settings, self.forwarder)
        if self.token_source is before.token_source and self.upstream is before.upstream:
            return None
        return _close_after(answered, before, self)


def build_account(
    settings: Account,
    before: RunningAccount | None,
    socket: ListeningSocket | None,
    queue: FairQueue,
    options: ServerOptions,
    log: FilteringBoundLogger,
    *,
    servers: Mapping[str, AccountServer],
    store: TokenStore | None = None,
) -> RunningAccount:
    """Return what serves an account from now on, with the parts of `before` that stay as they are.

    Args:
        settings: its configuration.
        before: what serves it now; returned itself if nothing has changed.
        socket: where its server is to listen.
        queue: its upstream's.
        options: see there.
        log: where events go.
        servers: those of all accounts, by name; may change.
        store: used instead of the configured one.

    Raises:
        ListenError: `tls.ca_file` holds no certificate.
    """
    app, ca_file = build_app(settings), read_ca_file(settings)

    def same(keys: Callable[[Account], Any]) -> bool:
        return before is not None and bool(keys(before.settings) == keys(settings))

    same_app = before is not None and before.app == app
    same_ca = before is not None and before.ca_file == ca_file
    if before and same_ca and (before.settings, before.socket, before.options) == (settings, socket, options):
        return before
    # A store on disk or in Redis is one app's; one in memory is all that has the account's logins.
    if before and (before.app.app_id == app.app_id or before.store.location == "memory"):
        store = before.store
    store = store or build_store(settings, log)
    same_endpoint = same_app and same_ca and same(_OF_ENDPOINT)
    endpoint = before.endpoint if before and same_endpoint else build_endpoint(settings)
    token_source = (
        before.token_source if before and same_app else build_token_source(settings, store, endpoint, log)
    )
    same_upstream = same_ca and same(_OF_UPSTREAM)
    upstream = before.upstream if before and same_upstream else build_upstream(settings)
    same_forwarder = same_app and same_upstream and same(_OF_FORWARDER)
    forwarder = (
        before.forwarder
        if before and same_forwarder
        else build_forwarder(settings, token_source, queue, upstream)
    )
    # The pseudonym in `Via` lasts as long as the upstream, so that requests that loop are still recognised.
    origin = before.proxy_settings.origin if before and same(_OF_ORIGIN) else build_origin(settings.upstream)
    rules = before.proxy_settings.rules if before and same(_OF_RULES) else build_rules(settings)
    proxy_settings = build_proxy_settings(settings, origin, rules, options)
    stays = before is not None and before.socket is socket
    server = before.server if before and stays else AccountServer(proxy_settings, forwarder, log, servers)
    return RunningAccount(
        settings=settings,
        app=app,
        store=store,
        endpoint=endpoint,
        token_source=token_source,
        ca_file=ca_file,
        queue=queue,
        upstream=upstream,
        forwarder=forwarder,
        options=options,
        proxy_settings=proxy_settings,
        socket=socket,
        server=server,
        warnings=before.warnings if before else WarnOnce(),
    )


async def close_account(account: RunningAccount, other: RunningAccount | None) -> None:
    """Close the parts of `account` that `other` does not use."""
    async with contextlib.AsyncExitStack() as stack:
        if other is None or account.store is not other.store:
            stack.push_async_callback(account.store.aclose)
        if other is None or account.upstream is not other.upstream:
            stack.push_async_callback(account.upstream.aclose)
        if other is None or account.token_source is not other.token_source:
            stack.push_async_callback(account.token_source.aclose)


async def _close_after(answered: asyncio.Event, before: RunningAccount, after: RunningAccount) -> None:
    await answered.wait()
    await close_account(before, after)


async def drain_server(server: AccountServer, limit_s: float, *, refuse: bool) -> int:
    """Close a server's connections as their requests end, at the latest after `limit_s` seconds.

    Args:
        server: takes no new connections any more.
        limit_s: requests that take longer are cut.
        refuse: whether to refuse requests that still come on its connections.

    Returns:
        the number of requests that were cut.
    """
    server.drain(refuse=refuse)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while server.in_flight:
                server.idle.clear()
                await server.idle.wait()
    left = server.in_flight
    await server.aclose()
    return left


async def remove_account(account: RunningAccount, log: FilteringBoundLogger) -> None:
    """Drain and close an account that the configuration no longer has."""
    await drain_server(account.server, account.settings.timeouts.drain_s, refuse=True)
    await close_account(account, None)
    log.info("proxy.removed", account=account.name)


async def watch_logins(accounts: Sequence[RunningAccount], clock: Clock, log: FilteringBoundLogger) -> None:
    """Warn of each login that is about to end, once at each step, until cancelled."""
    while True:
        for account in accounts:
            await account.token_source.check_store()
            warning = account.warnings.due(account.token_source.state().login, account.app, clock.time())
            if warning is not None:
                log.warning("login.expiry_neared", account=account.app.account, reason=warning.message)
        await clock.sleep(EXPIRY_LOOK_S)
