"""One proxied request: the order of token, slot and sending, the one retry, and the kept body."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from types import SimpleNamespace
from typing import cast

import pytest

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
from cfproxy.pacing.queue import FairQueue
from cfproxy.proxy.request_body import ReplayableBody
from cfproxy.proxy.retry import Forwarder, Timings
from cfproxy.upstream.client import UpstreamClient, UpstreamResponse
from cfproxy.upstream.request import Call
from tests.support.proxied import FakePacer, FakeSource, a_body

GET = Call("GET", b"", None, chunked=False)


class FakeAnswer:
    """An answer that notes when it is let go."""

    def __init__(self, status: int, journal: list[str]) -> None:
        self.status = status
        self.head = SimpleNamespace(raw_headers=[])
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
            cast("TokenSource", self.source),
            cast("FairQueue", self.pacer),
            cast("UpstreamClient", self),
            retry_unauthorized=retry,
            retry_too_many=retry,
        )

    def try_send_now(
        self, call: Call, token: Token, acquire_slot: Callable[[], bool], on_arrival: Callable[[], None]
    ) -> None:
        return None

    async def send(self, call: Call, token: Token, response: UpstreamResponse | None = None) -> FakeAnswer:
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


def posting(body: ReplayableBody) -> Call:
    return Call("POST", b"", body, chunked=True)


# --- the order of things ------------------------------------------------------------------


async def test_token_then_slot_then_the_token_of_that_instant() -> None:
    """Nobody queues without a token, and the token that is sent is one of the instant of departure."""
    scene = Scene(200)
    result = await scene.forwarder.send(GET, "me")
    assert scene.journal == ["get", "slot", "get", "send token-1"]
    assert (result.answer.status, result.retried, result.timings.queued_s) == (200, False, 0.25)
    assert scene.pacer.flows == ["me"]


async def test_a_token_replaced_while_waiting_costs_no_other_slot() -> None:
    """A refresh in the background, while a thousand wait, must not double the time that they take."""
    scene = Scene(200)
    scene.pacer.gate.clear()
    task = asyncio.create_task(scene.forwarder.send(GET, "me"))
    while not scene.pacer.waiting:
        await asyncio.sleep(0)
    scene.source.renew()
    scene.pacer.gate.set()
    result = await task
    assert scene.journal == ["get", "slot", "get", "send token-2"]
    assert result.timings.queued_s == 0.25


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
    result = await scene.forwarder.send(GET, "me")
    assert scene.journal == ["get", "slot", "get", "slot", "get", "send token-2"]
    assert result.timings.queued_s == 0.5


@pytest.mark.parametrize("error", [LoginRequired("x"), TokenEndpointUnavailable("x")])
async def test_without_a_token_nothing_queues_and_nothing_is_sent(error: CfproxyError) -> None:
    """A request that can't be authorised takes no slot and never reaches the API."""
    scene = Scene(200)
    scene.source.error = error
    with pytest.raises(type(error)):
        await scene.forwarder.send(GET, "me")
    assert scene.journal == ["get"]


async def test_without_a_slot_nothing_is_sent() -> None:
    """A full queue ends the request before it reaches the API."""
    scene = Scene(200)
    scene.pacer.error = QueueFull("x")
    with pytest.raises(QueueFull):
        await scene.forwarder.send(GET, "me")
    assert scene.journal == ["get", "slot"]


@pytest.mark.parametrize("error", [UpstreamUnreachable("x"), QueueTimeout("x")])
async def test_a_failure_tells_where_the_time_went(error: CfproxyError) -> None:
    """As an answer does: who waited in vain wants to know for what."""
    sends = isinstance(error, UpstreamUnreachable)
    scene, timings = Scene(error if sends else 200), Timings()
    scene.pacer.error = None if sends else error
    with pytest.raises(type(error)):
        await scene.forwarder.send(GET, "me", timings)
    assert timings.queued_s == 0.25 if sends else timings.queued_s > 0
    assert (timings.upstream_s > 0) == sends


# --- the one retry ------------------------------------------------------------------------


async def test_a_401_is_answered_by_a_replacement_and_a_second_try_with_its_own_slot() -> None:
    """The client sees the second try's answer; the first one's connection is let go before the wait."""
    scene = Scene(401, 200)
    result = await scene.forwarder.send(GET, "me")
    assert scene.journal[3:] == [
        "send token-1",
        "replace token-1",
        "close 401",
        "get",
        "slot",
        "get",
        "send token-2",
    ]
    assert (result.answer.status, result.retried, result.timings.queued_s) == (200, True, 0.5)


