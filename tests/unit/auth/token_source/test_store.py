"""Failures of the store: tokens are used from memory, nothing newer is overwritten, nothing is lost."""

from __future__ import annotations

import pytest

from cfproxy.auth.models import Token
from cfproxy.auth.token_source import TokenSource
from cfproxy.errors import CfproxyError, LoginRequired, StoreUnavailable, StoreUnusable
from cfproxy.secret import Secret
from tests.support.fakes import World, at_once, down

FULL = StoreUnavailable("the disk is full")


async def with_unsaved(world: World) -> TokenSource:
    """Return a token source that has refreshed and saved the mark, but could not save the token."""
    await world.put_expired()
    world.store.save_fault, world.store.good_saves = FULL, 1
    token_source = await world.token_source()
    assert (await token_source.get()).value == Secret("access-2")
    assert token_source.state().unsaved
    return token_source


# --- saving fails ------------------------------------------------------------------------


async def test_unsaved_token_is_used_from_memory_and_saved_later(world: World) -> None:
    """A full disk costs no request; the state shows the error until the token is saved."""
    token_source = await with_unsaved(world)
    assert token_source.state().store_error is FULL
    assert token_source.state().ready
    await world.clock.advance(60)
    assert len(world.named("store.failed")) == 1, "one failure is one line"
    assert world.endpoint.calls == ["refresh-1"]
    world.store.mend()
    await world.clock.advance(5)
    assert not token_source.state().unsaved
    assert token_source.state().store_error is None
    stored = await world.stored()
    assert (stored.token.value, stored.refresh_token) == (Secret("access-2"), Secret("refresh-2"))
    assert world.named("store.recovered")


async def test_unsaved_token_is_refreshed_from_memory(world: World) -> None:
    """While the disk stays full, refreshing goes on with the refresh token that only memory has."""
    token_source = await with_unsaved(world)
    await world.clock.advance(3 * 3600)
    assert (await token_source.get()).value != Secret("access-2")
    assert world.endpoint.answered == ["refresh-1", "refresh-2", "refresh-3", "refresh-4"]
    world.store.mend()
    await world.clock.advance(5)
    assert (await world.stored()).refresh_token == Secret(str(world.endpoint.live))


async def test_unsaved_token_does_not_overwrite_a_newer_login(world: World) -> None:
    """A login that was made meanwhile is kept."""
    token_source = await with_unsaved(world)
    await world.put(token=Token(Secret("new"), world.clock.time(), 3600.0), login_at=world.clock.time() + 1)
    world.store.mend()
    await world.clock.advance(6)
    assert (await world.stored()).token.value == Secret("new")
    assert (await token_source.get()).value == Secret("new")
    assert not token_source.state().unsaved


async def test_unsaved_token_does_not_undo_a_logout(world: World) -> None:
    """A login that was deleted meanwhile is not saved again."""
    token_source = await with_unsaved(world)
    await world.store.delete("default")
    world.store.mend()
    await world.clock.advance(6)
    assert await world.store.load("default") is None
    with pytest.raises(LoginRequired):
        await token_source.get()


async def test_mark_that_was_saved_although_saving_failed_is_recognised(world: World) -> None:
    """If a save succeeds but reports a failure, our own mark does not look like a newer login."""
    await world.put_expired()
    world.store.save_fault, world.store.save_lands = FULL, True
    token_source = await world.token_source()
    await token_source.get()
    world.store.mend()
    await world.put_expired(presented_at=world.clock.time(), serial=2)
    await world.clock.advance(6)
    stored = await world.stored()
    assert (stored.refresh_token, stored.presented_at) == (Secret("refresh-2"), None)
    assert (await token_source.get()).value == Secret("access-2")
    assert world.endpoint.calls == ["refresh-1"]


async def test_token_that_was_saved_although_saving_failed_is_no_conflict(world: World) -> None:
    """A save that succeeded but reported a failure is recognised as ours."""
    await world.put_expired()
    world.store.save_fault, world.store.save_lands, world.store.good_saves = FULL, True, 1
    token_source = await world.token_source()
    await token_source.get()
    world.store.mend()
    await world.clock.advance(6)
    assert (await token_source.get()).value == Secret("access-2")
    assert not token_source.state().unsaved
    assert not world.named("token.unsaved_dropped")


async def test_unsaved_token_outlives_a_refusal_of_another_process(world: World) -> None:
    """If another process sent the used refresh token, the successor in memory keeps the login alive."""
    token_source = await with_unsaved(world)
    await world.put_expired(serial=7, refused_at=world.clock.time(), answer_lost=True)
    world.store.mend()
    await world.clock.advance(6)
    stored = await world.stored()
    assert (stored.refresh_token, stored.refused_at, stored.answer_lost) == (Secret("refresh-2"), None, False)
    assert stored.serial > 7
    assert (await token_source.get()).value == Secret("access-2")


async def test_refusal_that_cannot_be_saved_is_saved_later(world: World) -> None:
    """The end of a login is remembered in memory, and saved when the store is back."""
    await world.put_expired()
    world.store.save_fault, world.store.good_saves = FULL, 1
    world.endpoint.live = None
    token_source = await world.token_source()
    with pytest.raises(LoginRequired):
        await token_source.get()
    world.store.mend()
    await world.clock.advance(6)
    assert (await world.stored()).refused_at is not None
    assert world.clock.sleeping == 0


async def test_late_save_does_not_shorten_the_backoff(world: World) -> None:
    """While a token waits to be saved, the endpoint is still asked once per step."""
    await with_unsaved(world)
    world.endpoint.always = down()
    await world.clock.advance(3600)
    world.endpoint.called_at.clear()
    await world.clock.advance(300)
    assert 10 <= len(world.endpoint.called_at) <= 11


