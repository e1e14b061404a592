"""The HTTP server of the admin listener: clients that leave early, and bodies that arrive late."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import structlog

from cfproxy.admin.messages import AdminRequest, AdminResponse
from cfproxy.admin.server import AdminServer, Respond
from cfproxy.server.connection import HALF_CLOSE_S

LOG = structlog.wrap_logger(None, processors=[structlog.testing.LogCapture()])
POST = b"POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n"


@contextlib.asynccontextmanager
async def connected(respond: Respond) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    server = AdminServer(respond, LOG)
    listening = await asyncio.get_running_loop().create_server(server.build_connection, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        listening.close()
        await server.aclose()


async def test_an_action_completes_although_the_client_leaves() -> None:
    """A client that gives up on a slow reload or login must not interrupt it."""
    started, left, outcome = asyncio.Event(), asyncio.Event(), asyncio.Queue[str]()

    async def respond(_request: AdminRequest) -> AdminResponse:
        started.set()
        try:
            await left.wait()
        except asyncio.CancelledError:
            outcome.put_nowait("cancelled")
            raise
        outcome.put_nowait("complete")
        return AdminResponse()

    async with asyncio.timeout(5), connected(respond) as (_reader, writer):
        writer.write(POST + b"abc")
        await started.wait()
        await asyncio.sleep(2 * HALF_CLOSE_S)  # an earlier end would be that of a half-closed client
        writer.transport.abort()
        await asyncio.sleep(0.1)
        left.set()
        assert await outcome.get() == "complete"


async def test_closing_the_server_cancels_what_takes_too_long() -> None:
    """An action that outlives its client does not outlive the server."""
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def respond(_request: AdminRequest) -> AdminResponse:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return AdminResponse()

    async with asyncio.timeout(5), connected(respond) as (_reader, writer):
        writer.write(POST + b"abc")
        await started.wait()
        await asyncio.sleep(2 * HALF_CLOSE_S)  # an earlier end would be that of a half-closed client
        writer.transport.abort()
        await asyncio.sleep(0.1)
    assert cancelled.is_set()


async def test_a_response_before_the_body_says_that_the_connection_closes() -> None:
    """An action ignores its body; one that is still arriving ends the connection (RFC 9112, section 9.6)."""

    async def respond(_request: AdminRequest) -> AdminResponse:
        return AdminResponse()

    async with asyncio.timeout(5), connected(respond) as (reader, writer):
        writer.write(POST)
        assert b"\r\nConnection: close\r\n" in await reader.read()
    async with asyncio.timeout(5), connected(respond) as (reader, writer):
        writer.write(POST + b"abc")
        assert b"\r\nConnection: close\r\n" not in await reader.readuntil(b"\r\n\r\n")
