"""The composition root: from settings to a running proxy, to the next settings, and back to rest.

Owns: what is put together from what; the order of starting, reloading and draining.
Must not know: signals, where settings come from.
Invariants:
1. Whatever was opened is closed, whichever step fails.
2. A reload takes effect as a whole or not at all: everything that can fail is done before anything changes.
3. A port that is taken is found out before a one-time refresh token can have been spent.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from structlog.typing import FilteringBoundLogger

from cfproxy.admin.access import AdminRules
from cfproxy.admin.interfaces import Operations
from cfproxy.admin.listener import AdminListener
from cfproxy.auth.interfaces import TokenStore
from cfproxy.clock import SystemClock
from cfproxy.config import Account, Settings
from cfproxy.config.conflicts import is_exposed
from cfproxy.errors import ListenError
from cfproxy.observability.logs import LogOutput
from cfproxy.observability.metrics import Metrics
from cfproxy.pacing.registry import QueueRegistry
from cfproxy.proxy.account_server import AccountServer
from cfproxy.proxy.exchange import build_connection
from cfproxy.runtime.account import (
    EXPOSED_SOCKET,
    RunningAccount,
    build_admin_rules,
    let_go,
    remove,
    watch_logins,
)
from cfproxy.runtime.changes import check_live, list_changes
from cfproxy.runtime.parts import Parts, affordable_share, build_parts, give_up
from cfproxy.runtime.reload import Control
from cfproxy.server.listener import ListeningSocket, ListeningSockets

LINGER_S = 0.05


class Service:
    """A running proxy, used as an async context manager.

    Args:
        settings: the whole configuration.
        names: accounts to serve; all when empty.
        log: where events go.
        stores: stores to use instead of the configured ones, by account.
        load: reads the configuration again; None where it can't be.
        logs: the log's output, whose level a reload may change.
        given: sockets to listen at (see `ListeningSockets`).
        tell: called with `ready`, `reloading` and `stopping`.
    """

    def __init__(
        self,
        settings: Settings,
        names: tuple[str, ...],
        log: FilteringBoundLogger,
        stores: dict[str, TokenStore] | None = None,
        *,
        load: Callable[[], Settings] | None = None,
        logs: LogOutput | None = None,
        given: list[tuple[str, socket.socket]] | None = None,
        tell: Callable[[str], None] = lambda state: None,  # noqa: ARG005 - named for readers
    ) -> None:
        self._settings = settings
        self._names = names
        self._log = log
        self._stores = stores or {}
        self._logs = logs
        self._given = given or []
        self._tell = tell
        self._doors = ListeningSockets(None, self._given)
        self._queues = QueueRegistry(log)
        self._metrics = Metrics()
        self._listeners: dict[str, AccountServer] = {}
        self._ending: set[asyncio.Task[object]] = set()  # what served before a reload
        self.accounts: list[RunningAccount] = []
        self.control = Control(load, self._change, logs, log, tell)
        operations = Operations(self.control.stop, self.control.reload, self.control.set_log_level)
        self._admin = AdminListener(self.accounts, self._metrics, operations, log)

    @property
    def stopped(self) -> asyncio.Event:
        """Set when the end was asked for; whoever waits for it ends the context."""
        return self.control.stopped

    @property
    def admin_url(self) -> str | None:
        """Where the admin listener is; None when it is off."""
        return self._admin.url

    async def __aenter__(self) -> Self:
        try:
            await self._apply(self._settings)
        except BaseException:
            await self._close()
            raise
        for running in self.accounts:
            if (error := running.token_source.state().error) is not None:
                self._log.warning("account.not_ready", account=running.app.account, reason=error.message)
        for address in self._doors.unused():
            self._log.warning("socket.not_used", listen=str(address))
        self._watch = asyncio.create_task(watch_logins(self.accounts, SystemClock(), self._log))
        self._tell("ready")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell("stopping")
        self._log.info("proxy.stopping", requests=sum(running.in_flight for running in self.accounts))
        self._watch.cancel()
        async with self.control.reloading:
            await self._drain()
        await self._close()
        self._log.info("proxy.stopped")

    # --- what is built, beside what is in use ---------------------------------------------

    async def _change(self, settings: Settings) -> list[str]:
        """Use other settings from now on (see `Control`)."""
        unsaved = {running.app.account for running in self.accounts if running.token_source.state().unsaved}
        check_live(self._settings, settings, self._names, unsaved)
        changed = list_changes(self._settings, settings)
        await self._apply(settings)
        return changed

    async def _apply(self, settings: Settings) -> None:
        chosen = [a for name, a in settings.accounts.items() if not self._names or name in self._names]
        running = {account.app.account: account for account in self.accounts}
        share = affordable_share(chosen)
        doors = ListeningSockets(self._doors, self._given)
        following: list[tuple[Parts, ListeningSocket | None]] = []
        admin: tuple[ListeningSocket | None, AdminRules | None] = (None, None)
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(doors.give_up)
            for account in chosen:
                before = running[account.name].parts if account.name in running else None
                parts = self._build_parts(settings, account, before, share)
                undo.push_async_callback(give_up, parts, before)
                door = None if account.listen is None else await doors.open(account.name, account.listen)
                if door is not None and is_exposed(door.address, account.access):
                    raise ListenError(EXPOSED_SOCKET.format(f"account '{account.name}'", door.address))
                following.append((parts, door))
            if settings.admin is not None:
                admin_door = await doors.open("admin", settings.admin)
                rules = build_admin_rules(admin_door.address, chosen)
                admin = (admin_door, rules)
            # Last: what is wrong with an address must not have cost a one-time refresh token.
            for parts, _ in following:
                await parts.token_source.start()
                if parts.token_source.state().usable_s > 0:  # without a token no request leaves anyway
                    parts.upstream.warm()
            undo.pop_all()
        # From here on nothing fails and nothing waits: no request sees half of a change.
        self._settings = settings
        if self._logs is not None:
            self._logs.change(settings.log.level, settings.log.format, settings.log.sample)
        self._doors = doors
        self._switch_accounts(running, following)
        self._admin.switch(*admin)
        doors.settle()
        if share < 1.0:
            self._log.warning(
                "limits.lowered",
                reason="the system allows fewer open files than limits.connections takes; "
                "raise its limit (ulimit -n, LimitNOFILE)",
                connections=sum(
                    parts.listener_settings.connection_limits.connections for parts, _ in following
                ),
            )

    def _build_parts(self, settings: Settings, account: Account, before: Parts | None, share: float) -> Parts:
        return build_parts(
            account,
            before,
            self._queues.of(account),
            self._log,
            share=share,
            log_settings=settings.log,
            record=self._metrics.request_stats(account.name, account.upstream_origin).record,
            keeps_line=(lambda: True) if self._logs is None else self._logs.keeps_request,
            store=self._stores.get(account.name),
        )

    # --- the change itself ----------------------------------------------------------------

    def _switch_accounts(
        self, running: dict[str, RunningAccount], following: list[tuple[Parts, ListeningSocket | None]]
    ) -> None:
        self.accounts.clear()  # the same list for good: the admin listener has it
        self._listeners.clear()
        self._metrics.accounts.clear()
        self._metrics.pacing.clear()
        for parts, door in following:
            account = running.pop(parts.settings.name, None)
            self._metrics.accounts[parts.settings.name] = parts.token_source.state
            if door is not None:
                door.admit(parts.listener_settings.rules.uids)
            self._metrics.pacing[parts.settings.upstream_origin] = self._queues.reconfigure(
                parts.settings
            ).state
            if account is not None:
                self._end(account.switch(parts))
            if account is None or account.door is not door:
                listener = AccountServer(parts.listener_settings, parts.forwarder, self._log, self._listeners)
                if door is not None:
                    listener.port = door.port
                    door.serve(functools.partial(build_connection, listener))
                if account is not None:
                    self._end(let_go(account.listener, parts.settings.timeouts.drain_s, refuse=False))
                warnings = () if account is None else (account.warnings,)
                account = RunningAccount(parts, door, listener, *warnings)
                self._log.info(
                    "proxy.started",
                    account=parts.settings.name,
                    listen=account.listen,
                    upstream=account.upstream_url,
                )
            self.accounts.append(account)
            self._listeners[parts.settings.name] = account.listener
        for account in running.values():
            self._end(remove(account, self._log))

    # --- the end of what is not in use any more -------------------------------------------

    def _end(self, ending: Coroutine[Any, Any, object] | None) -> None:
        if ending is not None:
            task = asyncio.create_task(ending)
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _drain(self) -> None:
        """Stop accepting, then let requests in flight finish within `timeouts.drain`."""
        self._admin.drain()  # first: whoever asks must not send more
        # A connection that the system has taken for us is reset if its socket closes before we take it, and
        # what has come on one is read a turn of the loop later: both are somebody's request in flight.
        await asyncio.sleep(LINGER_S)
        for running in self.accounts:
            if running.door is not None:
                running.door.close()
        await asyncio.sleep(LINGER_S)
        limit_s = max(running.settings.timeouts.drain_s for running in self.accounts)
        # Who still sends on an open connection is served once more, and told that it ends.
        letting_go = [let_go(running.listener, limit_s, refuse=False) for running in self.accounts]
        if left := sum(await asyncio.gather(*letting_go)):
            self._log.warning("proxy.drain_cut", requests=left)

    async def _close(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._doors.close)
            stack.push_async_callback(self._queues.aclose)
            stack.push_async_callback(self._admin.aclose)
            if self._ending:
                await asyncio.wait(self._ending)
            # At once, since each may wait for a token endpoint; and what one of them meets must not keep
            # another one's refresh from being finished and saved.
            closing = [give_up(running.parts, None) for running in self.accounts]
            for fault in await asyncio.gather(*closing, return_exceptions=True):
                if isinstance(fault, BaseException):
                    raise fault
