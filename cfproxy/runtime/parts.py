"""The parts that serve one account, made from its settings, and which of them outlive a reload.

Owns: what is built of an account's settings and what is taken over from the generation before.
Must not know: other accounts, listening sockets, when parts are exchanged.
Invariants:
1. The store, and the token source of one login, are taken over: the newest token is there.
2. Building parts changes nothing about those in use, so that a reload can be given up at any point.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.models import App
from cfproxy.auth.token_endpoint import HttpTokenEndpoint
from cfproxy.auth.token_source import TokenSource
from cfproxy.config import Account, Log
from cfproxy.pacing.queue import FairQueue
from cfproxy.proxy.account_server import ProxySettings
from cfproxy.proxy.request_headers import Origin
from cfproxy.proxy.retry import Forwarder
from cfproxy.runtime.factory import (
    build_app,
    build_endpoint,
    build_limits,
    build_origin,
    build_rules,
    build_store,
    build_tls,
    build_token_source,
)
from cfproxy.runtime.process import open_files_for
from cfproxy.server.connection_limits import ConnectionLimits
from cfproxy.upstream.client import HttpUpstream

SPARE_FILES = 128  # listeners, the store, bodies that are kept for a second try, libraries


@dataclass(frozen=True)
class Parts:
    """What one generation of an account's settings made; some are shared with the one before."""

    settings: Account
    app: App
    store: TokenStore
    token_source: TokenSource
    endpoint: HttpTokenEndpoint
    origin: Origin
    upstream: HttpUpstream
    trusted: bytes | None  # the content of tls.ca_file
    forwarder: Forwarder
    listener_settings: ProxySettings


def build_parts(
    account: Account,
    before: Parts | None,
    fair_queue: FairQueue,
    log: FilteringBoundLogger,
    *,
    share: float,
    log_settings: Log,
    record: Callable[..., None],
    keeps_line: Callable[[], bool],
    store: TokenStore | None = None,
) -> Parts:
    """Return what serves `account` from now on, using what stays the same of `before`.

    Args:
        account: its settings.
        before: the parts in use.
        fair_queue: its upstream's.
        log: where events go.
        share: of `limits.connections` that there are open files for (see `affordable_share`).
        log_settings: what callers are told.
        record: see `ProxySettings`.
        keeps_line: likewise.
        store: to be used instead of the configured one.

    Raises:
        ListenError: `tls.ca_file` holds no certificate.
    """
    app, tls = build_app(account), build_tls(account)
    trusted = None if account.tls.ca_file is None else _read(account.tls.ca_file)
    old = None if before is None else before.settings
    if before is not None:
        store = before.store
    elif store is None:
        store = build_store(account)
    same_broker = before is not None and before.app == app
    same_upstream = (
        before is not None
        and old is not None
        and (*_of_upstream(old), before.trusted) == (*_of_upstream(account), trusted)
    )
    token_source = (
        before.token_source if before is not None and same_broker else build_token_source(account, store, log)
    )
    # A pool of warm connections is worth keeping; so is the pseudonym that tells a loop.
    upstream = (
        before.upstream
        if before is not None and same_upstream
        else HttpUpstream(
            account.upstream,
            tls=tls,
            connect_s=account.timeouts.connect_s,
            idle_s=account.timeouts.idle_s,
            limit=account.limits.upstream,
        )
    )
    origin = (
        before.origin
        if before is not None and before.settings.upstream == account.upstream
        else build_origin(account.upstream)
    )
    forwarder = Forwarder(
        token_source,
        fair_queue,
        upstream,
        retry_unauthorized=account.retry.unauthorized,
        retry_too_many=account.retry.too_many_requests,
    )
    any_retry = account.retry.unauthorized or account.retry.too_many_requests
    listener_settings = ProxySettings(
        account=account.name,
        origin=origin,
        rules=build_rules(account),
        body_memory_bytes=account.retry.body_memory_bytes,
        body_max_bytes=account.retry.body_max_bytes if any_retry else 0,
        idle_s=account.timeouts.idle_s,
        limits=build_limits(account),
        connection_limits=ConnectionLimits(
            max(1, int(account.limits.connections * share)),
            account.limits.unfinished,
            max(1, account.limits.unfinished // 2) * account.limits.head_bytes,
        ),
        server_timing=log_settings.server_timing,
        sends_id=log_settings.request_id,
        record=record,
        keeps_line=keeps_line,
    )
    return Parts(
        account,
        app,
        store,
        token_source,
        build_endpoint(account),
        origin,
        upstream,
        trusted,
        forwarder,
        listener_settings,
    )


def _of_upstream(account: Account) -> tuple[str, float, float, int]:
    """Return the settings that the connections to the upstream go by."""
    timeouts = account.timeouts
    return account.upstream, timeouts.connect_s, timeouts.idle_s, account.limits.upstream


def affordable_share(accounts: Iterable[Account]) -> float:
    """Return how much of its `limits.connections` every listener can have, from 0 to 1.

    A connection needs an open file, and one more while it has one of the `limits.upstream` connections to the
    API; the limit of the process is raised if that helps. A body that is kept may need a third one: there is
    room for that where the system allows it, and else no second try.
    """
    limits = [account.limits for account in accounts if account.listen is not None]
    needed = sum(each.connections + min(each.connections, each.upstream) for each in limits)
    kept = sum(each.connections for each in limits)
    allowed = open_files_for(needed + kept + SPARE_FILES)
    return min(1.0, max(0, allowed - SPARE_FILES) / needed) if needed else 1.0


async def give_up(parts: Parts, before: Parts | None) -> None:
    """Close what was built for `parts` and not taken from `before`."""
    async with contextlib.AsyncExitStack() as stack:
        if before is None:
            stack.push_async_callback(parts.store.aclose)
        if before is None or parts.upstream is not before.upstream:
            stack.push_async_callback(parts.upstream.aclose)
        if before is None or parts.token_source is not before.token_source:
            stack.push_async_callback(parts.token_source.aclose)


def _read(path: Path) -> bytes | None:
    with contextlib.suppress(OSError):  # `build_tls` has told what is wrong
        return path.read_bytes()
    return None
