"""Forwarding with and without a task is indistinguishable from outside, whatever interferes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from cfproxy.upstream.client import UpstreamClient
from tests.support.examples import examples
from tests.support.origin import Peer, until, until_still
from tests.support.proxied import Client, Proxied, proxied

TURNS = 40
REQUESTS = (
    (b"GET /a HTTP/1.1",),
    (b"HEAD /b HTTP/1.1",),
    (b"POST /c HTTP/1.1",),
    (b"GET /d HTTP/1.1", b"Connection: close"),
    (b"GET /e HTTP/1.0", b"Connection: keep-alive"),
    (b"GET /f HTTP/1.0",),
    (b"GET /../ HTTP/9",),
)
ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 103 Early Hints\r\nLink: </s>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more",
    b"HTTP/1.1 OK\r\n\r\n",
)
_ID = re.compile(rb"[0-9a-f]{8}-\d+")

# Each step is one event: so many bytes of either side (all that is left: 999), its end, or a reset.
_size = st.sampled_from((999, 999, 999, 1, 7, 20, 40))
_step = st.one_of(
    st.tuples(st.just("client"), _size),
    st.tuples(st.just("origin"), _size),
    st.tuples(
        st.sampled_from(("client", "client", "origin", "origin", "proxy")), st.sampled_from(("end", "reset"))
    ),
)


@dataclass
class Plan:
    """A sequence of events."""

    requests: list[tuple[bytes, ...]]
    answers: list[bytes]  # the last one is used for all that follow
    steps: list[tuple[str, int | str]]


@dataclass
class Seen:
    """What is visible from outside."""

    received: bytes = b""
    ended: bool = False
    targets: list[bytes] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    counted: list[tuple[str, int]] = field(default_factory=list)


_plans = st.builds(
    Plan,
    requests=st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=3),
    answers=st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=3),
    steps=st.lists(_step, min_size=1, max_size=8),
)


class _Stage:
    """Plays a plan on one proxy."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.seen = Seen()
        self.asked: list[tuple[Peer, bytearray]] = []  # with the bytes still to be sent

    async def script(self, peer: Peer) -> None:
        while True:
            request = await peer.take()
            self.seen.targets.append(request.start)
            answers = self.plan.answers
            self.asked.append((peer, bytearray(answers[min(len(self.asked), len(answers) - 1)])))

    async def listen(self, client: Client) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await client.reader.read(65536):
                self.seen.received += piece
        self.seen.ended = True

    async def play(self, *, taskless: bool) -> Seen:
        async with proxied(self.script, warm=True) as world:
            world.pacer.at_once = taskless
            client = await world.client()
            left = bytearray(b"".join(client.compose(*lines) for lines in self.plan.requests))
            hearing = asyncio.create_task(self.listen(client))
            for who, what in [
                *self.plan.steps,
                ("client", 999),
                *([("origin", 999)] * 12),
                ("origin", "end"),
            ]:
                if who == "proxy":
                    world.listener.drain(refuse=what == "reset")
                elif who == "client":
                    _act(client, left, what)
                elif self.asked:
                    _act(*self.asked[-1], what)
                await until_still(lambda: self.progress(world), TURNS)
            client.abort()
            await until(lambda: not (world.listener.in_flight or world.listener.connections))
            hearing.cancel()
            await until_still(lambda: self.progress(world), TURNS)
            upstream = world.listener.forwarder.upstream
            assert isinstance(upstream, UpstreamClient)
            assert upstream.pool._all == set(upstream.pool._idle)
            self.seen.counted = world.counted
            told = ("ms", "request_id", "queued_ms", "exc_info")
            self.seen.events = [
                {name: value for name, value in event.items() if name not in told} for event in world.events
            ]
        self.seen.received = _ID.sub(b"ID", self.seen.received)
        return self.seen

    def progress(self, world: Proxied) -> int:
        return (
            len(self.seen.received)
            + len(self.asked)
            + len(world.events)
            + world.origin.connections
            + len(world.pacer.journal)
        )


def _act(wire: Client | Peer, left: bytearray, what: int | str) -> None:
    if wire.writer.transport.is_closing():
        return
    if what == "reset":
        wire.abort()
    elif what == "end":
        with contextlib.suppress(OSError):
            wire.writer.write_eof()
    elif isinstance(what, int) and left and not wire.writer.transport._eof:  # type: ignore[attr-defined]
        wire.writer.write(bytes(left[:what]))
        del left[:what]


@settings(max_examples=examples(300))
@given(_plans)
def test_forwarding_with_and_without_a_task_looks_the_same(plan: Plan) -> None:
    """To the client, to the API, in the log and in the metrics."""
    # How long the proxy waits for a half-closed client depends on the clock, which is not part of a plan.
    with patch("cfproxy.server.connection.HALF_CLOSE_S", math.inf):
        without_task, with_task = (
            asyncio.run(_Stage(plan).play(taskless=taskless)) for taskless in (True, False)
        )
    assert without_task == with_task
