"""Framing: a body is read in exactly one way, however the stream is split."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import h11
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import HttpProcessingError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cfproxy.http1.framing import (
    CHUNK_AVERAGE,
    CHUNKS_MAX,
    CHUNKS_PER_S,
    SIZE_LINE_MAX,
    TRAILER_LINES_MAX,
    TRAILERS_MAX,
    TURN_PIECES,
    BodyReader,
    ChunkReader,
    CloseReader,
    LengthReader,
    MalformedBody,
    TinyChunks,
    render_chunk,
    render_last_chunk,
)
from tests.support.examples import examples

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
cuts = st.lists(st.integers(0, 400), max_size=12)
trailers = st.lists(
    st.tuples(
        st.from_regex(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,8}", fullmatch=True).filter(
            lambda name: name.lower() not in {b"content-length", b"transfer-encoding"}
        ),
        st.from_regex(
            rb"([\x21-\x7e\x80-\xff]([\t -~\x80-\xff]{0,8}[\x21-\x7e\x80-\xff])?)?", fullmatch=True
        ),
    ),
    max_size=3,
)
# Parts of chunked streams, and variants with which attackers make two implementations disagree.
fragments = st.sampled_from(
    [
        b"0", b"1", b"3", b"A", b"a", b"00", b"10", b"0x3", b"+3", b"-1", b"_", b"g", b" ", b"\t", b"\v",
        b"\0", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r\n", b";", b";a=b", b';a="b"', b'"',
        b";\xff", b"3\r\nabc\r\n", b"3;x\r\nabc\r\n", b"1\r\nz\r\n", b"abc", b"0\r\n\r\n", b"0\r\n",
        b"X: y\r\n", b"X:y", b"X : y\r\n", b" folded\r\n", b"Content-Length: 3\r\n",
        b"transfer-encoding: chunked\r\n", b":", b"\x80", b"0000000000000003\r\n",
        b"00000000000000003\r\n", b"10000000000000003\r\n",
    ]
)  # fmt: skip
streams = st.lists(fragments, max_size=10).map(b"".join)


# Implementations differ most in what they accept as a line end, or before one.
line_ends = st.sampled_from(
    [
        b"\n",
        b"\r",
        b"",
        b"\r\r\n",
        b"\n\r\n",
        b"\r\n\r\n",
        b" \r\n",
        b"\t\r\n",
        b";\r\n",
        b";a=b\r\n",
        b"x\r\n",
    ]
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return a well-formed chunked stream with a line end replaced, or with a fragment inserted."""
    stream = b"".join(map(render_chunk, draw(chunks))) + render_last_chunk(draw(trailers))
    for _ in range(draw(st.integers(0, 2))):
        lines = stream.split(b"\r\n")
        if draw(st.booleans()) and len(lines) > 1:
            at = draw(st.integers(1, len(lines) - 1))
            stream = b"\r\n".join(lines[:at]) + draw(line_ends) + b"\r\n".join(lines[at:])
        else:
            cut = draw(st.integers(0, len(stream)))
            stream = stream[:cut] + draw(fragments) + stream[cut:]
    return stream


def pieces_of(data: bytes, at: list[int]) -> Iterator[bytes]:
    edges = sorted({0, len(data), *(cut for cut in at if cut < len(data))})
    return (data[start:end] for start, end in itertools.pairwise(edges))


def read(reader: BodyReader, data: bytes, at: list[int]) -> tuple[bytes, bytes] | None:
    """Return the body and the rest of `data`, fed in pieces; None if it is malformed."""
    body = rest = b""
    try:
        for piece in pieces_of(data, at):
            part, behind = reader.feed(piece)
            body += part
            rest += behind
    except MalformedBody:
        return None
    return body, rest


def refused(data: bytes) -> bool:
    return read(ChunkReader(), data, []) is None


# --- by length, and until the end ---------------------------------------------------------


