"""One queue for each upstream, whatever the accounts.

Owns: which accounts share one, and what a reload changes about it.
Invariant: a queue is kept for good: the departures of the last second count, whoever made them.
"""

from __future__ import annotations

from structlog.typing import FilteringBoundLogger

from cfproxy.clock import SystemClock
from cfproxy.config import Account, RedisAddress
from cfproxy.pacing.queue import Shaper
from cfproxy.pacing.rate import Pace
from cfproxy.pacing.shared import BorrowedPace


def build_pace(account: Account, log: FilteringBoundLogger) -> Pace | BorrowedPace:
    """Return how fast requests to the account's upstream leave: for this process, or for all replicas."""
    rate, per_s, url = account.pacing.rate, account.pacing.per_s, account.store_url
    if not account.pacing.shared or rate is None or not isinstance(url, RedisAddress):
        return Pace(rate, per_s)
    from cfproxy.pacing.redis import RedisLender

    lender = RedisLender(url, account.upstream_origin, account.tls.ca_file)
    return BorrowedPace(rate, per_s, lender, SystemClock(), log.bind(upstream=account.upstream_origin))


class Shapers:
    """The queues of a process.

    Args:
        log: where it goes that one backs off.
    """

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._shapers: dict[str, Shaper] = {}
        self._borrowed: list[BorrowedPace] = []

    def of(self, account: Account) -> Shaper:
        """Return the queue of the account's upstream; its pace is not changed.

        The API counts per IP address: accounts that share an upstream share its limit.
        """
        origin, pacing = account.upstream_origin, account.pacing
        if origin not in self._shapers:
            pace = build_pace(account, self._log)
            shaper = Shaper(pace, SystemClock(), pacing.queue, pacing.max_wait_s)
            if isinstance(pace, BorrowedPace):
                pace.on_change = shaper.wake
                pace.begin()
                self._borrowed.append(pace)
            shaper.on_back_off = lambda pause_s, stepped: self._log.warning(
                "pacing.backed_off",
                upstream=origin,
                pause_s=round(pause_s, 1),
                stepped=stepped,
                rate=shaper.state().rate,
            )
            self._shapers[origin] = shaper
        return self._shapers[origin]

    def retune(self, account: Account) -> Shaper:
        """Let the account's upstream be paced as its settings say from now on, and return its queue."""
        shaper, pacing = self.of(account), account.pacing
        shaper.retune(pacing.rate, pacing.per_s, pacing.queue, pacing.max_wait_s)
        return shaper

    async def aclose(self) -> None:
        """Let go of what is shared with other replicas."""
        for pace in self._borrowed:
            await pace.aclose()
