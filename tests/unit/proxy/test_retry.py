"""Forwarding one request: the order of token, slot and sending, and the retry after a 401."""

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
from cfproxy.proxy.retry import Forwarder, Forwarding
from cfproxy.upstream.client import UpstreamClient, UpstreamResponse
from cfproxy.upstream.request import Call
from tests.support.proxied import FakePacer, FakeSource, a_body

GET = Call("GET", b"", None, chunked=False)


class FakeResponse:
    """An upstream response that records when it is closed."""

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
    """A forwarder whose collaborators write one journal.

    Args:
        statuses: of the upstream's responses, in order; an error is raised instead.
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

    async def send(self, call: Call, token: Token, response: UpstreamResponse | None = None) -> FakeResponse:
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
        return FakeResponse(status, self.journal)


async def forward(scene: Scene, call: Call = GET, flow: str = "me") -> Forwarding:
    """Forward a request and return what became of it."""
    state = Forwarding(scene.forwarder)
    await scene.forwarder.send(call, flow, state)
    return state


def posting(body: ReplayableBody) -> Call:
    return Call("POST", b"", body, chunked=True)


# --- token, slot and sending --------------------------------------------------------------


async def test_a_token_is_awaited_before_the_slot_and_renewed_after_it() -> None:
    """No request queues without a token, and the one that is sent is current."""
    scene = Scene(200)
    result = await forward(scene)
    assert scene.journal == ["get", "slot", "get", "send token-1"]
    assert (result.response.status, result.retried, result.queued_s) == (200, False, 0.25)
    assert scene.pacer.flows == ["me"]


async def test_a_token_replaced_while_waiting_costs_no_second_slot() -> None:
    """A background refresh must not double the waiting time of a long queue."""
    scene = Scene(200)
    scene.pacer.gate.clear()
    task = asyncio.create_task(forward(scene))
    while not scene.pacer.waiting:
        await asyncio.sleep(0)
    scene.source.renew()
    scene.pacer.gate.set()
    result = await task
    assert scene.journal == ["get", "slot", "get", "send token-2"]
    assert result.queued_s == 0.25


async def test_waiting_for_a_token_after_the_slot_takes_another_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Requests that waited for the same refresh must not be sent at once."""
    scene, clock = Scene(200), [0.0]
    monkeypatch.setattr("cfproxy.proxy.retry.time.perf_counter", lambda: clock[0])
    get = scene.source.get

    async def refresh_after_the_slot() -> Token:
        if scene.journal == ["get", "slot"]:
            scene.source.renew()
            clock[0] += 0.2
        return await get()

    monkeypatch.setattr(scene.source, "get", refresh_after_the_slot)
    result = await forward(scene)
    assert scene.journal == ["get", "slot", "get", "slot", "get", "send token-2"]
    assert result.queued_s == 0.5


@pytest.mark.parametrize("error", [LoginRequired("x"), TokenEndpointUnavailable("x")])
async def test_without_a_token_nothing_queues_and_nothing_is_sent(error: CfproxyError) -> None:
    """A request that can't be authorized takes no slot and never reaches the API."""
    scene = Scene(200)
    scene.source.error = error
    with pytest.raises(type(error)):
        await forward(scene)
    assert scene.journal == ["get"]


async def test_without_a_slot_nothing_is_sent() -> None:
    """A full queue ends the request before it reaches the API."""
    scene = Scene(200)
    scene.pacer.error = QueueFull("x")
    with pytest.raises(QueueFull):
        await forward(scene)
    assert scene.journal == ["get", "slot"]


@pytest.mark.parametrize("error", [UpstreamUnreachable("x"), QueueTimeout("x")])
async def test_a_failed_request_reports_its_timings(error: CfproxyError) -> None:
    """They show what it waited for."""
    sends = isinstance(error, UpstreamUnreachable)
    scene = Scene(error if sends else 200)
    state = Forwarding(scene.forwarder)
    scene.pacer.error = None if sends else error
    with pytest.raises(type(error)):
        await scene.forwarder.send(GET, "me", state)
    assert state.queued_s == 0.25 if sends else state.queued_s > 0
    assert (state.upstream_s > 0) == sends


# --- the retry after a 401 ----------------------------------------------------------------


