"""Attacks of web pages on a proxy on localhost, in a real browser: none reaches the API."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest

from cfproxy.admin.app import AdminApp
from cfproxy.admin.messages import AdminRequest, AdminResponse
from cfproxy.proxy.access import AccessRules
from tests.browser.driver import HERE, needs_browser, run_script
from tests.browser.test_pages import running
from tests.support.origin import OK, Peer, answering, reply, serving, until
from tests.support.proxied import Proxied, proxied

pytestmark = needs_browser

TEXT = b"<!doctype html><title>a page</title><body>"
HTML = b"Content-Type: text/html"
PAGE = reply("200 OK", TEXT, HTML)
# A sandboxed page has the origin `null`.
SANDBOXED = reply(
    "200 OK", TEXT, HTML, b"Content-Security-Policy: sandbox allow-scripts allow-forms allow-popups"
)
ARRIVING_S = 10.0


@dataclass
class Attack:
    """A proxy and a site whose pages attack it, or its admin listener."""

    proxy: Proxied
    site_port: int
    admin_port: int = 0
    admin_arrived: dict[str, set[Any]] = field(default_factory=dict)

    async def run(self, page: str, target: str, *, rebinds: bool = False) -> dict[str, str]:
        """Let `page` try everything on `target`; return what it saw of each.

        Args:
            page: its URL, with `{site}` or `{proxy}` for a port.
            target: where its requests go.
            rebinds: the page's name led elsewhere when it was loaded.
        """
        seen: dict[str, str] = await self._run(
            "attack.mjs", page, target, planted=TEXT.decode() if rebinds else None
        )
        assert len(seen) > 15
        return seen

    async def run_ahead(self, page: str, target: str, *, then: str | None = None) -> dict[str, Any]:
        """Let `page` have everything on `target` fetched ahead, and the user follow a link to `then`."""
        seen: dict[str, Any] = await self._run("ahead.mjs", page, target, then=then)
        assert seen["supported"]
        return seen

    async def _run(self, script: str, page: str, target: str, **given: str | None) -> Any:
        ports = {"site": self.site_port, "proxy": self.proxy.port, "admin": self.admin_port}
        filled = {"page": page, "target": target, **given}
        filled = {name: text and text.format(**ports) for name, text in filled.items()}
        filled["settled"] = f"http://127.0.0.1:{self.site_port}/settled"
        names = dict.fromkeys(("evil.example", "page.example"), "127.0.0.1")
        return await run_script(HERE / script, filled, names=names)

    def arrived(self) -> dict[str, set[Any]]:
        """Return for each path that arrived what became of it: our slugs, None for what was forwarded."""
        found: dict[str, set[Any]] = dict(self.admin_arrived)
        for event in self.proxy.events:
            found.setdefault(event["path"].removeprefix("/"), set()).add(event.get("problem"))
        return found


@contextlib.asynccontextmanager
async def attacked(listed: str = "") -> AsyncIterator[Attack]:
    """Run both; `listed` is an origin whose pages may call, with `{site}` for its port."""

    async def arrival_of(names: set[str]) -> None:
        with contextlib.suppress(TimeoutError):  # the test shows what did not arrive
            async with asyncio.timeout(ARRIVING_S):
                await until(lambda: names <= attack.arrived().keys())

    async def site(peer: Peer) -> None:
        while True:
            path, _, names = (await peer.take()).target.partition(b"?")
            if path == b"/settled":
                await arrival_of(set(names.decode().split(",")))
            await peer.send(SANDBOXED if path == b"/sandboxed" else PAGE)

    async with serving(site) as server:
        site_port = int(server.url.rpartition(":")[2])
        rules = AccessRules(origins=(listed.format(site=site_port),) if listed else ())
        async with proxied(answering(OK), rules=rules) as proxy:
            attack = Attack(proxy, site_port)
            yield attack


@pytest.mark.parametrize(
    ("page", "target", "slug"),
    [
        ("http://evil.example:{site}/", "http://localhost:{proxy}", "cross-site"),
        ("http://localhost:{site}/", "http://localhost:{proxy}", "cross-site"),
        ("http://evil.example:{site}/sandboxed", "http://localhost:{proxy}", "cross-site"),
        ("http://evil.example:{proxy}/", "http://evil.example:{proxy}", "host-not-allowed"),
        ("http://page.example:{site}/", "http://evil.example:{proxy}", "host-not-allowed"),
    ],
    ids=["another site", "another port", "no origin", "rebound", "another site, rebound"],
)
async def test_nothing_of_another_sites_page_reaches_the_api(page: str, target: str, slug: str) -> None:
    """The proxy refuses images, scripts, frames, forms, fetches, sockets, beacons and popups."""
    async with attacked() as attack:
        seen = await attack.run(page, target, rebinds="evil.example:{proxy}" in page)
        arrived = attack.arrived()
        assert seen.keys() - arrived.keys() == set()  # otherwise the browser itself blocked something
        assert set().union(*arrived.values()) == {slug}
        assert attack.proxy.origin.requests == []
        assert "open" not in seen.values()
        assert not any("ok" in text for text in seen.values())


@pytest.mark.parametrize("page", ["http://evil.example:{site}/", "http://localhost:{site}/"])
@pytest.mark.parametrize("listed", ["", "http://page.example:{site}"])
async def test_nothing_that_a_foreign_page_has_fetched_ahead_reaches_the_api(page: str, listed: str) -> None:
    """Its speculation rules cause requests that look like the user's, except for their purpose."""
    async with attacked(listed) as attack:
        seen = await attack.run_ahead(page, "http://localhost:{proxy}")
        arrived = attack.arrived()
        assert set(seen["expected"]) <= arrived.keys()
        assert set().union(*arrived.values()) == {"cross-site"}
        assert attack.proxy.origin.requests == []


