"""Requests that are forwarded without a task, because nothing has to be awaited, and what may interfere."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import cast

import pytest

from cfproxy.auth.models import Token
from cfproxy.auth.token_source import TokenSource
from cfproxy.pacing.queue import FairQueue
from cfproxy.proxy.access import AccessRules
from cfproxy.proxy.account_server import AccountServer
from cfproxy.proxy.exchange import Exchange
from cfproxy.proxy.retry import Forwarder
from cfproxy.secret import Secret
from cfproxy.server.connection import ClientConnection
from cfproxy.upstream.client import UpstreamClient, UpstreamResponse
from tests.integration.proxy.test_proxy import problem
from tests.support.origin import OK, Peer, answering, serving, until, until_still
from tests.support.proxied import Proxied, proxied

GET = b"GET / HTTP/1.1"


async def _hung(peer: Peer) -> None:
    await peer.take()
    await peer.reader.read()


def _nobody_waits(world: Proxied) -> bool:
    return not (world.listener.in_flight or world.listener.connections)


def _pool(world: Proxied) -> UpstreamClient:
    upstream = world.listener.forwarder.upstream
    assert isinstance(upstream, UpstreamClient)
    return upstream


async def test_a_client_that_leaves_cancels_its_pipelined_requests() -> None:
    """Those behind the request in flight are never forwarded."""
    async with proxied(_hung, warm=True) as world:
        client = await world.client()
        await client.send(client.compose(GET) + client.compose(b"POST / HTTP/1.1"))
        await until(lambda: world.origin.requests)
        client.abort()
        await until(lambda: _nobody_waits(world))
        await until_still(lambda: len(world.origin.requests))
        assert [request.method for request in world.origin.requests] == [b"GET"]
        assert world.counted == [("GET", 499)]
        assert [event["event"] for event in world.events] == ["request.abandoned"]


async def test_a_client_that_left_leaves_no_timer() -> None:
    """The API connection that ends after the client's starts nothing anew."""
    async with proxied(_hung, warm=True) as world:
        client = await world.client()
        await client.send(client.compose(GET))
        await until(lambda: world.origin.requests)
        [connection] = world.listener.connections
        exchange = connection._handler
        assert isinstance(exchange, Exchange)
        assert exchange._forwarding is not None
        assert isinstance(exchange._forwarding.response, UpstreamResponse)
        upward = exchange._forwarding.response.connection
        client.abort()
        await until(lambda: _nobody_waits(world) and upward.lost)
        assert connection._timeout._timer is None
        assert connection._task is None


async def test_a_request_that_cannot_be_recorded_blocks_no_other() -> None:
    """The fault is reported, and the client's next request is answered."""
    async with proxied(answering(OK), warm=True) as world:

        def broken(*_args: object) -> None:
            raise RuntimeError("a bug")

        world.listener.settings = dataclasses.replace(world.listener.settings, record=broken)
        client = await world.client()
        assert (await client.ask(GET)).body == b"ok"
        assert (await client.ask(GET)).body == b"ok"
        assert world.listener.in_flight == 0
        assert [str(crash["exception"]) for crash in world.crashes] == ["a bug", "a bug"]
        world.crashes.clear()


async def test_a_client_that_left_is_forgotten_whatever_fails() -> None:
    """A fault while its request is cancelled occupies no connection slot for ever."""
    async with proxied(_hung, warm=True) as world:

        def broken(*_args: object) -> None:
            raise RuntimeError("a bug")

        world.listener.settings = dataclasses.replace(world.listener.settings, record=broken)
        client = await world.client()
        await client.send(client.compose(GET))
        await until(lambda: world.origin.requests)
        client.abort()
        await until(lambda: _nobody_waits(world))
        assert sum(world.listener.connections.counts().values()) == 0
        assert [str(crash["exception"]) for crash in world.crashes] == ["a bug"]
        world.crashes.clear()


