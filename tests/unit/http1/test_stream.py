"""Streams: the order of batched writes, back-pressure while reading, and the idle timeout."""

from __future__ import annotations

import asyncio
import socket
from typing import cast
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.errors import UpstreamProtocol, UpstreamUnreachable
from cfproxy.http1.framing import (
    CHUNKS_MAX,
    TURN_PIECES,
    CloseReader,
    LengthReader,
)
from cfproxy.http1.stream import (
    HIGH_BYTES,
    LARGE_BYTES,
    BodyStream,
    IdleTimeout,
    StreamProtocol,
)
from cfproxy.http1.turns import TURNS, Backlogs, WriteBatch
from cfproxy.server.connection import ClientConnection
from cfproxy.server.request import Limits
from cfproxy.upstream.connection import UpstreamConnection
from tests.unit.upstream.test_connection import OK, FakeTransport


def opened(write_batch: WriteBatch) -> tuple[StreamProtocol, FakeTransport]:
    connection, transport = StreamProtocol(write_batch), FakeTransport()
    connection.connection_made(transport)
    return connection, transport


def deferred_request(write_batch: WriteBatch) -> tuple[UpstreamConnection, FakeTransport]:
    """Return an upstream connection whose request waits for the end of the loop's iteration."""
    connection, transport = UpstreamConnection(lambda _: None, write_batch), FakeTransport()
    connection.connection_made(transport)
    connection.start_exchange(60.0, to_head=False, on_interim=None)
    opened(write_batch)[0].write_soon(b"the first write")
    connection.write_soon(b"POST / HTTP/1.1\r\n\r\n")
    assert transport.written == b""
    return connection, transport


# --- batched writes -----------------------------------------------------------------------


async def test_the_first_write_of_an_iteration_is_immediate_and_the_others_are_deferred() -> None:
    """Each iteration of the event loop starts over."""
    write_batch = WriteBatch()
    (first, to_first), (second, to_second) = opened(write_batch), opened(write_batch)
    for _ in range(2):
        to_first.written = to_second.written = b""
        first.write_soon(b"a")
        second.write_soon(b"b")
        first.write_soon(b"c")
        assert (to_first.written, to_second.written) == (b"a", b"")
        await asyncio.sleep(0)
        assert (to_first.written, to_second.written) == (b"ac", b"b")


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.sampled_from(["write", "write_soon", "iteration"]), st.binary(max_size=3)
        )
    )
)
def test_each_connection_sends_everything_in_order(
    steps: list[tuple[int, str, bytes]],
) -> None:
    """With any mix of `write` and `write_soon` on several connections, across iterations."""

    async def run() -> None:
        write_batch = WriteBatch()
        connections = [opened(write_batch) for _ in range(3)]
        expected = [b"", b"", b""]
        for at, what, data in steps:
            if what == "iteration":
                await asyncio.sleep(0)
                assert [transport.written for _, transport in connections] == expected
                continue
            getattr(connections[at][0], what)(data)
            expected[at] += data
        await asyncio.sleep(0)
        assert [transport.written for _, transport in connections] == expected

    asyncio.run(run())


async def test_close_sends_deferred_writes_and_abort_discards_them() -> None:
    """A closed connection accepts no more."""
    write_batch = WriteBatch()
    opened(write_batch)[0].write_soon(b"the first write")
    (closing, to_closing), (cut, to_cut) = opened(write_batch), opened(write_batch)
    closing.write_soon(b"last")
    closing.close()
    cut.write_soon(b"lost")
    cut.abort()
    await asyncio.sleep(0)
    assert (to_closing.written, to_closing.closed) == (b"last", True)
    assert (to_cut.written, to_cut.closed) == (b"", True)
    with pytest.raises(ConnectionResetError):
        closing.write_soon(b"more")


async def test_a_deferred_response_is_sent_before_its_connection_is_cancelled() -> None:
    """Even within the same iteration."""
    write_batch = WriteBatch()
    opened(write_batch)[0].write_soon(b"the first write")
    transport, (ours, theirs) = FakeTransport(), socket.socketpair()
    with ours, theirs:
        transport._extra["socket"] = ours  # type: ignore[attr-defined] # as loops do it
        connection = ClientConnection(Mock(), Mock(write_batch=write_batch), Limits())
        connection.connection_made(transport)
        connection.write_soon(b"the response")
        connection.cancel()
        connection.connection_lost(None)
    assert (transport.written, transport.closed) == (b"the response", True)


