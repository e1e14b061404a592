"""The pages in a real browser: a login, live updates, every appearance, accessibility."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from cfproxy.config import load_settings
from cfproxy.runtime.service import Service
from cfproxy.sandbox import Behaviour, Sandbox
from tests.browser.driver import HERE, needs_browser, run_script

LOG = structlog.wrap_logger(None, processors=[structlog.testing.LogCapture()])
# JavaScript treats this name as an index, and sorts it first.
OWN = {
    "CFPROXY_ACCOUNTS__7__GRANT": "client_credentials",
    "CFPROXY_ACCOUNTS__7__LISTEN": "127.0.0.1:0",
}

pytestmark = needs_browser


@contextlib.asynccontextmanager
async def running(redirect_uri: str | None = None, **changes: str) -> AsyncIterator[tuple[Sandbox, Service]]:
    """A proxy in front of a sandbox whose tokens last a minute, not logged in."""
    async with Sandbox(Behaviour(limiter="off", access_lifetime_s=60.0)) as sandbox:
        if redirect_uri is not None:
            sandbox.behaviour.redirect_uris = (redirect_uri,)
        environ = {
            "CFPROXY_CLIENT_ID": sandbox.behaviour.client_id,
            "CFPROXY_CLIENT_SECRET": sandbox.behaviour.client_secret,
            "CFPROXY_REDIRECT_URI": redirect_uri or f"{sandbox.url}/paste",
            "CFPROXY_UPSTREAM": sandbox.url,
            "CFPROXY_AUTHORIZE_URL": f"{sandbox.url}/connect/authorize",
            "CFPROXY_TOKEN_URL": f"{sandbox.url}/connect/token",
            "CFPROXY_STORE": "memory",
            "CFPROXY_LISTEN": "127.0.0.1:0",
            "CFPROXY_ADMIN": "127.0.0.1:0",
        }
        async with Service(load_settings(None, environ | changes), (), LOG) as service:
            yield sandbox, service


async def until_stopped(service: Service, script: asyncio.Task[Any]) -> None:
    """Wait for `POST /shutdown`, or for the script's end."""
    stopped = asyncio.create_task(service.stopped.wait())
    await asyncio.wait({stopped, script}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()


async def test_a_person_logs_in_and_watches_the_page(tmp_path: Path) -> None:
    """From "Log in" to a live page, in light, dark and at 360 px, to the shutdown."""
    async with running(**OWN) as (_, service):
        given = {
            "url": service.admin_url,
            "proxy": service.accounts[0].url,
            "shots": str(tmp_path),
            "forwarded": False,
        }
        script = asyncio.create_task(run_script(HERE / "pages.mjs", given))
        await until_stopped(service, script)
    seen = await script
    assert seen["errors"] == []
    assert seen["before"] == "1 of 2 accounts do not work: default"
    assert "this address is not at redirect_uri" in seen["alert"]
    assert len(seen["refused"]) == 1
    assert seen["after"] == "All 2 accounts work"
    assert "/v1/jobs" in seen["row"]
    assert "200" in seen["row"]
    assert "marker" not in seen["row"]
    assert seen["reloaded"] is False
    assert seen["focused"][:3] == ["Skip to the content", "cfproxy", "Log in again"]
    assert seen["violations"] == []
    assert set(seen["widths"].values()) == {True}
    assert seen["still"] == "All 2 accounts work"  # and a login can be started without JavaScript
    assert "has not responded" in seen["ended"]
    assert "cfproxy serve" in seen["ended"]
    assert seen["endedTitle"] == "Not live · cfproxy"
    assert sum(path.stat().st_size > 10_000 for path in tmp_path.glob("*.png")) == 6


async def test_a_redirect_uri_that_forwards_finishes_the_login() -> None:
    """Another site sends the browser to /callback, with the cookie of the browser that started the login."""
    admin = ""

    async def forward(request: web.Request) -> web.Response:
        return web.Response(headers={"Refresh": f"0; url={admin}/callback?{request.query_string}"})

    app = web.Application()
    app.router.add_get("/callback", forward)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with running(f"http://public.example:{port}/callback") as (_, service):
            # Another site than the sandbox, as Creative Force is.
            admin = (service.admin_url or "").replace("127.0.0.1", "localhost")
            names = {"public.example": "127.0.0.1"}
            seen = await run_script(HERE / "pages.mjs", {"url": admin, "forwarded": True}, names=names)
    finally:
        await runner.cleanup()
    assert seen == {"errors": [], "before": "Log in to continue", "opener": True}
