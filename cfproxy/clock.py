"""Split out of building, ports."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class SystemClock:
    """The machine's clocks (see `ports.Clock`)."""

    def time(self) -> float:
        """Return the wall clock."""
        return time.time()

    def monotonic(self) -> float:
        """Return the monotonic clock."""
        return time.monotonic()

    async def sleep(self, delay_s: float) -> None:
        """Sleep."""
        await asyncio.sleep(delay_s)


class Clock(Protocol):
    """The two clocks and the one way to wait."""

    def time(self) -> float:
        """Return the wall clock, seconds since the epoch."""

    def monotonic(self) -> float:
        """Return seconds on a clock that never jumps."""

    async def sleep(self, delay_s: float) -> None:
        """Return after `delay_s` seconds of the monotonic clock."""
