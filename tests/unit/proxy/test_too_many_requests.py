"""Retries after a 429, or a 503 with Retry-After."""

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
from cfproxy.proxy.retry import POSTPONED_MAX, RETRY_AFTER_MAX_S, Forwarder, Forwarding, _retry_after_s
from cfproxy.upstream.client import UpstreamClient, UpstreamResponse
from cfproxy.upstream.request import Call
from tests.support.proxied import FakePacer, FakeSource, a_body

NOW = 1_800_000_000.0


class Refusal:
    """A response of the upstream.

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
    """A forwarder whose upstream gives these responses in order."""

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

    async def ask(self, method: str = "GET", body: ReplayableBody | None = None) -> Forwarding:
        state = Forwarding(self.forwarder)
        await self.forwarder.send(Call(method, b"", body, chunked=False), "flow", state)
        return state

    def source_fails_after_a_429(self) -> None:
        def throttle(_pause_s: float, *, step_down: bool) -> None:
            self.source.error = TokenEndpointUnavailable("x")

        self.pacer.throttle = throttle  # type: ignore[assignment,method-assign] # a fake's attribute

    @property
    def pauses(self) -> list[str]:
        return [entry.removeprefix("back off ") for entry in self.journal if entry.startswith("back off")]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_429_pauses_all_requests_and_is_retried(method: str) -> None:
    """Whatever the method, since the request was not processed."""
    first = Refusal(429, "3")
    scene = Scene(first, Refusal(200))
    result = await scene.ask(method)
    assert (result.response.status, result.postponed, first.closed) == (200, 1, True)
    assert scene.pauses == ["3 slower"]
    assert scene.journal.count("slot") == 2


async def test_a_429_without_retry_after_pauses_for_one_second() -> None:
    """The API limits requests per second."""
    scene = Scene(Refusal(429), Refusal(200))
    await scene.ask()
    assert scene.pauses == ["1 slower"]


async def test_retry_after_may_be_a_date() -> None:
    """RFC 9110 §10.2.3."""
    scene = Scene(Refusal(429, formatdate(NOW + 7, usegmt=True)), Refusal(200))
    await scene.ask()
    assert scene.pauses == ["7 slower"]


async def test_a_pause_is_capped() -> None:
    """A header that asks for a week does not stop the proxy for a week."""
    scene = Scene(Refusal(429, "604800"), Refusal(200))
    await scene.ask()
    assert scene.pauses == [f"{RETRY_AFTER_MAX_S:g} slower"]


async def test_a_request_is_retried_twice_at_most() -> None:
    """Then the upstream's 429 passes, with its own headers and body."""
    last = Refusal(429, "1")
    scene = Scene(Refusal(429, "1"), Refusal(429, "1"), last)
    result = await scene.ask()
    assert cast("object", result.response) is last
    assert result.postponed == POSTPONED_MAX
    assert not last.closed
    assert len(scene.pauses) == 3


async def test_a_429_passes_when_the_wait_would_be_too_long() -> None:
    """The upstream's answer is more useful than a queue timeout of ours."""
    only = Refusal(429, "200")
    scene = Scene(only)
    result = await scene_with_a_full_queue(scene).ask()
    assert cast("object", result.response) is only
    assert not only.closed


def scene_with_a_full_queue(scene: Scene) -> Scene:
    """Grant the first slot and no other."""
    free_slot = scene.pacer.acquire

    async def acquire(flow: object, waited_s: float = 0.0) -> float:
        if waited_s:
            raise QueueTimeout("too long")
        return await free_slot(flow)

    scene.pacer.acquire = acquire  # type: ignore[method-assign] # a fake's attribute
    return scene


async def test_a_429_passes_if_retries_are_off() -> None:
    """`retry.too_many_requests: false` passes it on; other requests still pause."""
    scene = Scene(Refusal(429, "3"), retry=False)
    assert (await scene.ask()).response.status == 429
    assert scene.pauses == ["3 slower"]


async def test_a_replayable_body_is_sent_again() -> None:
    """The retry carries the same bytes."""
    scene = Scene(Refusal(429), Refusal(201))
    with closing(a_body(b"shoe")) as body:
        assert (await scene.ask("POST", body)).response.status == 201
    assert scene.sent == [b"shoe", b"shoe"]


async def test_a_429_passes_if_the_body_is_not_replayable() -> None:
    """A partial body is never sent."""
    scene = Scene(Refusal(429))
    assert (await scene.ask("POST", a_body(b"shoe", max_bytes=2))).response.status == 429


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("PUT", 200), ("POST", 503), ("PATCH", 503)])
async def test_a_503_with_retry_after_pauses_and_only_idempotent_requests_are_retried(
    method: str, status: int
) -> None:
    """A 503 may have been processed."""
    scene = Scene(Refusal(503, "2"), Refusal(200))
    assert (await scene.ask(method)).response.status == status
    assert scene.pauses == ["2"]


async def test_a_503_without_retry_after_is_final() -> None:
    """The server is broken rather than busy."""
    scene = Scene(Refusal(503))
    assert (await scene.ask()).response.status == 503
    assert scene.pauses == []


async def test_a_401_is_still_retried_after_a_429() -> None:
    """The two kinds of retries have separate limits."""
    scene = Scene(Refusal(429), Refusal(401), Refusal(429), Refusal(200))
    result = await scene.ask()
    assert (result.response.status, result.retried, result.postponed) == (200, True, 2)
    assert scene.journal.count("slot") == 4


async def test_without_a_token_for_the_retry_the_answer_is_closed() -> None:
    """The client learns why, and the API connection is not leaked."""
    first = Refusal(429)
    scene = Scene(first)
    scene.source_fails_after_a_429()
    with pytest.raises(TokenEndpointUnavailable):
        await scene.ask()
    assert first.closed


@given(st.text(max_size=40), st.floats(0, 1e10))
def test_any_retry_after_is_a_duration_or_ignored(text: str, now: float) -> None:
    """No value makes it fail or gives a negative duration."""
    found = _retry_after_s([(b"retry-after", text.encode("utf-8", "surrogatepass"))], now)
    assert found is None or found >= 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), (" 12 ", 12.0), ("1.5", None), ("-1", None), ("soon", None), ("", None), ("٣", None)],
)
def test_retry_after_in_seconds(text: str, seconds: float | None) -> None:
    """Whole seconds are accepted, any other number is ignored."""
    assert _retry_after_s([(b"Retry-After", text.encode())], NOW) == seconds
