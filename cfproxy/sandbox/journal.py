"""What happened in the sandbox, for tests and for `/_sandbox/state`.

Memory is bounded: only the last `EVENTS_MAX` events are kept; the counters count all.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

EVENTS_MAX = 100_000
_SHOWN = 100


@dataclass(frozen=True)
class TokenRequest:
    """One call of the token endpoint.

    Args:
        grant: `grant_type` as it was sent; empty if it was missing.
        outcome: `issued`, the response's error code, or `fault:<kind>` after a fault.
        reason: what was wrong; the client does not see it.
        at: when it arrived, in seconds of the sandbox's clock.
    """

    grant: str
    outcome: str
    reason: str
    at: float


@dataclass
class Journal:
    """Counters and recent events."""

    token_requests: deque[TokenRequest] = field(default_factory=lambda: deque(maxlen=EVENTS_MAX))
    api_arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=EVENTS_MAX))
    api_requests: int = 0
    api_statuses: Counter[int] = field(default_factory=Counter)
    token_outcomes: Counter[str] = field(default_factory=Counter)
    reuse_seen: int = 0

    def record_token_request(self, grant: str, outcome: str, reason: str, at: float) -> None:
        """Record a call of the token endpoint; see `TokenRequest`."""
        self.token_requests.append(TokenRequest(grant, outcome, reason, at))
        self.token_outcomes[outcome] += 1

    def record_api_request(self, at: float) -> None:
        """Record the arrival of an API call."""
        self.api_requests += 1
        self.api_arrivals.append(at)

    def reset(self) -> None:
        """Forget everything."""
        self.token_requests.clear()
        self.api_arrivals.clear()
        self.api_statuses.clear()
        self.token_outcomes.clear()
        self.api_requests = self.reuse_seen = 0

    def to_document(self) -> dict[str, Any]:
        """Return the counters and the most recent events in JSON types."""
        return {
            "apiRequests": self.api_requests,
            "apiStatuses": {str(status): count for status, count in sorted(self.api_statuses.items())},
            "lastApiArrivals": list(self.api_arrivals)[-_SHOWN:],
            "tokenOutcomes": dict(sorted(self.token_outcomes.items())),
            "lastTokenRequests": [vars(each) for each in list(self.token_requests)[-_SHOWN:]],
            "reuseSeen": self.reuse_seen,
        }
