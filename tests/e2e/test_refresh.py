"""A refresh under load is one token request, whichever clients wait or leave."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from cfproxy.sandbox import Fault
from tests.e2e.kit import World, until
from tests.e2e.processes import Proxy

CLIENTS = 1000


@pytest.fixture
def _many_connections() -> Iterator[None]:
    """Allow this process and its children enough open files for the connections of the test."""
    if sys.platform == "win32":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 6 * CLIENTS
    if hard not in (resource.RLIM_INFINITY, -1) and hard < wanted:
        pytest.skip(f"needs {wanted} open files, this machine allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def refreshes(world: World) -> list[str]:
    """Return the outcomes of the refreshes at the token endpoint."""
    return [each.outcome for each in world.sandbox.token_requests if each.grant == "refresh_token"]


def newest(world: World) -> str:
    """Return the newest access token."""
    return world.sandbox.access_tokens[-1].value


@pytest.mark.usefixtures("_many_connections")
async def test_a_thousand_requests_at_an_expired_token_make_one_token_request(world: World) -> None:
    """They share one refresh, and all are answered."""
    await world.log_in()
    world.age(7200)
    world.sandbox.inject("token", Fault("slow", delay_s=2))
    async with world.serve() as proxy:
        statuses = await asyncio.gather(*(proxy.status() for _ in range(CLIENTS)))
        assert statuses == [200] * CLIENTS
    assert refreshes(world) == ["issued"]
    assert world.document()["access_token"] == newest(world)


@pytest.mark.usefixtures("_many_connections")
async def test_clients_that_disconnect_do_not_cancel_the_refresh(world: World) -> None:
    """The other clients are served, and the token is stored."""
    await world.log_in()
    world.age(7200)
    world.sandbox.inject("token", Fault("slow", delay_s=2))
    async with world.serve() as proxy:
        sent = 0

        async def count(*_: object) -> None:
            nonlocal sent
            sent += 1

        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(count)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, trace_configs=[trace]) as client:
            crowd = Proxy(proxy.process, proxy.log_path, client, proxy.urls)
            calls = [asyncio.create_task(crowd.status()) for _ in range(CLIENTS)]
            await until(lambda: sent == CLIENTS, "all requests are on their way")
            for call in calls[:300]:
                call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert results[300:] == [200] * (CLIENTS - 300)
        assert refreshes(world) == ["issued"]
        assert world.document()["access_token"] == newest(world)
        world.sandbox.revoke_access_tokens()
        assert await proxy.status() == 200
    assert refreshes(world) == ["issued"] * 2
    assert world.sandbox.reuse_seen == 0


async def test_a_refresh_continues_without_its_only_client(world: World) -> None:
    """It is stored although the client that caused it has gone."""
    await world.log_in()
    async with world.serve() as proxy:
        world.sandbox.revoke_access_tokens()
        world.sandbox.inject("token", Fault("slow", delay_s=1))
        call = asyncio.create_task(proxy.status())
        await until(lambda: len(refreshes(world)) == 1, "the refresh is on its way")
        call.cancel()
        await asyncio.wait({call})
        await until(lambda: world.document()["access_token"] == newest(world), "the token is stored")
        assert await proxy.status() == 200
    assert refreshes(world) == ["issued"]


async def test_a_rejected_token_is_replaced_and_the_request_sent_again(world: World) -> None:
    """The client does not notice that the API rejected a valid token."""
    await world.log_in()
    async with world.serve() as proxy:
        assert await proxy.status() == 200
        world.sandbox.revoke_access_tokens()
        assert await proxy.status() == 200
    assert refreshes(world) == ["issued"]
    assert world.sandbox.journal.api_statuses == {200: 2, 401: 1}


async def test_a_chunked_upload_arrives_whole_on_the_second_try(world: World) -> None:
    """A 5 MB body without a length reaches the API byte for byte after a rejected token."""
    pieces = [hashlib.sha256(b"%d" % n).digest() * 2048 for n in range(80)]

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    await world.log_in()
    async with world.serve() as proxy:
        world.sandbox.revoke_access_tokens()
        async with proxy.client.post(f"{proxy.url}/v1/_echo", data=body()) as answer:
            assert answer.status == 200
            seen: dict[str, Any] = await answer.json()
    assert seen["bodyLength"] == sum(map(len, pieces))
    assert seen["bodySha256"] == hashlib.sha256(b"".join(pieces)).hexdigest()
    assert world.sandbox.journal.api_statuses == {401: 1, 200: 1}


async def test_a_hundred_rejected_requests_make_one_refresh(world: World) -> None:
    """Requests that are rejected together share one refresh."""
    await world.log_in()
    async with world.serve() as proxy:
        world.sandbox.revoke_access_tokens()
        statuses = await asyncio.gather(*(proxy.status() for _ in range(100)))
        assert statuses == [200] * 100
    assert refreshes(world) == ["issued"]


async def test_a_401_that_is_not_the_tokens_fault_makes_no_loop(world: World) -> None:
    """If the API rejects new tokens too, its 401 passes and token requests become rare."""
    await world.log_in()
    async with world.serve() as proxy:
        world.sandbox.inject("api", Fault("status", status=401, body="no", times=10_000))
        async with proxy.client.get(f"{proxy.url}/v1/jobs") as answer:
            assert (answer.status, await answer.text()) == (401, "no")
        assert len(refreshes(world)) == 1
        for _ in range(10):
            assert await asyncio.gather(*(proxy.status() for _ in range(20))) == [401] * 20
    # One at first, then after 1, 2, 4 … s: eight would take two minutes.
    assert 1 <= len(refreshes(world)) <= 8
    assert world.sandbox.reuse_seen == 0
