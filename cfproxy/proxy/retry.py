"""Sends one request with a token and a slot, and retries it after a 401, 429 or 503.

Invariants:
1. A request is sent only with a token that is valid at that instant, and only with a slot.
2. A 401 is retried once, with another token; a 429, or a 503 with `Retry-After`, is retried at most twice.
   A retry needs the whole body. The client gets the last response.
3. A 401 leads to another token for the requests that follow, also if it is not retried itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import KW_ONLY, dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from cfproxy.auth.models import Token
from cfproxy.auth.token_source import TokenSource
from cfproxy.errors import QueueRefusal
from cfproxy.http1.headers import RawHeaders
from cfproxy.pacing.queue import FairQueue
from cfproxy.upstream.client import UpstreamClient, UpstreamResponse
from cfproxy.upstream.request import Call

# The API limits requests per second; a header that asks for hours may be wrong.
RETRY_AFTER_DEFAULT_S = 1.0
RETRY_AFTER_MAX_S = 300.0
POSTPONED_MAX = 2
_RETRYABLE = frozenset({401, 429, 503})
SLOT_VALID_S = 0.005  # a slot is used within this time, which the rate limit tolerates as jitter
RETURNING_S = 1e-9  # tells the queue that a request has been queued before, even if it did not wait


@dataclass(slots=True)
class Forwarding:
    """The state of one request that is forwarded.

    Args:
        forwarder: sends and retries it, whatever is reloaded meanwhile.
        sent_at: when the latest attempt was sent, on the clock of `time.perf_counter`; 0 before the first.
        done: whether the response is final.
        queued_s, token_s: seconds spent waiting for slots and for tokens, all attempts together.
        upstream_s: seconds from sending to the head of the response, all attempts together.
        retried: whether the request was retried with another token after a 401.
        postponed: how often it was retried after a 429 or 503.
        not_kept: whether a 401 was not retried because the body was not kept: too large, or no space.

    Attributes:
        token: sent with the latest attempt.
        response: to the latest attempt; to be relayed and closed by the caller when it is final.
    """

    forwarder: Forwarder
    sent_at: float = 0.0
    done: bool = False
    queued_s: float = 0.0
    token_s: float = 0.0
    upstream_s: float = 0.0
    retried: bool = False
    postponed: int = 0
    not_kept: bool = False
    token: Token = field(init=False, repr=False)
    response: UpstreamResponse = field(init=False, repr=False)

    def try_finish(self) -> bool:
        """Return whether the response has arrived and is final; if not, `Forwarder.send` must go on."""
        if self.response.arrived() and self.response.status not in _RETRYABLE:
            self.done = True
            self.upstream_s = time.perf_counter() - self.sent_at
        return self.done

    def durations(self) -> tuple[float | None, float | None, float | None]:
        """Return the seconds for slots, tokens and the API; None for a stage that was not reached."""
        if self.done:
            return self.queued_s, self.token_s, self.upstream_s
        return self.queued_s or None, self.token_s or None, self.upstream_s or None

    def log_fields(self) -> dict[str, Any]:
        """Return what the log line of the request says about its way to the API."""
        queued_ms = round(self.queued_s * 1000, 1)
        fields = {"queued_ms": queued_ms, "retried": self.retried, "postponed": self.postponed}
        return {name: value for name, value in fields.items() if value}

    def render_timings(self) -> bytes:
        """Return the value of `Server-Timing` (W3C Server Timing §3), in milliseconds."""
        parts = (("queue", self.queued_s), ("token", self.token_s), ("upstream", self.upstream_s))
        return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts).encode()


@dataclass(slots=True, eq=False)
class Forwarder:
    """Sends requests with a token, within the rate limit.

    Args:
        token_source: provides tokens.
        fair_queue: provides slots.
        upstream: sends requests.
        retry_unauthorized: whether a request is retried with a refreshed token after a 401.
        retry_too_many: whether a request is retried after a 429, or a 503 with Retry-After.
        now: the wall clock, to which the date in a Retry-After is compared.
    """

    token_source: TokenSource
    fair_queue: FairQueue
    upstream: UpstreamClient
    _: KW_ONLY
    retry_unauthorized: bool
    retry_too_many: bool
    now: Callable[[], float] = time.time

    def send_now(self, call: Call, on_response: Callable[[], None]) -> Forwarding | None:
        """Send `call` if it has no body and a token, a slot and a connection are available, as is usual.

        Args:
            call: the request.
            on_response: called when the head of the response has arrived, or will not arrive.

        Returns:
            the state of the request; None if nothing was sent.
        """
        token = self.token_source.current() if call.body is None else None
        if token is None:
            return None
        acquire_slot = self.fair_queue.try_acquire
        response = self.upstream.try_send_now(call, token, acquire_slot, on_response)
        if response is None:
            return None
        state = Forwarding(self, time.perf_counter())
        state.token, state.response = token, response
        return state

    async def send(self, call: Call, flow: Hashable, state: Forwarding) -> None:
        """Send `call`, and retry it where that helps.

        Args:
            call: the request.
            flow: its flow in the fair queue.
            state: of the request, new or from `send_now`; updated even if an error is raised.

        Raises:
            what `TokenSource.get`, `FairQueue.acquire` and `UpstreamClient.send` raise
        """
        if state.sent_at:
            await self._attempt(call, state, state.response)
        else:
            started_at = time.perf_counter()
            try:
                await self._acquire(flow, state)
            except QueueRefusal:
                state.queued_s = time.perf_counter() - started_at - state.token_s
                raise
            await self._attempt(call, state)
        while state.response.status in _RETRYABLE and await self._acquire_for_retry(call, flow, state):
            if call.body is not None:
                call.body.restart()
            await self._attempt(call, state)
        state.done = True

    async def _attempt(self, call: Call, state: Forwarding, pending: UpstreamResponse | None = None) -> None:
        if pending is None:
            state.sent_at = time.perf_counter()
        try:
            state.response = await self.upstream.send(call, state.token, pending)
        finally:
            state.upstream_s += time.perf_counter() - state.sent_at

    async def _acquire_for_retry(self, call: Call, flow: Hashable, state: Forwarding) -> bool:
        """Acquire a token and a slot for a retry; return False if the response is final."""
        try:
            if state.response.status == 401:
                return await self._after_unauthorized(call, flow, state)
            return await self._after_too_many(call, flow, state)
        except BaseException:
            await state.response.aclose()
            raise

    async def _after_unauthorized(self, call: Call, flow: Hashable, state: Forwarding) -> bool:
        request = hash(call.head.partition(b"\r\n")[0])  # method and target
        if state.retried:
            self.token_source.distrust(state.token, request)
            return False
        state.not_kept = call.body is not None and not call.body.replayable
        if state.not_kept or not self.retry_unauthorized:
            self.token_source.reject(state.token, request)
            return False
        started_at = time.perf_counter()
        fresh = await self.token_source.replace(state.token, request)
        state.token_s += time.perf_counter() - started_at
        if fresh.value == state.token.value:
            return False  # there is no other token to try
        state.retried = True
        await state.response.aclose()
        await self._acquire(flow, state, returning=True)
        return True

    async def _after_too_many(self, call: Call, flow: Hashable, state: Forwarding) -> bool:
        status = state.response.status
        requested_s = _retry_after_s(state.response.head.raw_headers, self.now())
        if status == 503 and requested_s is None:
            return False  # out of service rather than overloaded
        pause_s = RETRY_AFTER_DEFAULT_S if requested_s is None else min(requested_s, RETRY_AFTER_MAX_S)
        self.fair_queue.throttle(pause_s, step_down=status == 429)
        # A 429 was not processed; a 503 may have been (RFC 9110 §9.2.2, RFC 6585 §4).
        repeatable = status == 429 or call.idempotent
        replayable = call.body is None or call.body.replayable
        if not (self.retry_too_many and repeatable and replayable) or state.postponed == POSTPONED_MAX:
            return False
        try:
            await self._acquire(flow, state, returning=True)
        except QueueRefusal:
            return False  # not within `max_wait`: the upstream's own response is the most useful one
        await state.response.aclose()
        state.postponed += 1
        return True

    async def _acquire(self, flow: Hashable, state: Forwarding, *, returning: bool = False) -> None:
        """Wait for a slot, and for a token that is valid at that instant.

        The token is awaited first, so that requests that can't be authorized don't queue. A request that
        then has to wait for another token has missed its slot and takes a new one. A token that was merely
        replaced in the meantime costs no slot: a refresh must not send a long queue round twice.

        Args:
            flow: the flow in the fair queue.
            state: gets the token, and the time spent waiting.
            returning: whether the request has used a slot before.
        """
        token = await self._get_token(state)
        while True:
            waited_s = max(state.queued_s, RETURNING_S) if returning else 0.0
            queued_s = await self.fair_queue.acquire(flow, waited_s)
            state.queued_s += queued_s
            before_s = state.token_s
            # Without a wait no time has passed, and the token is still the current one.
            current = await self._get_token(state) if queued_s else token
            if current is token or state.token_s - before_s < SLOT_VALID_S:
                state.token = current
                return
            token, returning = current, True

    async def _get_token(self, state: Forwarding) -> Token:
        started_at = time.perf_counter()
        token = await self.token_source.get()
        state.token_s += time.perf_counter() - started_at
        return token


def _retry_after_s(headers: RawHeaders, now: float) -> float | None:
    """Return the delay that `Retry-After` asks for (RFC 9110 §10.2.3); None without a valid one.

    Args:
        headers: of the response, raw.
        now: the wall clock, to which a date is compared.
    """
    for name, value in headers:
        if name.lower() == b"retry-after":
            text = value.decode("latin-1").strip()
            if text.isascii() and text.isdigit():
                return float(text[:9])
            try:
                return max(0.0, parsedate_to_datetime(text).timestamp() - now)
            except (ValueError, OverflowError):
                return None
    return None
