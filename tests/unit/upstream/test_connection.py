"""One connection to the API: interim answers, what comes too much, and ends that come too early."""

from __future__ import annotations

import asyncio
from typing import cast
from unittest.mock import Mock

import pytest

from cfproxy.errors import UpstreamError, UpstreamProtocol, UpstreamUnreachable
from cfproxy.http1.framing import CloseReader, LengthReader
from cfproxy.http1.stream import HIGH_BYTES, LARGE_BYTES, BodyStream, IdleTimeout, StreamProtocol
from cfproxy.upstream.connection import INTERIM_MAX_BYTES, UpstreamConnection

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"


class FakeTransport(asyncio.Transport):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self.reading = True
        self.written = b""

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def opened() -> tuple[UpstreamConnection, FakeTransport]:
    connection, transport = UpstreamConnection(lambda _: None), FakeTransport()
    connection.connection_made(transport)
    return connection, transport


async def read_whole(connection: UpstreamConnection) -> None:
    await connection.read_head()
    assert connection.body is not None
    while await connection.body.read():
        pass


async def test_interim_answers_are_told_in_order_and_the_final_one_is_the_answer() -> None:
    """However they are cut: here byte by byte."""
    connection, _ = opened()
    told: list[int] = []
    connection.start_exchange(
        60.0, to_head=False, on_interim=lambda status, _reason, _headers: told.append(status)
    )
    for byte in b"HTTP/1.1 100 Continue\r\n\r\n" + HINT * 2 + OK:
        connection.data_received(bytes([byte]))
    assert (await connection.read_head()).status == 200
    assert connection.body is not None
    assert connection.body.read_available() == b"ok"
    assert told == [100, 103, 103]
    assert connection.finish_exchange()


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_flood_of_interim_answers_ends_the_exchange(at_once: bool) -> None:
    """Together they are bounded, so that none can go on for ever."""
    connection, transport = opened()
    told: list[int] = []
    connection.start_exchange(
        60.0, to_head=False, on_interim=lambda status, _reason, _headers: told.append(status)
    )
    most = INTERIM_MAX_BYTES // len(HINT)
    for piece in [HINT * (most + 1)] if at_once else [HINT] * (most + 1):
        connection.data_received(piece)
    assert transport.closed
    assert len(told) == most
    with pytest.raises(UpstreamProtocol, match="interim"):
        await connection.read_head()


async def test_interim_answers_are_counted_for_each_exchange() -> None:
    """A kept connection is not worn out by them."""
    connection, _ = opened()
    for _ in range(2):
        connection.start_exchange(60.0, to_head=False, on_interim=None)
        connection.data_received(HINT * (INTERIM_MAX_BYTES // len(HINT)) + OK)
        assert (await connection.read_head()).status == 200
        assert connection.body is not None
        connection.body.read_available()
        assert connection.finish_exchange()


@pytest.mark.parametrize("surplus", [b"\r\n", b"x", OK])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_connection_with_bytes_behind_the_answer_is_not_used_again(
    surplus: bytes,
    at_once: bool,
) -> None:
    """They would be taken for the beginning of the next answer."""
    connection, _ = opened()
    connection.start_exchange(60.0, to_head=False, on_interim=None)
    for piece in [OK + surplus] if at_once else [OK, surplus]:
        connection.data_received(piece)
    await connection.read_head()
    assert connection.body is not None
    assert connection.body.read_available() == b"ok"
    assert not connection.finish_exchange()
    assert not connection.usable


async def test_what_comes_while_nobody_asked_ends_the_connection() -> None:
    """It is no answer to the next request."""
    connection, transport = opened()
    connection.data_received(OK)
    assert transport.closed
    assert not connection.usable


@pytest.mark.parametrize("came", [b"", b"H", HINT, HINT + OK[:30], OK[:-1]])
async def test_an_end_before_the_answer_is_whole_is_an_error(came: bytes) -> None:
    """Only one before the first byte of an answer's head is told as no answer at all."""
    connection, _ = opened()
    connection.start_exchange(60.0, to_head=False, on_interim=None)
    if came:
        connection.data_received(came)
    connection.eof_received()
    connection.connection_lost(None)
    expected = UpstreamUnreachable if came in {b"", HINT} else UpstreamProtocol
    with pytest.raises(UpstreamError) as caught:
        await read_whole(connection)
    assert type(caught.value) is expected
    assert not connection.finish_exchange()


# --- bodies on their way in ---------------------------------------------------------------


async def test_reading_is_held_while_too_much_lies_untaken() -> None:
    """What was received and not taken is bounded by the high mark and one read; nothing of it is lost."""
    connection, transport = StreamProtocol(), FakeTransport()
    connection.connection_made(transport)
    body_stream = BodyStream(connection, CloseReader(), IdleTimeout(Mock()), 60.0)
    body_stream.feed(b"x" * HIGH_BYTES)
    assert transport.reading
    body_stream.feed(b"y")
    assert not transport.reading
    assert body_stream.read_available() == b"x" * HIGH_BYTES + b"y"
    assert cast("bool", transport.reading)


async def test_who_waits_is_not_buried_under_what_comes_in_one_turn() -> None:
    """A loop that reads several times a turn is stopped, too, before the one who waits has had its turn."""
    connection, transport = StreamProtocol(), FakeTransport()
    connection.connection_made(transport)
    body_stream = BodyStream(connection, CloseReader(), IdleTimeout(Mock()), 60.0)
    reading = asyncio.ensure_future(body_stream.read())
    await asyncio.sleep(0)
    body_stream.feed(b"x" * (HIGH_BYTES + 1))  # is taken at once: no need to stop for it
    assert transport.reading
    body_stream.feed(b"y")
    assert not transport.reading
    assert await reading + await body_stream.read() == b"x" * (HIGH_BYTES + 1) + b"y"
    assert cast("bool", transport.reading)


async def test_small_pieces_are_given_out_as_one_and_large_ones_as_they_came() -> None:
    """Joining saves work for each of many, and copies what is large; neither keeps back nor reorders."""
    connection, transport = StreamProtocol(), FakeTransport()
    connection.connection_made(transport)
    body_stream = BodyStream(connection, CloseReader(), IdleTimeout(Mock()), 60.0, high_bytes=4 * LARGE_BYTES)
    large = b"x" * LARGE_BYTES
    for piece in (large, large, b"a", b"b"):
        body_stream.feed(piece)
    assert await body_stream.read() is large
    assert await body_stream.read() is large
    assert await body_stream.read() == b"ab"


async def test_what_came_whole_is_given_out_before_an_error() -> None:
    """The first error counts, and none that comes behind the body's end."""
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


async def test_a_deadline_rings_once_and_only_while_it_runs() -> None:
    """Stopped it is silent; touched when stopped it stays so; nothing is left behind."""
    rung = asyncio.Event()
    calls = Mock(side_effect=rung.set)
    idle_timeout = IdleTimeout(calls)
    idle_timeout.start(0.0)
    idle_timeout.stop()
    idle_timeout.restart()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not calls.called
    idle_timeout.start(0.0)
    await rung.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert calls.call_count == 1
    idle_timeout.start(60.0)
    idle_timeout.aclose()
