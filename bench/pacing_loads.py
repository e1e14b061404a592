"""The loads: what a legacy job, plain clients and a person do to the API, with and without cfproxy.

Owns: each load, and the figures that it yields.
Must not know: bounds, tables, plots.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
from pacing_world import World, open_world

REQUESTS = 1000
CONNECTIONS = 50
GIVE_UP_S = 60.0
WINDOW_S = 1.0
IDLE_BURST = 10
IDLE_ROUNDS = 20
# Longer than a window and its guard: whatever was done before is forgotten.
REST_S = 1.3


@dataclass(frozen=True)
class Case:
    """One load before one sandbox.

    Args:
        load: `paced`, `lone` and `idle` go through cfproxy, `plain` and `retrying` do not.
        limiter: how the sandbox counts.
        delay_s: the longest time that the line to it holds a piece back.
        start_after_s: to keep parallel cases from beginning in the same instant.
    """

    load: str
    limiter: str
    delay_s: float
    start_after_s: float = 0.0


@dataclass
class Figures:
    """What one case yielded; instants are seconds since the load began.

    Args:
        seconds: from the first request to the last answer.
        statuses: what the clients got in the end.
        sent: requests that came to the sandbox.
        refused: how many of these it answered with 429.
        arrivals_at: when each came.
        answered_at: when each 200 was complete at its client.
        waits_s: what the lone client waited for each answer, the API's own time included.
        queued_ms: what cfproxy's log says about its queue, 0 where it says nothing; of the lone client
            or of the bursts from idle.
    """

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    sent: int = 0
    refused: int = 0
    arrivals_at: list[float] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    queued_ms: list[float] = field(default_factory=list)


async def measure(case: Case) -> Figures:
    """Run one case and return its figures."""
    await asyncio.sleep(case.start_after_s)
    figures = Figures()
    paced = case.load in {"paced", "lone", "idle"}
    async with open_world(case.limiter, case.delay_s, proxy=paced) as world:
        async with _open_client(world) as client:
            await _get(client, "/v1/_echo/first")  # the first token, the first connection
            await asyncio.sleep(REST_S)
            wall_at, start_at = time.time(), time.perf_counter()
            match case.load:
                case "paced" | "plain":
                    await _burst(client, figures, start_at, _once)
                case "retrying":
                    await _burst(client, figures, start_at, _until_answered)
                case "lone":
                    await _burst_and_lone_client(client, world, figures, start_at)
                case "idle":
                    await _bursts_from_idle(client, figures)
            figures.seconds = time.perf_counter() - start_at
    figures.arrivals_at = [at - wall_at for at in world.arrivals_at if at >= wall_at]
    figures.sent, figures.refused = len(figures.arrivals_at), world.statuses.get(429, 0)
    path = f"/v1/_echo/{case.load}"
    figures.queued_ms = [line.get("queued_ms", 0.0) for line in world.log if line["path"] == path]
    return figures


def worst_window(arrivals_at: list[float]) -> int:
    """Return the most arrivals in any half-open window of 1.0 s."""
    worst = first = 0
    ordered = sorted(arrivals_at)
    for last, at in enumerate(ordered):
        while ordered[first] + WINDOW_S <= at:
            first += 1
        worst = max(worst, last - first + 1)
    return worst


def _open_client(world: World, name: str = "bulk-job") -> aiohttp.ClientSession:
    headers = {"User-Agent": name}
    if not world.proxy:
        headers["Authorization"] = f"Bearer {world.token}"
    return aiohttp.ClientSession(
        world.proxy or world.upstream,
        headers=headers,
        connector=aiohttp.TCPConnector(limit=CONNECTIONS),
        timeout=aiohttp.ClientTimeout(total=None),
    )


async def _get(client: aiohttp.ClientSession, path: str) -> tuple[int, float]:
    """Return the status and the seconds that its Retry-After names, 1 without one."""
    async with client.get(path) as answer:
        await answer.read()
        return answer.status, float(answer.headers.get("Retry-After", "1"))


_Fetch = Callable[[aiohttp.ClientSession, float], Awaitable[int]]


async def _burst(client: aiohttp.ClientSession, figures: Figures, start_at: float, fetch: _Fetch) -> None:
    """Ask 1,000 times at once; 50 connections carry it."""

    async def one() -> None:
        status = await fetch(client, start_at)
        figures.statuses[status] += 1
        if status == 200:
            figures.answered_at.append(time.perf_counter() - start_at)

    await asyncio.gather(*(one() for _ in range(REQUESTS)))


async def _once(client: aiohttp.ClientSession, _start_at: float) -> int:
    return (await _get(client, "/v1/_echo/burst"))[0]


async def _until_answered(client: aiohttp.ClientSession, start_at: float) -> int:
    """Ask again whenever the answer is 429, after the time that it names, for a minute at most."""
    while True:
        status, retry_after_s = await _get(client, "/v1/_echo/burst")
        if status != 429 or time.perf_counter() - start_at + retry_after_s > GIVE_UP_S:
            return status
        await asyncio.sleep(retry_after_s)


async def _burst_and_lone_client(
    client: aiohttp.ClientSession, world: World, figures: Figures, start_at: float
) -> None:
    burst = asyncio.create_task(_burst(client, figures, start_at, _once))
    async with _open_client(world, "a person") as person:
        turn_at = start_at + 0.5
        # By the clock, not a second after each answer: answers are in step with the departures.
        while not (await asyncio.wait([burst], timeout=turn_at - time.perf_counter()))[0]:
            turn_at += 1.0
            asked_at = time.perf_counter()
            status, _ = await _get(person, "/v1/_echo/lone")
            figures.waits_s.append(time.perf_counter() - asked_at)
            figures.statuses[status] += 1
    await burst


async def _bursts_from_idle(client: aiohttp.ClientSession, figures: Figures) -> None:
    for _ in range(IDLE_ROUNDS):
        answers = await asyncio.gather(*(_get(client, "/v1/_echo/idle") for _ in range(IDLE_BURST)))
        figures.statuses.update(status for status, _ in answers)
        await asyncio.sleep(REST_S)