@given(st.binary(max_size=60), st.binary(max_size=60), cuts)
def test_a_body_of_known_length_ends_after_its_bytes(body: bytes, rest: bytes, at: list[int]) -> None:
    """What follows belongs to the next message, however the stream is split."""
    reader = LengthReader(len(body))
    assert read(reader, body + rest, at) == (body, rest)
    assert reader.done
    assert reader.feed(b"more") == (b"", b"more")
    reader.end()


@pytest.mark.parametrize("reader", [LengthReader(3), ChunkReader()])
def test_an_early_end_of_the_connection_is_malformed(reader: BodyReader) -> None:
    """A truncated body never counts as complete."""
    reader.feed(b"2\r")
    with pytest.raises(MalformedBody):
        reader.end()
    assert not reader.done


def test_a_body_without_length_is_complete_when_the_connection_ends() -> None:
    """Until then, everything belongs to the body."""
    reader = CloseReader()
    assert reader.feed(b"a\r\n\r\n") == (b"a\r\n\r\n", b"")
    assert not reader.done
    reader.end()
    assert reader.done
    assert reader.trailers == []


# --- in chunks ----------------------------------------------------------------------------


@given(chunks, trailers, st.binary(max_size=60), cuts)
def test_rendered_chunks_are_read_back_however_they_are_split(
    bodies: list[bytes], fields: list[tuple[bytes, bytes]], rest: bytes, at: list[int]
) -> None:
    """Body, trailers and rest are the ones that were written."""
    stream = b"".join(map(render_chunk, bodies)) + render_last_chunk(fields)
    for reader in (ChunkReader(), ChunkReader(padded=True)):
        assert read(reader, stream + rest, at) == (b"".join(bodies), rest)
        assert reader.done
        assert reader.trailers == fields
        reader.end()


