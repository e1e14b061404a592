"""One proxied request, and its one retry.

Owns: the order of token, slot, sending, and what follows a 401; the kept copy of a request body.
Must not know: sockets, headers, who may call.

Invariants:
1. A request never leaves without a token that is valid at that instant, nor without a slot.
2. At most one retry, only after a 401, only with another token, and only if the whole body is at hand.
3. The body streams while it is kept: keeping it delays nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import IO

from cfproxy.ports import Answer, Call, Pacer, TokenSource, Upstream
from cfproxy.token import Token

PIECE_BYTES = 64 * 1024


@dataclass(slots=True)
class Outcome:
    """An answer and how it came about.

    Args:
        answer: to be relayed and closed by the caller.
        queued_s: seconds spent waiting for slots.
        retried: whether it is the answer to the second try.
        too_large: a 401 that was not retried because the body was too large to be kept.
    """

    answer: Answer
    queued_s: float
    retried: bool = False
    too_large: bool = False


class Forwarder:
    """Sends requests with a token, at the pace allowed.

    Args:
        source: gives tokens.
        pacer: gives slots.
        upstream: sends.
        retry_unauthorized: whether a 401 is answered by a refresh and a second try.
    """

    def __init__(
        self, source: TokenSource, pacer: Pacer, upstream: Upstream, *, retry_unauthorized: bool
    ) -> None:
        self._source = source
        self._pacer = pacer
        self._upstream = upstream
        self._retry_unauthorized = retry_unauthorized

    async def forward(self, call: Call, flow: Hashable) -> Outcome:
        """Send `call`, once more if a 401 is the token's fault, and return the answer.

        Raises:
            whatever `TokenSource.get`, `Pacer.slot` and `Upstream.send` raise
        """
        token, queued_s = await self._token_and_slot(flow)
        answer = await self._upstream.send(call, token)
        outcome = Outcome(answer, queued_s)
        if answer.status != 401 or not self._retry_unauthorized:
            return outcome
        if call.body is not None and not call.body.replayable:
            outcome.too_large = True
            return outcome
        try:
            fresh = await self._source.replace(token)
            if fresh.value == token.value:
                return outcome  # as far as known another token would fare no better
        except BaseException:
            await answer.aclose()
            raise
        await answer.aclose()
        queued_s += await self._pacer.slot(flow)
        if call.body is not None:
            call.body.restart()
        answer = await self._upstream.send(call, fresh)
        if answer.status == 401:
            self._source.distrust(fresh)
        return Outcome(answer, queued_s, retried=True)

    async def _token_and_slot(self, flow: Hashable) -> tuple[Token, float]:
        """Return a token that is valid at the instant of a slot.

        The token comes first, so that nobody who can't be served takes a place in the queue. If it had to
        be replaced while waiting, the wait for the refresh may have used the slot up: take another one.
        """
        queued_s = 0.0
        token = await self._source.get()
        while True:
            queued_s += await self._pacer.slot(flow)
            current = await self._source.get()
            if current is token:
                return token, queued_s
            token = current


class KeptBody:
    """A request body that is kept, up to a bound, while it streams.

    Args:
        read: gives the next piece from the client, b"" at the end.
        memory_bytes: up to here it is kept in memory, beyond in a temporary file.
        max_bytes: beyond this nothing is kept and there is no second try; 0 keeps nothing at all.
    """

    def __init__(self, read: Callable[[], Awaitable[bytes]], *, memory_bytes: int, max_bytes: int) -> None:
        self._read = read
        self._max_bytes = max_bytes
        self._kept: IO[bytes] | None = None
        self._memory_bytes = memory_bytes
        self._kept_bytes = 0
        self._replayed_bytes = 0
        self._begun = False
        self._at_end = False
        self._dropped = max_bytes <= 0

    @property
    def replayable(self) -> bool:
        """Whether everything that was read so far is still at hand."""
        return not self._dropped or not self._begun

    def restart(self) -> None:
        """Begin again with the first byte."""
        if not self.replayable:
            raise ValueError("the body is not at hand any more")
        self._replayed_bytes = 0

    async def read(self) -> bytes:
        """Return the next piece: first what is kept, then what still comes from the client."""
        if self._kept is not None and self._replayed_bytes < self._kept_bytes:
            self._kept.seek(self._replayed_bytes)
            piece = self._kept.read(PIECE_BYTES)
            self._replayed_bytes += len(piece)
            return piece
        if self._at_end:
            return b""
        piece = await self._read()
        self._begun = True
        if not piece:
            self._at_end = True
        elif not self._dropped:
            self._keep(piece)
        return piece

    def close(self) -> None:
        """Forget what is kept."""
        self._dropped = True
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _keep(self, piece: bytes) -> None:
        if self._kept_bytes + len(piece) > self._max_bytes:
            self.close()
            return
        try:
            if self._kept is None:
                self._kept = tempfile.SpooledTemporaryFile(self._memory_bytes)  # noqa: SIM115 - closed by close()
            self._kept.seek(self._kept_bytes)
            self._kept.write(piece)
        except OSError:
            self.close()  # a full disk costs the second try, not the request
            return
        self._kept_bytes += len(piece)
        self._replayed_bytes = self._kept_bytes
