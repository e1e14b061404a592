"""The pages over HTTP: their contents, the access to their forms, and logging in with them."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from html import unescape
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import aiohttp
import pytest
import structlog

from cfproxy.admin.login_pages import LOGINS_MAX
from cfproxy.config import load_settings
from cfproxy.runtime.service import Service
from cfproxy.sandbox import Behaviour, Fault, Sandbox, approve

LOG = structlog.wrap_logger(None, processors=[structlog.testing.LogCapture()])
HTML = {"Accept": "text/html,application/xhtml+xml"}
PUBLIC = "integration.example"
ARRIVAL = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@dataclass
class Page:
    """A response."""

    status: int
    headers: Any
    text: str

    def form_token(self) -> str:
        found = re.search(r'name="token" value="([^"]+)"', self.text)
        assert found is not None
        return found[1]


@dataclass
class Browser:
    """Sends requests with the headers of a browser."""

    service: Service
    sandbox: Sandbox
    client: aiohttp.ClientSession
    cookies: dict[str, str] = field(default_factory=dict)

    async def get(self, path: str, **headers: str) -> Page:
        return await self._ask("GET", path, headers)

    async def post(self, path: str, form: dict[str, str], **headers: str) -> Page:
        return await self._ask("POST", path, {"Origin": self.service.admin_url or ""} | headers, form)

    async def _ask(
        self, method: str, path: str, headers: dict[str, str], form: dict[str, str] | None = None
    ) -> Page:
        cookies = {"Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())} if self.cookies else {}
        url, sent = f"{self.service.admin_url}{path}", HTML | cookies | headers
        async with self.client.request(method, url, headers=sent, data=form, allow_redirects=False) as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            return Page(answer.status, answer.headers, await answer.text())

    async def begin(self, account: str = "default", **headers: str) -> tuple[str, Page]:
        """Press "Log in", store the cookie, and return the authorize URL and the page."""
        token = (await self.get(f"/login?account={account}")).form_token()
        page = await self.post("/login", {"token": token, "account": account}, **headers)
        assert page.status == 200, page.text
        for cookie in page.headers.getall("Set-Cookie"):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value
        return page.headers["Refresh"].removeprefix("0; url="), page

    async def paste(self, redirected: str, account: str = "default") -> Page:
        token = (await self.get(f"/login?account={account}")).form_token()
        form = {"token": token, "account": account, "redirected": redirected}
        return await self.post("/login", form)


def alert(page: Page) -> str:
    """Return the error message of a page."""
    found = re.search(r'role="alert">(.*?)</p>', page.text, re.DOTALL)
    assert found is not None, page.text
    return unescape(re.sub("<[^>]+>", "", found[1])).strip()


@contextlib.asynccontextmanager
async def browsing(**changes: str) -> AsyncIterator[Browser]:
    """A proxy in front of a sandbox, not logged in, and a browser."""
    async with Sandbox(Behaviour(limiter="off")) as sandbox, aiohttp.ClientSession() as client:
        environ = {
            "CFPROXY_CLIENT_ID": sandbox.behaviour.client_id,
            "CFPROXY_CLIENT_SECRET": sandbox.behaviour.client_secret,
            "CFPROXY_REDIRECT_URI": sandbox.behaviour.redirect_uris[0],
            "CFPROXY_UPSTREAM": sandbox.url,
            "CFPROXY_AUTHORIZE_URL": f"{sandbox.url}/connect/authorize",
            "CFPROXY_TOKEN_URL": f"{sandbox.url}/connect/token",
            "CFPROXY_STORE": "memory",
            "CFPROXY_LISTEN": "127.0.0.1:0",
            "CFPROXY_ADMIN": "127.0.0.1:0",
        }
        async with Service(load_settings(None, environ | changes), (), LOG) as service:
            yield Browser(service, sandbox, client)


# --- the status page --------------------------------------------------------------------------


async def test_the_page_works_without_javascript() -> None:
    """The HTML contains the essentials, and no inline script or style."""
    async with browsing(CFPROXY_STORE="memory") as browser:
        page = await browser.get("/")
        assert page.status == 200
        assert "Log in to continue" in page.text
        assert "is not logged in" in page.text
        assert '<a class="button primary" href="/login?account=default">Log in</a>' in page.text
        assert not re.search(r"<style|style=|<script(?! src=)|\son[a-z]+=|javascript:", page.text)
        assert page.headers["Referrer-Policy"] == "no-referrer"
        for path in re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text):
            assert (await browser.get(path)).status == 200
        assert (await browser.get("/static/page.html")).status == 404


@pytest.mark.parametrize("path", ["/nowhere", "/login?account=nobody", "/shutdown"])
async def test_an_unknown_address_links_to_the_status_page(path: str) -> None:
    """For a person; programs get a problem document."""
    async with browsing() as browser:
        page = await browser.get(path)
        assert page.status in {404, 405}
        assert '<a href="/">' in page.text
        assert (
            (await browser.get(path, Accept="*/*"))
            .headers["Content-Type"]
            .startswith("application/problem+json")
        )


async def test_requests_are_shown_without_query_and_escaped() -> None:
    """Whatever a client puts into a path is text on the page."""
    async with browsing() as browser:
        url = f"{browser.service.accounts[0].url}/v1/<script>alert(1)</script>?secret=marker"
        await (await browser.client.get(url)).read()
        page = await browser.get("/")
        assert "marker" not in page.text
        assert "alert(1)" in page.text
        assert "<script>alert" not in page.text
        assert "cfproxy: login-required" in page.text


async def test_the_page_can_be_linked_to_but_not_fetched_by_another_site() -> None:
    """A link may lead here; a script, a frame or a form of another site gets nothing."""
    async with browsing() as browser:
        assert (await browser.get("/", **ARRIVAL)).status == 200
        for change in (
            {"Sec-Fetch-Dest": "iframe"},
            {"Sec-Fetch-Mode": "no-cors"},
            {"Origin": "https://evil.example"},
        ):
            assert (await browser.get("/", **(ARRIVAL | change))).status == 403, change
        assert (await browser.get("/status.json", **ARRIVAL)).status == 403
        assert (await browser.get("/", Host="evil.example")).status == 421


async def test_a_retried_request_shows_on_the_page_and_counts_once() -> None:
    """Page and metrics show its attempts, durations and bytes."""
    async with browsing() as browser:
        url, _ = await browser.begin()
        await browser.paste(await approve(url))
        browser.sandbox.revoke_access_tokens()
        target = f"{browser.service.accounts[0].url}/v1/_echo/here?query=marker"
        async with browser.client.post(target, data=b"x" * 1000) as answer:
            sent = len(await answer.read())
        page, metrics = (await browser.get("/")).text, (await browser.get("/metrics")).text
        assert "sent twice" in page
        assert "/v1/_echo/here<" in page
        for sample in (
            'requests_total{account="default",method="POST",origin="upstream",problem="",status="2xx"} 1.0',
            'retries_total{account="default",reason="unauthorized"} 1.0',
            'request_body_bytes_total{account="default"} 1000.0',
            f'response_body_bytes_total{{account="default"}} {float(sent)}',
            'upstream_duration_seconds_count{account="default"} 1.0',
            'token_refreshes_total{account="default",result="ok"} 1.0',
        ):
            assert f"cfproxy_{sample}" in metrics


async def test_a_request_that_failed_shows_where_its_time_went() -> None:
    """Its wait for the API counts like that of a successful one."""
    async with browsing() as browser:
        url, _ = await browser.begin()
        await browser.paste(await approve(url))
        browser.sandbox.inject("api", Fault("reset", times=9))
        async with browser.client.post(f"{browser.service.accounts[0].url}/v1/_echo") as answer:
            assert answer.status == 502
        page, metrics = (await browser.get("/")).text, (await browser.get("/metrics")).text
        assert re.search(r'data-bind="upstream">\d+ ms<', page)
        assert 'cfproxy_upstream_duration_seconds_count{account="default"} 1.0' in metrics


# --- logging in -------------------------------------------------------------------------------


async def test_too_many_logins_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are over don't count."""
    async with browsing() as browser:
        for _ in range(LOGINS_MAX + 1):
            await browser.begin()
        monkeypatch.setattr("cfproxy.admin.login_pages.LOGINS_MAX", 0)
        token = (await browser.get("/login")).form_token()
        page = await browser.post("/login", {"token": token})
        assert (page.status, "too many logins at once" in page.text) == (400, True)


