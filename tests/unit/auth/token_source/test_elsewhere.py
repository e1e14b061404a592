"""A store that other machines use too, where a free lock proves nothing about its last holder."""

from __future__ import annotations

import pytest

from cfproxy.auth.models import Token
from cfproxy.errors import StoreUnavailable, TokenEndpointUnavailable
from cfproxy.secret import Secret
from cfproxy.stores.memory import MemoryStore
from tests.support.fakes import World


@pytest.fixture
def world(world: World) -> World:
    """The usual world, with a store that other machines use too."""
    world.store.shared = True
    return world


async def test_pending_refresh_of_another_machine_is_left_alone_while_the_token_is_valid(
    world: World,
) -> None:
    """The machine that sent the refresh token may have the answer: nobody sends it again before expiry."""
    await world.put(presented_at=world.clock.time())
    token_source = await world.token_source()
    await world.clock.advance(3599)
    assert (await token_source.get()).value == Secret("access-1")
    assert world.endpoint.calls == []
    await world.clock.advance(1)
    assert (await token_source.get()).value == Secret("access-2")
    assert world.endpoint.calls == ["refresh-1"]


async def test_suspended_machine_can_still_save_its_token(world: World) -> None:
    """The others take over the token that it saves later, and have not sent the refresh token meanwhile."""
    login = await world.put(presented_at=world.clock.time())
    token_source = await world.token_source()
    await world.clock.advance(1800)
    token = Token(Secret("access-2"), world.clock.time(), 3600.0)
    await world.put(token=token, refresh_token=Secret("refresh-2"), serial=2, login_at=login.login_at)
    await world.clock.advance(2000)
    assert (await token_source.get()).value == Secret("access-2")
    assert world.endpoint.calls == []


async def test_lock_lost_before_sending_sends_nothing(world: World) -> None:
    """The refresh token stays unused, the caller gets an error, and the mark stays for the new holder."""
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


async def test_suspended_machine_resumes_a_refresh_that_it_had_not_sent(world: World) -> None:
    """Its own mark does not make it wait for expiry, since it knows that nothing was sent."""
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


async def test_suspended_machine_leaves_a_refresh_by_another_machine_alone(world: World) -> None:
    """Another machine that has refreshed meanwhile may have the new token in memory."""
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


async def test_refresh_token_is_not_sent_without_a_saved_mark(world: World) -> None:
    """Even without a valid token: other machines would send the same refresh token."""
    await world.put_expired()
    world.store.save_fault = StoreUnavailable("the store is out of reach")
    token_source = await world.token_source()
    with pytest.raises(StoreUnavailable):
        await token_source.get()
    assert world.endpoint.calls == []
    world.store.mend()
    await world.clock.advance(120)
    assert (await token_source.get()).value == Secret("access-2")


async def test_mark_on_too_few_replicas_does_not_delay_its_owner(world: World) -> None:
    """Nothing was sent under such a mark, and its owner need not wait."""
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


# --- a server that lost writes -----------------------------------------------------------


async def test_store_that_lost_writes_gets_the_newer_token_again(world: World) -> None:
    """After a failover, whoever has the newer token saves it, and nothing is refreshed."""
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


async def test_one_of_many_replicas_restores_the_newer_token(world: World) -> None:
    """All notice, one saves, none drops its token, and the next refresh works as usual."""
    await world.put_expired()
    before = await world.stored()
    sources = [await world.token_source() for _ in range(3)]
    await sources[0].get()
    await world.clock.advance(2)
    for token_source in sources:
        await token_source.get()
    await world.clock.advance(2)
    await world.put_expired(serial=before.serial, login_at=before.login_at)
    await world.clock.advance(2)
    for token_source in sources:
        assert (await token_source.get()).value == Secret("access-2")
    await world.clock.advance(3600)
    assert [(await token_source.get()).value for token_source in sources] == [Secret("access-3")] * 3
    assert world.endpoint.calls == ["refresh-1", "refresh-2"]
    assert not world.named("token.unsaved_dropped")


# --- many replicas -----------------------------------------------------------------------


async def test_replicas_do_not_refresh_at_the_same_instant(world: World) -> None:
    """Each waits for its own part of the early time; the first refreshes, the others use its token."""
    await world.put()
    sources = [await world.token_source(chance=number / 9) for number in range(10)]
    await world.clock.advance(3600 - 300)
    assert world.endpoint.calls == ["refresh-1"]
    assert world.store.locks == 1
    await world.clock.advance(299)
    assert [(await token_source.get()).value for token_source in sources] == [Secret("access-2")] * 10
    await world.clock.advance(2)
    assert (len(world.endpoint.calls), world.store.locks) == (1, 1)


async def test_last_replica_still_refreshes_early(world: World) -> None:
    """Without other replicas, half of the early time is left for attempts."""
    await world.put()
    await world.token_source(chance=1.0)
    await world.clock.advance(3600 - 151)
    assert world.endpoint.calls == []
    await world.clock.advance(2)
    assert world.endpoint.calls == ["refresh-1"]
