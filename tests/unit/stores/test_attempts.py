"""Login attempts: their stored form, and which one a claim gets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.auth.models import ATTEMPT_LIFETIME_S, Attempt, AttemptGone
from cfproxy.errors import StoreUnusable
from cfproxy.secret import Secret
from cfproxy.stores.attempts import choose
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
    used=st.booleans(),
)


@given(attempts)
def test_stored_form_holds_all_fields(attempt: Attempt) -> None:
    """An attempt survives the round trip through JSON."""
    assert attempt_from_document(json.loads(json.dumps(attempt_to_document(attempt))), "here") == attempt


@given(attempts)
def test_spent_attempt_holds_no_verifier(attempt: Attempt) -> None:
    """The marker of a used attempt holds nothing that could finish a login."""
    spent = attempt.as_used()
    assert spent.used
    assert spent.verifier is None
    assert spent.state == attempt.state


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
def test_damaged_attempt_is_refused(change: dict[str, Any]) -> None:
    """One wrong field, or another version, makes the document unusable; the message holds no secret."""
    document = attempt_to_document(build_attempt(state="marker", verifier="marker")) | change
    [field] = change
    message = (
        "here was written by a newer cfproxy" if change == {"version": 2} else f"here is damaged at '{field}'"
    )
    with pytest.raises(StoreUnusable, match=message) as caught:
        attempt_from_document(document, "here")
    assert "marker" not in str(caught.value)


@pytest.mark.parametrize("document", [None, [], "text", {}])
def test_other_json_is_refused(document: object) -> None:
    """JSON of any other shape is not an attempt."""
    with pytest.raises(StoreUnusable):
        attempt_from_document(document, "here")


def test_attempt_from_the_far_future_has_expired() -> None:
    """If the clock was set back, no attempt stays forever; one from the near future is fine."""
    assert build_attempt(created_at=NOW + ATTEMPT_LIFETIME_S).expired(NOW)
    assert not build_attempt(created_at=NOW + 60).expired(NOW)


def test_attempt_that_was_read_as_unused_and_used_is_used() -> None:
    """An attempt that was claimed between two reads of the store can't be claimed again."""
    attempt = build_attempt()
    with pytest.raises(AttemptGone, match="used"):
        choose([attempt, attempt.as_used()], "state-1", NOW)


@given(st.lists(attempts, max_size=6), st.none() | st.sampled_from(["", "0"]), instants)
def test_only_an_unused_attempt_is_chosen(stored: list[Attempt], state: str | None, now: float) -> None:
    """The chosen attempt is unused, not expired, and has the state; otherwise the reason fits."""
    matching = [attempt for attempt in stored if state is None or attempt.state.reveal() == state]
    alive = [attempt for attempt in matching if not attempt.expired(now)]
    unused = [attempt for attempt in alive if not attempt.used]
    if unused and (state is None or unused == alive):
        assert choose(stored, state, now) in unused
    else:
        with pytest.raises(AttemptGone) as caught:
            choose(stored, state, now)
        assert caught.value.reason == ("used" if alive else "expired" if matching else "unknown")
