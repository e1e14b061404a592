"""No output of a whole session contains one of its recognisable secrets."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import aiohttp
import structlog

from cfproxy.auth import login
from cfproxy.config import load_settings
from cfproxy.runtime.factory import build_login_plan, build_store
from cfproxy.runtime.service import Service
from cfproxy.sandbox import Fault, approve
from tests.e2e.kit import World, until
from tests.e2e.processes import Proxy
from tests.support.secret_ledger import LEDGER

SECRET = "marker-client-secret-4b1d"
WRONG_SECRET = "marker-wrong-secret-77aa"
KEY = "marker-access-key-90cf"
WRONG_KEY = "marker-wrong-key-13e8"
QUERY = "marker-query-value-5ad2"
BODY = "marker-body-value-c0de"
KEPT = {"X-Cfproxy-Key": KEY}


class Session:
    """All output, and all secrets."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.secrets = {SECRET, WRONG_SECRET, KEY, WRONG_KEY, QUERY, BODY}

    def note_pending(self) -> None:
        """Collect the verifiers of pending logins."""
        for path in self.world.store_dir.glob("*.login-*.json"):
            self.secrets |= {json.loads(path.read_text(encoding="utf-8"))["verifier"] or SECRET}

    async def fetch(self, proxy: Proxy, url: str, method: str = "GET", **options: Any) -> int:
        """Make a request and keep the answer, head and body."""
        async with proxy.client.request(method, url, **options) as answer:
            self.world.said.append(f"{answer.raw_headers!r} {await answer.text()}")
            return answer.status

    async def command(self, *args: str, code: int) -> str:
        ran = await self.world.run(*args)
        self.note_pending()
        assert ran.code == code, ran
        return ran.out.strip()

    async def redirected(self) -> str:
        """Begin a login in the command line, and consent."""
        return await approve(await self.command("login", "--print-url", "--debug", code=0))


async def log_in_badly_and_well(session: Session) -> None:
    world = session.world
    address = await session.redirected()
    state = dict(parse_qsl(urlsplit(address).query))["state"]
    await session.command("login", "--debug", "--finish", address.replace(state, "x" * 43), code=1)
    await session.command("login", "--debug", "--finish", f"{address}&code=twice", code=1)
    world.write_config(client_secret=WRONG_SECRET)
    await session.command("login", "--debug", "--finish", address, code=5)
    world.write_config(client_secret=SECRET)
    for fault in (Fault("garbage"), Fault("html"), Fault("lost"), Fault("status", status=500, body=SECRET)):
        world.sandbox.inject("token", fault)
        await session.command("login", "--debug", "--finish", await session.redirected(), code=5)
    # A rejected app does not use up its code: the same address works with the right secret.
    await session.command("login", "--debug", "--finish", address, code=0)
    await session.command("login", "--debug", "--finish", address, code=1)


async def call_badly_and_well(session: Session, proxy: Proxy) -> None:
    world, jobs = session.world, f"{proxy.url}/v1/jobs?pageSize=1&key={QUERY}"
    assert await session.fetch(proxy, jobs, headers=KEPT) == 200
    assert await session.fetch(proxy, jobs, headers={"Authorization": f"Bearer {KEY}"}) == 200
    assert await session.fetch(proxy, jobs) == 401
    assert await session.fetch(proxy, jobs, headers={"X-Cfproxy-Key": WRONG_KEY}) == 401
    assert await session.fetch(proxy, jobs, headers=KEPT | {"Host": "evil.example"}) == 421
    assert await session.fetch(proxy, jobs, headers=KEPT | {"Origin": f"https://{QUERY}"}) == 403
    world.sandbox.inject("api", Fault("reset", times=3))
    assert await session.fetch(proxy, jobs, "POST", headers=KEPT, data=BODY) == 502
    world.sandbox.behaviour.api_faults = []
    host, port = proxy.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /v1/jobs?{QUERY} HTTP/1.1\r\nHost: x\r\nX-Cfproxy-Key {KEY}\r\n\r\n".encode())
    world.said.append((await reader.read()).decode())
    writer.close()


