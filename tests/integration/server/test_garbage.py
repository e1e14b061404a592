"""Ended connections and requests leave no reference cycles for the garbage collector."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from tests.support.origin import OK, Peer, answering, until
from tests.support.proxied import Client, Proxied, proxied

POST = b"POST /v1/x HTTP/1.1"
LONG = b"Content-Length: 100000"


async def left_behind(world: Proxied, use: Callable[[Client], Awaitable[object]]) -> Counter[str]:
    """Return the types of our objects that are garbage after a few connections were used and closed."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            client = await world.client()
            await use(client)
            client.abort()
            await until(lambda: not world.listener.connections and not world.listener.in_flight)
            for _ in range(3):  # the closed transports' last callbacks
                await asyncio.sleep(0)
            world.clients.clear()
            del client
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return Counter(
            type(one).__qualname__ for one in gc.garbage if type(one).__module__.startswith("cfproxy.")
        )
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def say_nothing(client: Client) -> None:
    """Only connect."""


async def begin_a_head(client: Client) -> None:
    await client.send(b"GET / HTTP/1.1\r\n")


async def ask_twice(client: Client) -> None:
    for _ in range(2):
        assert (await client.ask(b"GET / HTTP/1.1")).status == 200


async def ask_in_vain(client: Client) -> None:
    assert (await client.ask(b"GET /x#y HTTP/1.1")).status == 400


async def send_a_body(client: Client) -> None:
    assert (await client.ask(POST, b"Content-Length: 2", body=b"ab")).status == 200


async def begin_a_body(client: Client) -> None:
    await client.send(client.compose(POST, LONG, body=b"abc"))


async def refuse_uploads(peer: Peer) -> None:
    """Close the connection in the middle of a request body."""
    await peer.take_head()
    peer.abort()


async def hang_up(peer: Peer) -> None:
    """Send half a response."""
    await peer.take()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    peer.abort()


async def answer_early(peer: Peer) -> None:
    """Start to respond in the middle of a request body."""
    await peer.take_head()
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    await peer.reader.read()


async def leave_an_upload(client: Client) -> None:
    await client.send(client.compose(POST, LONG, body=b"abc"))
    await client.read_head()


async def meet_a_broken_answer(client: Client) -> None:
    await client.send(client.compose(b"GET / HTTP/1.1"))
    await client.reader.read()


async def upload_in_vain(client: Client) -> None:
    await client.send(client.compose(POST, LONG, body=b"abc"))
    await client.read_answer(b"POST")


@pytest.mark.slow
@pytest.mark.parametrize(
    "use",
    [say_nothing, begin_a_head, ask_twice, ask_in_vain, send_a_body, begin_a_body],
    ids=lambda each: each.__name__,
)
@pytest.mark.parametrize("warm", [False, True])
async def test_a_client_leaves_no_garbage(use: Callable[[Client], Awaitable[object]], warm: bool) -> None:
    """However it leaves; thousands of clients would otherwise stay in memory until a collection."""
    async with proxied(answering(OK), warm=warm) as world:
        assert not await left_behind(world, use)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "use"),
    [(hang_up, meet_a_broken_answer), (refuse_uploads, upload_in_vain), (answer_early, leave_an_upload)],
    ids=lambda each: each.__name__,
)
async def test_a_failure_of_the_api_leaves_no_garbage(
    script: Callable[[Peer], Awaitable[None]], use: Callable[[Client], Awaitable[object]]
) -> None:
    """An error does not keep the frames in its traceback."""
    async with proxied(script) as world:
        assert not await left_behind(world, use)
