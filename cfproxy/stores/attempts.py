"""Login attempts, for all stores: which of them a claim gets, which are dropped, which can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from cfproxy.auth.models import Attempt, AttemptGone
from cfproxy.errors import CfproxyError, StoreUnavailable, StoreUnusable
from cfproxy.secret import Secret

# Of an account. People start one or two; whoever may start any must not be able to fill the store.
ATTEMPTS_MAX = 50

Name = TypeVar("Name")


def choose(attempts: Iterable[Attempt], state: str | None, now: float) -> Attempt:
    """Return the attempt to claim: the one with `state`, or the newest unused one if that is None.

    Raises:
        AttemptGone: there is none, with the most informative reason.
    """
    claimed_state = None if state is None else Secret(state)
    matching = [attempt for attempt in attempts if claimed_state is None or attempt.state == claimed_state]
    alive = [attempt for attempt in matching if not attempt.expired(now)]
    # A state that was read as both used and unused was claimed between the two reads.
    if claimed_state is None or not any(attempt.used for attempt in alive):
        unused = [attempt for attempt in alive if not attempt.used]
        if unused:
            return max(unused, key=lambda attempt: attempt.created_at)
    raise AttemptGone("used" if alive else "expired" if matching else "unknown")


def choose_stale(attempts: Mapping[Name, Attempt], now: float, keep: int = ATTEMPTS_MAX) -> list[Name]:
    """Return the names of the attempts to drop: the expired ones, and the oldest beyond `keep`."""
    alive = [name for name, attempt in attempts.items() if not attempt.expired(now)]
    oldest = sorted(alive, key=lambda name: attempts[name].created_at)[: max(0, len(alive) - keep)]
    return [name for name in attempts if name in oldest or attempts[name].expired(now)]


def read_all(
    names: Iterable[Name], read: Callable[[Name], Attempt | None]
) -> tuple[dict[Name, Attempt], CfproxyError | None]:
    """Return the attempts that can be read, and why another one can't.

    What is damaged, planted or of another key must not stop the others.

    Args:
        names: of the attempts.
        read: returns one of them; None if it is gone, or of another app.
    """
    found: dict[Name, Attempt] = {}
    failure: CfproxyError | None = None
    for name in names:
        try:
            attempt = read(name)
        except (StoreUnavailable, StoreUnusable) as error:
            failure = error
        else:
            found |= {} if attempt is None else {name: attempt}
    return found, failure