async def refresh_badly_and_well(session: Session, proxy: Proxy) -> None:
    world, jobs = session.world, f"{proxy.url}/v1/jobs?pageSize=1&key={QUERY}"
    world.sandbox.revoke_access_tokens()
    assert await session.fetch(proxy, jobs, headers=KEPT) == 200
    refresh_token = world.document()["refresh_token"]
    description = json.dumps({"error": "invalid_client", "error_description": refresh_token})
    for fault in (
        Fault("garbage"),
        Fault("status", status=400, body=description, headers={"Content-Type": "application/json"}),
        Fault("status", status=302, headers={"Location": f"https://evil.example/?t={refresh_token}"}),
        Fault("reset"),
    ):
        world.sandbox.inject("token", fault)
        world.sandbox.revoke_access_tokens()
        seen = len(world.sandbox.token_requests)
        assert await session.fetch(proxy, jobs, headers=KEPT) in {500, 503}
        assert len(world.sandbox.token_requests) > seen

        async def serves() -> bool:
            return await session.fetch(proxy, jobs, headers=KEPT) == 200

        await until(serves, "requests are served again")


async def look_everywhere(session: Session, proxy: Proxy) -> None:
    admin = proxy.admin_url
    for path in (
        "/",
        "/status.json",
        "/livez",
        "/readyz",
        "/startupz",
        "/metrics",
        f"/callback?code={QUERY}",
    ):
        await session.fetch(proxy, admin + path)
    await session.fetch(proxy, f"{admin}/shutdown?{QUERY}", "POST", data=BODY)
    await session.fetch(proxy, f"{admin}/nothing/{QUERY}", headers={"Host": QUERY})
    for args in (["status"], ["status", "--json"], ["config", "show"], ["config", "check"], ["token"]):
        await session.command(*args, code=0)


async def test_no_secret_shows_in_any_output_of_a_whole_session(world: World) -> None:
    """No log, answer, page, metric, message or traceback has a secret, code, verifier, token or key."""
    session = Session(world)
    world.sandbox.behaviour.client_secret = SECRET
    access = {"keys": [KEY]}
    world.write_config(client_secret=SECRET, access=access, log={"level": "debug", "format": "json"})
    await log_in_badly_and_well(session)
    async with world.serve("--debug") as proxy:
        await call_badly_and_well(session, proxy)
        await refresh_badly_and_well(session, proxy)
        await look_everywhere(session, proxy)
        world.age(7200)
        world.sandbox.inject("token", Fault("lost"))
        await session.fetch(proxy, f"{proxy.url}/v1/jobs", headers=KEPT)
    await session.command("token", "--debug", code=3)
    await session.command("status", "--debug", code=3)
    await session.command("logout", "--debug", code=0)

    grants = world.sandbox.grants
    for issued in (grants.codes, grants.access_tokens, grants.refresh_tokens):
        assert len(issued) >= 5
        session.secrets |= set(issued)
    said = "\n".join(world.said)
    assert "token.refreshed" in said
    assert "Traceback" in said
    assert "urn:cfproxy:problem:" in said
    assert "cfproxy_requests_total" in said
    found = [secret for secret in session.secrets if secret in said or quote(secret) in said]
    assert found == [], [line for line in said.splitlines() for secret in found if secret in line]


async def test_no_object_of_a_running_proxy_shows_a_secret(world: World) -> None:
    """The repr of no live object has a secret, while a proxy runs and a login is pending."""
    world.write_config(access={"keys": [KEY]})
    await world.log_in()
    account = world.account()
    await login.start(build_login_plan(account, build_store(account)))
    settings = load_settings(world.config_path, world.environment)
    log = structlog.wrap_logger(None, processors=[structlog.testing.LogCapture()])
    async with Service(settings, (), log) as service, aiohttp.ClientSession() as client:
        async with client.get(f"{service.accounts[0].url}/v1/jobs?pageSize=1", headers=KEPT) as answer:
            assert answer.status == 200
        attempt = await build_store(account).claim_attempt("default", None, time.time())
        ours = [each for each in gc.get_objects() if _is_ours(str(type(each).__module__))]
        assert attempt in ours
        assert {"Attempt", "Login", "Token", "Account", "Secret"} <= {type(each).__name__ for each in ours}
        for each in ours:
            # Every test fails that finds a secret.
            LEDGER.add_text(f"the repr of a {type(each).__name__}", f"{each!r} {each}")


def _is_ours(module: str) -> bool:
    return module.startswith("cfproxy.") and not module.startswith("cfproxy.sandbox")
