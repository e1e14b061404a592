"""Faults on demand: each affects the configured number of requests, in the configured way."""

from __future__ import annotations

import asyncio
from typing import Literal

import aiohttp
import pytest

from cfproxy.sandbox import Behaviour, Fault
from tests.integration.sandbox.world import APP, World, open_world

Server = Literal["token", "api"]
BOTH = pytest.mark.parametrize("server", ["token", "api"])


async def call(world: World, server: Server) -> tuple[int, str, bytes]:
    """Make a valid call; return status, content type and body."""
    form = {**APP, "grant_type": "client_credentials"}
    if server == "token":
        pending = world.call("POST", "/connect/token", headers={}, data=form)
    else:
        # POST, because the client repeats other methods on its own when a connection breaks.
        pending = world.call("POST", "/v1/_status/200")
    async with pending as response:
        return response.status, response.content_type, await response.read()


@BOTH
async def test_a_fault_affects_the_configured_number_of_calls(world: World, server: Server) -> None:
    """Faults are taken first in, first out, each for its number of calls; later calls succeed."""
    world.sandbox.inject(server, Fault("status", status=503, times=2))
    world.sandbox.inject(server, Fault("status", status=418))
    assert [(await call(world, server))[0] for _ in range(4)] == [503, 503, 418, 200]


@BOTH
async def test_a_status_fault_has_the_configured_body_and_headers(world: World, server: Server) -> None:
    """Any error response can be imitated, including its content type."""
    headers = {"Content-Type": "application/json", "Retry-After": "7"}
    world.sandbox.inject(
        server, Fault("status", status=400, body='{"error":"invalid_client"}', headers=headers)
    )
    world.sandbox.inject(server, Fault("status"))
    assert await call(world, server) == (400, "application/json", b'{"error":"invalid_client"}')
    assert await call(world, server) == (500, "text/plain", b"")


@BOTH
async def test_an_html_page_can_replace_json(world: World, server: Server) -> None:
    """`html` responds 200 with a maintenance page."""
    world.sandbox.inject(server, Fault("html"))
    status, kind, body = await call(world, server)
    assert (status, kind) == (200, "text/html")
    assert body.startswith(b"<!doctype html>")


@BOTH
@pytest.mark.parametrize("size_bytes", [0, 1, 200_000])
async def test_garbage_has_the_configured_size(world: World, server: Server, size_bytes: int) -> None:
    """`garbage` claims to be JSON, is not even text, and can be large."""
    world.sandbox.inject(server, Fault("garbage", size_bytes=size_bytes))
    status, kind, body = await call(world, server)
    assert (status, kind, len(body)) == (200, "application/json", size_bytes)
    assert body[:1] in (b"", b"\xff")


@BOTH
async def test_a_reset_drops_the_connection_before_the_request_is_carried_out(
    world: World, server: Server
) -> None:
    """After `reset` the connection is closed, and no token was issued."""
    world.sandbox.inject(server, Fault("reset"))
    with pytest.raises(aiohttp.ClientConnectionError):
        await call(world, server)
    assert [each.outcome for each in world.sandbox.token_requests] == (
        ["fault:reset"] if server == "token" else []
    )


async def test_a_lost_response_has_spent_the_refresh_token(world: World) -> None:
    """After `lost` the server has rotated but the client has nothing: the old token is now a replay."""
    token = world.sandbox.issue_login()["refresh_token"]
    world.sandbox.inject("token", Fault("lost"))
    with pytest.raises(aiohttp.ClientConnectionError):
        await world.refresh(token)
    assert await world.refresh(token) == (400, {"error": "invalid_grant"})
    assert [each.outcome for each in world.sandbox.token_requests] == ["issued", "invalid_grant"]


@pytest.mark.parametrize(("kind", "assets"), [("lost", 1), ("reset", 0)])
async def test_a_lost_api_call_takes_effect(
    world: World, kind: Literal["lost", "reset"], assets: int
) -> None:
    """After `lost` a POST was carried out without a response; after `reset` it was not."""
    product_id = (await world.get("/v1/products?pageSize=1"))["pageData"][0]["id"]
    body = {"fileName": "a.jpg", "productId": product_id}
    world.sandbox.inject("api", Fault(kind))
    with pytest.raises(aiohttp.ClientConnectionError):
        await world.status("POST", "/v1/assets/get-presigned-url", json=body)
    assert len((await world.get(f"/v1/products/{product_id}"))["assetIds"]) == assets
    assert world.sandbox.journal.api_statuses == {200: 2, 444: 1}


async def test_a_slow_response_is_processed_before_its_delay(world: World) -> None:
    """A client that gives up on a `slow` refresh has still spent its token."""
    token = world.sandbox.issue_login()["refresh_token"]
    world.sandbox.inject("token", Fault("slow", delay_s=3600.0))
    pending = asyncio.ensure_future(world.refresh(token))
    while not world.sandbox.token_requests:
        await asyncio.sleep(0)
    pending.cancel()
    assert await world.refresh(token) == (400, {"error": "invalid_grant"})


@BOTH
async def test_a_slow_response_arrives_after_its_delay(world: World, server: Server) -> None:
    """`slow` sends the correct response after its delay."""
    world.sandbox.inject(server, Fault("slow", delay_s=0.0))
    assert (await call(world, server))[0] == 200


@BOTH
async def test_a_stall_affects_only_its_own_client(world: World, server: Server) -> None:
    """A stalled call gets no response while others are served, and ends when its client disconnects."""
    world.sandbox.inject(server, Fault("stall"))
    stalled = asyncio.ensure_future(call(world, server))
    while world.behaviour.token_faults or world.behaviour.api_faults:
        await asyncio.sleep(0)
    assert (await call(world, server))[0] == 200
    assert not stalled.done()
    stalled.cancel()
    assert (await asyncio.gather(stalled, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_closing_ends_stalled_calls() -> None:
    """`close` does not wait for a stalled call; its connection is closed."""
    async with open_world(Behaviour(api_faults=[Fault("stall")])) as world:
        stalled = asyncio.ensure_future(call(world, "api"))
        while world.behaviour.api_faults:
            await asyncio.sleep(0)
        await world.sandbox.close()
        with pytest.raises(aiohttp.ClientConnectionError):
            await stalled


async def test_a_fault_is_recorded_in_the_journal(world: World) -> None:
    """A token call that was answered by a fault is listed with the fault's kind."""
    world.sandbox.inject("token", Fault("html"))
    await call(world, "token")
    assert [each.outcome for each in world.sandbox.token_requests] == ["fault:html"]
