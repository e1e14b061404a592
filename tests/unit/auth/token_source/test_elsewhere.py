"""A store that other machines use too: a lock that is free proves nothing about its last holder."""

from __future__ import annotations

import pytest

from cfproxy.auth.models import Token
from cfproxy.errors import StoreUnavailable, TokenEndpointUnavailable
from cfproxy.secret import Secret
from cfproxy.stores.memory import MemoryStore
from tests.support.fakes import World


@pytest.fixture
def world(world: World) -> World:
    """The usual world, but for where its store is."""
    world.store.shared = True
    return world


async def test_an_open_mark_is_left_alone_while_the_token_serves(world: World) -> None:
    """Whoever marked the refresh token may still have its answer: nobody else spends it before need."""
    await world.put(presented_at=world.clock.time())
    token_source = await world.token_source()
    await world.clock.advance(3599)
    assert (await token_source.get()).value == Secret("access-1")
    assert world.endpoint.calls == []
    await world.clock.advance(1)
    assert (await token_source.get()).value == Secret("access-2")
    assert world.endpoint.calls == ["refresh-1"]


async def test_who_stood_still_saves_its_token_in_time(world: World) -> None:
    """The new token of a machine that was stopped reaches the others, who spent nothing meanwhile."""
    login = await world.put(presented_at=world.clock.time())
    token_source = await world.token_source()
    await world.clock.advance(1800)
    token = Token(Secret("access-2"), world.clock.time(), 3600.0)
    await world.put(token=token, refresh_token=Secret("refresh-2"), serial=2, login_at=login.login_at)
    await world.clock.advance(2000)
    assert (await token_source.get()).value == Secret("access-2")
    assert world.endpoint.calls == []


async def test_a_lock_that_is_lost_before_sending_spends_nothing(world: World) -> None:
    """The refresh token stays unspent, the caller is told, and the mark is left to who has the lock now."""
    await world.put_expired()
    world.store.lease.lost = True
    token_source = await world.token_source()
    with pytest.raises(TokenEndpointUnavailable):
        await token_source.get()
    assert world.endpoint.calls == []
    assert (await world.stored()).presented_at is not None
    world.store.lease.lost = False
    await world.clock.advance(120)
    assert (await token_source.get()).value == Secret("access-2")


async def test_who_stood_still_before_sending_goes_on_with_the_refresh(world: World) -> None:
    """Nothing was presented under that mark, and its owner knows: no need to wait for the token's end."""
    await world.put()
    token_source = await world.token_source()
    world.store.lease.lost = True
    await world.clock.advance(3600 - 300)
    assert (await world.stored()).presented_at is not None
    assert world.endpoint.calls == []
    world.store.lease.lost = False
    await world.clock.advance(120)
    assert (await token_source.get()).value == Secret("access-2")
    assert world.endpoint.calls == ["refresh-1"]
    assert (await world.stored()).presented_at is None


async def test_who_stood_still_before_sending_leaves_the_refresh_of_another_alone(world: World) -> None:
    """Whoever took the refresh over in the meantime may have the new token in its hands."""
    await world.put()
    await world.token_source()
    world.store.lease.lost = True
    await world.clock.advance(3600 - 300)
    mark = await world.stored()
    await MemoryStore.save(world.store, mark.next())
    world.store.lease.lost = False
    await world.clock.advance(299)
    assert world.endpoint.calls == []
    await world.clock.advance(1)
    assert world.endpoint.calls == ["refresh-1"]


async def test_a_mark_that_cannot_be_saved_spends_nothing(world: World) -> None:
    """Even with no valid token left: what others can't see marked, they would spend as well."""
    await world.put_expired()
    world.store.save_fault = StoreUnavailable("the store is out of reach")
    token_source = await world.token_source()
    with pytest.raises(StoreUnavailable):
        await token_source.get()
    assert world.endpoint.calls == []
    world.store.mend()
    await world.clock.advance(120)
    assert (await token_source.get()).value == Secret("access-2")


async def test_a_mark_that_was_saved_too_thinly_does_not_hold_its_owner_up(world: World) -> None:
    """Too few replicas had it: nothing was presented under it, and its owner need not wait."""
    await world.put()
    token_source = await world.token_source()
    world.store.save_fault = StoreUnavailable("only 0 of 1 replicas have it")
    world.store.save_lands = True
    await world.clock.advance(3600 - 300)
    assert (await world.stored()).presented_at is not None
    assert world.endpoint.calls == []
    world.store.mend()
    await world.clock.advance(120)
    assert (await token_source.get()).value == Secret("access-2")
    assert world.endpoint.calls == ["refresh-1"]
    assert (await world.stored()).presented_at is None


# --- a server that took over without the last writes -----------------------------------------


async def test_a_store_that_went_back_gets_the_newer_token_again(world: World) -> None:
    """After a failover that lost writes, whoever has the newer token saves it; none is spent anew."""
    await world.put_expired()
    before = await world.stored()
    token_source = await world.token_source()
    await token_source.get()
    newer = await world.stored()
    await world.put_expired(serial=before.serial, login_at=before.login_at)
    await world.clock.advance(2)
    assert (await token_source.get()).value == Secret("access-2")
    await world.clock.advance(10)
    assert (await world.stored()).token == newer.token
    assert (await world.stored()).serial >= newer.serial
    assert world.endpoint.calls == ["refresh-1"]
    assert world.named("store.went_back")


async def test_of_many_replicas_one_brings_the_newer_token_back(world: World) -> None:
    """All notice, one saves, and nobody drops anything; then the next refresh goes on as ever."""
    await world.put_expired()
    before = await world.stored()
    brokers = [await world.token_source() for _ in range(3)]
    await brokers[0].get()
    await world.clock.advance(2)
    for token_source in brokers:
        await token_source.get()
    await world.clock.advance(2)
    await world.put_expired(serial=before.serial, login_at=before.login_at)
    await world.clock.advance(2)
    for token_source in brokers:
        assert (await token_source.get()).value == Secret("access-2")
    await world.clock.advance(3600)
    assert [(await token_source.get()).value for token_source in brokers] == [Secret("access-3")] * 3
    assert world.endpoint.calls == ["refresh-1", "refresh-2"]
    assert not world.named("token.unsaved_dropped")


# --- many replicas ----------------------------------------------------------------------------


async def test_replicas_do_not_all_refresh_in_the_same_instant(world: World) -> None:
    """Each takes its own part of the early time; the first refreshes, the rest hear of it and ask nothing."""
    await world.put()
    brokers = [await world.token_source(chance=number / 9) for number in range(10)]
    await world.clock.advance(3600 - 300)
    assert world.endpoint.calls == ["refresh-1"]
    assert world.store.locks == 1
    await world.clock.advance(299)
    assert [(await token_source.get()).value for token_source in brokers] == [Secret("access-2")] * 10
    await world.clock.advance(2)
    assert (len(world.endpoint.calls), world.store.locks) == (1, 1)


async def test_the_last_replica_still_refreshes_early(world: World) -> None:
    """Where all others are gone, half of the early time is left for tries."""
    await world.put()
    await world.token_source(chance=1.0)
    await world.clock.advance(3600 - 151)
    assert world.endpoint.calls == []
    await world.clock.advance(2)
    assert world.endpoint.calls == ["refresh-1"]
