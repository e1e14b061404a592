"""One queue for each upstream, whatever the accounts.

Owns: which accounts share one, and what a reload changes about it.
Invariant: a queue is kept for good: the departures of the last second count, whoever made them.
"""

from __future__ import annotations

from structlog.typing import FilteringBoundLogger

from cfproxy.clock import SystemClock
from cfproxy.config import Account, RedisAddress
from cfproxy.pacing.queue import FairQueue
from cfproxy.pacing.rate import RateLimit
from cfproxy.pacing.shared import SharedRate


def build_rate_limit(account: Account, log: FilteringBoundLogger) -> RateLimit | SharedRate:
    """Return how fast requests to the account's upstream leave: for this process, or for all replicas."""
    rate, per_s, url = account.pacing.rate, account.pacing.per_s, account.store_url
    if not account.pacing.shared or rate is None or not isinstance(url, RedisAddress):
        return RateLimit(rate, per_s)
    from cfproxy.pacing.redis import RedisRate  # noqa: PLC0415 - optional

    backend = RedisRate(url, account.upstream_origin, account.tls.ca_file)
    return SharedRate(rate, per_s, backend, SystemClock(), log.bind(upstream=account.upstream_origin))


class QueueRegistry:
    """The queues of a process.

    Args:
        log: where it goes that one backs off.
    """

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._queues: dict[str, FairQueue] = {}
        self._borrowed: list[SharedRate] = []

    def of(self, account: Account) -> FairQueue:
        """Return the queue of the account's upstream; its pace is not changed.

        The API counts per IP address: accounts that share an upstream share its limit.
        """
        origin, pacing = account.upstream_origin, account.pacing
        if origin not in self._queues:
            pace = build_rate_limit(account, self._log)
            fair_queue = FairQueue(pace, SystemClock(), pacing.queue, pacing.max_wait_s)
            if isinstance(pace, SharedRate):
                pace.on_change = fair_queue.wake
                pace.begin()
                self._borrowed.append(pace)
            fair_queue.on_back_off = lambda pause_s, stepped: self._log.warning(
                "pacing.backed_off",
                upstream=origin,
                pause_s=round(pause_s, 1),
                stepped=stepped,
                rate=fair_queue.state().rate,
            )
            self._queues[origin] = fair_queue
        return self._queues[origin]

    def retune(self, account: Account) -> FairQueue:
        """Let the account's upstream be paced as its settings say from now on, and return its queue."""
        fair_queue, pacing = self.of(account), account.pacing
        fair_queue.retune(pacing.rate, pacing.per_s, pacing.queue, pacing.max_wait_s)
        return fair_queue

    async def aclose(self) -> None:
        """Let go of what is shared with other replicas."""
        for pace in self._borrowed:
            await pace.aclose()