async def test_the_second_try_too_leaves_with_the_token_of_its_instant() -> None:
    """A token that is replaced again while the second try waits is not the one that is sent."""
    scene = Scene(401, 200)
    scene.after_send = scene.pacer.gate.clear
    task = asyncio.create_task(scene.forwarder.send(GET, "me"))
    while not scene.pacer.waiting:
        await asyncio.sleep(0)
    scene.source.renew()
    scene.pacer.gate.set()
    assert (await task).answer.status == 200
    assert scene.journal[-4:] == ["get", "slot", "get", "send token-3"]


async def test_a_second_401_passes_and_is_reported() -> None:
    """Two different tokens refused: the token is not the cause, so the answer passes and no loop begins."""
    scene = Scene(401, 401)
    result = await scene.forwarder.send(GET, "me")
    assert (result.answer.status, result.retried) == (401, True)
    assert scene.journal[-2:] == ["send token-2", "distrust token-2"]
    assert "close 401" in scene.journal[:-2]


async def test_with_retry_off_a_401_passes() -> None:
    """`retry.unauthorized: false` leaves every 401 to the client and every token alone."""
    scene = Scene(401, retry=False)
    result = await scene.forwarder.send(GET, "me")
    assert result.answer.status == 401
    assert scene.journal == ["get", "slot", "get", "send token-1"]


@pytest.mark.parametrize("status", [400, 403, 407, 500, 503])
async def test_no_other_status_is_tried_again(status: int) -> None:
    """Only a 401 can be the token's fault; what a 429 means is in test_too_many.py."""
    scene = Scene(status)
    assert (await scene.forwarder.send(GET, "me")).answer.status == status
    assert scene.journal[-1] == "send token-1"


async def test_a_401_passes_where_another_token_would_fare_no_better() -> None:
    """When `replace` returns the rejected token, a second try would only repeat the first."""
    scene = Scene(401)
    scene.source.stuck = True
    result = await scene.forwarder.send(GET, "me")
    assert (result.answer.status, result.retried, result.too_large) == (401, False, False)
    assert scene.journal[-1] == "replace token-1"


async def test_a_failed_replacement_lets_the_first_answer_go() -> None:
    """When no other token can be had the client is told why, and the API's connection is not leaked."""
    scene = Scene(401)
    scene.source.replace_error = LoginRequired("x")
    with pytest.raises(LoginRequired):
        await scene.forwarder.send(GET, "me")
    assert scene.journal[-1] == "close 401"


async def test_a_client_that_leaves_during_the_replacement_leaks_nothing() -> None:
    """A cancelled request closes the 401 that it held."""
    scene = Scene(401)
    scene.source.replace_error = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await scene.forwarder.send(GET, "me")
    assert scene.journal[-1] == "close 401"


async def test_an_upstream_failure_is_not_retried_here() -> None:
    """Whether a failed request may go again is the adapter's knowledge."""
    scene = Scene(UpstreamUnreachable("x"))
    with pytest.raises(UpstreamUnreachable):
        await scene.forwarder.send(GET, "me")
    assert scene.journal[-1] == "send token-1"


async def test_the_second_try_sends_the_whole_body_again() -> None:
    """What the first try consumed is sent again from its first byte."""
    scene = Scene(401, 200)
    with closing(a_body(b"ab", b"cd")) as body:
        await scene.forwarder.send(posting(body), "me")
    assert scene.bodies == [b"abcd", b"abcd"]


async def test_an_early_401_reads_the_rest_of_the_body_for_the_second_try_only() -> None:
    """An API that refuses before the body is through gets it whole, once, on the second try."""
    scene = Scene(401, 200)
    scene.take_bytes = 2
    with closing(a_body(b"ab", b"cd", b"ef")) as body:
        await scene.forwarder.send(posting(body), "me")
    assert scene.bodies == [b"ab", b"abcdef"]


async def test_a_401_after_a_body_too_large_to_keep_passes_and_says_so() -> None:
    """Without the whole body there is no second try, and no refresh for nothing."""
    scene = Scene(401)
    with closing(a_body(b"abcd", max_bytes=3)) as body:
        result = await scene.forwarder.send(posting(body), "me")
    assert (result.answer.status, result.too_large, result.retried) == (401, True, False)
    assert scene.journal[-1] == "send token-1"
