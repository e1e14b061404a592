"""All reports give the same cause and the same next step."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Awaitable, Callable

import pytest

from tests.e2e.kit import NOBODY, World
from tests.e2e.processes import Proxy, Ran

Breaking = Callable[[World], Awaitable[None]]


async def without_login(world: World) -> None:
    world.write_config()


async def without_token_endpoint(world: World) -> None:
    world.write_config(
        grant="client_credentials",
        redirect_uri=None,
        token_url=f"{NOBODY}/token",
        revocation_url=f"{NOBODY}/r",
    )


async def with_an_unsafe_store(world: World) -> None:
    await world.log_in()
    world.document_path.chmod(0o644)


async def without_upstream(world: World) -> None:
    world.write_config(grant="client_credentials", redirect_uri=None, upstream=NOBODY)
    assert (await world.run("token")).code == 0


@pytest.mark.parametrize(
    ("broken", "slug", "check"),
    [
        (without_login, "login-required", "login"),
        (without_token_endpoint, "token-endpoint-unavailable", "token"),
        pytest.param(
            with_an_unsafe_store,
            "misconfigured",
            "store",
            marks=pytest.mark.skipif(os.name != "posix", reason="modes as POSIX has them"),
        ),
        (without_upstream, "upstream-unreachable", "api"),
    ],
)
async def test_all_name_the_same_cause_and_the_same_next_step(
    world: World, broken: Breaking, slug: str, check: str
) -> None:
    """The answer to a client, /readyz, /status.json, the page, `status` and the doctor."""
    await broken(world)
    async with world.serve() as proxy:
        async with proxy.client.get(f"{proxy.url}/v1/jobs") as answer:
            problem = await answer.json(content_type=None)
        assert problem["type"] == f"urn:cfproxy:problem:{slug}"
        story = problem["detail"]
        told = {
            "readyz": await readiness(proxy, check),
            "status.json": await reported(proxy, check),
            "page": await page(proxy),
            "status": (await beside(world, proxy)).out,
        }
        for surface, text in told.items():
            assert story in text, surface
    ran = await world.run("doctor", "--json")
    failed = [each for each in json.loads(ran.out)["findings"] if each["level"] == "fail"]
    parts = [(each["text"], each["next"]) for each in failed]
    assert any(text in story and step in story for text, step in parts), parts
    if check in {"login", "store"}:  # known from the store alone; the others need the network
        assert story in (await world.run("status")).out
    assert ran.code == {"login": 3, "token": 5, "store": 4, "api": 5}[check]


async def beside(world: World, proxy: Proxy) -> Ran:
    """Run `status` with the port of the proxy's admin listener."""
    world.write_config(admin=proxy.admin_url.removeprefix("http://"))
    return await world.run("status")


async def readiness(proxy: Proxy, check: str) -> str:
    async with proxy.client.get(f"{proxy.admin_url}/readyz") as answer:
        document = await answer.json()
        # Whether the API answers does not affect the readiness of this process.
        assert answer.status == (200 if check == "api" else 503)
    (found,) = [each for each in document["checks"] if each["check"] == check]
    assert found["state"] != "ok"
    return str(found["detail"])


async def reported(proxy: Proxy, check: str) -> str:
    account = await proxy.account()
    return str(account["api"]["detail"] if check == "api" else account["detail"])


async def page(proxy: Proxy) -> str:
    async with proxy.client.get(f"{proxy.admin_url}/", headers={"Accept": "text/html"}) as answer:
        return html.unescape(await answer.text())
