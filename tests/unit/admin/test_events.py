"""The event stream: who may listen, what is told, and what becomes of one who does not keep up."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cfproxy.admin.events import LISTENERS_MAX, Feed
from cfproxy.observability.request_stats import Finished, Latest

LIMIT_S = 30.0


class Stage:
    """A feed with a clock that the test turns."""

    def __init__(self) -> None:
        self.latest = Latest()
        self.ticks: asyncio.Queue[None] = asyncio.Queue()
        self.waiting = 0
        self.padding = ""
        self.feed = Feed(self.describe, self.latest, self.sleep)
        self.url = ""

    async def describe(self) -> dict[str, Any]:
        return {"told": self.latest.serial, "padding": self.padding}

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
    """A feed behind a real server."""
    made = Stage()
    app = web.Application()
    app.router.add_get("/events", made.feed.serve)
    async with asyncio.timeout(LIMIT_S), TestServer(app) as server:
        made.url = str(server.make_url("/events"))
        yield made
        await made.feed.aclose()


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


async def test_an_open_page_is_told_what_comes_and_only_that(stage: Stage) -> None:
    """It gets what came since it was rendered, then what comes, each tick the state."""
    stage.add("/before")
    mark = stage.feed.mark
    stage.add("/between")
    async with listening(stage, mark) as stream:
        rows = await event(stream, "rows")
        assert (paths(rows), rows["fresh"], rows["last"]) == (["/between"], False, 2)
        stage.add("/later")
        stage.ticks.put_nowait(None)
        rows = await event(stream, "rows")
        assert (paths(rows), rows["last"]) == (["/later"], 3)


async def test_a_page_of_an_earlier_process_begins_anew(stage: Stage) -> None:
    """Serial numbers begin at 1 with each start, so an old mark means nothing."""
    stage.add("/one", "/two")
    for mark in ("0badcafe-1", "", "nonsense", f"{stage.feed.mark}x"):
        async with listening(stage, mark) as stream:
            rows = await event(stream, "rows")
            assert (paths(rows), rows["fresh"]) == (["/one", "/two"], True)


async def test_nothing_runs_while_nobody_looks(stage: Stage) -> None:
    """The ticker begins with the first page and ends with the last one."""
    assert stage.waiting == 0
    async with listening(stage) as stream:
        await event(stream, "state")
        while not stage.waiting:
            await asyncio.sleep(0)
    while stage.waiting:  # each tick writes to the page that is gone, until that is noticed
        stage.ticks.put_nowait(None)
        await asyncio.sleep(0.01)


async def test_the_number_of_listeners_is_bounded(stage: Stage) -> None:
    """One more is refused and takes nothing."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(LISTENERS_MAX):
            await stack.enter_async_context(listening(stage))
        async with aiohttp.ClientSession() as client, client.get(stage.url) as answer:
            assert answer.status == 503


async def test_a_page_that_does_not_read_is_cut_off(stage: Stage) -> None:
    """The others are told on; what it did not take is not kept for it."""
    async with listening(stage) as stream:
        host, port = stage.url.removeprefix("http://").removesuffix("/events").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readline()
        stage.padding = "x" * 60_000
        while len(stage.feed._listeners) == 2:  # what the kernel holds differs from machine to machine
            stage.ticks.put_nowait(None)
            await event(stream, "state")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1_000_000_000)
        writer.transport.abort()
        stage.padding = "told on"
        while (await event(stream, "state"))["padding"] != "told on":
            stage.ticks.put_nowait(None)


async def test_closing_the_feed_ends_the_streams(stage: Stage) -> None:
    """A proxy that stops does not wait for open pages."""
    async with listening(stage) as stream:
        await event(stream, "state")
        await stage.feed.aclose()
        await stream.read()
        assert stream.at_eof()
