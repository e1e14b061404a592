"""Checks of an account: store, login, token endpoint and API.

They use the proxy's components, so a failure has the message that a client of the proxy would get.

Invariant: no token is refreshed, saved or used up. The token endpoint gets a request for a grant type that
does not exist, and the API gets one GET with the stored token if that is valid.
"""

from __future__ import annotations

import contextlib

from yarl import URL

from cfproxy.auth.expiry import expiry_warning
from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.models import App, Login, instant, login_problem
from cfproxy.cli.doctor.findings import Finding, from_error
from cfproxy.cli.doctor.redis import check_cluster
from cfproxy.cli.doctor.servers import Server
from cfproxy.config import Account, RedisAddress
from cfproxy.errors import CfproxyError, StoreUnavailable, StoreUnusable
from cfproxy.http1.framing import Framing
from cfproxy.proxy.request_headers import build_request_head, build_request_headers, build_request_target
from cfproxy.runtime.factory import build_app, build_endpoint, build_origin, build_store, build_tls
from cfproxy.upstream.client import UpstreamClient
from cfproxy.upstream.request import Call

API_PATH = b"/v1/jobs?pageSize=1"
LOCK_S = 5.0  # a refresh by a running proxy may take as long


def servers_of(account: Account) -> list[Server]:
    """Return the account's servers, without duplicates: token endpoint and API."""
    tls = build_tls(account)
    found: dict[URL, Server] = {}
    for setting, url in (("token_url", account.token_url), ("upstream", account.upstream)):
        origin = URL(url).origin()
        found.setdefault(origin, Server(origin, tls, account.timeouts.connect_s, setting))
    return list(found.values())


async def check_account(account: Account, now: float) -> list[Finding]:
    """Check the account's store, login, token endpoint and API; `now` is wall-clock seconds."""
    app, store = build_app(account), build_store(account)
    try:
        finding, login = await check_store(account, store)
        findings = [finding, check_login(account, app, login, now, readable=finding.level != "fail")]
    finally:
        with contextlib.suppress(CfproxyError):
            await store.aclose()
    findings.append(await check_token_endpoint(account))
    if login is not None and login.belongs_to(app) and login.token.remaining_s(now) > 0:
        findings.append(await check_api(account, login))
    else:
        text = "not checked: there is no valid access token now"
        findings.append(Finding("api", "ok", text, account=account.name))
    return findings


async def check_store(account: Account, store: TokenStore) -> tuple[Finding, Login | None]:
    """Check that the login can be read, saved and locked; return it as well."""
    if account.store.url == "memory":
        text = "memory: a restart of the proxy is a logout"
        return Finding("store", "ok", text, account=account.name), None
    login = None
    try:
        login = await store.load(account.name)
        await store.probe(account.name)
        async with store.lock(account.name, LOCK_S):
            pass
    except (StoreUnavailable, StoreUnusable) as error:
        return from_error("store", error, account.name), login
    if isinstance(account.store_url, RedisAddress):
        cluster = await check_cluster(account.store_url, account.tls.ca_file, account.name)
        if cluster is not None:
            return cluster, login
    text = f"{store.location}: readable and writable, and can be locked"
    return Finding("store", "ok", text, account=account.name), login


def check_login(account: Account, app: App, login: Login | None, now: float, *, readable: bool) -> Finding:
    """Check that there is a login that can be refreshed, and when it ends."""
    if not readable and login is None:
        return Finding("login", "warn", "unknown: the store can't be read", account=account.name)
    if account.store.url == "memory" and app.grant != "client_credentials":
        text = "store: memory is visible to the running proxy only: /status.json of its admin listener"
        return Finding("login", "ok", text, account=account.name)
    if (problem := login_problem(login, app)) is not None:
        return from_error("login", problem, account.name)
    if (warning := expiry_warning(login, app, now)) is not None:
        text, _, step = warning.message.partition("; ")
        return Finding("login", "warn", text, app.login_command or step, account.name)
    if login is None or login.login_expires_at is None:
        return Finding("login", "ok", "the app needs no login", account=account.name)
    return Finding("login", "ok", f"logged in until {instant(login.login_expires_at)}", account=account.name)


async def check_token_endpoint(account: Account) -> Finding:
    """Send a grant type that does not exist; the response shows whether the server knows the app."""
    try:
        await build_endpoint(account).probe()
    except CfproxyError as error:
        return from_error("token endpoint", error, account.name)
    text = "responds, and accepts client_id and client_secret"
    return Finding("token endpoint", "ok", text, account=account.name)


async def check_api(account: Account, login: Login) -> Finding:
    """Send the API one GET with the stored token."""
    upstream = UpstreamClient(
        account.upstream,
        tls=build_tls(account),
        connect_s=account.timeouts.connect_s,
        idle_s=account.timeouts.connect_s,
    )
    origin = build_origin(account.upstream)
    target = build_request_target(API_PATH, origin.base_path)
    headers = [
        (b"Host", origin.authority),
        (b"Accept", b"application/json"),
        (b"User-Agent", b"cfproxy-doctor"),
    ]
    head = build_request_head(
        b"GET", target, build_request_headers(headers, origin, Framing(None, chunked=False))
    )
    try:
        answer = await upstream.send(Call("GET", head, None, chunked=False), login.token)
        status = answer.status
        await answer.aclose()
    except CfproxyError as error:
        return from_error("api", error, account.name)
    finally:
        await upstream.aclose()
    return _api_finding(account, status)


def _api_finding(account: Account, status: int) -> Finding:
    result = f"GET {API_PATH.decode()} was answered {status}"
    if status < 300:
        return Finding("api", "ok", result, account=account.name)
    if status == 401:
        text = f"{result}: the API rejects a token that should be valid"
        return Finding("api", "warn", text, _another_token(account), account.name)
    if status == 403:
        text = f"{result}: the app or its user lacks a permission"
        return Finding("api", "warn", text, "grant it in Creative Force: Registered Apps", account.name)
    if status == 429:
        text = f"{result}: too many requests from this address"
        return Finding("api", "warn", text, "check what else calls the API from this address", account.name)
    return Finding("api", "warn", result, "try again later; if it persists, ask Creative Force", account.name)


def _another_token(account: Account) -> str:
    if account.grant == "client_credentials":
        return "check that token_url and upstream belong together"
    return build_app(account).login_command
