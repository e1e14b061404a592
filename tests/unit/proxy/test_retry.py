"""One proxied request: the order of token, slot and sending, the one retry, and the kept body."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.auth.models import Token
from cfproxy.auth.token_source import TokenSource
from cfproxy.errors import (
    CfproxyError,
    LoginRequired,
    QueueFull,
    QueueTimeout,
    TokenEndpointUnavailable,
    UpstreamUnreachable,
)
from cfproxy.proxy.request_body import PIECE_BYTES, KeptBody
from cfproxy.proxy.retry import Forwarder, Times
from cfproxy.upstream.interfaces import BegunAnswer, Call
from tests.support.proxied import FakePacer, FakeSource

GET = Call("GET", b"", None, chunked=False)


class FakeAnswer:
    """An answer that notes when it is let go."""

    def __init__(self, status: int, journal: list[str]) -> None:
        self.status = status
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self._journal = journal
        self._closed = False

    async def read(self) -> bytes:
        return b""

    async def aclose(self) -> None:
        if not self._closed:
            self._journal.append(f"close {self.status}")
        self._closed = True


class Scene:
    """A forwarder whose parts write one journal.

    Args:
        statuses: of the upstream's answers, in order; an error is raised instead.
    """

    def __init__(self, *statuses: int | Exception, retry: bool = True) -> None:
        self.journal: list[str] = []
        self.source = FakeSource(self.journal)
        self.pacer = FakePacer(self.journal)
        self.bodies: list[bytes] = []
        self.take_bytes: int | None = None
        self.after_send: Callable[[], None] = lambda: None
        self._statuses = list(statuses)
        self.forwarder = Forwarder(
            cast("TokenSource", self.source), self.pacer, self, retry_unauthorized=retry, retry_too_many=retry
        )

    def begin(
        self, call: Call, token: Token, take: Callable[[], bool], on_arrival: Callable[[], None]
    ) -> None:
        return None

    async def send(self, call: Call, token: Token, begun: BegunAnswer | None = None) -> FakeAnswer:
        self.journal.append(f"send {token.value.reveal()}")
        if call.body is not None:
            self.bodies.append(b"")
            while piece := await call.body.read():
                self.bodies[-1] += piece
                if (
                    self.take_bytes is not None
                    and len(self.bodies) == 1
                    and len(self.bodies[0]) >= self.take_bytes
                ):
                    break
        self.after_send()
        status = self._statuses.pop(0)
        if isinstance(status, Exception):
            raise status
        return FakeAnswer(status, self.journal)


def kept(pieces: list[bytes], *, memory_bytes: int = 1 << 20, max_bytes: int = 1 << 20) -> KeptBody:
    left: Iterator[bytes] = iter([*pieces, b""])

    async def read() -> bytes:
        return next(left)

    return KeptBody(read, memory_bytes=memory_bytes, max_bytes=max_bytes)


def posting(body: KeptBody) -> Call:
    return Call("POST", b"", body, chunked=True)


# --- the order of things ------------------------------------------------------------------


async def test_token_then_slot_then_the_token_of_that_instant() -> None:
    """Nobody queues without a token, and the token that is sent is one of the instant of departure."""
    scene = Scene(200)
    outcome = await scene.forwarder.forward(GET, "me")
    assert scene.journal == ["get", "slot", "get", "send token-1"]
    assert (outcome.answer.status, outcome.retried, outcome.times.queued_s) == (200, False, 0.25)
    assert scene.pacer.flows == ["me"]


async def test_a_token_replaced_while_waiting_costs_no_other_slot() -> None:
    """A refresh in the background, while a thousand wait, must not double the time that they take."""
    scene = Scene(200)
    scene.pacer.gate.clear()
    task = asyncio.create_task(scene.forwarder.forward(GET, "me"))
    while not scene.pacer.waiting:
        await asyncio.sleep(0)
    scene.source.renew()
    scene.pacer.gate.set()
    outcome = await task
    assert scene.journal == ["get", "slot", "get", "send token-2"]
    assert outcome.times.queued_s == 0.25


async def test_who_waits_for_a_refresh_after_a_slot_takes_another_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slot is an instant: those who waited for the token together must not leave together."""
    scene, clock = Scene(200), [0.0]
    monkeypatch.setattr("cfproxy.proxy.retry.time.perf_counter", lambda: clock[0])
    get = scene.source.get

    async def refresh_after_the_slot() -> Token:
        if scene.journal == ["get", "slot"]:
            scene.source.renew()
            clock[0] += 0.2
        return await get()

    monkeypatch.setattr(scene.source, "get", refresh_after_the_slot)
    outcome = await scene.forwarder.forward(GET, "me")
    assert scene.journal == ["get", "slot", "get", "slot", "get", "send token-2"]
    assert outcome.times.queued_s == 0.5


