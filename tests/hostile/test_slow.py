"""Clients that send as little as possible, many at once, and the others meanwhile."""

from __future__ import annotations

import pytest

from tests.origin import OK, answering
from tests.proxied import proxied

SLOW = 300
BEGINNINGS = {
    "nothing": b"",
    "half a request line": b"GET /a",
    "half a head": b"GET /a HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 2048,
    "half a body": b"POST /a HTTP/1.1\r\nHost: localhost:%d\r\nContent-Length: 99999\r\n\r\n" + b"a" * 2048,
}


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
async def test_slow_clients_keep_nobody_out(beginning: bytes) -> None:
    """Each goes on by a byte between two requests of others, who are all served."""
    async with proxied(answering(OK)) as world:
        slow = [await world.client() for _ in range(SLOW)]
        for client in slow:
            await client.send(beginning.replace(b"%d", b"%d" % world.port))
        for _ in range(5):
            for client in slow:
                await client.send(b"a" if beginning else b"\r\n")
            answer = await world.ask(b"GET /b HTTP/1.1")
            assert (answer.status, answer.body) == (200, b"ok")
        assert [event["path"] for event in world.events] == ["/b"] * 5
