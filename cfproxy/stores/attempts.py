"""Login attempts: which one may be taken, and their stored form.

Owns: the rules of single use and of expiry, as pure functions that every store shares.
Must not know: where attempts are kept, and how a store makes a claim exclusive.
Invariants: a used entry holds no verifier; `from_document(to_document(entry)) == entry`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from cfproxy.auth.interfaces import ATTEMPT_LIFETIME_S, Attempt, AttemptGone
from cfproxy.errors import StoreUnusable
from cfproxy.secret import Secret

ATTEMPT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """An attempt as a store keeps it; a used one stays as a marker until it expires."""

    attempt: Attempt
    used: bool = False

    def spent(self) -> Entry:
        """Return the marker that is left once the attempt was taken."""
        return Entry(replace(self.attempt, verifier=None), used=True)

    def expired(self, now: float) -> bool:
        """Tell whether its time is over at wall-clock `now`.

        One that lies as far in the future was written before the clock was set back: over, too,
        or it would stay for ever.
        """
        return abs(now - self.attempt.created_at) >= ATTEMPT_LIFETIME_S


def choose(entries: Iterable[Entry], state: str | None, now: float) -> Entry:
    """Return the entry to take: the one with `state`, or the newest with None.

    Raises:
        AttemptGone: the reason is the best that can be said of those that match.
    """
    wanted = None if state is None else Secret(state)
    matching = [entry for entry in entries if wanted is None or entry.attempt.state == wanted]
    alive = [entry for entry in matching if not entry.expired(now)]
    # A state that was seen both ways was used just now, between two looks at the store.
    if wanted is None or not any(entry.used for entry in alive):
        unused = [entry for entry in alive if not entry.used]
        if unused:
            return max(unused, key=lambda entry: entry.attempt.created_at)
    raise AttemptGone("used" if alive else "expired" if matching else "unknown")


def to_document(entry: Entry) -> dict[str, Any]:
    """Return the stored form: JSON types only, secrets in clear."""
    attempt = entry.attempt
    return {
        "version": ATTEMPT_VERSION,
        "account": attempt.account,
        "state": attempt.state.reveal(),
        "verifier": None if attempt.verifier is None else attempt.verifier.reveal(),
        "redirect_uri": attempt.redirect_uri,
        "client_id": attempt.client_id,
        "created_at": attempt.created_at,
        "used": entry.used,
    }


def from_document(document: object, where: str) -> Entry:
    """Read the stored form.

    Args:
        document: what `json.loads` gave.
        where: the document's place, for messages.

    Raises:
        StoreUnusable: another version, a missing field, a wrong type.
    """
    match document:
        case {
            "version": 1,
            "account": str(account),
            "state": str(state),
            "verifier": str() | None as verifier,
            "redirect_uri": str(redirect_uri),
            "client_id": str(client_id),
            "created_at": int() | float() as created_at,
            "used": bool(used),
        } if -1 < created_at < 1e12:  # what `Login` accepts as an instant; keeps nan and inf out
            attempt = Attempt(
                account=account,
                state=Secret(state),
                verifier=None if verifier is None else Secret(verifier),
                redirect_uri=redirect_uri,
                client_id=client_id,
                created_at=float(created_at),
            )
            return Entry(attempt, used)
    raise StoreUnusable(
        f"{where} is not a login attempt that this cfproxy can read; move it away and begin the login again"
    )
