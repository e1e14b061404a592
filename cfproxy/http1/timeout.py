"""A time limit that starts anew at every sign of life.

Owns: the timer.
Must not know: what it is a limit for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


def _nothing() -> None:
    """Nobody is there to be called."""


class IdleTimeout:
    """Calls back when its time is over. Moving it costs an assignment: the timer looks again when it rings.

    Args:
        on_due: called when the time is over.
    """

    __slots__ = ("_due_at", "_limit_s", "_loop", "_on_due", "_rings_at", "_timer")

    def __init__(self, on_due: Callable[[], None]) -> None:
        self._on_due = on_due
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf
        self._due_at = math.inf
        self._limit_s = math.inf

    def start(self, limit_s: float) -> None:
        """Let it ring `limit_s` seconds from now, whatever was set before."""
        self._limit_s = limit_s
        self._due_at = self._loop.time() + limit_s
        if self._due_at < self._rings_at:
            self._set_timer()

    def touch(self) -> None:
        """Begin anew, if it is running."""
        if self._due_at != math.inf:
            self._due_at = self._loop.time() + self._limit_s

    def stop(self) -> None:
        """Let it not ring. A timer that is set stays, rings once and does nothing."""
        self._due_at = math.inf

    def aclose(self) -> None:
        """Leave no timer behind, and know nobody any more: who is called knows this one mostly."""
        self.stop()
        self._on_due = _nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._rings_at = math.inf

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_at = self._due_at
        self._timer = self._loop.call_at(self._due_at, self._ring)

    def _ring(self) -> None:
        self._timer, self._rings_at = None, math.inf
        if self._due_at == math.inf:
            return
        # uvloop's clock may ring a millisecond early.
        if self._due_at > self._loop.time() + 0.001:
            self._set_timer()
            return
        self._due_at = math.inf
        self._on_due()
