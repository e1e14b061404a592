"""The event stream: its contents, its limits, and pages that read too slowly."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import structlog

from cfproxy.admin.events import STREAMS_MAX, EventStream
from cfproxy.admin.messages import AdminRequest, AdminResponse, HttpError
from cfproxy.admin.server import AdminServer
from cfproxy.observability.request_stats import Finished, Latest

LOG = structlog.wrap_logger(None, processors=[structlog.testing.LogCapture()])

LIMIT_S = 30.0


class Stage:
    """An event stream whose clock the test controls."""

    def __init__(self) -> None:
        self.latest = Latest()
        self.ticks: asyncio.Queue[None] = asyncio.Queue()
        self.waiting = 0
        self.padding = ""
        self.events = EventStream(self.describe, self.latest, self.sleep)
        self.url = ""

    async def describe(self) -> dict[str, Any]:
        return {"serial": self.latest.serial, "padding": self.padding}

    async def sleep(self, _delay_s: float) -> None:
        self.waiting += 1
        try:
            await self.ticks.get()
        finally:
            self.waiting -= 1

    def add(self, *paths: str) -> None:
        for path in paths:
            self.latest.add(Finished(0.0, "default", "GET", path, 200, "", 0.1, None, None, None, 1))


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """An event stream behind a real server."""
    made = Stage()

    async def respond(request: AdminRequest) -> AdminResponse:
        try:
            return await made.events.serve(request)
        except HttpError as error:
            return AdminResponse(status=error.status)

    server = AdminServer(respond, LOG)
    async with asyncio.timeout(LIMIT_S):
        listening = await asyncio.get_running_loop().create_server(server.build_connection, "127.0.0.1", 0)
        made.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/events"
        yield made
        await made.events.aclose()
        listening.close()
        await server.aclose()


@contextlib.asynccontextmanager
async def listening(stage: Stage, after: str = "") -> AsyncIterator[aiohttp.StreamReader]:
    async with aiohttp.ClientSession() as client, client.get(stage.url, params={"after": after}) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        yield answer.content


async def event(stream: aiohttp.StreamReader, wanted: str) -> Any:
    """Return the data of the next event of that name."""
    name = ""
    while True:
        line = (await stream.readline()).decode().rstrip("\n")
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: ") and name == wanted:
            return json.loads(line.removeprefix("data: "))


def paths(rows: Any) -> list[str]:
    return [row["path"] for row in rows["rows"]]


async def test_an_open_page_gets_each_request_once(stage: Stage) -> None:
    """It gets the requests since it was rendered, then new ones, and the state at each tick."""
    stage.add("/before")
    event_id = stage.events.last_event_id
    stage.add("/between")
    async with listening(stage, event_id) as stream:
        rows = await event(stream, "rows")
        assert (paths(rows), rows["fresh"], rows["last"]) == (["/between"], False, 2)
        stage.add("/later")
        stage.ticks.put_nowait(None)
        rows = await event(stream, "rows")
        assert (paths(rows), rows["last"]) == (["/later"], 3)


async def test_a_page_of_an_earlier_process_gets_all_requests(stage: Stage) -> None:
    """Serial numbers start at 1 in each process, so an old event ID means nothing."""
    stage.add("/one", "/two")
    for event_id in ("0badcafe-1", "", "nonsense", f"{stage.events.last_event_id}x"):
        async with listening(stage, event_id) as stream:
            rows = await event(stream, "rows")
            assert (paths(rows), rows["fresh"]) == (["/one", "/two"], True)


async def test_no_task_runs_without_an_open_page(stage: Stage) -> None:
    """The ticker starts with the first page and ends with the last one."""
    assert stage.waiting == 0
    async with listening(stage) as stream:
        await event(stream, "state")
        while not stage.waiting:
            await asyncio.sleep(0)
    while stage.waiting:  # each tick writes to the closed page, until that is noticed
        stage.ticks.put_nowait(None)
        await asyncio.sleep(0.01)


async def test_the_number_of_open_pages_is_limited(stage: Stage) -> None:
    """One more is refused with 503."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(STREAMS_MAX):
            await stack.enter_async_context(listening(stage))
        async with aiohttp.ClientSession() as client, client.get(stage.url) as answer:
            assert answer.status == 503


async def test_a_page_that_does_not_read_is_disconnected(stage: Stage) -> None:
    """The others continue; nothing is stored for it."""
    async with listening(stage) as stream:
        host, port = stage.url.removeprefix("http://").removesuffix("/events").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readline()
        stage.padding = "x" * 60_000
        while len(stage.events._streams) == 2:  # the size of the kernel's buffers varies
            stage.ticks.put_nowait(None)
            await event(stream, "state")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1_000_000_000)
        writer.transport.abort()
        stage.padding = "continued"
        while (await event(stream, "state"))["padding"] != "continued":
            stage.ticks.put_nowait(None)


async def test_closing_ends_the_streams(stage: Stage) -> None:
    """A shutdown does not wait for open pages."""
    async with listening(stage) as stream:
        await event(stream, "state")
        await stage.events.aclose()
        await stream.read()
        assert stream.at_eof()
