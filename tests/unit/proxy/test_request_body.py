"""Request bodies that can be replayed."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.proxy.request_body import REPLAY_READ_BYTES, Copies, ReplayableBody
from tests.support.proxied import a_body


async def drained(body: ReplayableBody, at_most: int | None = None) -> bytes:
    out = b""
    while at_most is None or len(out) < at_most:
        piece = await body.read()
        if not piece:
            break
        out += piece
    return out


@given(
    st.lists(st.binary(min_size=1, max_size=20), max_size=8),
    st.integers(0, 60),
    st.integers(0, 60),
    st.lists(st.integers(0, 60), max_size=3),
)
def test_every_replay_gives_the_same_bytes(
    pieces: list[bytes], memory_bytes: int, max_bytes: int, stops: list[int]
) -> None:
    """However the body arrives and wherever an attempt stops, the next one gets all of it or is refused."""
    whole = b"".join(pieces)

    async def replay() -> None:
        with closing(a_body(*pieces, memory_bytes=memory_bytes, max_bytes=max_bytes)) as body:
            assert body.replayable
            for stop in stops:
                assert whole.startswith(await drained(body, stop))
                if not body.replayable:
                    with pytest.raises(ValueError, match="can't be replayed"):
                        body.restart()
                    return
                body.restart()
            assert await drained(body) == whole
            assert body.received_bytes == len(whole)
            assert body.replayable == (0 < max_bytes >= len(whole))

    asyncio.run(replay())


async def test_a_body_is_replayed_in_pieces_of_limited_size() -> None:
    """A replay does not load a spooled body at once."""
    with closing(a_body(b"x" * (3 * REPLAY_READ_BYTES), memory_bytes=1)) as body:
        await body.read()
        body.restart()
        assert [len(await body.read()) for _ in range(4)] == [REPLAY_READ_BYTES] * 3 + [0]


async def test_copying_delays_nothing() -> None:
    """Each piece is passed on as it arrives."""
    with closing(a_body(b"a", b"b")) as body:
        assert [await body.read() for _ in range(4)] == [b"a", b"b", b"", b""]


async def test_a_body_that_was_not_read_can_always_be_restarted() -> None:
    """Nothing is missing, even if nothing is copied."""
    body = a_body(b"a", max_bytes=0)
    assert body.replayable
    body.restart()
    assert await body.read() == b"a"
    assert not body.replayable


async def test_a_full_disk_prevents_only_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The body still streams on."""

    def full(*_: Any) -> IO[bytes]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", full)
    body = a_body(b"a", b"b")
    assert await drained(body) == b"ab"
    assert not body.replayable


async def test_without_a_temporary_folder_a_large_body_is_sent_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For example on a read-only file system."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    body = a_body(b"ab", b"cd", b"ef", memory_bytes=3)
    assert await drained(body) == b"abcdef"
    assert not body.replayable


async def test_closing_drops_the_copy() -> None:
    """After the request nothing of its body is left in memory or on disk."""
    body = a_body(b"a", memory_bytes=0)
    await body.read()
    body.close()
    assert not body.replayable
    body.close()


async def test_the_copy_is_dropped_once_no_retry_can_follow() -> None:
    """But not before a replay under way has read all of it."""
    body = a_body(b"ab", b"cd", b"ef")
    assert [await body.read(), await body.read()] == [b"ab", b"cd"]
    body.restart()
    body.stop_copying()
    assert not body.replayable
    assert [await body.read(), await body.read(), await body.read()] == [b"abcd", b"ef", b""]
    assert body._copy is None


async def test_with_no_memory_allowed_the_copy_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """`retry.body_memory: 0` means none, not unlimited."""
    bounds: list[int] = []
    open_file = tempfile.SpooledTemporaryFile

    def noting(max_size: int) -> IO[bytes]:
        bounds.append(max_size)
        return open_file(max_size)

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", noting)
    with closing(a_body(b"shoe", memory_bytes=0)) as body:
        assert await body.read() == b"shoe"
        assert 0 < bounds[0] < 4


async def test_all_copies_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound a body is forwarded without a copy; a copy that ends makes room."""
    monkeypatch.setattr("cfproxy.proxy.request_body.COPIES_MAX_BYTES", 100)
    copies = Copies()
    first, second, third = (a_body(b"x" * 60, max_bytes=100, copies=copies) for _ in range(3))
    assert await drained(first) == b"x" * 60
    assert copies.held_bytes == 60
    assert await drained(second) == b"x" * 60
    assert (first.replayable, second.replayable, copies.held_bytes) == (True, False, 60)
    first.close()
    first.close()
    assert copies.held_bytes == 0
    assert await drained(third) == b"x" * 60
    assert third.replayable
    third.stop_copying()
    third.close()
    assert copies.held_bytes == 0


async def test_a_single_copy_may_have_the_size_that_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """`retry.body_max` can be more than the bound of all copies."""
    monkeypatch.setattr("cfproxy.proxy.request_body.COPIES_MAX_BYTES", 100)
    copies = Copies()
    with closing(a_body(b"x" * 200, max_bytes=200, copies=copies)) as body:
        assert await drained(body) == b"x" * 200
        assert body.replayable
    assert copies.held_bytes == 0


async def test_a_copy_that_grows_too_large_gives_its_room_back() -> None:
    """To the others."""
    copies = Copies()
    with closing(a_body(b"x" * 60, b"y" * 60, max_bytes=100, copies=copies)) as body:
        assert await drained(body, 60) == b"x" * 60
        assert copies.held_bytes == 60
        assert await drained(body) == b"y" * 60
        assert copies.held_bytes == 0
