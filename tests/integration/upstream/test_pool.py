"""The connection pool: its limit, the order of use, and how long connections are kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from cfproxy.errors import UpstreamTimeout, UpstreamUnreachable
from cfproxy.upstream.connection import UpstreamConnection
from cfproxy.upstream.pool import OPENING_MAX, Pool
from tests.support.origin import until_still
from tests.support.proxied import LIMIT_S


class Server:
    """Accepts connections and counts them."""

    def __init__(self) -> None:
        self.accepted = 0
        self.open = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self.open += 1
        await reader.read()
        self.open -= 1
        writer.close()


@asynccontextmanager
async def pool_of(limit: int = 10, connect_s: float = 10.0) -> AsyncIterator[tuple[Pool, Server]]:
    """Return a pool and its server; afterwards no connection is open."""
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    pool = Pool(f"http://127.0.0.1:{server.port}", tls=None, connect_s=connect_s, limit=limit)
    async with asyncio.timeout(LIMIT_S):
        yield pool, server
        await pool.aclose()
        await until(lambda: server.open == 0)
    listening.close()
    await listening.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def release(pool: Pool, connection: UpstreamConnection) -> None:
    """Release a connection that can be reused."""
    pool._add_idle(connection)


async def test_there_are_never_more_than_the_limit() -> None:
    """Twenty simultaneous requests with a limit of two use two connections in turn."""
    async with pool_of(limit=2) as (pool, server):
        most = 0

        async def use() -> None:
            nonlocal most
            connection = await pool.acquire()
            most = max(most, pool.connections)
            await asyncio.sleep(0)
            release(pool, connection)

        await asyncio.gather(*(use() for _ in range(20)))
        assert (most, server.accepted) == (2, 2)


async def test_waiting_requests_are_served_in_order() -> None:
    """No later request gets a free connection first."""
    async with pool_of(limit=1) as (pool, _):
        served: list[int] = []

        async def use(number: int) -> None:
            connection = await pool.acquire()
            served.append(number)
            release(pool, connection)

        first = await pool.acquire()
        waiting = [asyncio.create_task(use(number)) for number in range(5)]
        await asyncio.sleep(0)
        release(pool, first)
        await asyncio.gather(*waiting)
        assert served == [0, 1, 2, 3, 4]


async def test_waiting_for_a_connection_times_out() -> None:
    """The error names the setting; nothing was sent."""
    async with pool_of(limit=1, connect_s=0.05) as (pool, _):
        held = await pool.acquire()
        with pytest.raises(UpstreamTimeout, match=r"limits\.upstream") as caught:
            await pool.acquire()
        assert caught.value.unsent
        release(pool, held)
        assert await pool.acquire() is held


async def test_a_waiting_request_that_is_cancelled_loses_no_connection() -> None:
    """If it was just given a connection, the next one gets it."""
    async with pool_of(limit=1) as (pool, server):
        held = await pool.acquire()
        cancelled, other = asyncio.create_task(pool.acquire()), asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        release(pool, held)
        cancelled.cancel()
        assert await other is held
        assert cancelled.cancelled()
        assert server.accepted == 1


async def test_an_ended_connection_lets_a_waiting_request_open_one() -> None:
    """The limit counts open connections only."""
    async with pool_of(limit=1) as (pool, server):
        held = await pool.acquire()
        waiting = asyncio.create_task(pool.acquire())
        await asyncio.sleep(0)
        held.abort()
        assert (await waiting) is not held
        assert server.accepted == 2


async def test_the_most_recently_used_connection_is_used_first() -> None:
    """So unneeded connections become old and are closed."""
    async with pool_of() as (pool, _):
        first, second = await pool.acquire(), await pool.acquire()
        release(pool, first)
        release(pool, second)
        assert await pool.acquire() is second
        assert await pool.acquire() is first


async def test_an_idle_connection_is_closed_before_the_api_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed when its time is up, and not used afterwards."""
    monkeypatch.setattr("cfproxy.upstream.pool.KEEPALIVE_S", 0.02)
    async with pool_of() as (pool, server):
        old = await pool.acquire()
        release(pool, old)
        await until(lambda: server.open == 0)
        assert await pool.acquire() is not old


async def test_warming_opens_connections_ahead_of_the_first_requests() -> None:
    """Warming twice opens no more; the first request finds one."""
    async with pool_of() as (pool, server):
        pool.warm(2)
        pool.warm(2)
        await until(lambda: server.open == 2)
        await asyncio.sleep(0)
        await pool.acquire()
        assert server.accepted == 2


async def test_failed_warming_is_silent_and_does_not_count() -> None:
    """An unreachable API is reported when a request needs it, not before."""
    pool = Pool("http://127.0.0.1:1", tls=None, connect_s=1.0, limit=1)
    pool.warm(2)
    await until(lambda: pool._warming is None)
    for _ in range(2):
        with pytest.raises(UpstreamUnreachable):
            await pool.acquire()
    await pool.aclose()


async def test_the_number_of_connections_opened_at_once_is_limited() -> None:
    """The others wait; when one has finished, here with an error, the next starts."""
    accepted: list[asyncio.StreamWriter] = []

    async def never_shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        accepted.append(writer)

    async with (
        asyncio.timeout(LIMIT_S),
        await asyncio.start_server(never_shake_hands, "127.0.0.1", 0, backlog=1000) as server,
    ):
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        pool = Pool(url, tls=None, connect_s=60.0, limit=2 * OPENING_MAX)
        asking = [asyncio.create_task(pool.acquire()) for _ in range(OPENING_MAX + 3)]
        assert await until_still(lambda: len(accepted)) == OPENING_MAX
        accepted[0].close()
        await until(lambda: len(accepted) == OPENING_MAX + 1)
        for task in asking:
            task.cancel()
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(each) for each in outcomes].count(UpstreamUnreachable) == 1
        await pool.aclose()
        for writer in accepted:
            writer.close()