async def test_a_401_is_retried_with_a_new_token_and_a_new_slot() -> None:
    """The first answer's connection is released before the wait, and the client gets the second answer."""
    scene = Scene(401, 200)
    result = await forward(scene)
    assert scene.journal[3:] == [
        "send token-1",
        "replace token-1",
        "close 401",
        "get",
        "slot",
        "get",
        "send token-2",
    ]
    assert (result.response.status, result.retried, result.queued_s) == (200, True, 0.5)


async def test_the_retry_sends_the_token_that_is_current_then() -> None:
    """Not one that was replaced while the retry waited."""
    scene = Scene(401, 200)
    scene.after_send = scene.pacer.gate.clear
    task = asyncio.create_task(forward(scene))
    while not scene.pacer.waiting:
        await asyncio.sleep(0)
    scene.source.renew()
    scene.pacer.gate.set()
    assert (await task).response.status == 200
    assert scene.journal[-4:] == ["get", "slot", "get", "send token-3"]


async def test_a_second_401_passes_and_is_reported() -> None:
    """With two tokens refused the token is not the cause, so there is no further retry."""
    scene = Scene(401, 401)
    result = await forward(scene)
    assert (result.response.status, result.retried) == (401, True)
    assert scene.journal[-2:] == ["send token-2", "distrust token-2"]
    assert "close 401" in scene.journal[:-2]


async def test_with_retry_off_a_401_passes() -> None:
    """`retry.unauthorized: false` passes each 401 to the client; the next request gets another token."""
    scene = Scene(401, retry=False)
    result = await forward(scene)
    assert result.response.status == 401
    assert scene.journal == ["get", "slot", "get", "send token-1", "reject token-1"]


@pytest.mark.parametrize("status", [400, 403, 407, 500, 503])
async def test_no_other_status_is_retried(status: int) -> None:
    """Only a 401 can be due to the token; for 429 see test_too_many_requests.py."""
    scene = Scene(status)
    assert (await forward(scene)).response.status == status
    assert scene.journal[-1] == "send token-1"


async def test_a_401_passes_if_there_is_no_other_token() -> None:
    """When `replace` returns the rejected token, a retry would only repeat the request."""
    scene = Scene(401)
    scene.source.stuck = True
    result = await forward(scene)
    assert (result.response.status, result.retried, result.not_kept) == (401, False, False)
    assert scene.journal[-1] == "replace token-1"


async def test_a_failed_replacement_closes_the_first_answer() -> None:
    """The client learns why, and the API connection is not leaked."""
    scene = Scene(401)
    scene.source.replace_error = LoginRequired("x")
    with pytest.raises(LoginRequired):
        await forward(scene)
    assert scene.journal[-1] == "close 401"


async def test_a_client_that_leaves_during_the_replacement_leaks_nothing() -> None:
    """A cancelled request closes the 401."""
    scene = Scene(401)
    scene.source.replace_error = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await forward(scene)
    assert scene.journal[-1] == "close 401"


async def test_an_upstream_failure_is_not_retried_here() -> None:
    """Only the HTTP client knows whether a failed request may be repeated."""
    scene = Scene(UpstreamUnreachable("x"))
    with pytest.raises(UpstreamUnreachable):
        await forward(scene)
    assert scene.journal[-1] == "send token-1"


async def test_the_retry_sends_the_whole_body_again() -> None:
    """From its first byte, whatever the first attempt read."""
    scene = Scene(401, 200)
    with closing(a_body(b"ab", b"cd")) as body:
        await forward(scene, posting(body))
    assert scene.bodies == [b"abcd", b"abcd"]


async def test_after_an_early_401_only_the_retry_reads_the_rest_of_the_body() -> None:
    """An API that refuses early gets the whole body once."""
    scene = Scene(401, 200)
    scene.take_bytes = 2
    with closing(a_body(b"ab", b"cd", b"ef")) as body:
        await forward(scene, posting(body))
    assert scene.bodies == [b"ab", b"abcdef"]


async def test_a_401_passes_if_the_body_was_not_kept_to_replay() -> None:
    """There is no retry, the result says why, and the next request gets another token."""
    scene = Scene(401)
    with closing(a_body(b"abcd", max_bytes=3)) as body:
        result = await forward(scene, posting(body))
    assert (result.response.status, result.not_kept, result.retried) == (401, True, False)
    assert scene.journal[-2:] == ["send token-1", "reject token-1"]
