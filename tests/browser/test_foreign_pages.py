"""Attacks of web pages on a proxy on localhost, in a real browser: none reaches the API."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from cfproxy.proxy.access import AccessRules
from tests.browser.driver import HERE, needs_browser, run_script
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
    """A proxy and a site whose pages attack it."""

    proxy: Proxied
    site_port: int

    async def run(self, page: str, target: str, *, rebinds: bool = False) -> dict[str, str]:
        """Let `page` try everything on `target`; return what it saw of each.

        Args:
            page: its URL, with `{site}` or `{proxy}` for a port.
            target: where its requests go.
            rebinds: the page's name led elsewhere when it was loaded.
        """
        given = {
            "page": page.format(site=self.site_port, proxy=self.proxy.port),
            "target": target.format(proxy=self.proxy.port),
            "planted": TEXT.decode() if rebinds else None,
            "settled": f"http://127.0.0.1:{self.site_port}/settled",
        }
        names = dict.fromkeys(("evil.example", "page.example"), "127.0.0.1")
        seen: dict[str, str] = await run_script(HERE / "attack.mjs", given, names=names)
        assert len(seen) > 15
        return seen

    def arrived(self) -> dict[str, set[Any]]:
        """Return for each path that arrived what became of it: our slugs, None for what was forwarded."""
        found: dict[str, set[Any]] = {}
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
