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
from tests.security.cases.targets import MALFORMED

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


async def test_an_action_requires_its_header() -> None:
    """A page of another site can post a form, but not with `X-Cfproxy-Admin`."""
    async with serving() as service:
        status, problem = await ask(service, "POST", "/shutdown")
        assert (status, problem["type"]) == (403, "urn:cfproxy:problem:cross-site")
        assert "'X-Cfproxy-Admin: 1'" in problem["detail"]
        assert not service.stopped.is_set()
        assert (await ask(service, "POST", "/shutdown", **ACTION))[0] == 202
        assert service.stopped.is_set()


@pytest.mark.parametrize(
    "header",
    [
        *(
            {name: "192.0.2.1"}
            for name in ("X-Forwarded-For", "x_forwarded-proto", "X-Real-IP", "X-Client-Ip")
        ),
        *({name: "a1b2"} for name in ("X-Request-Id", "X-Amzn-Trace-Id", "X-Correlation-Id", "X-Trace-Id")),
        {"X-Cloud-Trace-Context": "a1b2/1;o=1"},
        {"X-B3-TraceId": "a1b2", "X-B3-SpanId": "c3"},
        {"X-Envoy-Expected-Rq-Timeout-Ms": "15000"},
        {"X-Azure-Ref": "a1b2"},
        {"X-Varnish": "1"},
        {"X-Nginx-Proxy": "true"},
        {"X-Scheme": "https"},
        {"X-SSL": "on"},
        {"X-Auth-Request-User": "somebody"},
        {"X-Requested-With": "XMLHttpRequest"},
        {"X-Cfproxy": "1"},
        {"X-Cfproxy-Admin-Listener": "1"},
        {"X_Cfproxy_Admin": "1"},
        {"X-Cfproxy-Admin": ""},
        {"X-Cfproxy-Admin": " "},
        {"Content-Type": "application/json"},
        {"Purpose": "shutdown"},
    ],
    ids=lambda header: next(iter(header)),
)
async def test_no_other_header_proves_an_action(header: dict[str, str]) -> None:
    """What gateways, load balancers and tracers add, they add to the forms of other sites, too."""
    async with serving() as service:
        for path in ("/shutdown", "/reload", "/log-level?level=debug", "/login"):
            assert (await ask(service, "POST", path, **header))[0] == 403
        assert not service.stopped.is_set()


