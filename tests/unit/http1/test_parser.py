"""Where the head of a response ends."""

from __future__ import annotations

import pytest

from cfproxy.http1.parser import (
    HeadLimits,
    HeadTooLong,
    MalformedHead,
    parse_response_head,
    response_head_end,
)

LIMITS = HeadLimits(line_bytes=40, head_bytes=100, headers=5)
START = b"HTTP/1.1 200 OK\r\n"
WHOLE = START + b"X-A: b\r\n\r\n"


def end_of(data: bytes, seen: int = 0) -> int | type[Exception]:
    try:
        return response_head_end(data, LIMITS, seen)
    except MalformedHead as error:
        return type(error)


@pytest.mark.parametrize(
    "data",
    [
        WHOLE + b"body",
        START + b"X: a\n\nb",
        START + b"X: a\n\r\nb",
        START + b"X: a\r\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        START + b"X: " + b"a" * 200,
        START + b"X: a\r\n" * 20 + b"\r\n",
    ],
)
def test_pieces_end_like_the_whole(data: bytes) -> None:
    """What was seen before need not be searched again: a long head may come byte by byte."""
    for seen in range(len(data)):
        if end_of(data[:seen]) == 0:
            for now in range(seen, len(data) + 1):
                assert end_of(data[:now], seen) == end_of(data[:now])


def test_too_long_is_told_from_malformed() -> None:
    """A server whose head is too long speaks HTTP."""
    assert end_of(START + b"X: " + b"a" * 79) == 0
    assert end_of(START + b"X: " + b"a" * 81) is HeadTooLong
    assert end_of(START + b"X: " + b"a" * 80 + b"\r\n\r\n") is HeadTooLong
    assert end_of(b"x" * 200) is MalformedHead
    assert end_of(START + b"\n\n" + b"a" * 200) is MalformedHead


@pytest.mark.parametrize(
    ("lines", "fits"),
    [
        (b"X: " + b"a" * 37, True),
        (b"X: " + b"a" * 38, False),
        (b"X" * 39 + b":", True),
        (b"X" * 40 + b":", False),
        (b"\r\n".join([b"X: a"] * 5), True),
        (b"\r\n".join([b"X: a"] * 6), False),
        (b"\r\n".join([b"X:"] * 6), False),
    ],
)
def test_lines_are_bounded_in_length_and_number(lines: bytes, fits: bool) -> None:
    """Exactly, whichever part of a line is long."""
    head = START + lines + b"\r\n\r\n"
    if fits:
        assert parse_response_head(head, LIMITS, to_head=False).status == 200
        return
    with pytest.raises(HeadTooLong):
        parse_response_head(head, LIMITS, to_head=False)


def test_a_long_reason_is_a_long_line() -> None:
    """The status line is one of the lines."""
    assert parse_response_head(START[:-2] + b"x" * 25 + b"\r\n\r\n", LIMITS, to_head=False).status == 200
    with pytest.raises(HeadTooLong):
        parse_response_head(START[:-2] + b"x" * 26 + b"\r\n\r\n", LIMITS, to_head=False)
