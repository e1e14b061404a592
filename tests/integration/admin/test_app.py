"""The admin endpoints: access, operations, and malformed requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import structlog
from yarl import URL

from cfproxy.config import load_settings
from cfproxy.errors import ListenError
from cfproxy.runtime.service import Service

LOG = structlog.wrap_logger(None, processors=[structlog.testing.LogCapture()])
ACTION = {"X-Cfproxy-Admin": "1"}


@contextlib.asynccontextmanager
async def serving(**changes: str) -> AsyncIterator[Service]:
    """Run a proxy without a login, with additional environment variables."""
    environ = {
        "CFPROXY_CLIENT_ID": "app",
        "CFPROXY_REDIRECT_URI": "https://example.com/cb",
        "CFPROXY_STORE": "memory",
        "CFPROXY_LISTEN": "127.0.0.1:0",
        "CFPROXY_ADMIN": "127.0.0.1:0",
    }
    async with Service(load_settings(None, environ | changes), (), LOG) as service:
        yield service


async def ask(service: Service, method: str, path: str, **headers: str) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{service.admin_url}{path}", headers=headers) as response,
    ):
        assert response.headers["Cache-Control"] == "no-store"
        assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
        return response.status, await response.json(content_type=None)


async def test_liveness_and_readiness_differ() -> None:
    """A proxy without a login is alive and started, but not ready, and says why."""
    async with serving() as service:
        assert (await ask(service, "GET", "/livez"))[0] == 200
        assert (await ask(service, "GET", "/startupz"))[0] == 200
        status, ready = await ask(service, "GET", "/readyz")
        assert (status, ready["checks"][0]["state"]) == (503, "login-required")
        assert "run: cfproxy login" in ready["checks"][0]["detail"]
        status, report = await ask(service, "GET", "/status.json")
        (pacing,) = report["pacing"].values()
        assert (status, pacing["rate"], pacing["waiting"]) == (200, 20, 0)


async def test_an_action_requires_a_custom_header() -> None:
    """A page of another site can post a form, but not with a custom header."""
    async with serving() as service:
        status, problem = await ask(service, "POST", "/shutdown")
        assert (status, problem["type"]) == (403, "urn:cfproxy:problem:cross-site")
        assert not service.stopped.is_set()
        assert (await ask(service, "POST", "/shutdown", **ACTION))[0] == 202
        assert service.stopped.is_set()


@pytest.mark.parametrize(
    "name", ["X-Forwarded-For", "x_forwarded-proto", "X-Real-IP", "X-Request-Id", "X-Amzn-Trace-Id"]
)
async def test_headers_added_by_reverse_proxies_are_not_custom_headers(name: str) -> None:
    """They add them to the forms of other sites, too."""
    async with serving() as service:
        assert (await ask(service, "POST", "/shutdown", **{name: "192.0.2.1"}))[0] == 403
        assert not service.stopped.is_set()


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("GET", "/shutdown", 405, "POST"),
        ("DELETE", "/", 405, "GET,HEAD"),
        ("HEAD", "/callback", 405, "GET"),  # it must not use up a code
        ("GET", "/nowhere", 404, None),
        ("HEAD", "/readyz", 503, None),
        ("HEAD", "/", 200, None),
    ],
)
async def test_wrong_methods_and_paths_are_refused(
    method: str, path: str, status: int, allowed: str | None
) -> None:
    """With the allowed methods (RFC 9110 §15.5.6), and without version numbers."""
    async with (
        serving() as service,
        aiohttp.ClientSession(headers=ACTION) as session,
        session.request(method, f"{service.admin_url}{path}") as answer,
    ):
        assert (answer.status, answer.headers.get("Allow")) == (status, allowed)
        assert answer.headers["Server"] == "cfproxy"
        assert bool(await answer.read()) == (method != "HEAD")


async def test_actions_require_a_key_if_clients_do() -> None:
    """Reading is free on loopback; acting requires a key if calling the API does."""
    async with serving(CFPROXY_ACCESS__KEYS="sesame") as service:
        assert (await ask(service, "GET", "/status.json"))[0] == 200
        assert (await ask(service, "POST", "/shutdown", **ACTION))[0] == 401
        assert (await ask(service, "POST", "/shutdown", **{"X-Cfproxy-Key": "wrong"}))[0] == 401
        assert not service.stopped.is_set()
        assert (await ask(service, "POST", "/shutdown", **{"X-Cfproxy-Key": "sesame"}))[0] == 202


ONE_TENANTS_KEY = {
    "CFPROXY_ACCOUNTS__OTHER__CLIENT_ID": "app-2",
    "CFPROXY_ACCOUNTS__OTHER__LISTEN": "127.0.0.1:0",
    "CFPROXY_ACCOUNTS__OTHER__ACCESS__KEYS": "tenant",
}


async def test_the_key_of_one_account_does_not_act_on_all() -> None:
    """An action on all accounts needs a key that all accounts accept."""
    async with serving(**ONE_TENANTS_KEY) as service:
        status, _ = await ask(service, "POST", "/shutdown", **{"X-Cfproxy-Key": "tenant"})
        assert status == 401
        assert not service.stopped.is_set()


async def test_an_exposed_admin_listener_needs_a_key_that_all_accounts_share() -> None:
    """Otherwise one tenant's key would show the others."""
    changes = {"CFPROXY_ADMIN": "0.0.0.0:0", "CFPROXY_ACCESS__ALLOW_REMOTE": "true"}
    with pytest.raises(ListenError, match="no key is shared"):
        async with serving(**ONE_TENANTS_KEY, **changes):
            pass


async def test_a_malformed_request_gets_a_problem_document(caplog: pytest.LogCaptureFixture) -> None:
    """As from the proxy itself; nothing of the request is repeated or logged."""
    async with serving() as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(str(service.admin_url)).port)
        writer.write(b"GET /marker\xff HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.read()
        writer.close()
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "urn:cfproxy:problem:bad-target"
        assert b"marker" not in answer
        assert b"\r\nServer: cfproxy\r\n" in answer
    assert caplog.records == []
