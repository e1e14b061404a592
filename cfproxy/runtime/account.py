"""The accounts of a running proxy: how what serves one is replaced while it serves, and how it ends.

Owns: the exchange of an account's parts, the end of those that were exchanged, the warnings of dying logins,
and who may use the admin listener, which concerns all accounts.
Must not know: how settings are read, how listening sockets are opened.
Invariant: a request is served to its end with the parts that it began with.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from structlog.typing import FilteringBoundLogger

from cfproxy.admin.access import AdminRules
from cfproxy.auth.expiry import WarnOnce
from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.login import LoginPlan
from cfproxy.auth.models import App, TokenStatus
from cfproxy.auth.token_source import TokenSource
from cfproxy.clock import Clock
from cfproxy.config import Account, TcpAddress, UnixAddress
from cfproxy.config.conflicts import is_exposed
from cfproxy.errors import CfproxyError, ListenError
from cfproxy.proxy.access import AccessRules
from cfproxy.proxy.account_server import AccountServer
from cfproxy.runtime.factory import build_login_plan
from cfproxy.runtime.parts import Parts, give_up
from cfproxy.secret import Secret
from cfproxy.server.listener import ListeningSocket

EXPIRY_LOOK_S = 60.0
EXPOSED_SOCKET = (
    "the socket that was handed over for {} at {} can be reached from other machines, and whoever reaches "
    "it acts as you; set access.keys, or access.allow_remote: true if that is meant"
)


@dataclass
class RunningAccount:
    """One account of a running proxy (see `web.admin.Account`)."""

    parts: Parts
    door: ListeningSocket | None  # None: it is reached by a key at another account's listener only
    listener: AccountServer
    warnings: WarnOnce = field(default_factory=WarnOnce)

    @property
    def settings(self) -> Account:
        """Its settings."""
        return self.parts.settings

    @property
    def app(self) -> App:
        """Its app."""
        return self.parts.app

    @property
    def token_source(self) -> TokenSource:
        """Its token source."""
        return self.parts.token_source

    @property
    def store(self) -> TokenStore:
        """Where its login is kept."""
        return self.parts.store

    @property
    def server(self) -> AccountServer:
        """Handles its requests."""
        return self.listener

    @property
    def store_location(self) -> str:
        """Where its login is kept, in words."""
        return self.parts.store.location

    @property
    def redirect_uri(self) -> str | None:
        """Where its login brings the browser; None without a login in a browser."""
        return None if self.app.grant == "client_credentials" else self.settings.redirect_uri

    @property
    def login_plan(self) -> LoginPlan:
        """How it logs in."""
        return build_login_plan(self.settings, self.store)

    @property
    def access_keys(self) -> tuple[Secret, ...]:
        """The keys that open this account."""
        own = (None, self.app.account)
        return tuple(key.secret for key in self.settings.access.keys if key.account in own)

    @property
    def asks_for_key(self) -> bool:
        """Whether its callers need one."""
        return bool(self.settings.access.keys)

    @property
    def in_flight(self) -> int:
        """How many of its requests are being worked at."""
        return self.listener.in_flight

    @property
    def failure(self) -> CfproxyError | None:
        """Why the API did not answer the latest request; None if it did."""
        return self.listener.failure

    @property
    def listen(self) -> str:
        """Where its proxy listens."""
        return "off" if self.door is None else str(self.door.address)

    @property
    def upstream_url(self) -> str:
        """Where requests go."""
        return self.settings.upstream

    @property
    def url(self) -> str:
        """Where clients call; a Unix socket's path for one."""
        return self.listen if self.listen.startswith("unix:") else f"http://{self.listen}"

    async def look(self, *, at_once: bool = False) -> TokenStatus:
        """Take over changes in the store (see `TokenSource.check_store`), and return the state."""
        await self.token_source.check_store(at_once=at_once)
        return self.token_source.state()

    def switch(self, parts: Parts) -> Coroutine[Any, Any, None] | None:
        """Serve requests that come from now on with `parts`.

        Returns:
            what ends the parts not in use any more, once the last request before this has its answer;
            None when all of them stay.
        """
        before, self.parts = self.parts, parts
        if parts.token_source is before.token_source and _asks_otherwise(before, parts):
            parts.token_source.use_endpoint(parts.endpoint, parts.settings.timeouts.token_s)
        ended = self.listener.switch(parts.listener_settings, parts.forwarder)
        if parts.token_source is before.token_source and parts.upstream is before.upstream:
            return None
        return _retire(before, parts, ended)


def _asks_otherwise(before: Parts, parts: Parts) -> bool:
    """Whether the token endpoint is asked in another way; a mere reload must not end a back-off."""
    old, new = before.settings, parts.settings
    return (old.client_secret, old.timeouts, before.trusted) != (
        new.client_secret,
        new.timeouts,
        parts.trusted,
    )


async def _retire(before: Parts, parts: Parts, ended: asyncio.Event) -> None:
    await ended.wait()
    await give_up(before, parts)


async def let_go(listener: AccountServer, limit_s: float, *, refuse: bool) -> int:
    """End a listener's connections as their requests end, at the latest after `limit_s` seconds.

    Args:
        listener: whose socket takes no more connections.
        limit_s: what is still under way then is cut.
        refuse: whether requests that still come on its connections are refused.

    Returns:
        how many requests were cut.
    """
    listener.drain(refuse=refuse)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while listener.in_flight:
                listener.idle.clear()
                await listener.idle.wait()
    left = listener.in_flight
    await listener.aclose()
    return left


async def remove(account: RunningAccount, log: FilteringBoundLogger) -> None:
    """End an account that the configuration does not have any more; its connections are served no further."""
    await let_go(account.listener, account.settings.timeouts.drain_s, refuse=True)
    await give_up(account.parts, None)
    log.info("proxy.removed", account=account.app.account)


async def watch_logins(accounts: list[RunningAccount], clock: Clock, log: FilteringBoundLogger) -> None:
    """Warn of each login that is going to die, of each step once, until cancelled."""
    while True:
        for account in accounts:
            state = await account.look()
            warning = account.warnings.due(state.login, account.app, clock.time())
            if warning is not None:
                log.warning("login.expiry_neared", account=account.app.account, reason=warning.message)
        await clock.sleep(EXPIRY_LOOK_S)


def build_admin_rules(address: TcpAddress | UnixAddress, accounts: Iterable[Account]) -> AdminRules:
    """Return who may ask and act: all accounts are concerned, so only keys that all of them share.

    Raises:
        ListenError: other machines reach it, and no key would do.
    """
    all_access = [account.access for account in accounts]
    everywhere = [{key.secret for key in access.keys if key.account is None} for access in all_access]
    keys = tuple(set.intersection(*everywhere))
    keyed = any(access.keys for access in all_access)
    is_local = isinstance(address, UnixAddress) or address.is_loopback
    if not is_local and any(is_exposed(address, access) for access in all_access):
        raise ListenError(EXPOSED_SOCKET.format("admin", address))
    if keyed and not keys and not is_local:
        raise ListenError(
            f"admin {address} is reachable from other machines and no key is shared by all accounts; "
            "put one into access.keys at the top level, or set admin to a loopback address"
        )
    hosts = tuple(host for access in all_access for host in access.hosts)
    port = address.port if isinstance(address, TcpAddress) else None
    return AdminRules(
        port=port, looking=AccessRules(hosts=hosts, keys=() if is_local else keys), keyed=keyed, keys=keys
    )
