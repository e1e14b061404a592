"""Several processes with one store: they share refreshes, logins and logouts."""

from __future__ import annotations

import asyncio

import pytest

from cfproxy.auth.login_watch import AGAIN_S, LOOK_EVERY_S, LOOK_WAIT_S
from cfproxy.auth.models import Token
from cfproxy.errors import LoginRequired, StoreUnavailable
from cfproxy.secret import Secret
from cfproxy.stores.memory import MemoryStore
from tests.support.fakes import World, access, at_once, down

# --- refreshing together -----------------------------------------------------------------


async def test_processes_with_one_store_share_each_refresh(world: World) -> None:
    """Of several processes with an expired login, one refreshes and the others use its token."""
    await world.put_expired()
    sources = [await world.token_source() for _ in range(5)]
    tokens = await asyncio.gather(*(token_source.get() for token_source in sources))
    assert {access(token) for token in tokens} == {"access-2"}
    assert world.endpoint.calls == ["refresh-1"]


async def test_rejected_token_that_another_process_replaced_needs_no_refresh(world: World) -> None:
    """A forced refresh reads the store first, and does not repeat what another process has done."""
    login = await world.put()
    one, other = await world.token_source(), await world.token_source()
    await one.replace(login.token, None)
    assert access(await other.replace(login.token, None)) == "access-2"
    assert len(world.endpoint.calls) == 1


async def test_attempts_of_another_process_do_not_end_the_backoff(world: World) -> None:
    """A mark by another process is no new login: during an outage each process keeps its own pace."""
    await world.put_expired()
    world.endpoint.always = down()
    one, other = await world.token_source(), await world.token_source()
    for _ in range(120):
        await asyncio.gather(one.get(), other.get(), return_exceptions=True)
        await world.clock.advance(1)
    assert len(world.endpoint.calls) <= 2 * 8


async def test_store_is_not_read_beside_a_running_refresh(world: World) -> None:
    """While a refresh holds the lock, nothing else in this process reads the store."""
    await world.put(presented_at=world.clock.time())
    token_source = await world.token_source()
    world.endpoint.gate.clear()
    await world.clock.settle()
    loads = world.store.loads
    await world.put_expired(serial=2)
    for _ in range(5):
        await world.clock.advance(1)
        assert access(at_once(token_source.get())) == "access-1"
    assert world.store.loads == loads


async def test_refresh_waits_for_a_running_read(world: World) -> None:
    """A slow read never replaces a token that was refreshed meanwhile with an old record."""
    await world.put()
    token_source = await world.token_source()
    world.clock.jump_wall(3400)
    await world.put(serial=2, token=Token(Secret("access-1"), world.clock.time() - 3400, 3600.0))
    read = world.store.slow_read = asyncio.Event()
    await world.clock.advance(1)
    caller = asyncio.create_task(token_source.get())
    await world.clock.advance(LOOK_WAIT_S)
    assert access(await caller) == "access-1"
    await world.clock.settle()
    assert world.endpoint.calls == []
    read.set()
    await world.clock.settle()
    assert world.endpoint.calls == ["refresh-1"]
    assert token_source.state().login == await world.stored()


# --- checking the store ------------------------------------------------------------------


async def test_running_proxy_uses_a_login_within_a_second(world: World) -> None:
    """Without a login the store is checked once a second at most, and a login is used at once."""
    token_source = await world.token_source()
    loads = world.store.loads
    for _ in range(1000):
        with pytest.raises(LoginRequired, match="run: cfproxy login"):
            await token_source.get()
    assert world.store.loads == loads
    assert world.clock.sleeping == 0
    assert isinstance(token_source.state().error, LoginRequired)
    assert not token_source.state().ready
    await world.put()
    await world.clock.advance(1)
    assert access(await token_source.get()) == "access-1"
    assert world.store.loads == loads + 1
    assert world.clock.sleeping == 1


