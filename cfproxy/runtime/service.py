"""The running proxy: builds everything from the settings, starts, reloads and drains it.

Invariants:
1. Everything that was opened is closed, whichever step fails.
2. A reload takes effect as a whole or not at all: every step that can fail comes before the first change.
3. A port that is in use is reported before a one-time refresh token can have been used up.
4. One reload runs at a time, and none once a shutdown was requested.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from structlog.typing import FilteringBoundLogger

from cfproxy.admin.access import AdminRules
from cfproxy.admin.interfaces import Operations
from cfproxy.admin.listener import AdminListener
from cfproxy.auth.interfaces import TokenStore
from cfproxy.clock import SystemClock
from cfproxy.config import Account, Log, Settings
from cfproxy.errors import BadTarget, CfproxyError, ConfigError, Problem, ShuttingDown
from cfproxy.observability.logs import LEVELS, LogOutput
from cfproxy.observability.metrics import Metrics
from cfproxy.pacing.registry import QueueRegistry
from cfproxy.proxy.account_server import AccountServer
from cfproxy.proxy.request_body import Copies
from cfproxy.runtime.account import (
    RunningAccount,
    build_account,
    close_account,
    drain_server,
    remove_account,
    watch_logins,
)
from cfproxy.runtime.factory import ServerOptions, affordable_share, build_admin_rules, check_exposure
from cfproxy.runtime.reload_rules import check_reload, list_changes
from cfproxy.server.listener import ListeningSocket, ListeningSockets

_V = TypeVar("_V")

LINGER_S = 0.05
_NO_RELOAD = "this proxy was started without a configuration that can be read again; restart it"


class Service:
    """A running proxy, used as an async context manager.

    Args:
        settings: the whole configuration.
        names: accounts to serve; all if empty.
        log: where events go.
        stores: stores to use instead of the configured ones, by account.
        load: reads the configuration again; None if that is not possible.
        logs: the log's output, whose level a reload may change; None if this process does not own it.
        inherited: sockets to listen at (see `ListeningSockets`).
        notify: called with `ready`, `reloading` and `stopping`.
    """

    def __init__(
        self,
        settings: Settings,
        names: tuple[str, ...],
        log: FilteringBoundLogger,
        stores: Mapping[str, TokenStore] | None = None,
        *,
        load: Callable[[], Settings] | None = None,
        logs: LogOutput | None = None,
        inherited: list[tuple[str, socket.socket]] | None = None,
        notify: Callable[[str], None] = lambda state: None,  # noqa: ARG005 - named for readers
    ) -> None:
        self._settings = settings
        self._names = names
        self._log = log
        self._stores = stores or {}
        self._load = load
        self._logs = logs
        # Called for every request, so a built-in function where no sampling is configured.
        self._keeps_line = functools.partial(bool, 1) if logs is None else logs.keeps_request
        self._inherited = inherited or []
        self._notify = notify
        self._sockets = ListeningSockets(None, self._inherited)
        self._queues = QueueRegistry(log)
        self._metrics = Metrics()
        self._copies = Copies()
        if logs is not None:
            self._metrics.dropped_lines = lambda: logs.dropped_lines
        self._servers: dict[str, AccountServer] = {}
        self._closing: set[asyncio.Task[object]] = set()  # parts that a reload has replaced
        self._reloading = asyncio.Lock()
        self.stopped = asyncio.Event()  # set when a shutdown was requested
        self.accounts: list[RunningAccount] = []
        operations = Operations(self.stop, self.reload, self.set_log_level)
        self._admin = AdminListener(self.accounts, self._metrics, operations, log)

    @property
    def settings(self) -> Settings:
        """The configuration in use."""
        return self._settings

    @property
    def admin_url(self) -> str | None:
        """Where the admin listener is; None if it is off."""
        return self._admin.url

    async def __aenter__(self) -> Self:
        try:
            await self._apply(self._settings)
        except BaseException:
            await self._close()
            raise
        for account in self.accounts:
            if (error := account.token_source.state().error) is not None:
                self._log.warning("account.not_ready", account=account.name, reason=error.message)
        for address in self._sockets.unused():
            self._log.warning("socket.not_used", listen=str(address))
        self._watch = asyncio.create_task(watch_logins(self.accounts, SystemClock(), self._log))
        self._notify("ready")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._notify("stopping")
        self._log.info("proxy.stopping", requests=sum(each.server.in_flight for each in self.accounts))
        self._watch.cancel()
        async with self._reloading:
            await self._drain()
        await self._close()
        self._log.info("proxy.stopped")

    # --- operations of the admin listener and of signals ------------------------------------

    def stop(self) -> None:
        """Set `stopped`; the owner of this context then leaves it."""
        self.stopped.set()

    def set_log_level(self, level: str) -> None:
        """Log lines of `level` and above until the next reload.

        Raises:
            BadTarget: there is no such level.
        """
        if level not in LEVELS or level == "silent" or self._logs is None:
            raise BadTarget("there is no such level; use debug, info, warning or error")
        self._logs.set_level(level)
        self._log.warning("log.level_changed", to=level)

    async def reload(self) -> list[str]:
        """Read the configuration again and use it; if it has a problem, the current one stays in use.

        Returns:
            the keys that changed.

        Raises:
            ConfigError, ListenError, ShuttingDown: the configuration in use is unchanged.
        """
        async with self._reloading:
            if self.stopped.is_set():
                raise ShuttingDown("the proxy is shutting down; start it with the new configuration")
            self._notify("reloading")
            try:
                changed = await self._reload()
            except CfproxyError as error:
                problems: tuple[object, ...] = error.problems if isinstance(error, ConfigError) else (error,)
                for problem in problems:
                    self._log.error("config.refused", reason=str(problem))
                raise
            except Exception:  # noqa: BLE001 - logged whole; the token in hand does not depend on it
                self._log.exception("config.reload_crashed")
                raise CfproxyError(
                    "internal error; the log has the details under config.reload_crashed"
                ) from None
            finally:
                self._notify("ready")
            self._log.info("config.reloaded", changed=changed)
            return changed

    async def _reload(self) -> list[str]:
        if self._load is None:
            raise ConfigError(_NO_RELOAD, (Problem("", "", _NO_RELOAD),))
        # In a thread, because the files of secrets may be on a slow disk.
        settings = await asyncio.to_thread(self._load)
        sources = {account.name: account.token_source for account in self.accounts}
        check_reload(
            self._settings,
            settings,
            self._names,
            lambda name: name in sources and sources[name].state().unsaved,
        )
        changed = list_changes(self._settings, settings)
        await self._apply(settings)
        return changed

    # --- building, beside the parts in use ----------------------------------------------------

    async def _apply(self, settings: Settings) -> None:
        """Build what the settings need, then switch to it."""
        chosen = [a for name, a in settings.accounts.items() if not self._names or name in self._names]
        running = {account.name: account for account in self.accounts}
        share = affordable_share(chosen)
        sockets = ListeningSockets(self._sockets, self._inherited)
        accounts: list[RunningAccount] = []
        admin: tuple[ListeningSocket | None, AdminRules | None] = (None, None)
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(sockets.rollback)
            for each in chosen:
                before = running.get(each.name)
                listening = None if each.listen is None else await sockets.open(each.name, each.listen)
                if listening is not None:
                    check_exposure(f"account '{each.name}'", listening.address, each.access)
                account = self._build_account(each, before, listening, settings.log, share)
                undo.push_async_callback(close_account, account, before)
                accounts.append(account)
            if settings.admin is not None:
                listening = await sockets.open("admin", settings.admin)
                admin = (listening, build_admin_rules(listening.address, chosen))
            # Last, because an address that can't be used must not cost a one-time refresh token.
            for account in accounts:
                before = running.get(account.name)
                if before is None or account.token_source is not before.token_source:
                    await account.token_source.start()
                is_new = before is None or account.upstream is not before.upstream
                if is_new and account.token_source.state().usable_s > 0:  # without a token nothing is sent
                    account.upstream.warm()
            undo.pop_all()
        # From here on no step fails or waits, so no request sees half of a change.
        self._settings = settings
        if self._logs is not None:
            self._logs.change(settings.log.level, settings.log.format, settings.log.sample)
        self._sockets = sockets
        self._switch(running, accounts)
        self._admin.switch(*admin)
        sockets.commit()
        if share < 1.0:
            self._log.warning(
                "limits.lowered",
                reason="the system allows fewer open files than limits.connections takes; "
                "raise its limit (ulimit -n, LimitNOFILE)",
                connections=sum(account.proxy_settings.connection_limits.connections for account in accounts),
            )

    def _build_account(
        self,
        settings: Account,
        before: RunningAccount | None,
        listening: ListeningSocket | None,
        log: Log,
        share: float,
    ) -> RunningAccount:
        record = self._metrics.request_stats(settings.name, settings.upstream_origin).record
        options = ServerOptions(share, log, record, self._keeps_line, self._copies)
        return build_account(
            settings,
            before,
            listening,
            self._queues.of(settings),
            options,
            self._log,
            servers=self._servers,
            store=self._stores.get(settings.name),
        )

    # --- the change itself --------------------------------------------------------------------

    def _switch(self, running: dict[str, RunningAccount], accounts: list[RunningAccount]) -> None:
        self.accounts[:] = accounts  # in place, like the tables: others hold them
        _refill(self._servers, {account.name: account.server for account in accounts})
        _refill(self._metrics.accounts, {account.name: account.token_source.state for account in accounts})
        _refill(
            self._metrics.pacing,
            {account.settings.upstream_origin: account.queue.state for account in accounts},
        )
        for account in accounts:
            account.server.accounts_changed()
            before = running.pop(account.name, None)
            if account is not before:
                self._activate(account, before)
        for account in running.values():
            self._close_later(remove_account(account, self._log))

    def _activate(self, account: RunningAccount, before: RunningAccount | None) -> None:
        settings = account.settings
        if before is None or account.queue is not before.queue or settings.pacing != before.settings.pacing:
            self._queues.reconfigure(settings)
        if (closing := account.activate(before)) is not None:
            self._close_later(closing)
        if before is None or account.socket is not before.socket:
            if before is not None:
                self._close_later(drain_server(before.server, settings.timeouts.drain_s, refuse=False))
            self._log.info(
                "proxy.started", account=account.name, listen=account.listen, upstream=settings.upstream
            )

    # --- the end --------------------------------------------------------------------------------

    def _close_later(self, closing: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _drain(self) -> None:
        """Stop accepting, then let requests in flight finish within `timeouts.drain`."""
        self._admin.drain()  # first, so that load balancers stop sending requests
        # A connection that the system has accepted for us is reset if its socket closes before we take it,
        # and data that has arrived is read one iteration of the loop later: both may be requests in flight.
        await asyncio.sleep(LINGER_S)
        for account in self.accounts:
            if account.socket is not None:
                account.socket.close()
        await asyncio.sleep(LINGER_S)
        limit_s = max(account.settings.timeouts.drain_s for account in self.accounts)
        # A client that sends on an open connection is served once more, with `Connection: close`.
        drained = [drain_server(account.server, limit_s, refuse=False) for account in self.accounts]
        if left := sum(await asyncio.gather(*drained)):
            self._log.warning("proxy.drain_cut", requests=left)

    async def _close(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._sockets.close)
            stack.push_async_callback(self._queues.aclose)
            stack.push_async_callback(self._admin.aclose)
            if self._closing:
                await asyncio.wait(self._closing)
            # All at once, since each may wait for a token endpoint; a failure of one must not keep the
            # others from finishing and saving a refresh.
            closing = [close_account(account, None) for account in self.accounts]
            for failure in await asyncio.gather(*closing, return_exceptions=True):
                if isinstance(failure, BaseException):
                    raise failure


def _refill(table: dict[str, _V], entries: dict[str, _V]) -> None:
    table.clear()
    table.update(entries)
