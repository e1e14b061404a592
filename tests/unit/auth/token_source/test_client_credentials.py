"""Client credentials: no login, nothing to use up, and less need for the store."""

from __future__ import annotations

import asyncio

import pytest

from cfproxy.auth.models import Token
from cfproxy.errors import (
    Misconfigured,
    StoreUnavailable,
    StoreUnusable,
    TokenEndpointUnavailable,
)
from cfproxy.secret import Secret
from tests.support.fakes import CREDENTIALS_APP, World, at_once, down, open_world, refused

FULL = StoreUnavailable("the disk is full")


async def test_client_credentials_need_no_login(credentials_world: World) -> None:
    """The first token is requested at the start, without a login, and saved."""
    world = credentials_world
    token_source = await world.token_source()
    await world.clock.settle()
    assert world.endpoint.calls == [""]
    assert (await token_source.get()).value == Secret("access-2")
    stored = await world.stored()
    assert (stored.serial, stored.refresh_token, stored.scope) == (1, None, "cfgateway")


async def test_processes_share_the_token_of_client_credentials(credentials_world: World) -> None:
    """A process that starts later uses the stored token."""
    world = credentials_world
    await (await world.token_source()).get()
    assert (await (await world.token_source()).get()).value == Secret("access-2")
    assert world.endpoint.calls == [""]


async def test_client_credentials_replace_a_login_of_another_app(credentials_world: World) -> None:
    """Another app's token is never used: a token of our own replaces it, in the store too."""
    world = credentials_world
    await world.put(client_id="another")
    token_source = await world.token_source()
    assert (await token_source.get()).value == Secret("access-2")
    assert (await world.stored()).client_id == "app"


async def test_client_credentials_request_a_new_token_after_a_logout(credentials_world: World) -> None:
    """A deleted record is created again: there is no login that could be lost."""
    world = credentials_world
    token_source = await world.token_source()
    await token_source.get()
    await world.store.delete("default")
    await world.clock.advance(1)
    await token_source.check_store()
    await world.clock.settle()
    assert (await token_source.get()).value == Secret("access-3")


async def test_invalid_grant_for_client_credentials_is_a_configuration_error(
    credentials_world: World,
) -> None:
    """There is no login to renew, so the app's settings are wrong."""
    world = credentials_world
    world.endpoint.always = refused()
    token_source = await world.token_source()
    with pytest.raises(Misconfigured):
        await token_source.get()
    await world.clock.advance(30)
    assert 2 <= len(world.endpoint.calls) <= 6


async def test_client_credentials_clear_an_old_refusal(credentials_world: World) -> None:
    """A new token clears what an earlier login has left in the record."""
    world = credentials_world
    at = world.clock.time()
    await world.put_expired(refused_at=at, presented_at=at, answer_lost=True)
    await (await world.token_source()).get()
    stored = await world.stored()
    assert (stored.refused_at, stored.presented_at, stored.answer_lost) == (None, None, False)


async def test_flapping_store_does_not_shorten_the_backoff(credentials_world: World) -> None:
    """Before the first token, too, the endpoint is asked once per step, whatever the store does."""
    world = credentials_world
    world.endpoint.always = down(retry_after_s=200.0)
    token_source = await world.token_source()
    for second in range(60):
        await asyncio.gather(token_source.get(), return_exceptions=True)
        await world.put(client_id="another", serial=second)
        world.store.load_fault = StoreUnavailable("out of reach") if second % 2 else None
        await world.clock.advance(1)
    assert len(world.endpoint.calls) == 1


async def test_token_of_another_app_is_never_used(credentials_world: World) -> None:
    """While the endpoint is down, another app's valid token is still not used."""
    world = credentials_world
    await world.put(client_id="another", token=Token(Secret("foreign"), world.clock.time(), 3600.0))
    world.endpoint.always = down()
    token_source = await world.token_source()
    with pytest.raises(TokenEndpointUnavailable):
        await token_source.get()


async def test_client_credentials_work_if_a_foreign_record_cannot_be_replaced() -> None:
    """A token that can't replace another app's record is kept in memory, and requested once."""
    async with open_world(CREDENTIALS_APP) as world:
        await world.put(client_id="another")
        world.store.save_fault = FULL
        token_source = await world.token_source()
        await token_source.get()
        await world.clock.advance(60)
        assert (await token_source.get()).value == Secret("access-2")
        assert world.endpoint.calls == [""]
        assert token_source.state().unsaved
        world.endpoint.always = refused()
        world.store.mend()
        await world.clock.advance(6)
        assert (await world.stored()).client_id == "app"


async def test_client_credentials_work_without_the_store() -> None:
    """They use nothing up, so an unavailable store costs no request, not even at the start."""
    async with open_world(CREDENTIALS_APP) as world:
        world.store.break_down()
        token_source = await world.token_source()
        token = await token_source.get()
        assert (await token_source.replace(token, None)).value == Secret("access-3")
        await world.clock.advance(60)
        assert at_once(token_source.get()).value == Secret("access-3")
        assert world.endpoint.calls == ["", ""]
        state = token_source.state()
        assert (state.unsaved, state.ready) == (True, True)
        assert isinstance(state.store_error, StoreUnavailable)
        assert len(world.named("store.failed")) == 1
        world.store.mend()
        await world.clock.advance(6)
        assert (await world.stored()).token.value == Secret("access-3")
        assert token_source.state().store_error is None
        assert len(world.endpoint.calls) == 2


async def test_token_requested_without_the_lock_does_not_overwrite_the_store() -> None:
    """What others have saved meanwhile is unknown, and wins."""
    async with open_world(CREDENTIALS_APP) as world:
        await world.put(refresh_token=None)
        token_source = await world.token_source()
        world.store.lock_fault = StoreUnavailable("another process still refreshes")
        assert (await token_source.replace(await token_source.get(), None)).value == Secret("access-2")
        theirs = await world.put(
            refresh_token=None, serial=9, token=Token(Secret("access-of-theirs"), world.clock.time(), 3600.0)
        )
        world.store.mend()
        await world.clock.advance(6)
        assert await world.stored() == theirs
        assert at_once(token_source.get()).value == Secret("access-of-theirs")
        assert token_source.state().store_error is None


async def test_older_token_in_a_recovered_store_does_not_replace_a_valid_one() -> None:
    """The token in memory is used and saved."""
    async with open_world(CREDENTIALS_APP) as world:
        await world.put_expired(refresh_token=None, serial=7)
        world.store.break_down()
        token_source = await world.token_source()
        token = await token_source.get()
        world.endpoint.always = down()
        world.store.mend()
        await world.clock.advance(6)
        assert at_once(token_source.get()) == token
        stored = await world.stored()
        assert (stored.token, stored.serial) == (token, 8)


@pytest.mark.parametrize("fault", ["lock_fault", "load_fault"])
async def test_unusable_store_is_reported_and_the_token_served(fault: str) -> None:
    """A person has to correct the store, but the app needs nothing that is in it."""
    async with open_world(CREDENTIALS_APP) as world:
        error = StoreUnusable("the folder is open to other users")
        setattr(world.store, fault, error)
        token_source = await world.token_source()
        token = await token_source.get()
        state = token_source.state()
        assert (token.value, state.store_error, state.unsaved) == (Secret("access-2"), error, True)
        world.store.mend()
        await world.clock.advance(6)
        assert (await world.stored()).token == token
        assert at_once(token_source.get()) == token
        assert token_source.state().store_error is None