async def test_new_login_replaces_a_refused_one(world: World) -> None:
    """A running proxy uses the new login without a restart."""
    await world.put_expired()
    world.endpoint.live = None
    token_source = await world.token_source()
    with pytest.raises(LoginRequired):
        await token_source.get()
    await world.put(token=Token(Secret("new"), world.clock.time(), 3600.0), serial=1)
    await world.clock.advance(1)
    assert access(await token_source.get()) == "new"
    assert token_source.state().error is None


@pytest.mark.parametrize(
    "change",
    [
        {"client_id": "another"},
        {"token_url": "https://other.example/token"},
        {"upstream": "https://other.example:443"},
    ],
)
async def test_login_of_another_app_is_never_used(world: World, change: dict[str, str]) -> None:
    """A record of another app or endpoint is neither sent to the API nor to the token endpoint."""
    await world.put(**change)
    token_source = await world.token_source()
    for _ in range(3):
        with pytest.raises(LoginRequired, match="another app"):
            await token_source.get()
        await world.clock.advance(3000)
    assert world.endpoint.calls == []


async def test_login_of_another_app_is_not_used_between_two_checks(world: World) -> None:
    """What is read under the lock counts: another app's refresh token is not sent."""
    await world.put_expired()
    token_source = await world.token_source()
    await world.put_expired(client_id="another")
    with pytest.raises(LoginRequired, match="another app"):
        await token_source.get()
    assert world.endpoint.calls == []


async def test_new_login_ends_the_hold_on_refreshes(world: World) -> None:
    """Refreshes that did not help say nothing about another login."""
    login = await world.put()
    token_source = await world.token_source()
    for _ in range(12):
        fresh = await token_source.replace(await token_source.get(), None)
        token_source.distrust(fresh, None)
        await world.clock.advance(1)
    new = Token(Secret("new"), world.clock.time(), 3600.0)
    world.endpoint.live = "refresh-1"
    await world.put(token=new, login_at=login.login_at + 12)
    await token_source.check_store()
    await world.clock.settle()
    assert (await token_source.replace(new, None)).value != new.value


@pytest.mark.parametrize("how", ["logout", "another app", "another person"])
async def test_first_request_after_a_change_carries_no_former_token(any_world: World, how: str) -> None:
    """The store is looked at before a token is used, and a change is read before anything is sent."""
    world = any_world
    await world.put()
    token_source = await world.token_source()
    assert access(at_once(token_source.get())) == "access-1"
    if how == "logout":
        await world.store.delete("default")
    elif how == "another app":
        await world.put(client_id="another")
    else:
        token = Token(Secret("access-of-theirs"), world.clock.time(), 3600.0)
        await world.put(token=token, login_at=world.clock.time() + 1, serial=2)
    await world.clock.advance(LOOK_EVERY_S)
    if how == "another person":
        assert access(await token_source.get()) == "access-of-theirs"
    elif world.app.grant == "client_credentials":
        assert access(await token_source.get()) == "access-2"
    else:
        with pytest.raises(LoginRequired):
            await token_source.get()
        assert world.clock.sleeping == 0
        assert world.endpoint.calls == []


async def test_requests_that_arrive_during_the_read_wait_for_it_too(world: World) -> None:
    """Whoever is second must not overtake the look of the first."""
    await world.put()
    token_source = await world.token_source()
    read = world.store.slow_read = asyncio.Event()
    await world.store.delete("default")
    await world.clock.advance(LOOK_EVERY_S)
    callers = [asyncio.create_task(token_source.get()) for _ in range(3)]
    await world.clock.settle()
    assert token_source.current() is None
    assert not any(caller.done() for caller in callers)
    read.set()
    for caller in callers:
        with pytest.raises(LoginRequired):
            await caller


async def test_change_that_cannot_be_read_delays_valid_tokens_once_and_for_a_bounded_time(
    world: World,
) -> None:
    """A store that hangs says nothing about the login, so the token in hand serves until its expiry."""
    await world.put()
    token_source = await world.token_source()
    read = world.store.slow_read = asyncio.Event()
    await world.put(serial=2)
    await world.clock.advance(LOOK_EVERY_S)
    caller = asyncio.create_task(token_source.get())
    await world.clock.advance(LOOK_WAIT_S - 0.1)
    assert not caller.done()
    await world.clock.advance(0.1)
    assert access(await caller) == "access-1"
    assert access(at_once(token_source.get())) == "access-1"
    read.set()