async def test_a_deferred_request_counts_as_unsent_if_its_connection_ends() -> None:
    """So any method may be sent again on another connection (RFC 9110 §9.2.2)."""
    connection, transport = deferred_request(WriteBatch())
    transport.abort()
    connection.connection_lost(None)
    await asyncio.sleep(0)
    assert transport.written == b""
    with pytest.raises(UpstreamUnreachable) as caught:
        await connection.read_head()
    assert caught.value.unsent


async def test_data_received_before_the_request_was_sent_is_not_its_response() -> None:
    """A server that closes an idle connection may send 408 first, which belongs to no request."""
    connection, transport = deferred_request(WriteBatch())
    connection.data_received(OK)
    assert transport.closed
    connection.connection_lost(None)
    with pytest.raises(UpstreamUnreachable) as caught:
        await connection.read_head()
    assert caught.value.unsent


# --- bodies being received, and the idle timeout --------------------------------------------


async def test_reading_is_paused_while_too_much_is_buffered() -> None:
    """The buffer is bounded by the limit and one read of the socket; nothing is lost."""
    connection, transport = StreamProtocol(), FakeTransport()
    connection.connection_made(transport)
    body_stream = BodyStream(connection, CloseReader(), IdleTimeout(Mock()), 60.0)
    body_stream.feed(b"x" * HIGH_BYTES)
    assert transport.reading
    body_stream.feed(b"y")
    assert not transport.reading
    assert body_stream.read_available() == b"x" * HIGH_BYTES + b"y"
    assert cast("bool", transport.reading)


async def test_reading_is_paused_even_if_a_reader_waits() -> None:
    """A loop may read several times in one iteration, before the waiting reader runs."""
    connection, transport = StreamProtocol(), FakeTransport()
    connection.connection_made(transport)
    body_stream = BodyStream(connection, CloseReader(), IdleTimeout(Mock()), 60.0)
    reading = asyncio.ensure_future(body_stream.read())
    await asyncio.sleep(0)
    body_stream.feed(b"x" * (HIGH_BYTES + 1))  # the waiting reader takes it, so there is no need to pause
    assert transport.reading
    body_stream.feed(b"y")
    assert not transport.reading
    assert await reading + await body_stream.read() == b"x" * (HIGH_BYTES + 1) + b"y"
    assert cast("bool", transport.reading)


async def test_small_pieces_are_joined_and_large_ones_are_not() -> None:
    """Joining saves writes, but large pieces are not worth the copy; the order stays."""
    connection, transport = StreamProtocol(), FakeTransport()
    connection.connection_made(transport)
    body_stream = BodyStream(connection, CloseReader(), IdleTimeout(Mock()), 60.0, high_bytes=4 * LARGE_BYTES)
    large = b"x" * LARGE_BYTES
    for piece in (large, large, b"a", b"b"):
        body_stream.feed(piece)
    assert await body_stream.read() is large
    assert await body_stream.read() is large
    assert await body_stream.read() == b"ab"


async def test_received_data_is_returned_before_an_error() -> None:
    """The first error counts; none counts after the end of the body."""
    connection, transport = StreamProtocol(), FakeTransport()
    connection.connection_made(transport)
    body_stream = BodyStream(connection, LengthReader(4), IdleTimeout(Mock()), 60.0)
    body_stream.feed(b"ab")
    body_stream.fail(ConnectionResetError("first"))
    body_stream.fail(ConnectionResetError("second"))
    assert await body_stream.read() == b"ab"
    with pytest.raises(ConnectionResetError, match="first"):
        await body_stream.read()

    whole = BodyStream(connection, LengthReader(2), IdleTimeout(Mock()), 60.0)
    assert whole.feed(b"abc") == b"c"
    whole.fail(ConnectionResetError())
    assert await whole.read() == b"ab"
    assert await whole.read() == b""
    assert whole.exhausted


