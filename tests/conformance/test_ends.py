"""The test client itself: it reads messages in any segmentation, and notices each difference."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.ends import End, Message, NotKept, split_line
from tests.conformance.expectations import Got
from tests.conformance.play import Stage, open_origin
from tests.conformance.script import chunks
from tests.conformance.suite import GROUPS

_PIECES = st.lists(st.binary(min_size=1, max_size=40), max_size=6)


@given(_PIECES, st.lists(st.integers(1, 30), min_size=1), st.booleans())
def test_a_chunked_body_is_read_in_any_segmentation(
    pieces: list[bytes], sizes: list[int], trailer: bool
) -> None:
    """Body, trailers and the first byte after them are found in any segmentation."""
    last = b"0;x\r\nX-Sum: 1\r\n\r\n" if trailer else b"0\r\n\r\n"
    wire = chunks(*pieces, last=last) + b"HTTP"
    message, buffer, at = Message(b"", [], "chunked"), bytearray(), 0
    while at < len(wire):
        size = sizes[at % len(sizes)]
        buffer += wire[at : at + size]
        at += size
        message.take(buffer, ended=False)
    assert (message.whole, bytes(message.body), bytes(buffer)) == (True, b"".join(pieces), b"HTTP")
    assert message.trailers == ([(b"X-Sum", b"1")] if trailer else [])


_SAME = Message(b"GET /a HTTP/1.1", [(b"X-A", b"1"), (b"x-b", b"2"), (b"Via", b"1.0 f, 1.1 p")], "length")


@pytest.mark.parametrize(
    ("got", "what"),
    [
        (Got(start=b"GET /A HTTP/1.1"), "request line"),
        (Got(lines=[b"X-A: 2"]), "headers"),
        (Got(lines=[b"X-A: 1", b"X-A: 1"]), "headers"),
        (Got(spelt=[b"x-a: 1"]), "header names"),
        (Got(ordered=[b"X-B: 2", b"X-A: 1"]), "header order"),
        (Got(only=[b"X-A: 1"]), "headers"),
        (Got(lacks=[b"x-a"]), "headers"),
        (Got(hides=b"2"), "headers"),
        (Got(via=[b"1.1"]), "Via"),
        (Got(framed="chunked"), "framing"),
    ],
)
def test_a_difference_in_the_head_is_seen(got: Got, what: str) -> None:
    """Each expectation fails for its own subject."""
    with pytest.raises(NotKept) as caught:
        got.check_head(_SAME, of_request=True)
    assert caught.value.what == what


def test_a_matching_message_passes() -> None:
    """Each expectation holds for the message it describes; only `spelt` compares the case of names."""
    lines = [b"x-a: 1", b"X-B: 2"]
    Got(start=_SAME.start, lines=lines, ordered=lines, only=lines, via=[b"1.0 f", b"1.1"]).check_head(
        _SAME, of_request=True
    )
    Got(spelt=[b"X-A: 1", b"x-b: 2"], framed="length", lacks=[b"X-C"]).check_head(_SAME, of_request=True)


@pytest.mark.parametrize(
    ("message", "reset", "cut"),
    [
        (Message(b"", [], "length", left=1), False, True),
        (Message(b"", [], "chunked"), False, True),
        (Message(b"", [], "close", whole=True), True, True),
        (Message(b"", [], "close", whole=True), False, False),
        (Message(b"", [], "length", whole=True), True, False),
    ],
)
def test_a_cut_is_told_from_an_end(message: Message, reset: bool, cut: bool) -> None:
    """A body that ends with its connection is cut by a reset, any other by missing bytes."""
    Got(cut=cut, body=b"").check_body(message, reset=reset)
    with pytest.raises(NotKept, match="end"):
        Got(cut=not cut, body=b"").check_body(message, reset=reset)


@pytest.mark.slow
async def test_a_proxy_that_closes_every_connection_fails_all_cases() -> None:
    """No case passes by accident."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with open_origin() as origin:
        stage = Stage(origin, port, b"token", patience_s=0.01)
        for group in GROUPS:
            for case in group.cases:
                with pytest.raises(NotKept):
                    await stage.play(case)
    server.close()


async def test_a_proxy_that_adds_no_token_fails_all_cases() -> None:
    """A direct connection to the origin fails because the first request has no token."""
    async with open_origin() as origin:
        port = int(origin.authority.rpartition(b":")[2])
        with pytest.raises(NotKept, match="token"):
            await Stage(origin, port, b"token").play(GROUPS[0].cases[0])


async def test_an_unexpected_response_is_noticed() -> None:
    """Bytes that are left over after the steps fail the case."""
    end = End(1.0)
    end.data_received(b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
    message = await end.next_message(is_answer=True)
    assert (message.start, end.more(), bytes(end.buffer)) == (
        b"HTTP/1.1 204 No Content",
        True,
        b"HTTP/1.1 200 OK\r\n\r\n",
    )
    assert split_line(b"X-A:  1 \t") == (b"X-A", b"1")