@pytest.mark.parametrize(
    "path", ["/", "/login", "/callback?code=12345678&state=x", "/status.json", "/metrics"]
)
@pytest.mark.parametrize(
    "purpose",
    [{"Sec-Purpose": "prefetch"}, {"Sec-Purpose": "prefetch;prerender"}, {"Purpose": "prefetch"}],
)
async def test_what_a_browser_fetches_ahead_is_refused(path: str, purpose: dict[str, str]) -> None:
    """A page of any site can cause it, and it looks like a navigation of the user."""
    navigation = {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    async with serving() as service:
        status, problem = await ask(service, "GET", path, **navigation, **purpose)
        assert (status, problem["type"]) == (403, "urn:cfproxy:problem:cross-site")


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
        assert (await ask(service, "POST", "/shutdown", **ACTION, **{"X-Cfproxy-Key": "wrong"}))[0] == 401
        # A gateway may add the key to every request.
        assert (await ask(service, "POST", "/shutdown", **{"X-Cfproxy-Key": "sesame"}))[0] == 403
        assert not service.stopped.is_set()
        assert (await ask(service, "POST", "/shutdown", **ACTION, **{"X-Cfproxy-Key": "sesame"}))[0] == 202


ONE_TENANTS_KEY = {
    "CFPROXY_ACCOUNTS__OTHER__CLIENT_ID": "app-2",
    "CFPROXY_ACCOUNTS__OTHER__LISTEN": "127.0.0.1:0",
    "CFPROXY_ACCOUNTS__OTHER__ACCESS__KEYS": "tenant",
}


async def test_the_key_of_one_account_does_not_act_on_all() -> None:
    """An action on all accounts needs a key that all accounts accept."""
    async with serving(**ONE_TENANTS_KEY) as service:
        status, _ = await ask(service, "POST", "/shutdown", **ACTION, **{"X-Cfproxy-Key": "tenant"})
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


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1"])
async def test_a_malformed_request_line_ends_the_connection(host: str) -> None:
    """Before `Host` is judged, and whatever follows is not read."""
    async with serving() as service:
        for name, line in MALFORMED.items():
            reader, writer = await asyncio.open_connection("127.0.0.1", URL(str(service.admin_url)).port)
            rest = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            writer.write(b"%s\r\nHost: %s\r\n\r\n%s" % (line, host.encode(), rest))
            answer = await reader.read()
            writer.close()
            assert answer.startswith(b"HTTP/1.1 400 "), name
            assert answer.count(b"HTTP/1.1 ") == 1, name
            assert b"\r\nConnection: close\r\n" in answer, name


async def test_http_1_1_needs_exactly_one_host() -> None:
    """RFC 9112 §3.2; a URL does not replace it."""
    async with serving() as service:
        for target in ("/livez", "http://127.0.0.1/livez"):
            for hosts in ("", "Host:\n", "Host: 127.0.0.1\nHost: 127.0.0.1\n"):
                answer = await send(service, f"GET {target} HTTP/1.1\n{hosts}\n")
                assert answer.startswith(b"HTTP/1.1 400 ")
            assert (await send(service, f"GET {target} HTTP/1.0\n\n")).startswith(b"HTTP/1.1 200 ")


async def test_an_offered_upgrade_is_declined() -> None:
    """As Java's HttpClient and `curl --http2` offer it."""
    offer = "Connection: close, Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABk\n"
    async with serving() as service:
        get = await send(service, f"GET /livez HTTP/1.1\nHost: localhost\n{offer}\n")
        post = await send(service, f"POST /reload HTTP/1.1\nHost: localhost\nContent-Length: 2\n{offer}\nab")
        assert (get[:12], post[:12]) == (b"HTTP/1.1 200", b"HTTP/1.1 403")


async def test_a_crash_gets_a_problem_document_and_a_log_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The response says where to look; it does not repeat the exception."""
    capture = structlog.testing.LogCapture()
    async with serving() as service:
        await ask(service, "GET", "/livez")
        monkeypatch.setattr("cfproxy.admin.app.report_running", lambda *_: 1 // 0)
        assert service._admin._server is not None
        service._admin._server.log = structlog.wrap_logger(None, processors=[capture])
        status, problem = await ask(service, "GET", "/status.json")
    assert (status, "request.crashed" in problem["detail"]) == (500, True)
    assert "ZeroDivisionError" not in str(problem)
    assert [entry["event"] for entry in capture.entries] == ["request.crashed"]


async def send(service: Service, head: str, body: bytes = b"") -> bytes:
    """Send a request as it is, and return everything that comes back until the connection ends."""
    port = URL(str(service.admin_url)).port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.replace("\n", "\r\n").format(port=port).encode() + body)
    try:
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.close()


FORM = (
    "POST /login HTTP/1.1\nHost: 127.0.0.1:{port}\nConnection: close\n"
    "Content-Type: application/x-www-form-urlencoded\n"
)


async def test_a_form_is_limited_in_size_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that is too large, too slow or malformed gets an error."""
    async with serving() as service:
        large = await send(service, FORM + "Content-Length: 70000\n\n", b"x" * 70000)
        assert large.startswith(b"HTTP/1.1 413 ")
        chunked = await send(service, FORM + "Transfer-Encoding: chunked\n\n", b"nonsense\r\n")
        assert b"urn:cfproxy:problem:bad-target" in chunked
        monkeypatch.setattr("cfproxy.admin.messages.BODY_S", 0.05)
        slow = await send(service, FORM + "Content-Length: 10\n\n", b"x")
        assert b"did not arrive within" in slow


async def test_a_form_that_waits_for_100_continue_gets_it() -> None:
    """Only where the body is read; a refused request gets its response at once."""
    async with serving() as service:
        head = "Expect: 100-continue\nContent-Length: 6\n\n"
        answer = await send(service, FORM + head, b"token=")
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 403 ")
        refused = await send(service, FORM.replace("127.0.0.1", "evil.example") + head)
        assert refused.startswith(b"HTTP/1.1 421 ")


async def test_the_url_of_another_host_is_refused() -> None:
    """The admin listener is not a forward proxy: the URL's host is judged, not `Host`."""
    async with serving() as service:
        for url, status in (
            ("http://evil.example", 421),
            ("https://127.0.0.1:{port}", 421),
            ("ftp://127.0.0.1:{port}", 400),
        ):
            answer = await send(
                service, f"GET {url}/livez HTTP/1.1\nHost: 127.0.0.1:{{port}}\nConnection: close\n\n"
            )
            assert answer.startswith(b"HTTP/1.1 %d " % status)


async def test_the_url_of_this_host_is_served() -> None:
    """A server must accept the absolute form (RFC 9112 §3.2.2)."""
    async with serving() as service:
        get = "GET http://127.0.0.1:{port}/livez HTTP/1.1\nHost: 127.0.0.1:{port}\nConnection: close\n\n"
        assert (await send(service, get)).startswith(b"HTTP/1.1 200 ")


async def test_requests_on_one_connection_are_answered_in_order() -> None:
    """Also when they arrive together; an unread body does not become the next request."""
    async with serving() as service:
        get = "GET /{} HTTP/1.1\nHost: 127.0.0.1:{{port}}\n{}\n"
        answers = await send(service, get.format("livez", "") + get.format("nowhere", "Connection: close\n"))
        assert [answers.count(status) for status in (b"HTTP/1.1 200 OK", b"HTTP/1.1 404 Not Found")] == [1, 1]
        assert answers.index(b"200 OK") < answers.index(b"404 Not Found")
        with_body = get.format("livez", "Content-Length: 5\nConnection: close\n")
        assert (await send(service, with_body, b"GET /")).count(b"HTTP/1.1 ") == 1