async def test_an_idle_timeout_calls_back_once_and_only_while_it_runs() -> None:
    """It stays stopped when restarted while stopped, and leaves no timer behind."""
    fired = asyncio.Event()
    calls = Mock(side_effect=fired.set)
    idle_timeout = IdleTimeout(calls)
    idle_timeout.start(0.0)
    idle_timeout.stop()
    idle_timeout.restart()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not calls.called
    idle_timeout.start(0.0)
    await fired.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert calls.call_count == 1
    idle_timeout.start(60.0)
    idle_timeout.aclose()


# --- data in small pieces -------------------------------------------------------------------

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
COUNT = 9 * TURN_PIECES


def answered(backlogs: Backlogs) -> tuple[UpstreamConnection, FakeTransport, BodyStream]:
    """Return a connection whose response has `COUNT` chunks of one byte."""
    connection, transport = UpstreamConnection(lambda _: None, None, backlogs), FakeTransport()
    connection.connection_made(transport)
    connection.start_exchange(60.0, to_head=False, on_interim=None)
    connection.data_received(CHUNKED + b"1\r\nx\r\n" * COUNT + b"0\r\n\r\n")
    assert connection.body is not None
    return connection, transport, connection.body


async def test_small_pieces_are_handled_in_turns() -> None:
    """However many connections have some, an iteration of the loop handles as much as for `TURNS` of them."""
    backlogs = Backlogs()
    bodies = [answered(backlogs)[2] for _ in range(20)]
    assert {len(body.read_available()) for body in bodies} == {TURN_PIECES}
    read = [0] * len(bodies)
    while not all(body.complete for body in bodies):
        await asyncio.sleep(0)
        handled = [len(body.read_available()) for body in bodies]
        assert sum(handled) <= TURNS * TURN_PIECES
        assert sum(map(bool, handled)) <= TURNS
        read = [before + now for before, now in zip(read, handled, strict=True)]
        assert max(read) - min(read) <= TURN_PIECES  # each in its turn
    assert set(read) == {COUNT - TURN_PIECES}


async def test_nothing_is_read_before_the_backlog_is_handled() -> None:
    """Not even by a reader who has taken everything; then reading goes on."""
    _, transport, body = answered(Backlogs())
    seen = []
    while not body.complete:
        assert body.read_available()
        seen.append(transport.reading)
        await asyncio.sleep(0)
    assert set(seen) == {False}
    assert transport.reading


@pytest.mark.parametrize("how", ["connection_lost", "eof_received", "fail"])
async def test_a_backlog_is_delivered_before_an_error(how: str) -> None:
    """The end of the connection may be reported while its data is still being handled."""
    connection, _, body = answered(Backlogs())
    if how == "eof_received":
        connection.eof_received()
    elif how == "fail":
        connection.fail(UpstreamUnreachable("", unsent=False))
    connection.connection_lost(None)
    data = b""
    while piece := await body.read():
        data += piece
    assert data == b"x" * COUNT


async def test_an_incomplete_body_fails_after_its_backlog() -> None:
    """What arrived is delivered."""
    connection = UpstreamConnection(lambda _: None)
    connection.connection_made(FakeTransport())
    connection.start_exchange(60.0, to_head=False, on_interim=None)
    connection.data_received(CHUNKED + b"1\r\nx\r\n" * COUNT)
    connection.connection_lost(None)
    assert connection.body is not None
    data = b""
    while len(data) < COUNT:
        data += await connection.body.read()
    assert data == b"x" * COUNT
    with pytest.raises(UpstreamProtocol, match="incomplete"):
        await connection.body.read()


async def test_too_many_small_chunks_of_a_response_are_malformed() -> None:
    """The connection ends."""
    connection, transport, body = answered(Backlogs())
    while not body.complete:
        await asyncio.sleep(0)
    connection.finish_exchange()
    connection.start_exchange(60.0, to_head=False, on_interim=None)
    connection.data_received(CHUNKED + b"1\r\nx\r\n" * 2 * CHUNKS_MAX)
    while not transport.closed:
        await asyncio.sleep(0)