async def test_logging_in_with_the_page() -> None:
    """Press the button, consent, paste the address; the page confirms it."""
    async with browsing() as browser:
        url, page = await browser.begin()
        assert page.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert url.startswith(f"{browser.sandbox.url}/connect/authorize?")
        done = await browser.paste(await approve(url))
        assert (done.status, done.headers["Location"]) == (303, "/login?account=default")
        assert "Logged in just now" in (await browser.get("/login?account=default")).text
        assert "Works" in (await browser.get("/")).text


async def test_a_program_logs_in_with_a_custom_header() -> None:
    """The same two steps in JSON, without a browser."""
    async with browsing() as browser:
        plain = {"Accept": "application/json", "X-Cfproxy-Admin": "1"}
        started = await browser.post("/login", {"account": "default"}, **plain)
        url = re.search(r'"authorize_url": "([^"]+)"', started.text)
        assert url is not None
        done = await browser.post("/login", {"redirected": await approve(url[1])}, **plain)
        assert (done.status, done.text) == (200, '{"account": "default", "status": "logged-in"}')
        again = await browser.post("/login", {"redirected": "?code=abcdefgh&state=x"}, **plain)
        assert '"type": "urn:cfproxy:problem:login-required"' in again.text


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}],
    ids=["another origin", "another site", "a page without an origin"],
)
async def test_a_form_of_another_site_is_refused(headers: dict[str, str]) -> None:
    """Even with a valid form token."""
    async with browsing() as browser:
        token = (await browser.get("/login")).form_token()
        page = await browser.post("/login", {"token": token, "account": "default"}, **headers)
        assert page.status == 403
        assert "Set-Cookie" not in page.headers