@pytest.mark.parametrize("error", [LoginRequired("x"), TokenEndpointUnavailable("x")])
async def test_without_a_token_nothing_queues_and_nothing_is_sent(error: CfproxyError) -> None:
    """A request that can't be authorised takes no slot and never reaches the API."""
    scene = Scene(200)
    scene.source.error = error
    with pytest.raises(type(error)):
        await scene.forwarder.forward(GET, "me")
    assert scene.journal == ["get"]


async def test_without_a_slot_nothing_is_sent() -> None:
    """A full queue ends the request before it reaches the API."""
    scene = Scene(200)
    scene.pacer.error = QueueFull("x")
    with pytest.raises(QueueFull):
        await scene.forwarder.forward(GET, "me")
    assert scene.journal == ["get", "slot"]


@pytest.mark.parametrize("error", [UpstreamUnreachable("x"), QueueTimeout("x")])
async def test_a_failure_tells_where_the_time_went(error: CfproxyError) -> None:
    """As an answer does: who waited in vain wants to know for what."""
    sends = isinstance(error, UpstreamUnreachable)
    scene, times = Scene(error if sends else 200), Times()
    scene.pacer.error = None if sends else error
    with pytest.raises(type(error)):
        await scene.forwarder.forward(GET, "me", times)
    assert times.queued_s == 0.25 if sends else times.queued_s > 0
    assert (times.upstream_s > 0) == sends


# --- the one retry ------------------------------------------------------------------------


async def test_a_401_is_answered_by_a_replacement_and_a_second_try_with_its_own_slot() -> None:
    """The client sees the second try's answer; the first one's connection is let go before the wait."""
    scene = Scene(401, 200)
    outcome = await scene.forwarder.forward(GET, "me")
    assert scene.journal[3:] == [
        "send token-1",
        "replace token-1",
        "close 401",
        "get",
        "slot",
        "get",
        "send token-2",
    ]
    assert (outcome.answer.status, outcome.retried, outcome.times.queued_s) == (200, True, 0.5)


async def test_the_second_try_too_leaves_with_the_token_of_its_instant() -> None:
    """A token that is replaced again while the second try waits is not the one that is sent."""
    scene = Scene(401, 200)
    scene.after_send = scene.pacer.gate.clear
    task = asyncio.create_task(scene.forwarder.forward(GET, "me"))
    while not scene.pacer.waiting:
        await asyncio.sleep(0)
    scene.source.renew()
    scene.pacer.gate.set()
    assert (await task).answer.status == 200
    assert scene.journal[-4:] == ["get", "slot", "get", "send token-3"]


async def test_a_second_401_passes_and_is_reported() -> None:
    """Two different tokens refused: the token is not the cause, so the answer passes and no loop begins."""
    scene = Scene(401, 401)
    outcome = await scene.forwarder.forward(GET, "me")
    assert (outcome.answer.status, outcome.retried) == (401, True)
    assert scene.journal[-2:] == ["send token-2", "distrust token-2"]
    assert "close 401" in scene.journal[:-2]


async def test_with_retry_off_a_401_passes() -> None:
    """`retry.unauthorized: false` leaves every 401 to the client and every token alone."""
    scene = Scene(401, retry=False)
    outcome = await scene.forwarder.forward(GET, "me")
    assert outcome.answer.status == 401
    assert scene.journal == ["get", "slot", "get", "send token-1"]


@pytest.mark.parametrize("status", [400, 403, 407, 500, 503])
async def test_no_other_status_is_tried_again(status: int) -> None:
    """Only a 401 can be the token's fault; what a 429 means is in test_too_many.py."""
    scene = Scene(status)
    assert (await scene.forwarder.forward(GET, "me")).answer.status == status
    assert scene.journal[-1] == "send token-1"


async def test_a_401_passes_where_another_token_would_fare_no_better() -> None:
    """When `replace` returns the rejected token, a second try would only repeat the first."""
    scene = Scene(401)
    scene.source.stuck = True
    outcome = await scene.forwarder.forward(GET, "me")
    assert (outcome.answer.status, outcome.retried, outcome.too_large) == (401, False, False)
    assert scene.journal[-1] == "replace token-1"


async def test_a_failed_replacement_lets_the_first_answer_go() -> None:
    """When no other token can be had the client is told why, and the API's connection is not leaked."""
    scene = Scene(401)
    scene.source.replace_error = LoginRequired("x")
    with pytest.raises(LoginRequired):
        await scene.forwarder.forward(GET, "me")
    assert scene.journal[-1] == "close 401"


async def test_a_client_that_leaves_during_the_replacement_leaks_nothing() -> None:
    """A cancelled request closes the 401 that it held."""
    scene = Scene(401)
    scene.source.replace_error = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await scene.forwarder.forward(GET, "me")
    assert scene.journal[-1] == "close 401"


async def test_an_upstream_failure_is_not_retried_here() -> None:
    """Whether a failed request may go again is the adapter's knowledge."""
    scene = Scene(UpstreamUnreachable("x"))
    with pytest.raises(UpstreamUnreachable):
        await scene.forwarder.forward(GET, "me")
    assert scene.journal[-1] == "send token-1"


