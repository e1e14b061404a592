"""The sandbox as a whole: start, close, and many connections at once."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import Counter

import pytest

from cfproxy.sandbox import Behaviour, Sandbox
from tests.integration.sandbox.world import World, open_world

CONNECTIONS = 1200


def allow_open_files(count: int) -> None:
    """Raise the limit of open files for this process, or skip the test."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"only {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))


@pytest.mark.slow
async def test_it_serves_more_than_a_thousand_connections_at_once() -> None:
    """1,200 connections are open together, and each is served."""
    allow_open_files(3 * CONNECTIONS)
    async with open_world(Behaviour(limiter="off")) as world:
        headers, together = world.bearer(), asyncio.Barrier(CONNECTIONS)

        async def call() -> int:
            async with world.call("GET", "/v1/_sse?events=2&interval_s=0.05", headers=headers) as response:
                await together.wait()
                await response.read()
                return response.status

        statuses = await asyncio.gather(*(call() for _ in range(CONNECTIONS)))
        assert Counter(statuses) == {200: CONNECTIONS}
        assert world.sandbox.api_requests == len(world.sandbox.journal.api_arrivals) == CONNECTIONS


async def test_a_port_in_use_is_an_error() -> None:
    """Starting on a port in use raises OSError and leaves nothing behind."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        sandbox = Sandbox()
        with pytest.raises(OSError, match=r".+"):
            await sandbox.start(port=taken.getsockname()[1])
        assert sandbox.url == ""
        await sandbox.close()


async def test_it_can_be_restarted_on_its_port(world: World) -> None:
    """After `close` the port is free, and issued tokens are still valid."""
    login = world.sandbox.issue_login()
    port = int(world.sandbox.url.rpartition(":")[2])
    await world.sandbox.close()
    await world.sandbox.start(port=port)
    assert (await world.refresh(login["refresh_token"]))[0] == 200


async def test_it_listens_on_ipv6_too() -> None:
    """The URL has an IPv6 address in brackets."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    sandbox = Sandbox()
    try:
        await sandbox.start("::1")
    except OSError:
        pytest.skip("no IPv6 loopback here")
    assert sandbox.url.startswith("http://[::1]:")
    await sandbox.close()


async def test_codes_default_to_the_first_redirect_uri(world: World) -> None:
    """Without any registered redirect URI it is the sandbox's own."""
    world.behaviour.redirect_uris = ()
    code = world.sandbox.issue_code()
    assert (await world.exchange(code, redirect_uri=f"{world.sandbox.url}/paste"))[0] == 200


async def test_paths_outside_the_api_need_no_token(world: World) -> None:
    """Paths outside `/v1` need no token and are not counted as API calls."""
    assert await world.status("GET", "/v1x", headers={}) == 404
    assert await world.status("GET", "/", headers={}) == 404
    assert world.sandbox.api_requests == 0