async def test_unreachable_store_is_tried_every_five_seconds(world: World) -> None:
    """With an unsaved token and no store, saving is retried at its own pace, not in a loop."""
    token_source = await with_unsaved(world)
    world.store.break_down()
    locks = world.store.locks
    for _ in range(60):
        await world.clock.advance(1)
    assert 11 <= world.store.locks - locks <= 13
    assert at_once(token_source.get()).value == Secret("access-2")
    world.store.mend()
    await world.clock.advance(6)
    assert not token_source.state().unsaved
    assert world.endpoint.calls == ["refresh-1"]


async def test_bug_in_saving_does_not_lose_the_new_token(world: World) -> None:
    """Whatever saving raises, the new token is kept and saved later."""
    await world.put_expired()
    world.store.save_fault, world.store.good_saves = ValueError("a bug"), 1
    token_source = await world.token_source()
    assert (await token_source.get()).value == Secret("access-2")
    world.store.mend()
    await world.clock.advance(6)
    assert (await world.stored()).refresh_token == Secret("refresh-2")


# --- saving the mark fails ---------------------------------------------------------------


async def test_refresh_that_cannot_be_marked_waits_while_the_token_is_valid(world: World) -> None:
    """If the mark can't be saved, neither could the token: the refresh waits, until expiry at most."""
    await world.put()
    token_source = await world.token_source()
    world.store.save_fault = FULL
    await world.clock.advance(3599)
    assert world.endpoint.calls == []
    assert token_source.state().store_error is FULL
    await world.clock.advance(2)
    assert (await token_source.get()).value == Secret("access-2")
    assert world.endpoint.calls == ["refresh-1"]


async def test_rejected_token_is_replaced_even_without_a_saved_mark(world: World) -> None:
    """A full disk does not keep a token in use that the API rejects."""
    login = await world.put()
    world.store.save_fault = FULL
    token_source = await world.token_source()
    assert (await token_source.replace(login.token, None)).value == Secret("access-2")
    assert token_source.state().unsaved
    assert world.named("token.refresh_unmarked")


async def test_mark_that_could_not_be_saved_is_saved_later(world: World) -> None:
    """If an answer is lost while the disk is full, the record shows that once the disk has space."""
    await world.put_expired()
    world.store.save_fault = FULL
    world.endpoint.plan = [down()]
    world.endpoint.always = down(sent=False)
    await world.token_source()
    await world.clock.advance(6)
    world.store.mend()
    await world.clock.advance(6)
    assert (await world.stored()).presented_at is not None


# --- reading fails -----------------------------------------------------------------------


@pytest.mark.parametrize("fault", [StoreUnavailable("out of reach"), StoreUnusable("the record is damaged")])
async def test_token_is_used_until_expiry_while_the_store_cannot_be_read(
    world: World, fault: CfproxyError
) -> None:
    """An unreadable store stops refreshing, not serving, and recovery is automatic."""
    await world.put()
    token_source = await world.token_source()
    world.store.load_fault = fault
    await world.clock.advance(3599)
    assert at_once(token_source.get()).value == Secret("access-1")
    assert token_source.state().store_error is fault
    await world.clock.advance(1)
    with pytest.raises(type(fault)):
        await token_source.get()
    assert world.endpoint.calls == []
    world.store.mend()
    await world.clock.advance(30)
    assert (await token_source.get()).value == Secret("access-2")
    assert token_source.state().store_error is None


async def test_store_that_is_unreadable_at_the_start_is_no_logout(world: World) -> None:
    """Nobody is told to log in because the store can't be read."""
    await world.put()
    world.store.load_fault = StoreUnavailable("out of reach")
    token_source = await world.token_source()
    for _ in range(10):
        with pytest.raises(StoreUnavailable) as caught:
            await token_source.get()
        assert caught.value.retry_after_s <= 1
        await world.clock.advance(0.7)
    world.store.mend()
    await world.clock.advance(1)
    assert (await token_source.get()).value == Secret("access-1")
    assert token_source.state().error is None


async def test_store_that_comes_back_empty_requires_a_login(world: World) -> None:
    """Once the store can be read and holds nothing, callers are told to log in."""
    world.store.load_fault = StoreUnavailable("out of reach")
    token_source = await world.token_source()
    world.store.mend()
    await world.clock.advance(1)
    with pytest.raises(LoginRequired):
        await token_source.get()
    assert isinstance(token_source.state().error, LoginRequired)


async def test_bug_in_reading_counts_as_an_unavailable_store(world: World) -> None:
    """Whatever reading raises, callers get a known error, and recovery is automatic."""
    await world.put()
    world.store.load_fault = ValueError("a bug")
    token_source = await world.token_source()
    with pytest.raises(StoreUnavailable, match="internal error"):
        await token_source.get()
    assert world.named("store.read_crashed")
    world.store.mend()
    await world.clock.advance(1)
    assert (await token_source.get()).value == Secret("access-1")


async def test_refresh_token_is_not_sent_without_the_lock(world: World) -> None:
    """Another process may be sending it."""
    await world.put_expired()
    world.store.lock_fault = StoreUnavailable("another process still refreshes")
    token_source = await world.token_source()
    with pytest.raises(StoreUnavailable):
        await token_source.get()
    assert world.endpoint.calls == []
    world.store.mend()
    await world.clock.advance(1)
    assert (await token_source.get()).value == Secret("access-2")
