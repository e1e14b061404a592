"""What follows when the upstream says that it was asked too often: 429, or 503 with Retry-After."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from email.utils import formatdate
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.auth.models import Token
from cfproxy.auth.token_source import TokenSource
from cfproxy.errors import QueueTimeout, TokenEndpointUnavailable
from cfproxy.pacing.queue import FairQueue
from cfproxy.proxy.request_body import ReplayableBody
from cfproxy.proxy.response_headers import retry_after_s
from cfproxy.proxy.retry import POSTPONED_MAX, RETRY_AFTER_MAX_S, Forwarder, ForwardResult
from cfproxy.upstream.client import UpstreamClient, UpstreamResponse
from cfproxy.upstream.request import Call
from tests.support.proxied import FakePacer, FakeSource, a_body

NOW = 1_800_000_000.0


class Refusal:
    """An answer of the upstream.

    Args:
        status: its status.
        retry_after: the header's value; None leaves the header out.
    """

    def __init__(self, status: int, retry_after: str | None = None) -> None:
        self.status = status
        headers = [] if retry_after is None else [(b"Retry-After", retry_after.encode())]
        self.head = SimpleNamespace(raw_headers=headers)
        self.closed = False

    async def read(self) -> bytes:
        return b""

    async def aclose(self) -> None:
        self.closed = True


class Scene:
    """A forwarder before an upstream that gives these answers, one after the other."""

    def __init__(self, *answers: Refusal, retry: bool = True) -> None:
        self.journal: list[str] = []
        self.pacer = FakePacer(self.journal)
        self.source = FakeSource(self.journal)
        self.answers = list(answers)
        self.sent: list[bytes] = []
        self.forwarder = Forwarder(
            cast("TokenSource", self.source),
            cast("FairQueue", self.pacer),
            cast("UpstreamClient", self),
            retry_unauthorized=True,
            retry_too_many=retry,
            now=lambda: NOW,
        )

    def try_send_now(
        self, call: Call, token: Token, acquire_slot: Callable[[], bool], on_arrival: Callable[[], None]
    ) -> None:
        return None

    async def send(self, call: Call, token: Token, response: UpstreamResponse | None = None) -> Refusal:
        self.journal.append("send")
        if call.body is not None:
            self.sent.append(await call.body.read())
        return self.answers.pop(0)

    async def ask(self, method: str = "GET", body: ReplayableBody | None = None) -> ForwardResult:
        return await self.forwarder.send(Call(method, b"", body, chunked=False), "flow")

    def source_fails_after_a_429(self) -> None:
        def throttle(_pause_s: float, *, step_down: bool) -> None:
            self.source.error = TokenEndpointUnavailable("x")

        self.pacer.throttle = throttle  # type: ignore[assignment,method-assign] # a fake's attribute

    @property
    def pauses(self) -> list[str]:
        return [entry.removeprefix("back off ") for entry in self.journal if entry.startswith("back off")]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_429_pauses_everybody_and_the_request_goes_again(method: str) -> None:
    """The client never hears of a 429 that a wait could cure, whatever the method: it was not processed."""
    first = Refusal(429, "3")
    scene = Scene(first, Refusal(200))
    result = await scene.ask(method)
    assert (result.answer.status, result.postponed, first.closed) == (200, 1, True)
    assert scene.pauses == ["3 slower"]
    assert scene.journal.count("slot") == 2


async def test_a_429_without_a_time_pauses_for_a_second() -> None:
    """The API counts by the second, so that is the guess."""
    scene = Scene(Refusal(429), Refusal(200))
    await scene.ask()
    assert scene.pauses == ["1 slower"]


async def test_a_429_may_give_a_date() -> None:
    """Retry-After may be an HTTP date (RFC 9110 §10.2.3)."""
    scene = Scene(Refusal(429, formatdate(NOW + 7, usegmt=True)), Refusal(200))
    await scene.ask()
    assert scene.pauses == ["7 slower"]


async def test_a_pause_is_capped() -> None:
    """A header that asks for a week does not stop the proxy for a week."""
    scene = Scene(Refusal(429, "604800"), Refusal(200))
    await scene.ask()
    assert scene.pauses == [f"{RETRY_AFTER_MAX_S:g} slower"]


async def test_a_request_goes_again_twice_at_the_most() -> None:
    """After that the upstream's 429 passes, with its own headers and body."""
    last = Refusal(429, "1")
    scene = Scene(Refusal(429, "1"), Refusal(429, "1"), last)
    result = await scene.ask()
    assert cast("object", result.answer) is last
    assert result.postponed == POSTPONED_MAX
    assert not last.closed
    assert len(scene.pauses) == 3


