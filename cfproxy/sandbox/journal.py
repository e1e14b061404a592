"""What happened in the sandbox, for tests and for people who look at `/_sandbox/state`.

Owns: counters and the most recent events.
Must not know: HTTP, settings.
Invariant: memory stays bounded: of events the last `KEPT` are kept, counters count all.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

KEPT = 100_000
_SHOWN = 100


@dataclass(frozen=True)
class TokenRequest:
    """One call of the token endpoint.

    Args:
        grant: `grant_type` as it was sent, empty when it was not.
        outcome: `issued`, the error code of the answer, or `fault:<kind>` when a fault answered.
        reason: what was wrong, in words that the client does not get to see.
        at: the instant at which it came, in seconds of the sandbox's clock.
    """

    grant: str
    outcome: str
    reason: str
    at: float


@dataclass
class Journal:
    """Counters and recent events."""

    token_requests: deque[TokenRequest] = field(default_factory=lambda: deque(maxlen=KEPT))
    api_arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    api_requests: int = 0
    api_statuses: Counter[int] = field(default_factory=Counter)
    token_outcomes: Counter[str] = field(default_factory=Counter)
    reuse_seen: int = 0

    def note_token_request(self, request: TokenRequest) -> None:
        """Keep a call of the token endpoint."""
        self.token_requests.append(request)
        self.token_outcomes[request.outcome] += 1

    def note_arrival(self, at: float) -> None:
        """Keep the instant at which an API call came."""
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
        """Return the counters and the last events in JSON types."""
        return {
            "apiRequests": self.api_requests,
            "apiStatuses": {str(status): count for status, count in sorted(self.api_statuses.items())},
            "lastApiArrivals": list(self.api_arrivals)[-_SHOWN:],
            "tokenOutcomes": dict(sorted(self.token_outcomes.items())),
            "lastTokenRequests": [vars(each) for each in list(self.token_requests)[-_SHOWN:]],
            "reuseSeen": self.reuse_seen,
        }
