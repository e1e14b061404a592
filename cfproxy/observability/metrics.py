"""What is measured of one process.

Owns: whose states are exposed, and what requests came to, as long as the process lives.
Must not know: names, help texts and labels (`exposition.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cfproxy.auth.models import TokenStatus
from cfproxy.observability.request_stats import Activity
from cfproxy.pacing.queue import QueueState

if TYPE_CHECKING:
    from cfproxy.observability.prometheus import Exposition


class Metrics:
    """The metrics of one process.

    `accounts` and `pacing` tell whose states are exposed; they may change while it runs.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Callable[[], TokenStatus]] = {}
        self.pacing: dict[str, Callable[[], QueueState]] = {}
        self.activity = Activity(self.pacing)
        self._exposition: Exposition | None = None

    def render(self, in_flight: Mapping[str, int] | None = None) -> bytes:
        """Return the exposition in Prometheus' text format.

        Args:
            in_flight: how many requests are being worked at, by account.
        """
        if self._exposition is None:
            from cfproxy.observability.prometheus import Exposition  # noqa: PLC0415 - no request to the API needs it

            self._exposition = Exposition(self.accounts, self.pacing, self.activity)
        return self._exposition.render(in_flight or {})
