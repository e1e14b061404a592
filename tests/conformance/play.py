"""Plays a case: a raw client, a recording origin that follows the script, and a proxy between them.

Owns: the origin's listener, the connections of a case, the order of steps.
Must not know: which proxy it is, pytest.
Invariant: after a case no connection of it is left, so that the next one starts with a fresh one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from tests.conformance.ends import End, NotKept
from tests.conformance.expectations import Got
from tests.conformance.script import Case, Step, ask

GOODBYE_S = 2.0


class RecordingOrigin:
    """The origin: accepts connections, and knows which of them have a request that nobody took yet."""

    def __init__(self) -> None:
        self.ends: list[End] = []
        self.patience_s = 10.0
        self.authority = b""
        self._news = asyncio.Event()

    def accept(self) -> End:
        """Return the protocol of one more connection."""
        end = End(self.patience_s, self._news.set)
        self.ends.append(end)
        return end

    def waiting(self) -> End | None:
        """Return a connection with the head of a new request."""
        for end in self.ends:
            done = end.message is None or end.more()
            if done and b"\r\n\r\n" in end.buffer:
                return end
        return None

    async def next_request(self) -> End:
        """Wait for a request on any connection.

        Raises:
            NotKept: none came.
        """
        try:
            async with asyncio.timeout(self.patience_s):
                while (end := self.waiting()) is None:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise NotKept("request", "did not reach the origin") from None
        return end

    async def hang_up(self) -> None:
        """Close all connections, and wait until the other side has noticed, as far as it does."""
        ends, self.ends = self.ends, []
        for end in ends:
            end.half_close()
        for end in ends:
            with contextlib.suppress(NotKept):
                end._patience_s = GOODBYE_S
                await end.until(lambda end=end: end.ended, "end")  # type: ignore[misc]
            end.reset_now()


@contextlib.asynccontextmanager
async def open_origin(tls: ssl.SSLContext | None = None) -> AsyncIterator[RecordingOrigin]:
    """Run a recording origin on loopback; with `tls` its scheme is https."""
    recording = RecordingOrigin()
    server = await asyncio.get_running_loop().create_server(recording.accept, "127.0.0.1", 0, ssl=tls)
    recording.authority = b"127.0.0.1:%d" % server.sockets[0].getsockname()[1]
    try:
        yield recording
    finally:
        await recording.hang_up()
        server.close()
        await server.wait_closed()


@dataclass
class Stage:
    """Where cases are played.

    Args:
        origin: behind the proxy.
        port: where the proxy listens on 127.0.0.1.
        token: that the proxy must add.
        patience_s: how long a step may wait.
    """

    origin: RecordingOrigin
    port: int
    token: bytes
    patience_s: float = 10.0
    _clients: dict[str, End] = field(default_factory=dict)
    _origins: dict[str, End] = field(default_factory=dict)

    async def play(self, played: Case) -> None:
        """Play one case.

        Raises:
            NotKept: at the first step that did not go as written.
        """
        self.origin.patience_s = self.patience_s
        try:
            for number, step in enumerate(played.steps, 1):
                try:
                    await self._do(step)
                except NotKept as fault:
                    fault.add_note(f"step {number}: {step.who} {step.act}")
                    raise
            self._check_nothing_is_left()
        finally:
            for end in self._clients.values():
                end.reset_now()
            await self.origin.hang_up()
            self._clients.clear()
            self._origins.clear()

    async def _do(self, step: Step) -> None:
        end = await self._end_of(step)
        match step.act:
            case "sends":
                end.send(self._filled(step.data))
            case "half_closes":
                end.half_close()
            case "closes":
                end.close()
            case "resets":
                end.reset_now()
            case "gets":
                await self._get(end, step)
            case "gets_more":
                await self._get_more(end, step.data)
            case "gets_end":
                await end.until(end.more, "body")
                assert end.message is not None
                step.got.check_body(end.message, reset=end.reset)
            case "sees_close":
                await end.until(lambda: end.ended, "end of connection")
            case "sees_as_told":
                await self._see_as_told(end, step)

    async def _end_of(self, step: Step) -> End:
        """Return the connection that a step is about, opening or accepting it."""
        if step.who == "client":
            if step.lane not in self._clients:
                loop = asyncio.get_running_loop()
                _, end = await loop.create_connection(lambda: End(self.patience_s), "127.0.0.1", self.port)
                self._clients[step.lane] = end
            return self._clients[step.lane]
        if step.act == "gets":
            self._origins[step.lane] = await self.origin.next_request()
        return self._origins[step.lane]

    async def _get(self, end: End, step: Step) -> None:
        got, of_request = self._filled_in(step.got), step.who == "origin"
        while True:
            message = await end.next_message(is_answer=not of_request, to_head=got.to_head)
            if not (got.skip_interim and message.start[9:10] == b"1"):
                break
        got.check_head(message, of_request)
        if of_request:
            tokens = [value for name, value in message.headers if name.lower() == b"authorization"]
            if tokens != [b"Bearer " + self.token]:
                raise NotKept("token", f"the origin got {tokens!r}")
        if got.body is not None or got.cut:
            await end.until(end.more, "body")
            got.check_body(message, reset=end.reset)

    async def _get_more(self, end: End, data: bytes) -> None:
        message = end.message
        assert message is not None

        def came() -> bool:
            return end.more() or len(message.body) - message.seen >= len(data)

        await end.until(came, "piece")
        piece = bytes(message.body[message.seen :])
        message.seen = len(message.body)
        if piece != data:
            raise NotKept("piece", f"expected {data!r}, got {piece!r}")

    async def _see_as_told(self, end: End, step: Step) -> None:
        message = end.message
        assert message is not None
        options = b",".join(value.lower() for name, value in message.headers if name.lower() == b"connection")
        if b"close" in options or (message.start.startswith(b"HTTP/1.0") and b"keep-alive" not in options):
            await end.until(lambda: end.ended, "end of connection")
            return
        end.send(self._filled(ask(b"GET /again HTTP/1.1")))
        origin_end = await self.origin.next_request()
        await origin_end.next_message(is_answer=False)
        origin_end.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await end.next_message(is_answer=True)

    def _check_nothing_is_left(self) -> None:
        if self.origin.waiting() is not None:
            raise NotKept("requests", "the origin got one more than was sent")
        for end in self._clients.values():
            if (end.message is None or end.more()) and end.buffer:
                raise NotKept("answers", f"the client also got {bytes(end.buffer[:80])!r}")

    def _filled(self, data: bytes) -> bytes:
        return data.replace(b"HOST", b"localhost:%d" % self.port).replace(b"ORIGIN", self.origin.authority)

    def _filled_in(self, got: Got) -> Got:
        return replace(got, lines=[*map(self._filled, got.lines)], leads=[*map(self._filled, got.leads)])
