"""Which login attempt a claim gets: a pure function that all stores share."""

from __future__ import annotations

from collections.abc import Iterable

from cfproxy.auth.models import Attempt, AttemptGone
from cfproxy.secret import Secret


def choose(attempts: Iterable[Attempt], state: str | None, now: float) -> Attempt:
    """Return the attempt to claim: the one with `state`, or the newest unused one if that is None.

    Raises:
        AttemptGone: there is none; of several reasons the most informative one.
    """
    wanted = None if state is None else Secret(state)
    matching = [attempt for attempt in attempts if wanted is None or attempt.state == wanted]
    alive = [attempt for attempt in matching if not attempt.expired(now)]
    # A state that was read as both used and unused was claimed between the two reads.
    if wanted is None or not any(attempt.used for attempt in alive):
        unused = [attempt for attempt in alive if not attempt.used]
        if unused:
            return max(unused, key=lambda attempt: attempt.created_at)
    raise AttemptGone("used" if alive else "expired" if matching else "unknown")
