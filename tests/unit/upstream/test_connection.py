"""One upstream connection: interim responses, surplus data, and early ends."""

from __future__ import annotations

import asyncio

import pytest

from cfproxy.errors import UpstreamError, UpstreamProtocol, UpstreamUnreachable
from cfproxy.upstream.connection import INTERIM_MAX_BYTES, UpstreamConnection

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"


class FakeTransport(asyncio.Transport):
    """Records what was done to it."""

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


async def test_interim_responses_are_reported_in_order_before_the_final_one() -> None:
    """Even if they arrive byte by byte."""
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
async def test_too_many_interim_responses_end_the_exchange(at_once: bool) -> None:
    """Their total size is bounded, so that they can't go on for ever."""
    connection, transport = opened()
    told: list[int] = []
    connection.start_exchange(
        60.0, to_head=False, on_interim=lambda status, _reason, _headers: told.append(status)
    )
    most = INTERIM_MAX_BYTES // len(HINT)
    for piece in [HINT * (most + 1)] if at_once else [HINT] * (most + 1):
        connection.data_received(piece)
    while not transport.closed:
        await asyncio.sleep(0)
    assert len(told) == most
    with pytest.raises(UpstreamProtocol, match="interim"):
        await connection.read_head()


async def test_interim_responses_are_counted_per_exchange() -> None:
    """A reused connection starts counting again."""
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
async def test_a_connection_with_surplus_data_is_not_reused(
    surplus: bytes,
    at_once: bool,
) -> None:
    """The data would be taken for the start of the next response."""
    connection, _ = opened()
    connection.start_exchange(60.0, to_head=False, on_interim=None)
    for piece in [OK + surplus] if at_once else [OK, surplus]:
        connection.data_received(piece)
    await connection.read_head()
    assert connection.body is not None
    assert connection.body.read_available() == b"ok"
    assert not connection.finish_exchange()
    assert not connection.usable


async def test_data_outside_an_exchange_ends_the_connection() -> None:
    """It is not the response to the next request."""
    connection, transport = opened()
    connection.data_received(OK)
    assert transport.closed
    assert not connection.usable


@pytest.mark.parametrize("came", [b"", b"H", HINT, HINT + OK[:30], OK[:-1]])
async def test_an_end_before_the_response_is_complete_is_an_error(came: bytes) -> None:
    """It counts as unreachable only if no byte of a final response has arrived."""
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
