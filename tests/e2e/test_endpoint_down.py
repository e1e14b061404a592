"""While the token endpoint is down: valid tokens are used, then 503, then recovery without a restart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from yarl import URL

from cfproxy.sandbox import Fault
from tests.e2e.kit import World, until
from tests.e2e.processes import Proxy

FAULTS = {
    "stall": Fault("stall", times=10_000),
    "500": Fault("status", status=500, times=10_000),
    "HTML with 200": Fault("html", times=10_000),
    "2 MB of garbage": Fault("garbage", size_bytes=2_000_000, times=10_000),
}
BACKOFF_LEAST_S = 0.8  # the first step of 1 s, less the most that jitter takes off


class Relay:
    """A route to the token endpoint that can be closed, so that connections are refused."""

    def __init__(self, target: URL) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._target.host, self._target.port)
        await asyncio.gather(_pour(reader, far_writer), _pour(far_reader, writer), return_exceptions=True)


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def endpoint_down(world: World, kind: str) -> AsyncIterator[asyncio.Event]:
    """Break the token endpoint until the event is set."""
    mend = asyncio.Event()
    relay = Relay(URL(world.sandbox.url))
    await relay.open()
    world.write_config(token_url=f"http://127.0.0.1:{relay.port}/connect/token", timeouts={"token": "1s"})
    await world.log_in()

    async def mended() -> None:
        await mend.wait()
        world.sandbox.behaviour.token_faults = []
        if kind == "refused":
            await relay.open()

    if kind == "refused":
        await relay.close()
    else:
        world.sandbox.inject("token", FAULTS[kind])
    task = asyncio.create_task(mended())
    try:
        yield mend
    finally:
        task.cancel()
        await relay.close()


async def is_failing(proxy: Proxy) -> bool:
    report = await proxy.account()
    return bool(report["state"] == "token-endpoint-unavailable")


@pytest.mark.parametrize("kind", ["refused", *FAULTS])
async def test_a_valid_token_serves_until_it_expires_and_recovery_needs_no_restart(
    world: World, kind: str
) -> None:
    """Requests use the valid token; then a 503 has Retry-After; then all is well again."""
    async with endpoint_down(world, kind) as mend:
        world.age(3500)  # 100 s are left: time to refresh, and valid
        async with world.serve() as proxy:
            await until(lambda: is_failing(proxy), "the refresh has failed")
            assert [await proxy.status() for _ in range(20)] == [200] * 20
            assert await proxy.ready() == 200

            world.age(100)
            slug, wait = "none", None
            while slug == "none":  # until the running proxy has seen the change
                slug, wait = await proxy.problem()
            assert slug == "token-endpoint-unavailable"
            assert wait is not None
            assert 1 <= int(wait) <= 40
            assert await proxy.ready() == 503

            mend.set()
            await until(lambda: _is(proxy, 200), "requests are served again")
            assert await proxy.ready() == 200
    assert world.sandbox.reuse_seen == 0


async def _is(proxy: Proxy, status: int) -> bool:
    return await proxy.status() == status


async def test_requests_make_no_attempts_of_their_own(world: World) -> None:
    """While the endpoint is down they are refused at once."""
    async with endpoint_down(world, "500"):
        world.age(7200)
        begun_at = time.monotonic()
        async with world.serve() as proxy:
            for _ in range(40):
                slugs = {slug for slug, _ in await asyncio.gather(*(proxy.problem() for _ in range(20)))}
                assert slugs == {"token-endpoint-unavailable"}
        elapsed_s = time.monotonic() - begun_at
    attempts = len([each for each in world.sandbox.token_requests if each.outcome == "fault:status"])
    assert 1 <= attempts <= 1 + elapsed_s / BACKOFF_LEAST_S


async def test_a_request_that_waits_for_a_stalled_refresh_gets_an_answer(world: World) -> None:
    """Without a valid token a request waits for the refresh, at most `timeouts.token`."""
    async with endpoint_down(world, "stall"):
        world.age(7200)
        async with world.serve() as proxy:
            slug, wait = await proxy.problem()
    assert slug == "token-endpoint-unavailable"
    assert wait is not None


async def test_a_rejected_app_is_misconfigured_until_the_secret_is_right(world: World) -> None:
    """`invalid_client` gives 500 misconfigured, costs no login, and needs no restart."""
    await world.log_in()
    secret = world.sandbox.behaviour.client_secret
    world.sandbox.behaviour.client_secret = "another-one"
    world.age(7200)
    async with world.serve() as proxy:
        assert await proxy.problem() == ("misconfigured", None)
        assert (await proxy.account())["state"] == "misconfigured"
        world.sandbox.behaviour.client_secret = secret
        await until(lambda: _is(proxy, 200), "requests are served again")
    told = await world.run("status")
    assert told.code == 0


@pytest.mark.parametrize("kind", ["500", "stall"])
async def test_the_token_command_fails_with_5_in_one_line(world: World, kind: str) -> None:
    """A command that needs the endpoint prints one line and exits with 5 while it is down."""
    async with endpoint_down(world, kind):
        world.age(7200)
        ran = await world.run("token")
    assert (ran.code, ran.out) == (5, "")
    assert "token endpoint" in ran.line
