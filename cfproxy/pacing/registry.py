"""One queue for each upstream: accounts that share an upstream share its rate limit.

A queue lives as long as the process: after a reload, requests already sent still count.
"""

from __future__ import annotations

from structlog.typing import FilteringBoundLogger

from cfproxy.clock import SystemClock
from cfproxy.config import Account, RedisAddress
from cfproxy.pacing.queue import FairQueue
from cfproxy.pacing.rate import Limiter, RateLimit
from cfproxy.pacing.shared import SharedRate


def build_limiter(account: Account, log: FilteringBoundLogger) -> Limiter:
    """Return the rate limit of the account's upstream, for this process or for all replicas."""
    rate, per_s, url = account.pacing.rate, account.pacing.per_s, account.store_url
    if not account.pacing.shared or rate is None or not isinstance(url, RedisAddress):
        return RateLimit(rate, per_s)
    from cfproxy.pacing.redis import RedisRate  # noqa: PLC0415 - optional

    backend = RedisRate(url, account.upstream_origin, account.tls.ca_file)
    return SharedRate(rate, per_s, backend, SystemClock(), log.bind(upstream=account.upstream_origin))


class QueueRegistry:
    """The queues of a process.

    Args:
        log: for throttling by an upstream.
    """

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._queues: dict[str, FairQueue] = {}

    def of(self, account: Account) -> FairQueue:
        """Return the queue of the account's upstream; an existing one keeps its configuration.

        The API counts per IP address: accounts that share an upstream share its limit.
        """
        origin, pacing = account.upstream_origin, account.pacing
        if origin not in self._queues:
            limiter = build_limiter(account, self._log)
            fair_queue = FairQueue(limiter, SystemClock(), pacing.queue, pacing.max_wait_s)
            fair_queue.on_throttle = lambda pause_s, stepped: self._log.warning(
                "pacing.backed_off",
                upstream=origin,
                pause_s=round(pause_s, 1),
                stepped=stepped,
                rate=fair_queue.state().rate,
            )
            fair_queue.start()
            self._queues[origin] = fair_queue
        return self._queues[origin]

    def reconfigure(self, account: Account) -> FairQueue:
        """Return the queue of the account's upstream, with the account's settings from now on."""
        fair_queue, pacing = self.of(account), account.pacing
        fair_queue.reconfigure(pacing.rate, pacing.per_s, pacing.queue, pacing.max_wait_s)
        return fair_queue

    async def aclose(self) -> None:
        """Release what is shared with other replicas."""
        for fair_queue in self._queues.values():
            await fair_queue.aclose()
