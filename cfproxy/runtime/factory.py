"""What an account's settings make: its app, store, endpoint, token source, login plan and origin.

Owns: which setting goes where. Commands and the running proxy build the same things from them.
Must not know: listeners, what runs when.
"""

from __future__ import annotations

import functools
import secrets
import ssl
from pathlib import Path

from structlog.typing import FilteringBoundLogger
from yarl import URL

from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.login import LoginPlan
from cfproxy.auth.models import App
from cfproxy.auth.token_endpoint import HttpTokenEndpoint
from cfproxy.auth.token_source import TokenSource
from cfproxy.clock import SystemClock
from cfproxy.config import Account
from cfproxy.errors import ListenError
from cfproxy.hosts import render_authority
from cfproxy.http1.parser import HeadLimits
from cfproxy.proxy.access import AccessRules
from cfproxy.proxy.request_headers import Origin
from cfproxy.server.request import Limits
from cfproxy.stores import open_store


def build_app(account: Account) -> App:
    """Return what a stored login of this account must match."""
    return App(
        account.name,
        account.client_id,
        account.token_url,
        account.upstream_origin,
        account.scope,
        account.grant,
        account.config_file,
    )


def build_store(account: Account) -> TokenStore:
    """Open the account's store."""
    return open_store(account.store_url, account.store_dir, account.store.key, account.tls.ca_file)


def build_endpoint(account: Account) -> HttpTokenEndpoint:
    """Return the client of the account's token endpoint."""
    return HttpTokenEndpoint(
        client_id=account.client_id,
        client_secret=account.client_secret,
        token_url=account.token_url,
        # Client secret and tokens go to the token endpoint's server and to nobody else: where token_url
        # was changed alone, the default revocation_url is somebody else's.
        revocation_url=account.revocation_url if _same_server(account) else None,
        scope=account.scope,
        timeout_s=account.timeouts.token_s,
        connect_timeout_s=account.timeouts.connect_s,
        ssl_context=build_tls(account),
    )


def _same_server(account: Account) -> bool:
    return URL(account.revocation_url).origin() == URL(account.token_url).origin()


def build_tls(account: Account) -> ssl.SSLContext | None:
    """Return what verifies the account's servers: `tls.ca_file` besides the system's authorities.

    Raises:
        ListenError: the file holds no certificate.
    """
    ca_file = account.tls.ca_file
    speaks_tls = any(url.startswith("https:") for url in (account.upstream, account.token_url))
    if ca_file is None and not speaks_tls:
        return None
    try:
        content = None if ca_file is None else ca_file.read_bytes()
        return _trusting(ca_file, content, speaks_tls=speaks_tls)
    except (OSError, ssl.SSLError):
        raise ListenError(f"tls.ca_file {ca_file} holds no certificate in PEM form") from None


@functools.lru_cache(maxsize=4)
def _trusting(ca_file: Path | None, _content: bytes | None, *, speaks_tls: bool) -> ssl.SSLContext:
    """Return the one context for a file with this content.

    Reading the system's authorities takes longer than anything else at the start, so it is done once, and
    not at all where the file is only to be found right.
    """
    context = ssl.create_default_context() if speaks_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context


def build_rules(account: Account) -> AccessRules:
    """Return who may use the account's listener, and for what."""
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
    """Return what a client of the account's listener may take up."""
    limits, timeouts = account.limits, account.timeouts
    return Limits(
        head=HeadLimits(limits.line_bytes, limits.head_bytes, limits.headers),
        head_s=timeouts.head_s,
        keep_alive_s=timeouts.keep_alive_s,
        idle_s=timeouts.idle_s,
        ahead_bytes=limits.read_ahead_bytes,
    )


def build_login_plan(account: Account, store: TokenStore) -> LoginPlan:
    """Return what `login` and `logout` work with."""
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


def build_token_source(account: Account, store: TokenStore, log: FilteringBoundLogger) -> TokenSource:
    """Return the account's token source."""
    return TokenSource(
        build_app(account),
        store,
        build_endpoint(account),
        SystemClock(),
        log,
        endpoint_timeout_s=account.timeouts.token_s,
    )


def build_origin(upstream: str) -> Origin:
    """Return the origin of an upstream URL; `via` is new each time."""
    url = URL(upstream)
    assert url.raw_host is not None  # noqa: S101 - the configuration has checked it
    authority = render_authority(url.raw_host, None if url.is_default_port() else url.port)
    return Origin(
        scheme=url.scheme,
        authority=authority.encode("ascii"),
        base_path=url.raw_path.rstrip("/").encode("ascii"),
        via=f"cfproxy-{secrets.token_hex(4)}".encode("ascii"),
    )
