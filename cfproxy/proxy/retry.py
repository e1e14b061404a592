"""One proxied request, from its token to the answer that counts.

Owns: the order of token, slot, sending, and what follows a 401, 429 or 503.
Must not know: sockets, headers, who may call, how a body is kept (`kept.py`).

Invariants:
1. A request never leaves without a token that is valid at that instant, nor without a slot.
2. At most one try more after a 401, and only with another token; at most two after a 429 or a 503 with
   Retry-After; only if the whole body is at hand. What the upstream said last is what the client gets.
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
from cfproxy.upstream.interfaces import Answer, BegunAnswer, Call, Upstream

# The API counts by the second, so a second is over soon; a header that asks for hours may be in error.
RETRY_AFTER_DEFAULT_S = 1.0
RETRY_AFTER_MAX_S = 300.0
POSTPONED_MAX = 2
_MAY_GO_AGAIN = frozenset({401, 429, 503})
PROMPT_S = 0.005  # later than this after a slot nobody leaves: the pace allows for that much, and jitter
MOMENT_S = 1e-9  # tells the queue that a request returns even if it has not waited yet


@dataclass(slots=True)
class Times:
    """Where the time of a request went, in seconds, all tries together.

    Args:
        queued_s: waiting for slots.
        token_s: waiting for tokens.
        upstream_s: from sending to the head of the answer.
    """

    queued_s: float = 0.0
    token_s: float = 0.0
    upstream_s: float = 0.0


@dataclass(slots=True)
class Outcome:
    """An answer and how it came about.

    Args:
        answer: to be relayed and closed by the caller.
        times: where the time went, all tries together.
        retried: whether a 401 was followed by a try with another token.
        postponed: how often it went again after a 429 or 503.
        too_large: a 401 that was not retried because the body was too large to be kept.
    """

    answer: Answer
    times: Times
    retried: bool = False
    postponed: int = 0
    too_large: bool = False


@dataclass(slots=True)
class Begun:
    """A request that is on its way, and that nobody waits for yet.

    Args:
        token: that went with it.
        answer: to come.
        began_at: when it was sent, on the clock of `time.perf_counter`.
        by: who sent it, and goes on with it though another one may be in use by then.
    """

    token: Token
    answer: BegunAnswer
    began_at: float
    by: Forwarder


class Forwarder:
    """Sends requests with a token, at the pace allowed.

    Args:
        source: gives tokens.
        fair_queue: grants slots.
        upstream: sends.
        retry_unauthorized: whether a 401 is answered by a refresh and a second try.
        retry_too_many: whether a request that met the upstream's limit (429, or 503 with Retry-After)
            goes again when its time has come.
        now: the wall clock, against which the date in a Retry-After is read.
    """

    def __init__(
        self,
        source: TokenSource,
        fair_queue: FairQueue,
        upstream: Upstream,
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

    def begin(self, call: Call, on_arrival: Callable[[], None]) -> Begun | None:
        """Send `call` if it has no body, and token, slot and connection are at hand: most requests.

        Args:
            call: what to send.
            on_arrival: called when it is time for `settle`.

        Returns:
            what is on its way; None when nothing happened.
        """
        token = self._source.current() if call.body is None else None
        if token is None:
            return None
        answer = self._upstream.begin(call, token, self._fair_queue.try_acquire, on_arrival)
        return None if answer is None else Begun(token, answer, time.perf_counter(), self)

    @staticmethod
    def settle(begun: Begun) -> Outcome | None:
        """Return what came of it if the whole answer is there and the last one; else go on with `forward`."""
        answer = begun.answer
        if not answer.arrived_whole() or answer.status in _MAY_GO_AGAIN:
            return None
        return Outcome(answer, Times(0.0, 0.0, time.perf_counter() - begun.began_at))

    async def forward(
        self, call: Call, flow: Hashable, times: Times | None = None, *, begun: Begun | None = None
    ) -> Outcome:
        """Send `call`, again where that helps, and return the last answer.

        Args:
            call: what to send.
            flow: whose turn it takes in the queue.
            times: where the time went, whether or not there is an answer.
            begun: the first try, where `begin` has sent it.

        Raises:
            whatever `TokenSource.get`, `FairQueue.acquire` and `Upstream.send` raise
        """
        times, began_at = Times() if times is None else times, time.perf_counter()
        try:
            token = await self._token_and_slot(flow, times) if begun is None else begun.token
        except QueueRefusal:
            times.queued_s = time.perf_counter() - began_at - times.token_s
            raise
        outcome = Outcome(await self._send(call, token, times, begun), times)
        while outcome.answer.status in _MAY_GO_AGAIN:
            again = await self._token_for_another_try(outcome, call, flow, token)
            if again is None:
                break
            token = again
            if call.body is not None:
                call.body.restart()
            outcome.answer = await self._send(call, token, times)
        return outcome

    async def _send(self, call: Call, token: Token, times: Times, begun: Begun | None = None) -> Answer:
        began_at = time.perf_counter() if begun is None else begun.began_at
        try:
            return await self._upstream.send(call, token, None if begun is None else begun.answer)
        finally:
            times.upstream_s += time.perf_counter() - began_at

    async def _token_for_another_try(
        self, outcome: Outcome, call: Call, flow: Hashable, token: Token
    ) -> Token | None:
        """Decide what follows from an answer: another try, with this token and a slot, or None."""
        try:
            if outcome.answer.status == 401:
                return await self._after_unauthorized(outcome, call, flow, token)
            return await self._after_too_many(outcome, call, flow)
        except BaseException:
            await outcome.answer.aclose()
            raise

    async def _after_unauthorized(
        self, outcome: Outcome, call: Call, flow: Hashable, token: Token
    ) -> Token | None:
        if outcome.retried:
            self._source.distrust(token)
            return None
        if not self._retry_unauthorized:
            return None
        if call.body is not None and not call.body.replayable:
            outcome.too_large = True
            return None
        began_at = time.perf_counter()
        fresh = await self._source.replace(token)
        outcome.times.token_s += time.perf_counter() - began_at
        if fresh.value == token.value:
            return None  # as far as known another token would fare no better
        outcome.retried = True
        await outcome.answer.aclose()
        return await self._token_and_slot(flow, outcome.times, returns=True)

    async def _after_too_many(self, outcome: Outcome, call: Call, flow: Hashable) -> Token | None:
        status = outcome.answer.status
        asked_s = retry_after_s(outcome.answer.raw_headers, self._now())
        if status == 503 and asked_s is None:
            return None  # out of order, not out of patience
        pause_s = RETRY_AFTER_DEFAULT_S if asked_s is None else min(asked_s, RETRY_AFTER_MAX_S)
        self._fair_queue.throttle(pause_s, step_down=status == 429)
        # A 429 was not processed; whether a 503 was, nobody knows (RFC 9110 §9.2.2, RFC 6585 §4).
        harmless = status == 429 or call.idempotent
        at_hand = call.body is None or call.body.replayable
        if not (self._retry_too_many and harmless and at_hand) or outcome.postponed == POSTPONED_MAX:
            return None
        try:
            token = await self._token_and_slot(flow, outcome.times, returns=True)
        except QueueRefusal:
            return None  # not within `max_wait`: the upstream's own answer says it best
        await outcome.answer.aclose()
        outcome.postponed += 1
        return token

    async def _token_and_slot(self, flow: Hashable, times: Times, *, returns: bool = False) -> Token:
        """Return a token that is valid at the instant of a slot.

        The token comes first, so that nobody who can't be served takes a place in the queue. If another one
        had to be waited for after the slot, that instant has passed: take another slot. One that somebody
        got meanwhile costs none, or a refresh would cost each of a long queue a second turn.

        Args:
            flow: whose turn it takes.
            times: what was waited goes there.
            returns: an earlier slot was in vain.
        """
        token = await self._get(times)
        while True:
            waited_s = max(times.queued_s, MOMENT_S) if returns else 0.0
            queued_s = await self._fair_queue.acquire(flow, waited_s)
            if not queued_s:
                return token  # at this same instant
            times.queued_s += queued_s
            before_s = times.token_s
            current = await self._get(times)
            if current is token or times.token_s - before_s < PROMPT_S:
                return current
            token, returns = current, True

    async def _get(self, times: Times) -> Token:
        began_at = time.perf_counter()
        token = await self._source.get()
        times.token_s += time.perf_counter() - began_at
        return token