async def test_a_connection_can_be_cancelled_between_two_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed before its pipelined request is forwarded."""
    request_finished = ClientConnection.request_finished

    def and_cancel(connection: ClientConnection, *, keep_alive: bool) -> None:
        request_finished(connection, keep_alive=keep_alive)
        connection.cancel()

    async with proxied(answering(OK), warm=True) as world:
        monkeypatch.setattr(ClientConnection, "request_finished", and_cancel)
        client = await world.client()
        await client.send(client.compose(GET) * 2)
        await client.reader.read()
        await until(lambda: _nobody_waits(world))
        assert len(world.origin.requests) == 1


async def test_a_request_is_repeated_to_the_upstream_it_was_sent_to() -> None:
    """It ends with the settings it began with, though others are in use by the time it fails."""

    async def leaving(peer: Peer) -> None:
        asked.append(await peer.take())
        if len(asked) > 1:
            await peer.send(OK)
        else:
            await until(lambda: switched)

    asked: list[object] = []
    switched: list[object] = []
    async with proxied(leaving, warm=True) as world, serving(answering(OK)) as other:
        client = await world.client()
        await client.send(client.compose(GET))
        await until(lambda: world.origin.requests)
        upstream = UpstreamClient(other.url, tls=None, connect_s=5.0, idle_s=20.0)
        forwarder = Forwarder(
            cast("TokenSource", world.source),
            cast("FairQueue", world.pacer),
            upstream,
            retry_unauthorized=True,
            retry_too_many=True,
        )
        before = _pool(world)
        switched.append(world.listener.switch(dataclasses.replace(world.listener.settings), forwarder))
        assert (await client.read_answer()).status == 200
        assert len(asked) == 2
        assert not other.requests
        await before.aclose()


async def test_a_request_that_has_to_wait_uses_reloaded_settings() -> None:
    """Nothing was sent yet, so the new settings apply to all of it, including the path."""
    async with proxied(answering(OK), warm=True) as world:
        settings = world.listener.settings
        origin = dataclasses.replace(settings.origin, base_path=b"/v2")

        def reloads() -> bool:
            world.pacer.at_once = False
            world.listener.switch(dataclasses.replace(settings, origin=origin), world.listener.forwarder)
            return False

        world.pacer.try_acquire = reloads  # type: ignore[method-assign]
        assert (await world.ask(b"GET /a HTTP/1.1")).status == 200
        assert world.origin.requests[0].target == b"/v2/a"


async def test_a_fault_while_the_head_is_built_is_reported() -> None:
    """It costs neither the connection to the API nor the response."""
    async with proxied(answering(OK), warm=True) as world:
        good, world.source.token = world.source.token, Token(Secret("token"), 0.0, 3600.0)
        object.__setattr__(world.source.token, "authorization", None)  # which no head can hold
        client = await world.client()
        assert problem(await client.ask(GET)) == (500, "misconfigured")
        world.source.token = good
        assert (await world.ask(GET)).status == 200
        assert _pool(world).pool.connections == 1


async def test_an_abandoned_request_records_how_long_the_api_took() -> None:
    """Its client may have left because of that."""
    waits: list[float | None] = []
    async with proxied(_hung, warm=True) as world:
        record = lambda *args: waits.extend(args[5:8])  # noqa: E731 - the short form of a callback
        world.listener.settings = dataclasses.replace(world.listener.settings, record=record)
        client = await world.client()
        await client.send(client.compose(GET))
        await until(lambda: world.origin.requests)
        client.abort()
        await until(lambda: _nobody_waits(world))
        assert waits[2] is not None
        assert waits[2] > 0


async def test_draining_waits_for_the_request_in_flight() -> None:
    """Its response announces that the connection closes."""
    answers = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.take()
        await answers.wait()
        await peer.send(OK)

    async with proxied(script, warm=True) as world:
        client = await world.client()
        await client.send(client.compose(GET) * 2)
        await until(lambda: world.origin.requests)
        world.listener.drain()
        assert not world.listener.idle.is_set()
        answers.set()
        answer = await client.read_answer()
        assert (answer.body, answer.all(b"Connection")) == (b"ok", [b"close"])
        assert await client.ended()
        await world.listener.idle.wait()
        assert world.counted == [("GET", 200)]


async def test_closing_the_server_cuts_the_request_in_flight() -> None:
    """The client gets no more, the API connection is not reused, and the request is recorded once."""
    async with proxied(_hung, warm=True) as world:
        client = await world.client()
        await client.send(client.compose(GET))
        await until(lambda: world.origin.requests)
        await world.listener.aclose()
        assert await client.ended()
        await until(lambda: _nobody_waits(world))
        assert world.counted == [("GET", 499)]
        pool = _pool(world).pool
        await until(lambda: pool._all == set(pool._idle))


async def test_a_silent_api_times_out() -> None:
    """`timeouts.idle` runs although no task waits."""
    async with proxied(_hung, warm=True, idle_s=0.05) as world:
        assert problem(await world.ask(GET))[0] == 504
        await until(lambda: world.counted == [("GET", 504)])
        pool = _pool(world).pool
        await until(lambda: pool._all == set(pool._idle))


async def test_a_request_is_in_flight_at_the_account_that_its_key_selects_too() -> None:
    """That account waits for it when it drains, and cuts it when it closes."""
    key = Secret("a-key-that-leads-elsewhere")
    rules = AccessRules(keys=(key,), bound={key: "other"})
    async with proxied(_hung, warm=True, rules=rules) as world:
        settings = dataclasses.replace(world.listener.settings, account="other")
        other = AccountServer(settings, world.listener.forwarder, world.listener.log)
        world.listener._others = {"other": other}
        client = await world.client()
        await client.send(client.compose(GET, b"X-Cfproxy-Key: " + key.reveal().encode()))
        await until(lambda: world.origin.requests)
        assert (world.listener.in_flight, other.in_flight) == (1, 1)
        await other.aclose()
        assert await client.ended()
        await until(lambda: _nobody_waits(world))
        assert not other.in_flight
        assert [event["account"] for event in world.events] == ["other"]
