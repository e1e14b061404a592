"""The clocks that code and tests share: wall clock, monotonic clock, sleep."""

from __future__ import annotations

import asyncio
from time import monotonic, time
from typing import Protocol


class Clock(Protocol):
    """Two clocks and a way to wait; tests replace it with one that they advance by hand."""

    def time(self) -> float:
        """Return the wall clock, seconds since the epoch."""

    def monotonic(self) -> float:
        """Return seconds on a clock that never jumps."""

    async def sleep(self, delay_s: float, /) -> None:
        """Return after `delay_s` seconds of the monotonic clock."""


class SystemClock:
    """The system clocks: the functions themselves, since every request reads them."""

    time = staticmethod(time)
    monotonic = staticmethod(monotonic)
    sleep = staticmethod(asyncio.sleep)