@given(streams | mutated(), cuts)
@example(b"3\r\nabc\r\n0\r\n\r\n", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
def test_splitting_a_stream_changes_nothing(stream: bytes, at: list[int]) -> None:
    """Body, end, trailers and errors are the same as for the unsplit stream."""
    whole, cut = ChunkReader(), ChunkReader()
    assert read(whole, stream, []) == read(cut, stream, at)
    assert whole.done == cut.done
    assert whole.trailers == cut.trailers


@pytest.mark.parametrize(
    "stream",
    [
        b"3\nabc\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\r\nabc\r0\r\n\r\n",
        b"3\rabc\r\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabc\r\n0\n\r\n",
        b"0\r\n\n",
        b"0\r\nX: y\n\r\n",
        b"0\r\nX: y\rZ: a\r\n\r\n",
        b"0\r\n\r\r\n",
        b"3;a\rb\r\nabc\r\n0\r\n\r\n",
        b"3;a\0\r\nabc\r\n0\r\n\r\n",
    ],
)
def test_only_crlf_ends_a_line(stream: bytes) -> None:
    """Implementations disagree about a bare CR or LF."""
    assert refused(stream)


@pytest.mark.parametrize(
    "size", [b"", b"0x3", b"+3", b"-3", b"3_0", b" 3", b"3 ", b"3\t", b"g", b"\xb2", b"3,"]
)
def test_a_size_is_hexadecimal_digits(size: bytes) -> None:
    """Anything else is malformed, even if an integer parser would accept it."""
    assert refused(size + b"\r\nabc\r\n0\r\n\r\n")


@pytest.mark.parametrize("size", [b"3", b"003", b"%016x" % 3])
def test_a_size_has_at_most_16_digits(size: bytes) -> None:
    """More could overflow another implementation's integer."""
    assert read(ChunkReader(), size + b"\r\nabc\r\n0\r\n\r\n", []) == (b"abc", b"")
    assert refused(b"%017x" % 3 + b"\r\nabc\r\n0\r\n\r\n")


def test_only_a_padded_reader_accepts_spaces_after_a_size() -> None:
    """Some old servers send them; clients have no reason to."""
    stream = b"3  \r\nabc\r\n0 \r\n\r\n"
    assert read(ChunkReader(padded=True), stream, []) == (b"abc", b"")
    assert refused(stream)


def test_the_length_of_a_size_line_is_limited() -> None:
    """An endless extension is refused as soon as it is too long, however it is split."""
    longest = b"3;" + b"x" * (SIZE_LINE_MAX - 4) + b"\r\n"
    assert read(ChunkReader(), longest + b"abc\r\n0\r\n\r\n", []) == (b"abc", b"")
    assert refused(longest.replace(b"\r", b"x\r") + b"abc\r\n0\r\n\r\n")
    assert refused(b"3;" + b"x" * (SIZE_LINE_MAX - 2))
    assert read(ChunkReader(), b"3;" + b"x" * SIZE_LINE_MAX, list(range(SIZE_LINE_MAX))) is None


def test_the_total_size_of_trailers_is_limited() -> None:
    """However they are split, and whether they are long or many."""
    line = b"X: " + b"y" * 59 + b"\r\n"
    most = line * (TRAILERS_MAX // len(line))
    assert len(most) == TRAILERS_MAX
    assert read(ChunkReader(), b"0\r\n" + most + b"\r\n", []) == (b"", b"")
    for at in ([], list(range(3, len(most), 7))):
        assert read(ChunkReader(), b"0\r\n" + most + b"Z:\r\n\r\n", at) is None
        assert read(ChunkReader(), b"0\r\nX: " + b"y" * TRAILERS_MAX, at) is None


@pytest.mark.parametrize(
    "trailer",
    [
        b"Content-Length: 3",
        b"transfer-ENCODING: chunked",
        b"no colon",
        b": y",
        b"X : y",
        b" X: y",
        b"X: \0",
        b"\x80: y",
    ],
)
def test_malformed_and_framing_trailers_are_refused(trailer: bytes) -> None:
    """A recipient that merges trailers into the head must not get another length (RFC 9110 §6.5.1)."""
    assert refused(b"0\r\n" + trailer + b"\r\n\r\n")


def test_the_number_of_trailers_is_limited() -> None:
    """Each is checked and written by itself."""
    assert read(ChunkReader(), b"0\r\n" + b"a:\r\n" * TRAILER_LINES_MAX + b"\r\n", []) == (b"", b"")
    assert refused(b"0\r\n" + b"a:\r\n" * (TRAILER_LINES_MAX + 1) + b"\r\n")


# --- small chunks ---------------------------------------------------------------------------


READ_BYTES = 16 * 1024


def feed_in_turns(reader: BodyReader, data: bytes) -> list[bytes]:
    """Feed `data` as if read from a socket, and what is left of it; return the body's parts."""
    parts: list[bytes] = []
    for at in range(0, len(data), READ_BYTES):
        left = data[at : at + READ_BYTES]
        while left and not reader.done:
            part, left = reader.feed(left)
            parts.append(part)
    return parts


@pytest.mark.parametrize("size", [1, 2, 15])
def test_one_call_handles_a_bounded_number_of_chunks(size: int) -> None:
    """The rest is returned, and nothing is lost if it is fed again."""
    stream = render_chunk(b"x" * size) * 1000 + render_last_chunk([(b"a", b"b")])
    reader = ChunkReader()
    parts = feed_in_turns(reader, stream)
    assert max(map(len, parts)) <= TURN_PIECES * size
    assert b"".join(parts) == b"x" * size * 1000
    assert reader.done
    assert reader.trailers == [(b"a", b"b")]


def test_extensions_count_by_their_length() -> None:
    """A long one takes as long to skip as many chunks."""
    chunk = b"1;" + b"e" * 1000 + b"\r\nx\r\n"
    part, left = ChunkReader().feed(chunk * 100)
    assert 0 < len(part) <= TURN_PIECES // (1000 // 64) + 1
    assert len(left) == len(chunk) * (100 - len(part))


def test_large_chunks_are_handled_at_once() -> None:
    """However many bytes they have."""
    stream = render_chunk(b"x" * 4096) * 64
    assert ChunkReader().feed(stream) == (b"x" * 4096 * 64, b"")


@pytest.mark.parametrize(
    "chunk",
    [b"1\r\nx\r\n", b"%x\r\n%b\r\n" % (CHUNK_AVERAGE - 1, b"x" * (CHUNK_AVERAGE - 1)), b"1;a=b\r\nx\r\n"],
)
@pytest.mark.parametrize("split", [False, True])
def test_many_small_chunks_are_refused(chunk: bytes, split: bool) -> None:
    """Up to the limit they pass; it applies to the whole body, however it is split."""
    size = int(chunk.split(b"\r\n")[0].split(b";")[0], 16)
    reader = ChunkReader(now=lambda: 0.0)
    most = CHUNKS_MAX + CHUNKS_MAX * size // CHUNK_AVERAGE
    assert sum(map(len, feed_in_turns(reader, chunk * most))) == most * size
    more = [chunk] * 20 * CHUNKS_MAX if split else [chunk * 20 * CHUNKS_MAX]
    with pytest.raises(TinyChunks):
        all(feed_in_turns(reader, piece) for piece in more)


def test_long_extensions_are_refused_earlier() -> None:
    """They count as many chunks."""
    reader = ChunkReader(now=lambda: 0.0)
    with pytest.raises(TinyChunks):
        feed_in_turns(reader, (b"1;" + b"e" * 1000 + b"\r\nx\r\n") * (CHUNKS_MAX // 15))


@pytest.mark.parametrize("size", [CHUNK_AVERAGE, 100, 5000])
def test_many_chunks_of_some_size_pass(size: int) -> None:
    """As lines of JSON, for example."""
    reader = ChunkReader(now=lambda: 0.0)
    chunk = render_chunk(b"x" * size)
    assert sum(map(len, feed_in_turns(reader, chunk * 3 * CHUNKS_MAX))) == size * 3 * CHUNKS_MAX


def test_small_chunks_may_go_on_for_ever_if_they_come_slowly() -> None:
    """A stream of short events lasts for days."""
    seconds = 0.0
    reader = ChunkReader(now=lambda: seconds)
    for _ in range(10 * CHUNKS_MAX):
        seconds += 1 / CHUNKS_PER_S
        assert reader.feed(b"1\r\n\n\r\n") == (b"\n", b"")


# --- compared with other implementations --------------------------------------------------


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Return a loop for aiohttp's parser; it is never run."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def read_by_aiohttp(loop: asyncio.AbstractEventLoop, stream: bytes) -> tuple[bytes, bool]:
    """Return the body that aiohttp reads, and whether it is complete."""
    parser = HttpRequestParser(BaseProtocol(loop), loop, 2**16)
    messages, _, _ = parser.feed_data(HEAD)
    payload = messages[0][1]
    parser.feed_data(stream)
    return payload.read_nowait() if payload.total_bytes else b"", payload.is_eof()


def read_by_h11(stream: bytes) -> tuple[bytes, bool, bytes]:
    """Return the body that h11 reads, whether it is complete, and the rest."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(HEAD + stream)
    body = b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Data):
            body += event.data
        elif not isinstance(event, h11.Request):
            return body, isinstance(event, h11.EndOfMessage), connection.trailing_data[0]


@settings(max_examples=examples(1000))
@given(stream=streams | mutated())
def test_aiohttp_reads_the_same_body(loop: asyncio.AbstractEventLoop, stream: bytes) -> None:
    """Same body, same end. Only llhttp checks the syntax of extensions, which we skip and never forward."""
    reader = ChunkReader()
    ours = read(reader, stream, [])
    if ours is None or not reader.done:
        return
    body, rest = ours
    message = stream[: len(stream) - len(rest)]
    try:
        theirs = read_by_aiohttp(loop, message)
    except HttpProcessingError as error:
        assert "chunk extensions" in error.message  # noqa: PT017 - any other error is a difference
        return
    assert theirs == (body, True)
    assert read_by_aiohttp(loop, message[:-1]) == (body, False)


@settings(max_examples=examples(1000))
@given(streams | mutated())
def test_h11_reads_the_same_body(stream: bytes) -> None:
    """Same body, same end."""
    reader = ChunkReader()
    ours = read(reader, stream, [])
    if ours is None or not reader.done:
        return
    body, rest = ours
    assert read_by_h11(stream) == (body, True, rest)
