"""HTTP/1.1 as bytes: scripted origin servers and raw clients, without cfproxy or an HTTP library.

Nothing is normalised: messages keep every byte of their heads, and an incomplete body is marked as such.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

LIMIT_BYTES = 1 << 20
# Iterations of the event loop without progress after which nothing will change. On loopback the kernel
# delivers data within the sending call, so even one iteration without progress means that everything waits.
STILL_TURNS = 300

# `struct linger`: on, for 0 s.
LINGER_NOT = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)

Headers = list[tuple[bytes, bytes]]


@dataclass
class Message:
    """A request or a response as received.

    Args:
        start: request line or status line.
        headers: names and values, byte for byte, in order.
        body: without chunk framing.
        chunks: the chunks of a chunked body.
        complete: False if the connection ended before the message.
    """

    start: bytes
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    complete: bool = True

    @property
    def method(self) -> bytes:
        return self.start.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.start.split(b" ")[1]

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    def all(self, name: bytes) -> list[bytes]:
        return [value for given, value in self.headers if given.lower() == name.lower()]

    @property
    def names(self) -> list[bytes]:
        return [name for name, _ in self.headers]


class Wire:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: bytes) -> None:
        self.writer.write(b"".join(pieces))
        await self.writer.drain()

    async def read_head(self) -> Message:
        lines = (await self.reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
        headers = [
            (name, value.strip(b" ")) for name, _, value in (line.partition(b":") for line in lines[1:])
        ]
        return Message(lines[0], headers)

    async def read_chunk(self) -> bytes:
        size = int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def read_body(self, message: Message, *, until_end: bool = False) -> None:
        """Read the body of `message`; `until_end`: it may be delimited by the end of the connection."""
        pieces: list[bytes] = []
        try:
            if message.all(b"transfer-encoding") == [b"chunked"]:
                while chunk := await self.read_chunk():
                    pieces.append(chunk)
                message.chunks = pieces
            elif lengths := message.all(b"content-length"):
                left = int(lengths[0])
                while left:
                    pieces.append(await self.reader.read(left))
                    left -= len(pieces[-1])
                    if not pieces[-1]:
                        raise EOFError
            elif until_end:
                while piece := await self.reader.read(LIMIT_BYTES):
                    pieces.append(piece)
        except (EOFError, ConnectionError):  # EOFError: asyncio's IncompleteReadError too
            message.complete = False
        message.body = b"".join(pieces)

    async def read_answer(self, method: bytes = b"GET") -> Message:
        message = await self.read_head()
        if method != b"HEAD" and message.status >= 200 and message.status not in {204, 304}:
            await self.read_body(message, until_end=True)
        return message

    async def ended(self) -> bool:
        """Wait for the peer to close the connection; return False if it sends data instead."""
        try:
            return not await self.reader.read(1)
        except ConnectionError:
            return True

    def abort(self) -> None:
        """Reset the connection; a transport's abort alone would close it in an orderly way."""
        sock = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
        self.writer.transport.abort()


class Peer(Wire):
    """The origin's side of one connection."""

    def __init__(self, origin: Origin, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(reader, writer)
        self._origin = origin

    async def take_head(self) -> Message:
        """Read a request's head; the script reads the body."""
        message = await self.read_head()
        self._origin.requests.append(message)
        return message

    async def take(self) -> Message:
        """Read a complete request."""
        message = await self.take_head()
        await self.read_body(message)
        return message


Script = Callable[[Peer], Awaitable[None]]


class Origin:
    """A server that runs its script on every connection and records the requests."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Message] = []
        self.connections = 0
        self.host = ""
        self.url = ""
        self._peers: set[Peer] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        peer = Peer(self, reader, writer)
        self._peers.add(peer)
        try:
            await self.script(peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the peer left
        finally:
            self._peers.discard(peer)
            writer.close()

    def abort(self) -> None:
        for peer in self._peers:
            peer.abort()


@contextlib.asynccontextmanager
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Origin]:
    """Run an origin server on loopback."""
    origin = Origin(script)
    server = await asyncio.start_server(origin, "127.0.0.1", 0, ssl=tls, limit=LIMIT_BYTES)
    port = server.sockets[0].getsockname()[1]
    origin.host = f"127.0.0.1:{port}"
    origin.url = f"{'http' if tls is None else 'https'}://{origin.host}"
    try:
        yield origin
    finally:
        server.close()
        origin.abort()


def answering(*replies: bytes) -> Script:
    """Return a script that sends each complete request the next reply; the last reply repeats."""
    left = list(replies)

    async def script(peer: Peer) -> None:
        while True:
            await peer.take()
            await peer.send(left.pop(0) if len(left) > 1 else left[0])

    return script


def reply(status: str, body: bytes = b"", *headers: bytes) -> bytes:
    """Return a response as bytes; `status` is code and reason."""
    lines = [b"HTTP/1.1 " + status.encode("latin-1"), *headers, b"Content-Length: %d" % len(body), b"", b""]
    return b"\r\n".join(lines) + body


def chunked(*pieces: bytes) -> bytes:
    """Return a complete chunked body as bytes."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


OK = reply("200 OK", b"ok")


async def until_still(count: Callable[[], int], turns: int = STILL_TURNS) -> int:
    """Return `count()` once it has not changed for `turns` iterations of the event loop."""
    seen, still = count(), 0
    while still < turns:
        await asyncio.sleep(0)
        still = still + 1 if count() == seen else 0
        seen = count()
    return seen


async def until(condition: Callable[[], object]) -> None:
    """Run the event loop until `condition` is true; the test's time limit ends an endless wait."""
    while not condition():
        await asyncio.sleep(0.001)
