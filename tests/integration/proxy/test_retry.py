"""The retry after a 401, on real sockets."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from cfproxy.errors import LoginRequired, QueueFull
from tests.integration.proxy.test_proxy import problem
from tests.support.origin import OK, Message, Peer, answering, chunked, reply, until
from tests.support.proxied import Proxied, proxied

REFUSAL = reply("401 Unauthorized", b"expired", b"WWW-Authenticate: Bearer")
FIVE_MB = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(5 * 1024 * 32))


def tokens(world: Proxied) -> list[bytes]:
    return [value for request in world.origin.requests for value in request.all(b"Authorization")]


BOTH = [b"Bearer token-1", b"Bearer token-2"]


@pytest.mark.parametrize(
    ("headers", "sent", "body"),
    [
        ([b"Content-Length: 5"], b"hello", b"hello"),
        ([b"Content-Length: %d" % len(FIVE_MB)], FIVE_MB, FIVE_MB),
        ([b"Transfer-Encoding: chunked"], chunked(b"he", b"llo"), b"hello"),
        (
            [b"Transfer-Encoding: chunked"],
            chunked(*[FIVE_MB[at : at + 50_000] for at in range(0, len(FIVE_MB), 50_000)]),
            FIVE_MB,
        ),
        ([], b"", b""),
    ],
    ids=["in memory", "spooled to a file", "chunked", "chunked 5 MB", "none"],
)
async def test_the_retry_sends_the_identical_body(headers: list[bytes], sent: bytes, body: bytes) -> None:
    """The API gets the same request with the new token, and the client one response."""
    async with proxied(answering(REFUSAL, OK), memory_bytes=64 * 1024) as world:
        answer = await world.ask(b"POST /x HTTP/1.1", *headers, body=sent)
        assert (answer.status, answer.body) == (200, b"ok")
        first, second = world.origin.requests
        assert first.body == second.body == body
        assert tokens(world) == BOTH
        assert first.headers[:-1] == second.headers[:-1]
        assert world.pacer.journal == ["slot", "slot"]
        assert world.events[-1]["retried"] is True


async def test_after_an_early_401_only_the_retry_sends_the_rest_of_the_body() -> None:
    """An API that refuses early gets the whole body once."""

    async def script(peer: Peer) -> None:
        request = await peer.take_head()
        if len(world.origin.requests) == 1:
            await peer.read_chunk()
            await peer.send(REFUSAL)
            refused.set()
            while not await peer.ended():
                request.body += b"?"  # unwanted bytes arrived
            return
        await peer.read_body(request)
        await peer.send(OK)

    refused = asyncio.Event()
    async with proxied(script) as world:
        client = await world.client()
        pieces = [b"a" * 1000, FIVE_MB[:2_000_000], b"end"]
        await client.send(
            client.compose(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=chunked(pieces[0])[:-5])
        )
        await refused.wait()
        await until(lambda: len(world.origin.requests) == 2)
        await client.send(chunked(*pieces[1:]))
        assert (await client.read_answer()).body == b"ok"
        first, second = world.origin.requests
        assert (first.body, second.body) == (b"", b"".join(pieces))
        assert tokens(world) == BOTH


async def test_a_401_passes_if_the_body_is_too_large_to_replay() -> None:
    """Above `retry.body_max`, Proxy-Status explains why there was no retry."""
    async with proxied(answering(REFUSAL), max_bytes=100) as world:
        answer = await world.ask(b"POST / HTTP/1.1", b"Content-Length: 101", body=b"x" * 101)
        assert (answer.status, answer.body) == (401, b"expired")
        assert answer.all(b"Proxy-Status") == [
            b'cfproxy; received-status=401; details="request body was not kept, so not sent again"'
        ]
        assert len(world.origin.requests) == 1
        assert world.source.journal[-1] == "reject token-1"


async def test_a_second_401_passes_unchanged() -> None:
    """If the fresh token is refused too, there is no further retry."""
    async with proxied(answering(REFUSAL)) as world:
        client = await world.client()
        await client.send(client.compose(b"GET / HTTP/1.1"))
        assert await client.reader.readexactly(len(REFUSAL)) == REFUSAL
        assert tokens(world) == BOTH
        assert world.source.journal[-1] == "distrust token-2"


async def test_with_retry_off_a_401_passes_unchanged() -> None:
    """`retry.unauthorized: false`."""
    async with proxied(answering(REFUSAL), retry=False) as world:
        client = await world.client()
        await client.send(client.compose(b"GET / HTTP/1.1"))
        assert await client.reader.readexactly(len(REFUSAL)) == REFUSAL
        assert tokens(world) == BOTH[:1]


async def refused_request(world: Proxied) -> tuple[tuple[int, str], Message]:
    answer = await world.ask(b"POST / HTTP/1.1", b"Content-Length: 2", body=b"ab")
    return problem(answer), answer


async def test_a_401_becomes_a_problem_if_no_other_token_can_be_had() -> None:
    """If the refresh fails for good, the client learns what to do."""
    async with proxied(answering(REFUSAL)) as world:
        world.source.replace_error = LoginRequired("run: cfproxy login")
        refusal, answer = await refused_request(world)
        assert refusal == (503, "login-required")
        assert b"cfproxy login" in answer.body
        assert answer.all(b"Retry-After") == []


async def test_without_token_or_slot_nothing_reaches_the_api() -> None:
    """A request is never sent without a token or a slot."""
    async with proxied(answering(OK)) as world:
        world.source.error = LoginRequired("run: cfproxy login")
        assert (await refused_request(world))[0] == (503, "login-required")
        world.source.error, world.pacer.error = None, QueueFull("full", retry_after_s=2.5)
        refusal, answer = await refused_request(world)
        assert (refusal, answer.all(b"Retry-After")) == ((503, "queue-full"), [b"3"])
        assert world.origin.connections == 0
