"""Login attempts: the stored form and the choice, as pure functions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.auth.models import ATTEMPT_LIFETIME_S, Attempt, AttemptGone
from cfproxy.errors import StoreUnusable
from cfproxy.secret import Secret
from cfproxy.stores.attempts import Entry, choose
from cfproxy.stores.documents import attempt_from_document, attempt_to_document
from tests.support.store_examples import NOW, build_attempt

texts = st.text(max_size=12)
secrets = texts.map(Secret)
# Close together, so that every case of expiry comes up.
instants = st.floats(min_value=0, max_value=3 * ATTEMPT_LIFETIME_S)
attempts = st.builds(
    Attempt,
    account=texts,
    state=secrets,
    verifier=st.none() | secrets,
    redirect_uri=texts,
    client_id=texts,
    created_at=instants,
)
entries = st.builds(Entry, attempts, st.booleans())


@given(entries)
def test_the_stored_form_holds_everything(entry: Entry) -> None:
    """Any attempt comes back from JSON as it was."""
    assert attempt_from_document(json.loads(json.dumps(attempt_to_document(entry))), "here") == entry


@given(entries)
def test_a_spent_attempt_holds_no_verifier(entry: Entry) -> None:
    """The marker of a used attempt has nothing left that could finish a login."""
    spent = entry.spent()
    assert spent.used
    assert spent.attempt.verifier is None
    assert spent.attempt.state == entry.attempt.state


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": None},
        {"account": 1},
        {"state": None},
        {"verifier": 7},
        {"created_at": "now"},
        {"created_at": float("nan")},
        {"created_at": float("inf")},
        {"used": None},
    ],
)
def test_a_damaged_attempt_is_refused_as_a_whole(change: dict[str, Any]) -> None:
    """One wrong field, or another version, and nothing of the document is believed; no secret is shown."""
    document = attempt_to_document(Entry(build_attempt(state="marker", verifier="marker"))) | change
    [field] = change
    message = (
        "here was written by a newer cfproxy" if change == {"version": 2} else f"here is damaged at '{field}'"
    )
    with pytest.raises(StoreUnusable, match=message) as caught:
        attempt_from_document(document, "here")
    assert "marker" not in str(caught.value)


@pytest.mark.parametrize("document", [None, [], "text", {}])
def test_what_is_no_attempt_at_all_is_refused(document: object) -> None:
    """Other JSON is not an attempt."""
    with pytest.raises(StoreUnusable):
        attempt_from_document(document, "here")


def test_a_clock_that_was_set_back_does_not_keep_an_attempt_for_ever() -> None:
    """An attempt from the far future is over; one from the near future is not."""
    assert Entry(build_attempt(created_at=NOW + ATTEMPT_LIFETIME_S)).expired(NOW)
    assert not Entry(build_attempt(created_at=NOW + 60)).expired(NOW)


def test_a_state_seen_both_ways_is_used() -> None:
    """An attempt that was taken between two looks at the store is not taken again."""
    entry = Entry(build_attempt())
    with pytest.raises(AttemptGone, match="used"):
        choose([entry, entry.spent()], "state-1", NOW)


@given(st.lists(entries, max_size=6), st.none() | st.sampled_from(["", "0"]), instants)
def test_only_an_open_attempt_is_ever_chosen(kept: list[Entry], state: str | None, now: float) -> None:
    """Whatever is kept, the chosen one is unused, in time, and the one asked for; else the reason fits."""
    matching = [entry for entry in kept if state is None or entry.attempt.state.reveal() == state]
    alive = [entry for entry in matching if not entry.expired(now)]
    unused = [entry for entry in alive if not entry.used]
    if unused and (state is None or unused == alive):
        assert choose(kept, state, now) in unused
    else:
        with pytest.raises(AttemptGone) as caught:
            choose(kept, state, now)
        assert caught.value.reason == ("used" if alive else "expired" if matching else "unknown")