async def test_nothing_that_a_foreign_page_has_fetched_ahead_reaches_an_admin_page() -> None:
    """The status and login pages may be the target of its links, but not of its speculation rules."""
    respond = AdminApp.respond

    async def noted(app: AdminApp, request: AdminRequest) -> AdminResponse:
        response = await respond(app, request)
        name = request.query_string if request.path == "/login" else request.path.removeprefix("/")
        attack.admin_arrived.setdefault(name.removeprefix("/"), set()).add(response.status)
        return response

    with patch.object(AdminApp, "respond", noted):
        async with attacked() as attack, running() as (_, service):
            attack.admin_port = int((service.admin_url or "").rpartition(":")[2])
            for page in ("http://localhost:{admin}", "http://localhost:{admin}/login?"):
                seen = await attack.run_ahead("http://evil.example:{site}/", page)
                assert set(seen["expected"]) <= attack.arrived().keys()
                assert set().union(*attack.arrived().values()) == {403}
                attack.admin_arrived.clear()


async def test_a_link_that_was_fetched_ahead_in_vain_works() -> None:
    """A page of the API speculates; the browser discards the refusal and asks again once the user clicks."""
    async with attacked() as attack:
        target = "http://localhost:{proxy}"
        seen = await attack.run_ahead(f"{target}/opened", target, then=f"{target}/rules-prefetch")
        assert seen["then"] == 200
        arrived = attack.arrived()
        assert arrived["rules-prefetch"] == {"cross-site", None}
        assert arrived["rules-prerender"] == {"cross-site"}
        assert arrived["link-prefetch"] == {None}  # says that it is of the same origin


async def test_pages_that_the_user_opens_reach_the_api() -> None:
    """From the address bar, and from pages of the API; so the browser did not block the other tests."""
    async with attacked() as attack:
        seen = await attack.run("http://localhost:{proxy}/opened", "http://localhost:{proxy}")
        assert attack.arrived()["opened"] == {None}
        assert seen["fetch-cors"] == seen["fetch-cors-json"] == "ok"
        assert b"GET /opened HTTP/1.1" in {request.start for request in attack.proxy.origin.requests}


async def test_a_page_of_a_listed_origin_reads_responses() -> None:
    """With CORS, preflights included; requests that hide their origin are refused."""
    async with attacked(listed="http://page.example:{site}") as attack:
        seen = await attack.run("http://page.example:{site}/", "http://localhost:{proxy}")
        assert seen["fetch-cors"] == seen["fetch-cors-json"] == seen["fetch-cors-delete"] == "ok"
        assert seen["xhr"] == "200 ok"
        arrived = attack.arrived()
        assert arrived["image"] == arrived["script"] == arrived["popup"] == {"cross-site"}
        reached = {request.start.split(b" ")[0] for request in attack.proxy.origin.requests}
        assert reached == {b"GET", b"POST", b"DELETE"}


async def test_a_listed_origin_opens_nothing_to_others() -> None:
    """Listing one origin admits no other site."""
    async with attacked(listed="http://page.example:{site}") as attack:
        seen = await attack.run("http://evil.example:{site}/", "http://localhost:{proxy}")
        assert seen["fetch-cors"] == seen["fetch-cors-json"] == "TypeError"
        assert set().union(*attack.arrived().values()) == {"cross-site"}
        assert attack.proxy.origin.requests == []