async def test_a_form_needs_the_token_of_this_process() -> None:
    """A form from before a restart says what to do; one without a token is refused."""
    async with browsing() as browser:
        old = await browser.post("/login", {"token": "from-before", "account": "default"})
        assert (old.status, alert(old)) == (
            403,
            "this form was loaded before cfproxy last started; reload the page",
        )
        none = await browser.post("/login", {"account": "default"})
        assert none.status == 403
        assert (await browser.post("/shutdown", {"token": "from-before"})).status == 403
        assert not browser.service.stopped.is_set()


async def test_a_login_requires_a_key_if_clients_do() -> None:
    """The page itself is free on loopback; the form makes the browser ask for a Basic password, the key."""
    async with browsing(CFPROXY_ACCESS__KEYS="sesame") as browser:
        assert (await browser.get("/")).status == 200
        token = (await browser.get("/login")).form_token()
        form = {"token": token, "account": "default"}
        asked = await browser.post("/login", form)
        assert (asked.status, asked.headers["WWW-Authenticate"][:5]) == (401, "Basic")
        right = "Basic " + base64.b64encode(b"anyone:sesame").decode()
        assert (await browser.post("/login", form, Authorization=right)).status == 200


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda url: url.replace("state=", "state=x"), "belongs to no login that was started here"),
        (lambda url: url.replace("https://", "https://not."), "this address is not at redirect_uri"),
        (lambda _: "https://integration.example/callback?error=access_denied", "access was denied"),
        (lambda _: "hello there", "neither an address nor a code"),
        (lambda _: "", "neither an address nor a code"),
    ],
    ids=["wrong state", "another place", "denied", "rubbish", "nothing"],
)
async def test_a_wrong_address_is_explained(spoil: Any, sentence: str) -> None:
    """Nothing of it is repeated, and screen readers start at the field, with the reason."""
    async with browsing() as browser:
        url, _ = await browser.begin()
        redirected = await approve(url)
        assert "aria-invalid" not in (await browser.get("/login")).text
        page = await browser.paste(spoil(redirected))
        assert page.status == 400
        assert "<title>Not logged in: default · cfproxy</title>" in page.text
        assert 'aria-describedby="alert redirected-hint" aria-invalid="true" autofocus>' in page.text
        assert sentence in alert(page)
        assert dict(parse_qsl(urlsplit(redirected).query))["code"] not in page.text


