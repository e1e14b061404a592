"""Builds the parts of an account from its settings, for commands and for the running proxy alike.

This is the only place that maps settings to components. It starts none of them.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import ssl
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from structlog.typing import FilteringBoundLogger
from yarl import URL

from cfproxy.admin.access import AdminRules
from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.login import LoginPlan
from cfproxy.auth.models import App
from cfproxy.auth.token_endpoint import HttpTokenEndpoint
from cfproxy.auth.token_source import TokenSource
from cfproxy.clock import SystemClock
from cfproxy.config import Access, Account, Log, TcpAddress, UnixAddress
from cfproxy.config.conflicts import is_exposed
from cfproxy.errors import ListenError
from cfproxy.hosts import render_authority
from cfproxy.http1.parser import HeadLimits
from cfproxy.pacing.queue import FairQueue
from cfproxy.proxy.access import AccessRules
from cfproxy.proxy.account_server import ProxySettings
from cfproxy.proxy.request_body import Copies
from cfproxy.proxy.request_headers import Origin
from cfproxy.proxy.retry import Forwarder
from cfproxy.runtime.os_limits import open_files_for
from cfproxy.server.connection_limits import ConnectionLimits
from cfproxy.server.request import Limits
from cfproxy.stores import open_store
from cfproxy.upstream.client import UpstreamClient

SPARE_FILES = 128  # for listeners, the store, request bodies on disk and libraries


def build_app(account: Account) -> App:
    """Return the app; a stored login must belong to it."""
    return App(
        account.name,
        account.client_id,
        account.token_url,
        account.upstream_origin,
        account.scope,
        account.grant,
        account.config_file,
    )


def build_store(
    account: Account, log: FilteringBoundLogger | None = None, *, accept_clear: bool = False
) -> TokenStore:
    """Open the account's store.

    Args:
        account: the account.
        log: where a warning of the store goes; None for standard error.
        accept_clear: read an unencrypted login in spite of `store.key`.
    """

    def warn(text: str) -> None:
        if log is None:
            sys.stderr.write(f"cfproxy: {text}\n")
        else:
            log.warning("store.permissions", account=account.name, reason=text)

    return open_store(
        account.store_url,
        account.store_dir,
        account.store.key,
        account.tls.ca_file,
        build_app(account),
        accept_clear=accept_clear,
        warn=warn,
    )


def build_endpoint(account: Account) -> HttpTokenEndpoint:
    """Return the client of the account's token endpoint."""
    return HttpTokenEndpoint(
        client_id=account.client_id,
        client_secret=account.client_secret,
        token_url=account.token_url,
        # The client secret and the tokens go to the token endpoint's server only. If token_url alone was
        # changed, the default revocation_url belongs to another server.
        revocation_url=account.revocation_url if _same_server(account) else None,
        scope=account.scope,
        timeout_s=account.timeouts.token_s,
        connect_timeout_s=account.timeouts.connect_s,
        ssl_context=build_tls(account),
    )


def _same_server(account: Account) -> bool:
    return URL(account.revocation_url).origin() == URL(account.token_url).origin()


def build_tls(account: Account) -> ssl.SSLContext | None:
    """Return the context that verifies the account's servers; None if none of them speaks TLS.

    It trusts the system's certificate authorities and those of `tls.ca_file`.

    Raises:
        ListenError: the file holds no certificate.
    """
    ca_file = account.tls.ca_file
    uses_tls = any(url.startswith("https:") for url in (account.upstream, account.token_url))
    if ca_file is None and not uses_tls:
        return None
    try:
        content = None if ca_file is None else ca_file.read_bytes()
        return _ssl_context(ca_file, content, uses_tls=uses_tls)
    except (OSError, ssl.SSLError):
        raise ListenError(f"tls.ca_file {ca_file} holds no certificate in PEM form") from None


def read_ca_file(account: Account) -> bytes | None:
    """Return the content of `tls.ca_file`; None if there is none, or it can't be read (see `build_tls`)."""
    with contextlib.suppress(OSError):
        return None if account.tls.ca_file is None else account.tls.ca_file.read_bytes()
    return None


@functools.lru_cache(maxsize=4)
def _ssl_context(ca_file: Path | None, _content: bytes | None, *, uses_tls: bool) -> ssl.SSLContext:
    """Return the context for a file with this content.

    Loading the system's authorities is the slowest step of the start, so it is done once, and not at all
    if the file is only checked.
    """
    context = ssl.create_default_context() if uses_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is not None:
        context.load_verify_locations(ca_file)
        # Python 3.13 is strict by default, and refuses many authorities of TLS interceptors for the form of
        # their certificates. Who issued a certificate, for whom and until when is verified in any case.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def build_rules(account: Account) -> AccessRules:
    """Return the access rules of the account's listener."""
    access = account.access
    return AccessRules(
        hosts=access.hosts,
        origins=access.origins,
        keys=tuple(key.secret for key in access.keys),
        bound={key.secret: key.account for key in access.keys if key.account not in {None, account.name}},
        uids=frozenset(user.uid for user in access.users),
        methods=access.methods,
        paths=access.paths,
    )


def build_limits(account: Account) -> Limits:
    """Return the limits of one client connection."""
    limits, timeouts = account.limits, account.timeouts
    return Limits(
        head=HeadLimits(limits.line_bytes, limits.head_bytes, limits.headers),
        head_s=timeouts.head_s,
        keep_alive_s=timeouts.keep_alive_s,
        idle_s=timeouts.idle_s,
        ahead_bytes=limits.read_ahead_bytes,
    )