async def test_a_429_passes_when_the_wait_would_be_too_long() -> None:
    """What the upstream said tells the client more than a time-out of ours."""
    only = Refusal(429, "200")
    scene = Scene(only)
    result = await scene_with_a_full_queue(scene).ask()
    assert cast("object", result.answer) is only
    assert not only.closed


def scene_with_a_full_queue(scene: Scene) -> Scene:
    """Let the first slot be had, and no other."""
    free_slot = scene.pacer.acquire

    async def acquire(flow: object, waited_s: float = 0.0) -> float:
        if waited_s:
            raise QueueTimeout("too long")
        return await free_slot(flow)

    scene.pacer.acquire = acquire  # type: ignore[method-assign] # a fake's attribute
    return scene


async def test_a_429_passes_where_the_setting_says_so() -> None:
    """`retry.too_many_requests: false` passes it on; the others still keep away for a while."""
    scene = Scene(Refusal(429, "3"), retry=False)
    assert (await scene.ask()).answer.status == 429
    assert scene.pauses == ["3 slower"]


async def test_a_body_that_is_at_hand_is_sent_again() -> None:
    """The second try carries the same bytes."""
    scene = Scene(Refusal(429), Refusal(201))
    with closing(a_body(b"shoe")) as body:
        assert (await scene.ask("POST", body)).answer.status == 201
    assert scene.sent == [b"shoe", b"shoe"]


async def test_a_429_passes_when_the_body_is_not_at_hand() -> None:
    """Half a body is never sent."""
    scene = Scene(Refusal(429))
    assert (await scene.ask("POST", a_body(b"shoe", max_bytes=2))).answer.status == 429


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("PUT", 200), ("POST", 503), ("PATCH", 503)])
async def test_a_503_with_a_time_pauses_and_only_harmless_requests_go_again(method: str, status: int) -> None:
    """Whether a 503 was processed nobody knows, so what is not idempotent is not sent twice."""
    scene = Scene(Refusal(503, "2"), Refusal(200))
    assert (await scene.ask(method)).answer.status == status
    assert scene.pauses == ["2"]


async def test_a_503_without_a_time_is_just_an_answer() -> None:
    """A server that is broken is not one that is busy."""
    scene = Scene(Refusal(503))
    assert (await scene.ask()).answer.status == 503
    assert scene.pauses == []


async def test_after_a_429_a_401_still_gets_its_try() -> None:
    """The two kinds of retries don't use each other up."""
    scene = Scene(Refusal(429), Refusal(401), Refusal(429), Refusal(200))
    result = await scene.ask()
    assert (result.answer.status, result.retried, result.postponed) == (200, True, 2)
    assert scene.journal.count("slot") == 4


async def test_when_no_token_can_be_had_for_another_try_the_answer_is_let_go() -> None:
    """The client hears why, and the connection is not leaked."""
    first = Refusal(429)
    scene = Scene(first)
    scene.source_fails_after_a_429()
    with pytest.raises(TokenEndpointUnavailable):
        await scene.ask()
    assert first.closed


@given(st.text(max_size=40), st.floats(0, 1e10))
def test_any_retry_after_is_a_span_of_time_or_nothing(text: str, now: float) -> None:
    """Whatever an upstream writes there, it is no crash and never negative."""
    found = retry_after_s([(b"retry-after", text.encode("utf-8", "surrogatepass"))], now)
    assert found is None or found >= 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), (" 12 ", 12.0), ("1.5", None), ("-1", None), ("soon", None), ("", None), ("٣", None)],
)
def test_retry_after_in_seconds(text: str, seconds: float | None) -> None:
    """Whole seconds are read, anything else is as if it were not there."""
    assert retry_after_s([(b"Retry-After", text.encode())], NOW) == seconds