async def test_a_failure_at_the_token_endpoint_is_explained() -> None:
    """Each failure says what to do, and a code that was not used can be pasted again."""
    async with browsing() as browser:
        url, _ = await browser.begin()
        redirected = await approve(url)
        browser.sandbox.behaviour.client_secret = "another"
        refused = await browser.paste(redirected)
        assert refused.status == 500
        assert "client_secret" in alert(refused)
        browser.sandbox.behaviour.client_secret = "sandbox-secret"
        assert (await browser.paste(redirected)).status == 303
        replayed = await browser.paste(redirected)
        assert (replayed.status, "finished already" in alert(replayed)) == (400, True)
        url, _ = await browser.begin()
        browser.sandbox.inject("token", Fault("status", status=503))
        down = await browser.paste(await approve(url))
        assert (down.status, "start again" in alert(down)) == (503, True)
        assert "Retry-After" in down.headers
        url, _ = await browser.begin()
        browser.sandbox.behaviour.code_lifetime_s = 0.0
        late = await browser.paste(await approve(url))
        assert (late.status, "the code was refused" in alert(late)) == (400, True)


async def test_client_credentials_need_no_form() -> None:
    """The page says so; each account has its own page."""
    changes = {
        "CFPROXY_ACCOUNTS__OWN__GRANT": "client_credentials",
        "CFPROXY_ACCOUNTS__OWN__LISTEN": "127.0.0.1:0",
        "CFPROXY_ACCOUNTS__OWN__REDIRECT_URI": "",
    }
    async with browsing(**changes) as browser:
        own = await browser.get("/login?account=own")
        assert own.status == 200
        assert "logs in by itself" in own.text
        assert "<form" not in own.text
        page = await browser.get("/")
        assert 'href="/login?account=default"' in page.text
        assert 'href="/login?account=own"' not in page.text
        assert (await browser.get("/login?account=nobody")).status == 404


# --- the callback -----------------------------------------------------------------------------


def as_callback(redirected: str) -> str:
    return f"/callback?{urlsplit(redirected).query}"


async def test_a_forwarded_redirect_finishes_the_login() -> None:
    """In the browser that started it, whether the public address redirects or proxies."""
    async with browsing() as browser:
        url, page = await browser.begin()
        (cookie,) = page.headers.getall("Set-Cookie")
        for part in ("HttpOnly", "SameSite=Lax", "Path=/callback", "Max-Age=1800"):
            assert part in cookie
        state = dict(parse_qsl(urlsplit(url).query))["state"]
        assert state not in cookie
        done = await browser.get(as_callback(await approve(url)), **ARRIVAL)
        assert done.status == 200
        assert "is logged in" in done.text
        assert browser.service.accounts[0].token_source.state().ready


async def test_under_the_public_name_only_the_callback_is_served() -> None:
    """The redirect URI's host may forward to `/callback`, and to nothing else."""
    async with browsing() as browser:
        url, _ = await browser.begin()
        done = await browser.get(as_callback(await approve(url)), Host=PUBLIC, **ARRIVAL)
        assert done.status == 200
        assert "href" not in done.text  # neither style sheet nor status page is served there
        for path in ("/", "/login", "/status.json", "/callbacks", "/events"):
            assert (await browser.get(path, Host=PUBLIC)).status == 421, path
        assert (await browser.post("/callback", {}, Host=PUBLIC)).status == 421