def build_login_plan(account: Account, store: TokenStore) -> LoginPlan:
    """Return what a login or logout of the account needs."""
    return LoginPlan(
        app=build_app(account),
        redirect_uri=account.redirect_uri,
        authorize_url=account.authorize_url,
        pkce=account.pkce,
        refresh_token_lifetime_s=account.refresh_token_lifetime_s,
        store=store,
        endpoint=build_endpoint(account),
        clock=SystemClock(),
        lock_timeout_s=account.timeouts.token_s + 30,
    )


def build_token_source(
    account: Account, store: TokenStore, endpoint: HttpTokenEndpoint, log: FilteringBoundLogger
) -> TokenSource:
    """Return the account's token source."""
    return TokenSource(
        build_app(account), store, endpoint, SystemClock(), log, endpoint_timeout_s=account.timeouts.token_s
    )


def build_origin(upstream: str) -> Origin:
    """Return the origin of an upstream URL, with a new pseudonym for `Via` each time."""
    url = URL(upstream)
    assert url.raw_host is not None  # noqa: S101 - the configuration has checked it
    authority = render_authority(url.raw_host, None if url.is_default_port() else url.port)
    return Origin(
        scheme=url.scheme,
        authority=authority.encode("ascii"),
        base_path=url.raw_path.rstrip("/").encode("ascii"),
        via=f"cfproxy-{secrets.token_hex(4)}".encode("ascii"),
    )


def build_upstream(account: Account) -> UpstreamClient:
    """Return the client of the account's upstream, without a connection yet."""
    return UpstreamClient(
        account.upstream,
        tls=build_tls(account),
        connect_s=account.timeouts.connect_s,
        idle_s=account.timeouts.idle_s,
        limit=account.limits.upstream,
    )


def build_forwarder(
    account: Account, token_source: TokenSource, queue: FairQueue, upstream: UpstreamClient
) -> Forwarder:
    """Return what sends the account's requests."""
    return Forwarder(
        token_source,
        queue,
        upstream,
        retry_unauthorized=account.retry.unauthorized,
        retry_too_many=account.retry.too_many_requests,
    )


@dataclass(frozen=True)
class ServerOptions:
    """What the settings of an account's server depend on besides the account.

    Args:
        connection_share: see `affordable_share`.
        log: settings of the log.
        record, keeps_line, copies: see `ProxySettings`.
    """

    connection_share: float
    log: Log
    record: Callable[..., None]
    keeps_line: Callable[[], bool]
    copies: Copies


def build_proxy_settings(
    account: Account, origin: Origin, rules: AccessRules, options: ServerOptions
) -> ProxySettings:
    """Return the settings of the account's server."""
    limits, retry = account.limits, account.retry
    retries = retry.unauthorized or retry.too_many_requests
    return ProxySettings(
        account=account.name,
        origin=origin,
        rules=rules,
        body_memory_bytes=retry.body_memory_bytes,
        body_max_bytes=retry.body_max_bytes if retries else 0,
        idle_s=account.timeouts.idle_s,
        limits=build_limits(account),
        connection_limits=ConnectionLimits(
            max(1, int(limits.connections * options.connection_share)),
            limits.unfinished,
            max(1, limits.unfinished // 2) * limits.head_bytes,
        ),
        server_timing=options.log.server_timing,
        sends_id=options.log.request_id,
        record=options.record,
        keeps_line=options.keeps_line,
        copies=options.copies,
    )


def affordable_share(accounts: Iterable[Account]) -> float:
    """Return the share of `limits.connections`, from 0 to 1, that the limit of open files allows.

    A client connection needs one open file, and a second one while it uses one of the `limits.upstream`
    connections to the API. The limit of the process is raised if possible. A body that is kept for a retry
    may need a third file; it is counted where the system allows it.
    """
    limits = [account.limits for account in accounts if account.listen is not None]
    needed = sum(each.connections + min(each.connections, each.upstream) for each in limits)
    bodies = sum(each.connections for each in limits)
    allowed = open_files_for(needed + bodies + SPARE_FILES)
    return min(1.0, max(0, allowed - SPARE_FILES) / needed) if needed else 1.0


def build_admin_rules(address: TcpAddress | UnixAddress, accounts: Iterable[Account]) -> AdminRules:
    """Return the access rules of the admin listener.

    It concerns all accounts, so only keys that all of them share open it.

    Raises:
        ListenError: other machines can reach it, and no key opens it.
    """
    all_access = [account.access for account in accounts]
    shared = [{key.secret for key in access.keys if key.account is None} for access in all_access]
    keys = tuple(set.intersection(*shared))
    keyed = any(access.keys for access in all_access)
    is_local = isinstance(address, UnixAddress) or address.is_loopback
    for access in all_access:
        check_exposure("admin", address, access)
    if keyed and not keys and not is_local:
        raise ListenError(
            f"admin {address} is reachable from other machines and no key is shared by all accounts; "
            "put one into access.keys at the top level, or set admin to a loopback address"
        )
    hosts = tuple(host for access in all_access for host in access.hosts)
    port = address.port if isinstance(address, TcpAddress) else None
    looking = AccessRules(hosts=hosts, keys=() if is_local else keys)
    return AdminRules(port=port, looking=looking, keyed=keyed, keys=keys)


def check_exposure(listener: str, address: TcpAddress | UnixAddress, access: Access) -> None:
    """Check a listener's real address: an inherited socket may have any address.

    Raises:
        ListenError: other machines can reach it, and the settings do not allow that.
    """
    if is_exposed(address, access):
        raise ListenError(
            f"the inherited socket for {listener} at {address} can be reached from other machines, "
            "and every caller acts as you; set access.keys, or access.allow_remote: true if that is intended"
        )