async def test_the_second_try_sends_the_whole_body_again() -> None:
    """What the first try consumed is sent again from its first byte."""
    scene = Scene(401, 200)
    with closing(kept([b"ab", b"cd"])) as body:
        await scene.forwarder.forward(posting(body), "me")
    assert scene.bodies == [b"abcd", b"abcd"]


async def test_an_early_401_reads_the_rest_of_the_body_for_the_second_try_only() -> None:
    """An API that refuses before the body is through gets it whole, once, on the second try."""
    scene = Scene(401, 200)
    scene.take_bytes = 2
    with closing(kept([b"ab", b"cd", b"ef"])) as body:
        await scene.forwarder.forward(posting(body), "me")
    assert scene.bodies == [b"ab", b"abcdef"]


async def test_a_401_after_a_body_too_large_to_keep_passes_and_says_so() -> None:
    """Without the whole body there is no second try, and no refresh for nothing."""
    scene = Scene(401)
    with closing(kept([b"abcd"], max_bytes=3)) as body:
        outcome = await scene.forwarder.forward(posting(body), "me")
    assert (outcome.answer.status, outcome.too_large, outcome.retried) == (401, True, False)
    assert scene.journal[-1] == "send token-1"


# --- the kept body ------------------------------------------------------------------------


async def drained(body: KeptBody, at_most: int | None = None) -> bytes:
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
    """However a body comes and wherever a try breaks off, the next sees it whole or is not begun."""
    whole = b"".join(pieces)

    async def replay() -> None:
        with closing(kept(pieces, memory_bytes=memory_bytes, max_bytes=max_bytes)) as body:
            assert body.replayable
            for stop in stops:
                assert whole.startswith(await drained(body, stop))
                if not body.replayable:
                    with pytest.raises(ValueError, match="not at hand"):
                        body.restart()
                    return
                body.restart()
            assert await drained(body) == whole
            assert body.received_bytes == len(whole)
            assert body.replayable == (0 < max_bytes >= len(whole))

    asyncio.run(replay())


async def test_a_kept_body_is_replayed_in_pieces_of_bounded_size() -> None:
    """A replay does not load a spooled body at once."""
    with closing(kept([b"x" * (3 * PIECE_BYTES)], memory_bytes=1)) as body:
        await body.read()
        body.restart()
        assert [len(await body.read()) for _ in range(4)] == [PIECE_BYTES] * 3 + [0]


async def test_keeping_delays_nothing() -> None:
    """Each piece is passed on when it comes, not when the body is whole."""
    with closing(kept([b"a", b"b"])) as body:
        assert [await body.read() for _ in range(4)] == [b"a", b"b", b"", b""]


async def test_what_is_not_begun_can_always_begin_again() -> None:
    """Nothing was read yet, so nothing is missing, even where nothing is kept."""
    body = kept([b"a"], max_bytes=0)
    assert body.replayable
    body.restart()
    assert await body.read() == b"a"
    assert not body.replayable


async def test_a_full_disk_costs_the_second_try_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """When keeping fails the body streams on; it just can't be sent twice."""

    def full(*_: Any) -> IO[bytes]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", full)
    body = kept([b"a", b"b"])
    assert await drained(body) == b"ab"
    assert not body.replayable


async def test_without_a_temporary_folder_there_is_no_second_try(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a read-only root: a body that memory doesn't hold still goes up whole, once."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    body = kept([b"ab", b"cd", b"ef"], memory_bytes=3)
    assert await drained(body) == b"abcdef"
    assert not body.replayable


async def test_closing_forgets_what_was_kept() -> None:
    """After the request nothing of its body is left, in memory or on disk."""
    body = kept([b"a"], memory_bytes=0)
    await body.read()
    body.close()
    assert not body.replayable
    body.close()


async def test_a_body_is_not_kept_longer_than_a_try_may_follow() -> None:
    """Once the answer is final the copy goes, but not before all of it that is being resent was read."""
    body = kept([b"ab", b"cd", b"ef"])
    assert [await body.read(), await body.read()] == [b"ab", b"cd"]
    body.restart()
    body.stop_keeping()
    assert not body.replayable
    assert [await body.read(), await body.read(), await body.read()] == [b"abcd", b"ef", b""]
    assert body._kept is None


async def test_a_body_that_may_take_no_memory_is_kept_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """`retry.body_memory: 0` means none, not any amount."""
    bounds: list[int] = []
    open_file = tempfile.SpooledTemporaryFile

    def noting(max_size: int) -> IO[bytes]:
        bounds.append(max_size)
        return open_file(max_size)

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", noting)
    with closing(kept([b"shoe"], memory_bytes=0)) as body:
        assert await body.read() == b"shoe"
        assert 0 < bounds[0] < 4