async def test_the_cookie_has_the_path_of_the_redirect_uri_under_its_own_name() -> None:
    """With `access.hosts`, the pages are served there, too."""
    async with browsing(CFPROXY_ACCESS__HOSTS=PUBLIC) as browser:
        token = (await browser.get("/login", Host=PUBLIC)).form_token()
        page = await browser.post(
            "/login", {"token": token, "account": "default"}, Host=PUBLIC, Origin=f"https://{PUBLIC}"
        )
        (cookie,) = page.headers.getall("Set-Cookie")
        assert "Path=/callback" in cookie
        assert "Secure" in cookie


async def test_another_browser_cannot_finish_a_login() -> None:
    """The code is not used up: the person who started the login can still finish it."""
    async with browsing() as browser:
        url, _ = await browser.begin()
        redirected = await approve(url)
        browser.cookies.clear()
        page = await browser.get(as_callback(redirected), **ARRIVAL)
        assert page.status == 403
        assert "not started in this browser" in alert(page)
        assert dict(parse_qsl(urlsplit(redirected).query))["code"] not in page.text
        # As the page says: the address from its question mark to the end.
        assert (await browser.paste(as_callback(redirected).removeprefix("/callback"))).status == 303


@pytest.mark.parametrize("arrives", [False, True], ids=["pasted", "at the callback"])
async def test_a_wrong_code_does_not_use_the_login_up(arrives: bool) -> None:
    """The right one finishes it, in whatever form it comes."""
    async with browsing() as browser:
        url, _ = await browser.begin()
        redirected = await approve(url)
        wrong = redirected.replace("code=", "code=x")
        if arrives:
            page = await browser.get(as_callback(wrong), **ARRIVAL)
            assert (page.status, "the code was refused" in alert(page)) == (400, True)
            mangled = as_callback(redirected).replace("&", "&amp;").replace("%", "%25")
            assert (await browser.get(mangled, **ARRIVAL)).status == 200
        else:
            page = await browser.paste(wrong)
            assert (page.status, "the code was refused" in alert(page)) == (400, True)
            assert (await browser.paste(f"<{quote(redirected, safe='')}>\r\n")).status == 303


async def test_code_without_a_state_is_refused_at_the_callback() -> None:
    """Any web page could send it; only a person who pastes it can vouch for it."""
    async with browsing() as browser:
        url, _ = await browser.begin()
        code = dict(parse_qsl(urlsplit(await approve(url)).query))["code"]
        for query in (f"code={code}", f"code%3D{code}", code, f"%26code={code}"):
            assert (await browser.get(f"/callback?{query}", **ARRIVAL)).status in {400, 403}
        assert not browser.service.accounts[0].token_source.state().ready


async def test_a_login_started_elsewhere_is_not_finished_here() -> None:
    """Otherwise a link could log the account in as another person (login CSRF)."""
    async with browsing() as browser:
        theirs = await approve((await browser.begin())[0])
        browser.cookies.clear()
        ours = await approve((await browser.begin())[0])
        page = await browser.get(as_callback(theirs), **ARRIVAL)
        assert page.status == 403
        assert not browser.service.accounts[0].token_source.state().ready
        assert (await browser.get(as_callback(ours), **ARRIVAL)).status == 200


async def test_a_failure_at_the_callback_is_explained() -> None:
    """Whether access was denied, or the address is replayed, damaged or empty."""
    async with browsing() as browser:
        url, _ = await browser.begin()
        state = dict(parse_qsl(urlsplit(url).query))["state"]
        denied = await browser.get(f"/callback?error=access_denied&state={state}")
        assert (denied.status, "access was denied" in alert(denied)) == (400, True)
        url, _ = await browser.begin()
        redirected = as_callback(await approve(url))
        assert (await browser.get(redirected)).status == 200
        replayed = await browser.get(redirected)
        assert (replayed.status, "finished already" in alert(replayed)) == (400, True)
        twice = await browser.get(f"{redirected}&code=another")
        assert (twice.status, "'code' twice" in alert(twice)) == (400, True)
        assert (await browser.get("/callback")).status == 400
