"""After a revocation, whatever is requested first leads to a new token."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from tests.e2e.conftest import Disk
from tests.e2e.kit import World, until
from tests.e2e.processes import Proxy

BIG = b"x" * 300_000


class Api:
    """An API that rejects revoked tokens, and every token on one path."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.revoked: set[str] = set()
        self.url = ""

    def revoke(self) -> None:
        self.revoked |= {token.value for token in self._world.sandbox.access_tokens}

    async def answer(self, request: web.BaseRequest) -> web.Response:
        await request.read()
        token = request.headers["Authorization"].removeprefix("Bearer ")
        bad = token in self.revoked or request.path.startswith("/always-401")
        return web.Response(status=401 if bad else 200)


@pytest.fixture
async def api(world: World) -> AsyncIterator[Api]:
    api = Api(world)
    runner = web.ServerRunner(web.Server(api.answer, client_max_size=1 << 24))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    world.write_config(upstream=api.url, retry={"body_memory": "1KiB", "body_max": "200KiB"})
    await world.log_in()
    yield api
    await runner.cleanup()


async def pieces() -> AsyncIterator[bytes]:
    for start in range(0, len(BIG), 30_000):
        yield BIG[start : start + 30_000]


async def upload(proxy: Proxy, kind: str) -> int:
    """Send a request that is not repeated after a 401."""
    data = {"chunked": pieces(), "retries off": b"small", "no space": BIG[:150_000]}.get(kind, BIG)
    async with proxy.client.post(
        f"{proxy.url}/v1/uploads", data=data, expect100=kind == "expects 100"
    ) as answer:
        await answer.read()
        return answer.status


@pytest.mark.parametrize("kind", ["too large", "chunked", "retries off", "no space", "expects 100"])
async def test_401_of_a_request_that_is_not_repeated_leads_to_a_new_token(
    world: World, api: Api, disk: Disk, kind: str
) -> None:
    """The request passes its 401 on, and uploads that follow succeed."""
    if kind == "retries off":
        world.write_config(retry={"unauthorized": False})
    elif kind == "no space":
        world.environment["TMPDIR"] = str(disk.path)
    async with world.serve() as proxy:

        async def succeeds() -> bool:
            return await upload(proxy, kind) == 200

        for _ in range(2):
            api.revoke()
            assert await upload(proxy, kind) == 401
            await until(succeeds, "an upload after the refresh succeeds")
    assert len(world.sandbox.access_tokens) == 3


async def test_path_that_is_always_401_does_not_delay_others(world: World, api: Api) -> None:
    """While it is polled all the time, others recover from a revocation with their first request."""
    async with world.serve() as proxy:
        assert await proxy.status("/v1/jobs") == 200
        for _ in range(3):
            for number in range(60):
                assert await proxy.status("/always-401") == 401
                assert await proxy.status("/v1/jobs") == 200, number
            api.revoke()
            assert await proxy.status("/always-401") == 401
            assert await proxy.status("/v1/jobs") == 200
    assert len(world.sandbox.access_tokens) <= 12
