"""Sending side by side: the order of bytes, and what becomes of those that did not leave."""

from __future__ import annotations

import asyncio
import socket
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.errors import UpstreamUnreachable
from cfproxy.http1.stream import StreamProtocol, WriteBatch
from cfproxy.server.connection import ClientConnection
from cfproxy.server.request import Limits
from cfproxy.upstream.connection import UpstreamConnection
from tests.unit.upstream.test_connection import OK, FakeTransport


def opened(write_batch: WriteBatch) -> tuple[StreamProtocol, FakeTransport]:
    connection, transport = StreamProtocol(write_batch), FakeTransport()
    connection.connection_made(transport)
    return connection, transport


def asked(write_batch: WriteBatch) -> tuple[UpstreamConnection, FakeTransport]:
    """A kept connection to the API whose request waits for the end of the turn."""
    connection, transport = UpstreamConnection(lambda _: None, write_batch), FakeTransport()
    connection.connection_made(transport)
    connection.start_exchange(60.0, to_head=False, on_interim=None)
    opened(write_batch)[0].write_soon(b"the turn's first")
    connection.write_soon(b"POST / HTTP/1.1\r\n\r\n")
    assert transport.written == b""
    return connection, transport


async def test_the_first_of_a_turn_leaves_at_once_and_the_others_when_it_is_over() -> None:
    """Alone it would wait for nobody; the next turn begins anew."""
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
        st.tuples(st.integers(0, 2), st.sampled_from(["write", "write_soon", "turn"]), st.binary(max_size=3))
    )
)
def test_each_connection_sends_everything_in_the_order_it_was_given(
    steps: list[tuple[int, str, bytes]],
) -> None:
    """Whatever is written at once or soon, by how many side by side, and when turns end."""

    async def run() -> None:
        write_batch = WriteBatch()
        connections = [opened(write_batch) for _ in range(3)]
        expected = [b"", b"", b""]
        for at, what, data in steps:
            if what == "turn":
                await asyncio.sleep(0)
                assert [transport.written for _, transport in connections] == expected
                continue
            getattr(connections[at][0], what)(data)
            expected[at] += data
        await asyncio.sleep(0)
        assert [transport.written for _, transport in connections] == expected

    asyncio.run(run())


async def test_an_orderly_end_comes_behind_what_was_said() -> None:
    """And a hard one instead of it."""
    write_batch = WriteBatch()
    opened(write_batch)[0].write_soon(b"the turn's first")
    (closing, to_closing), (cut, to_cut) = opened(write_batch), opened(write_batch)
    closing.write_soon(b"last words")
    closing.close()
    cut.write_soon(b"lost")
    cut.abort()
    await asyncio.sleep(0)
    assert (to_closing.written, to_closing.closed) == (b"last words", True)
    assert (to_cut.written, to_cut.closed) == (b"", True)
    with pytest.raises(ConnectionResetError):
        closing.write_soon(b"more")


async def test_an_answer_that_was_given_leaves_before_its_connection_is_cut() -> None:
    """Whatever cuts it in the same turn."""
    write_batch = WriteBatch()
    opened(write_batch)[0].write_soon(b"the turn's first")
    transport, (ours, theirs) = FakeTransport(), socket.socketpair()
    with ours, theirs:
        transport._extra["socket"] = ours  # type: ignore[attr-defined] # as loops do it
        connection = ClientConnection(Mock(), Mock(), Limits(), Mock(), write_batch)
        connection.connection_made(transport)
        connection.write_soon(b"the answer")
        connection.cancel()
        connection.connection_lost(None)
    assert (transport.written, transport.closed) == (b"the answer", True)


async def test_a_request_whose_connection_ends_before_it_left_was_not_sent() -> None:
    """So that any method may go again on another one (RFC 9110 §9.2.2)."""
    connection, transport = asked(WriteBatch())
    transport.abort()
    connection.connection_lost(None)
    await asyncio.sleep(0)
    assert transport.written == b""
    with pytest.raises(UpstreamUnreachable) as caught:
        await connection.read_head()
    assert caught.value.unsent


async def test_what_comes_before_a_request_has_left_is_not_its_answer() -> None:
    """A server that ends an idle connection may say 408 first; that is nobody's answer."""
    connection, transport = asked(WriteBatch())
    connection.data_received(OK)
    assert transport.closed
    connection.connection_lost(None)
    with pytest.raises(UpstreamUnreachable) as caught:
        await connection.read_head()
    assert caught.value.unsent