async def test_each_request_without_a_login_looks(world: World) -> None:
    """`cfproxy login && curl` works however soon after another request the login ends."""
    token_source = await world.token_source()
    for _ in range(3):
        with pytest.raises(LoginRequired):
            await token_source.get()
        await world.put()
        assert access(await token_source.get()) == "access-1"
        await world.store.delete("default")
        await world.clock.advance(LOOK_EVERY_S)


async def test_change_while_a_refresh_waits_for_the_lock_is_noticed(world: World) -> None:
    """A logout by the lock's holder counts before the refresh has got the lock."""
    await world.put(presented_at=world.clock.time())
    async with MemoryStore.lock(world.store, "default", 1):
        token_source = await world.token_source()
        await world.clock.settle()
        assert world.store.locks == 1
        await world.store.delete("default")
        await world.clock.advance(LOOK_EVERY_S)
        with pytest.raises(LoginRequired):
            await token_source.get()


async def test_store_of_other_machines_is_asked_as_well(world: World) -> None:
    """News can get lost: a shared store is asked before a token is used, within a bounded time."""
    world.store.shared = True
    await world.put()
    token_source = await world.token_source()
    await world.store.delete("default")
    world.store.unheard = True
    await world.clock.advance(AGAIN_S)
    with pytest.raises(LoginRequired):
        await token_source.get()


async def test_shared_store_that_does_not_answer_is_waited_for_once(world: World) -> None:
    """After that, looks run beside the requests until one succeeds."""
    world.store.shared = True
    await world.put()
    token_source = await world.token_source()
    world.store.confirm_fault = StoreUnavailable("the store is out of reach")
    await world.clock.advance(AGAIN_S)
    assert access(await token_source.get()) == "access-1"
    for _ in range(3):
        await world.clock.advance(AGAIN_S)
        assert access(at_once(token_source.get())) == "access-1"


async def test_shared_store_that_answers_again_is_used_at_once(world: World) -> None:
    """While it does not, asking it does not shorten the backoff; once it does, nobody waits for that."""
    world.store.shared = True
    await world.put_expired()
    token_source = await world.token_source()
    world.store.lock_fault = world.store.confirm_fault = StoreUnavailable("the store is out of reach")
    for _ in range(100):
        await asyncio.gather(token_source.get(), return_exceptions=True)
        await world.clock.advance(0.1)
    assert world.store.locks <= 5
    world.store.lock_fault = world.store.confirm_fault = None
    for _ in range(11):
        token = (await asyncio.gather(token_source.get(), return_exceptions=True))[0]
        await world.clock.advance(0.1)
    assert isinstance(token, Token)


async def test_unchanged_store_is_not_read(world: World) -> None:
    """A check of an unchanged record costs a stamp and no read."""
    await world.put()
    token_source = await world.token_source()
    for _ in range(100):
        await token_source.get()
        await world.clock.advance(1)
    assert world.store.loads == 1


async def test_cancelled_caller_does_not_cancel_a_read(world: World) -> None:
    """Of two callers that wait for the store, one hangs up: the other gets its token."""
    token_source = await world.token_source()
    await world.put()
    await world.clock.advance(1)
    read = world.store.slow_read = asyncio.Event()
    leaving, staying = asyncio.create_task(token_source.get()), asyncio.create_task(token_source.get())
    await world.clock.settle()
    leaving.cancel()
    await asyncio.wait({leaving})
    read.set()
    assert access(await staying) == "access-1"


async def test_state_shows_within_a_second_that_the_store_works_again(world: World) -> None:
    """The state recovers with the store, even if no refresh is due yet."""
    await world.put()
    token_source = await world.token_source()
    world.store.load_fault = StoreUnavailable("out of reach")
    await world.clock.advance(3420)
    world.store.mend()
    assert token_source.state().store_error is not None
    await token_source.check_store()
    await world.clock.settle()
    assert token_source.state().store_error is None
    assert token_source.state().error is None
