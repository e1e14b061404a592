"""Rules for login attempts: each is used once, and expires.

Pure functions that all stores share; how a claim is made exclusive is the store's matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from cfproxy.auth.models import ATTEMPT_LIFETIME_S, Attempt, AttemptGone
from cfproxy.secret import Secret


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored attempt; a used one stays as a marker until it expires."""

    attempt: Attempt
    used: bool = False

    def spent(self) -> Entry:
        """Return the marker that is left once the attempt was claimed; it holds no verifier."""
        return Entry(replace(self.attempt, verifier=None), used=True)

    def expired(self, now: float) -> bool:
        """Return whether it has expired at wall-clock `now`.

        One from as far in the future was written before the clock was set back. It has expired too, or it
        would stay forever.
        """
        return abs(now - self.attempt.created_at) >= ATTEMPT_LIFETIME_S


def choose(entries: Iterable[Entry], state: str | None, now: float) -> Entry:
    """Return the entry to claim: the one with `state`, or the newest unused one if that is None.

    Raises:
        AttemptGone: there is none; of several reasons the most informative one.
    """
    wanted = None if state is None else Secret(state)
    matching = [entry for entry in entries if wanted is None or entry.attempt.state == wanted]
    alive = [entry for entry in matching if not entry.expired(now)]
    # A state that was read as both used and unused was claimed between the two reads.
    if wanted is None or not any(entry.used for entry in alive):
        unused = [entry for entry in alive if not entry.used]
        if unused:
            return max(unused, key=lambda entry: entry.attempt.created_at)
    raise AttemptGone("used" if alive else "expired" if matching else "unknown")
