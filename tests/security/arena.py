"""Runs a case: a listener, and behind it an origin that records every byte.

The origin responds only to complete requests that its strict parser accepts.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field

from cfproxy.proxy.access import AccessRules
from tests.security.oracle import check_downstream, check_upstream
from tests.security.strict import Heard, Violation, read_requests
from tests.support.origin import Peer, until_still
from tests.support.proxied import Proxied, proxied

# A request takes about twenty iterations of the event loop to pass the proxy. While one is in flight it may
# also wait for something slower; beyond this limit it is waiting for the client.
TURNS = 60
WAITING_S = 0.03


@dataclass
class Stream:
    """One connection as the origin sees it."""

    data: bytearray = field(default_factory=bytearray)
    answered_bytes: int = 0
    went_on: bool = False  # whether the current request got 100 Continue
    open: bool = True


class Recorder:
    """The origin's script: record, and respond to complete requests."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []

    @property
    def seen_bytes(self) -> int:
        return sum(len(stream.data) for stream in self.streams)

    async def __call__(self, peer: Peer) -> None:
        stream = Stream()
        self.streams.append(stream)
        try:
            while piece := await peer.reader.read(1 << 16):
                stream.data += piece
                with contextlib.suppress(Violation):  # the oracle reports it
                    await self._answer(peer, stream)
        finally:
            stream.open = False

    @staticmethod
    async def _answer(peer: Peer, stream: Stream) -> None:
        requests, rest = read_requests(bytes(stream.data[stream.answered_bytes :]))
        for one in requests:
            body = b"" if one.method == b"HEAD" else b"ok"
            await peer.send(
                b"HTTP/1.1 200 OK\r\nX-Origin: %s\r\nContent-Length: 2\r\n\r\n%s" % (one.method, body)
            )
        stream.answered_bytes = len(stream.data) - len(rest)
        if b"\r\n\r\n" in rest and b"\r\nexpect: 100-continue\r\n" in rest.lower() and not stream.went_on:
            await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        stream.went_on = b"\r\n\r\n" in rest


@dataclass(frozen=True)
class Outcome:
    """The result of one connection.

    Args:
        answers: what the client received, as `oracle.check_downstream` names them.
        requests: the complete requests that the origin received, in order of connections.
        closing: whether the last response announces the end of the connection.
        ended: whether the connection has ended.
    """

    answers: tuple[str, ...]
    requests: tuple[Heard, ...]
    closing: bool
    ended: bool

    @property
    def comparable(self) -> tuple[object, ...]:
        return self.answers, tuple((r.start, r.headers, r.body) for r in self.requests), self.closing


class Caller:
    """One connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.data = bytearray()
        self.ended = False
        self._writer = writer
        self._reading = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(1 << 16):
                self.data += piece
        self.ended = True

    def send(self, piece: bytes) -> None:
        if not self.ended:
            self._writer.write(piece)

    def finish(self) -> None:
        """Half-close the connection, as seen by the other side."""
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    async def aclose(self) -> None:
        self._writer.transport.abort()
        await self._reading


class Arena:
    """A listener under attack."""

    def __init__(self, world: Proxied, recorder: Recorder, base_path: bytes, *, key_in_content: bool) -> None:
        self._world = world
        self._recorder = recorder
        self._base_path = base_path
        self._key_in_content = key_in_content

    @property
    def port(self) -> int:
        return self._world.port

    @property
    def seen_bytes(self) -> int:
        return self._recorder.seen_bytes

    async def play(self, pieces: Sequence[bytes], *, then: bytes = b"") -> Outcome:
        """Send the pieces, each in its own iteration of the event loop, and return the outcome.

        Args:
            pieces: what to send.
            then: sent once everything is idle; its effect is part of the outcome.
        """
        before = len(self._recorder.streams), [len(stream.data) for stream in self._recorder.streams]
        caller = await self._open()
        try:
            for piece in pieces:
                caller.send(piece)
                await asyncio.sleep(0)
            await self._until_still([caller])
            if then:
                caller.send(then)
                await self._until_still([caller])
            answers, kinds = check_downstream(bytes(caller.data), heads=b"HEAD" in b"".join(pieces))
            requests = self._requests_since(*before)
            closing = bool(answers) and answers[-1].all(b"connection") == [b"close"]
            return Outcome(tuple(kinds), tuple(requests), closing, caller.ended)
        finally:
            await caller.aclose()
            await self._until_still([])

    async def play_at_once(self, sendings: Iterable[bytes], *, finish: bool) -> list[Heard]:
        """Send each item on its own connection, and return the complete requests that the origin received.

        Args:
            sendings: what to send.
            finish: whether the clients then half-close.
        """
        before = len(self._recorder.streams), [len(stream.data) for stream in self._recorder.streams]
        callers = []
        try:
            for sent in sendings:
                callers.append(await self._open())
                callers[-1].send(sent)
                if finish:
                    callers[-1].finish()
            await self._until_still(callers)
        finally:
            for caller in callers:
                await caller.aclose()
        await self._until_still([])
        return self._requests_since(*before)

    async def _open(self) -> Caller:
        return Caller(*await asyncio.open_connection("127.0.0.1", self._world.port))

    async def _until_still(self, callers: Sequence[Caller]) -> None:
        def seen() -> int:
            return self._recorder.seen_bytes + sum(len(caller.data) + caller.ended for caller in callers)

        began_at = time.perf_counter()
        count = await until_still(seen, TURNS)
        while self._world.listener.in_flight and time.perf_counter() - began_at < WAITING_S:
            await asyncio.sleep(0.001)
            if count != seen():
                began_at = time.perf_counter()
                count = await until_still(seen, TURNS)
        await until_still(seen, TURNS)

    def _requests_since(self, streams: int, lengths: list[int]) -> list[Heard]:
        """Check every stream from its beginning, and return what is new."""
        host = self._world.origin.host.encode()
        found = []
        for number, stream in enumerate(self._recorder.streams):
            old = lengths[number] if number < streams else 0
            at = 0
            for one in check_upstream(
                bytes(stream.data),
                host=host,
                base_path=self._base_path,
                key_in_content=self._key_in_content,
            ):
                at += len(one.raw)
                if at > old:
                    found.append(one)
        return found


@contextlib.asynccontextmanager
async def arena(
    rules: AccessRules | None = None, base_path: bytes = b"", *, key_in_content: bool = False
) -> AsyncIterator[Arena]:
    """Run a recording origin and a listener in front of it (`key_in_content`: see `check_upstream`)."""
    recorder = Recorder()
    async with proxied(recorder, rules=rules, base_path=base_path) as world:
        yield Arena(world, recorder, base_path, key_in_content=key_in_content)
