"""Sends one request with a token and a slot, and retries it after a 401, 429 or 503.

Invariants:
1. A request is sent only with a token that is valid at that instant, and only with a slot.
2. A 401 is retried once, with another token; a 429, or a 503 with `Retry-After`, is retried at most twice.
   A retry needs the whole body. The client gets the last answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from cfproxy.auth.models import Token
from cfproxy.auth.token_source import TokenSource
from cfproxy.errors import QueueRefusal
from cfproxy.pacing.queue import FairQueue
from cfproxy.proxy.response_headers import retry_after_s
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
class Timings:
    """Where a request spent its time, all attempts together.

    Args:
        queued_s: seconds waiting for slots.
        token_s: seconds waiting for tokens.
        upstream_s: seconds from sending to the head of the answer.
    """

    queued_s: float = 0.0
    token_s: float = 0.0
    upstream_s: float = 0.0

    def render(self) -> bytes:
        """Return the value of `Server-Timing` (W3C Server Timing §3), in milliseconds."""
        parts = (("queue", self.queued_s), ("token", self.token_s), ("upstream", self.upstream_s))
        return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts).encode()


@dataclass(slots=True)
class ForwardResult:
    """The final answer to a forwarded request.

    Args:
        answer: to be relayed and closed by the caller.
        timings: of all attempts.
        retried: whether the request was retried with another token after a 401.
        postponed: how often it was retried after a 429 or 503.
        too_large: whether a 401 was not retried because the body was too large to be replayed.
    """

    answer: UpstreamResponse
    timings: Timings
    retried: bool = False
    postponed: int = 0
    too_large: bool = False


@dataclass(slots=True)
class PendingRequest:
    """A request sent by `Forwarder.send_now` that no task waits for.

    Args:
        token: sent with it.
        answer: still to come.
        sent_at: on the clock of `time.perf_counter`.
        forwarder: that sent it; it also retries it, whatever was reloaded meanwhile.
    """

    token: Token
    answer: UpstreamResponse
    sent_at: float
    forwarder: Forwarder

    def result(self) -> ForwardResult | None:
        """Return the result if the answer is complete and final; None if `Forwarder.send` must go on."""
        if not self.answer.arrived() or self.answer.status in _RETRYABLE:
            return None
        return ForwardResult(self.answer, Timings(0.0, 0.0, time.perf_counter() - self.sent_at))


class Forwarder:
    """Sends requests with a token, within the rate limit.

    Args:
        source: provides tokens.
        fair_queue: provides slots.
        upstream: sends requests.
        retry_unauthorized: whether a request is retried with a refreshed token after a 401.
        retry_too_many: whether a request is retried after a 429, or a 503 with Retry-After.
        now: the wall clock, to which the date in a Retry-After is compared.
    """

    def __init__(
        self,
        source: TokenSource,
        fair_queue: FairQueue,
        upstream: UpstreamClient,
        *,
        retry_unauthorized: bool,
        retry_too_many: bool,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._fair_queue = fair_queue
        self._upstream = upstream
        self._retry_unauthorized = retry_unauthorized
        self._retry_too_many = retry_too_many
        self._now = now

    def send_now(self, call: Call, on_answer: Callable[[], None]) -> PendingRequest | None:
        """Send `call` if it has no body and a token, a slot and a connection are available, as is usual.

        Args:
            call: the request.
            on_answer: called when the answer's head has arrived, or will not arrive.

        Returns:
            the pending request; None if nothing was sent.
        """
        token = self._source.current() if call.body is None else None
        if token is None:
            return None
        answer = self._upstream.try_send_now(call, token, self._fair_queue.try_acquire, on_answer)
        return None if answer is None else PendingRequest(token, answer, time.perf_counter(), self)

    async def send(
        self,
        call: Call,
        flow: Hashable,
        timings: Timings | None = None,
        *,
        pending: PendingRequest | None = None,
    ) -> ForwardResult:
        """Send `call`, retry it where that helps, and return the last answer.

        Args:
            call: the request.
            flow: its flow in the fair queue.
            timings: updated even if there is no answer.
            pending: the first attempt, if `send_now` has sent it.

        Raises:
            what `TokenSource.get`, `FairQueue.acquire` and `UpstreamClient.send` raise
        """
        timings, started_at = Timings() if timings is None else timings, time.perf_counter()
        try:
            token = await self._token_and_slot(flow, timings) if pending is None else pending.token
        except QueueRefusal:
            timings.queued_s = time.perf_counter() - started_at - timings.token_s
            raise
        result = ForwardResult(await self._attempt(call, token, timings, pending), timings)
        while result.answer.status in _RETRYABLE:
            next_token = await self._token_for_retry(result, call, flow, token)
            if next_token is None:
                break
            token = next_token
            if call.body is not None:
                call.body.restart()
            result.answer = await self._attempt(call, token, timings)
        return result

    async def _attempt(
        self, call: Call, token: Token, timings: Timings, pending: PendingRequest | None = None
    ) -> UpstreamResponse:
        sent_at = time.perf_counter() if pending is None else pending.sent_at
        try:
            return await self._upstream.send(call, token, None if pending is None else pending.answer)
        finally:
            timings.upstream_s += time.perf_counter() - sent_at

    async def _token_for_retry(
        self, result: ForwardResult, call: Call, flow: Hashable, token: Token
    ) -> Token | None:
        """Return the token for a retry, whose slot is taken; None if the answer is final."""
        try:
            if result.answer.status == 401:
                return await self._after_unauthorized(result, call, flow, token)
            return await self._after_too_many(result, call, flow)
        except BaseException:
            await result.answer.aclose()
            raise

    async def _after_unauthorized(
        self, result: ForwardResult, call: Call, flow: Hashable, token: Token
    ) -> Token | None:
        if result.retried:
            self._source.distrust(token)
            return None
        if not self._retry_unauthorized:
            return None
        if call.body is not None and not call.body.replayable:
            result.too_large = True
            return None
        started_at = time.perf_counter()
        fresh = await self._source.replace(token)
        result.timings.token_s += time.perf_counter() - started_at
        if fresh.value == token.value:
            return None  # there is no other token to try
        result.retried = True
        await result.answer.aclose()
        return await self._token_and_slot(flow, result.timings, returning=True)

    async def _after_too_many(self, result: ForwardResult, call: Call, flow: Hashable) -> Token | None:
        status = result.answer.status
        asked_s = retry_after_s(result.answer.head.raw_headers, self._now())
        if status == 503 and asked_s is None:
            return None  # out of service rather than overloaded
        pause_s = RETRY_AFTER_DEFAULT_S if asked_s is None else min(asked_s, RETRY_AFTER_MAX_S)
        self._fair_queue.throttle(pause_s, step_down=status == 429)
        # A 429 was not processed; a 503 may have been (RFC 9110 §9.2.2, RFC 6585 §4).
        repeatable = status == 429 or call.idempotent
        replayable = call.body is None or call.body.replayable
        if not (self._retry_too_many and repeatable and replayable) or result.postponed == POSTPONED_MAX:
            return None
        try:
            token = await self._token_and_slot(flow, result.timings, returning=True)
        except QueueRefusal:
            return None  # not within `max_wait`: the upstream's own answer is the most useful one
        await result.answer.aclose()
        result.postponed += 1
        return token

    async def _token_and_slot(self, flow: Hashable, timings: Timings, *, returning: bool = False) -> Token:
        """Wait for a slot, and return a token that is valid at that instant.

        The token is awaited first, so that requests that can't be authorized don't queue. A request that
        then has to wait for another token has missed its slot and takes a new one. A token that was merely
        replaced in the meantime costs no slot: a refresh must not send a long queue round twice.

        Args:
            flow: the flow in the fair queue.
            timings: updated with the time spent waiting.
            returning: whether the request has used a slot before.
        """
        token = await self._get_token(timings)
        while True:
            waited_s = max(timings.queued_s, RETURNING_S) if returning else 0.0
            queued_s = await self._fair_queue.acquire(flow, waited_s)
            if not queued_s:
                return token  # no time has passed
            timings.queued_s += queued_s
            before_s = timings.token_s
            current = await self._get_token(timings)
            if current is token or timings.token_s - before_s < SLOT_VALID_S:
                return current
            token, returning = current, True

    async def _get_token(self, timings: Timings) -> Token:
        started_at = time.perf_counter()
        token = await self._source.get()
        timings.token_s += time.perf_counter() - started_at
        return token
