"""Login, refresh and logout against an independent authorization server (Authlib)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from cfproxy.auth import login
from cfproxy.auth.models import App as ClientApp
from cfproxy.auth.token_endpoint import HttpTokenEndpoint
from cfproxy.errors import GrantRefused, LoginFailed, Misconfigured
from cfproxy.secret import Secret
from cfproxy.stores.memory import MemoryStore
from tests.support.authlib_server import App, Server
from tests.support.clock import FakeClock

APP = App("app-1", "s3cret-of-app-1", "https://integration.example/cb?kind=cf")
SCOPE = "cfgateway offline_access"


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, str]]:
    ours = Server(APP)
    listening = TestServer(ours.build_app(), host="127.0.0.1")
    # The server logs its own codes and tokens, which is not our log.
    await listening.start_server(access_log=None)
    try:
        yield ours, str(listening.make_url("")).rstrip("/")
    finally:
        await listening.close()


def endpoint_at(origin: str, secret: str = APP.client_secret, scope: str = SCOPE) -> HttpTokenEndpoint:
    return HttpTokenEndpoint(
        client_id=APP.client_id,
        client_secret=Secret(secret),
        token_url=f"{origin}/connect/token",
        revocation_url=f"{origin}/connect/revocation",
        scope=scope,
        timeout_s=10,
        connect_timeout_s=5,
    )


def plan_at(origin: str, *, pkce: bool = True) -> login.LoginPlan:
    return login.LoginPlan(
        app=ClientApp(
            account="default",
            client_id=APP.client_id,
            token_url=f"{origin}/connect/token",
            upstream="https://api.example:443",
            scope=SCOPE,
            grant="authorization_code",
        ),
        redirect_uri=APP.redirect_uri,
        authorize_url=f"{origin}/connect/authorize",
        pkce=pkce,
        refresh_token_lifetime_s=30 * 86400.0,
        store=MemoryStore(),
        endpoint=endpoint_at(origin),
        clock=FakeClock(),
    )


async def visit(url: str) -> str:
    """Do what a browser does with the authorize URL; return where it ends up."""
    async with aiohttp.ClientSession() as browser, browser.get(url, allow_redirects=False) as response:
        assert response.status == 302, await response.text()
        return response.headers["Location"]


@pytest.mark.parametrize("pkce", [True, False])
async def test_login_refresh_and_logout(server: tuple[Server, str], pkce: bool) -> None:
    """A person logs in, the login is refreshed with rotating refresh tokens, and logging out revokes it."""
    theirs, origin = server
    plan = plan_at(origin, pkce=pkce)
    url, _ = await login.start(plan)
    came_back = await visit(url)
    assert f"iss={origin}" in came_back
    done = await login.finish(plan, came_back)
    assert (done.scope, done.token.lifetime_s, done.serial) == (SCOPE, 3600.0, 1)
    assert await plan.store.load("default") == done

    assert done.refresh_token is not None
    refreshed = await plan.endpoint.refresh(done.refresh_token)
    assert refreshed.refresh_token not in {None, done.refresh_token}
    with pytest.raises(GrantRefused):
        await plan.endpoint.refresh(done.refresh_token)

    out = await login.logout(plan)
    assert out == login.LoggedOut(found=True, revoked=True)
    assert theirs.issued[0].access_revoked
    assert theirs.issued[0].refresh_revoked
    assert await plan.store.load("default") is None


async def test_app_logs_in_without_a_person(server: tuple[Server, str]) -> None:
    """With client credentials a login is a token, without a refresh token and without an end."""
    _, origin = server
    plan = plan_at(origin)
    app = replace(plan.app, scope="cfgateway", grant="client_credentials")
    plan = replace(plan, app=app, endpoint=endpoint_at(origin, scope="cfgateway"))
    done = await login.login_app(plan)
    assert done.refresh_token is None
    assert done.login_expires_at is None
    assert await plan.store.load("default") == done


async def test_wrong_secret_is_reported_and_costs_no_code(server: tuple[Server, str]) -> None:
    """The code still works once client_secret is corrected."""
    theirs, origin = server
    plan = plan_at(origin)
    url, attempt = await login.start(plan)
    came_back = await visit(url)
    with pytest.raises(Misconfigured, match="client_secret"):
        await login.finish(replace(plan, endpoint=endpoint_at(origin, secret="wrong")), came_back)
    assert len(theirs.codes) == 1
    await plan.store.delete("default")
    await plan.store.save_attempt(attempt)
    assert (await login.finish(plan, came_back)).serial == 1


async def test_wrong_redirect_uri_is_reported(server: tuple[Server, str]) -> None:
    """If the server says that redirect_uri is not that of the code, so does the message."""
    _, origin = server
    plan = plan_at(origin)
    url, attempt = await login.start(plan)
    came_back = await visit(url)
    await plan.store.delete("default")
    await plan.store.save_attempt(replace(attempt, redirect_uri="https://integration.example/cb"))
    with pytest.raises(LoginFailed, match="redirect_uri differs"):
        await login.finish(plan, came_back)


async def test_code_of_another_attempt_is_refused(server: tuple[Server, str]) -> None:
    """PKCE detects a code that was injected into another attempt."""
    _, origin = server
    plan = plan_at(origin)
    stolen = await visit((await login.start(plan))[0])
    mine = await visit((await login.start(plan))[0])
    code = stolen.split("code=")[1].split("&")[0]
    injected = mine.replace(mine.split("code=")[1].split("&")[0], code)
    with pytest.raises(LoginFailed, match="PKCE"):
        await login.finish(plan, injected)


async def test_unregistered_redirect_uri_ends_on_an_error_page(server: tuple[Server, str]) -> None:
    """The server shows an error page and never redirects; the message explains a pasted URL of that page."""
    _, origin = server
    plan = replace(plan_at(origin), redirect_uri="https://elsewhere.example/cb")
    url, _ = await login.start(plan)
    async with aiohttp.ClientSession() as browser, browser.get(url, allow_redirects=False) as response:
        assert response.status == 400
    with pytest.raises(LoginFailed, match="page of the accounts server"):
        await login.finish(plan, f"{origin}/home/error?errorId=1")
