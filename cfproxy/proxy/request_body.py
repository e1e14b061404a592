"""A request body that can be sent once more.

Owns: the kept copy, in memory and beyond that in a temporary file.
Must not know: sockets, when a request goes again (`forward.py`).
Invariant: keeping delays nothing, since the body streams meanwhile; a full disk costs the second try only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from typing import IO

PIECE_BYTES = 64 * 1024


class KeptBody:
    """A request body that is kept, up to a bound, while it streams.

    Args:
        read: gives the next piece from the client, b"" at the end.
        memory_bytes: up to here it is kept in memory, beyond in a temporary file.
        max_bytes: beyond this nothing is kept and there is no second try; 0 keeps nothing at all.
        whole: gives all of it if it is there already and nothing was read, None otherwise.
        trailers: gives what followed it, once it was read to its end.
        arrived: whether the client has sent all of it.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[bytes]],
        *,
        memory_bytes: int,
        max_bytes: int,
        whole: Callable[[], bytes | None] = lambda: None,
        trailers: Callable[[], list[tuple[bytes, bytes]]] = list,
        arrived: Callable[[], bool] = lambda: False,
    ) -> None:
        self._read = read
        self._arrived = arrived
        self._whole = whole
        self._trailers = trailers
        self._max_bytes = max_bytes
        self._kept: IO[bytes] | None = None
        self._memory_bytes = memory_bytes
        self._kept_bytes = 0
        self._replayed_bytes = 0
        self._begun = False
        self._at_end = False
        self._dropped = max_bytes <= 0
        self.received_bytes = 0  # from the client, whatever was sent again

    @property
    def replayable(self) -> bool:
        """Whether everything that was read so far is still at hand."""
        return not self._dropped or not self._begun

    def restart(self) -> None:
        """Begin again with the first byte."""
        if not self.replayable:
            raise ValueError("the body is not at hand any more")
        self._replayed_bytes = 0

    @property
    def trailers(self) -> list[tuple[bytes, bytes]]:
        """What goes behind a chunked body; known once the body was read to its end."""
        return self._trailers()

    @property
    def arrived(self) -> bool:
        """Whether all of it is here, so that nobody waits for the client to send it."""
        return self._at_end or self._arrived()

    def whole(self) -> bytes | None:
        """Return all of it if it is there already and nothing of it was read; None otherwise."""
        if self._begun:
            return None
        piece = self._whole()
        if piece is not None:
            self._begun = self._at_end = True
            self.received_bytes += len(piece)
            if piece and not self._dropped:
                self._keep(piece)
        return piece

    async def read(self) -> bytes:
        """Return the next piece: first what is kept, then what still comes from the client."""
        if self._kept is not None and self._replayed_bytes < self._kept_bytes:
            self._kept.seek(self._replayed_bytes)
            piece = self._kept.read(PIECE_BYTES)
            self._replayed_bytes += len(piece)
            if self._dropped:
                self.stop_keeping()
            return piece
        if self._at_end:
            return b""
        piece = await self._read()
        self._begun = True
        self.received_bytes += len(piece)
        if not piece:
            self._at_end = True
        elif not self._dropped:
            self._keep(piece)
        return piece

    def stop_keeping(self) -> None:
        """Keep no more, and forget what is kept as soon as it has been sent: there will be no further try."""
        self._dropped = True
        if self._replayed_bytes >= self._kept_bytes:
            self.close()

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
                in_memory = max(1, self._memory_bytes)  # 0 would mean without a bound
                self._kept = tempfile.SpooledTemporaryFile(in_memory)  # noqa: SIM115 - closed by close()
            self._kept.seek(self._kept_bytes)
            self._kept.write(piece)
        except OSError:
            self.close()  # a full disk costs the second try, not the request
            return
        self._kept_bytes += len(piece)
        self._replayed_bytes = self._kept_bytes
