"""Several processes with one store: they share refreshes, logins and logouts."""

from __future__ import annotations

import asyncio

import pytest

from cfproxy.auth.models import Token
from cfproxy.errors import LoginRequired, StoreUnavailable
from cfproxy.secret import Secret
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
    await one.replace(login.token)
    assert access(await other.replace(login.token)) == "access-2"
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
    assert access(at_once(token_source.get())) == "access-1"
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
        fresh = await token_source.replace(await token_source.get())
        token_source.distrust(fresh)
        await world.clock.advance(1)
    new = Token(Secret("new"), world.clock.time(), 3600.0)
    world.endpoint.live = "refresh-1"
    await world.put(token=new, login_at=login.login_at + 12)
    await token_source.check_store()
    await world.clock.settle()
    assert (await token_source.replace(new)).value != new.value


@pytest.mark.parametrize("how", ["logout", "another app"])
async def test_running_proxy_notices_a_logout(world: World, how: str) -> None:
    """A logout, or a login as another app, ends the use of a valid token within a second."""
    await world.put()
    token_source = await world.token_source()
    assert access(at_once(token_source.get())) == "access-1"
    if how == "logout":
        await world.store.delete("default")
    else:
        await world.put(client_id="another")
    await world.clock.advance(1)
    at_once(token_source.get())  # starts a check of the store
    await world.clock.settle()
    with pytest.raises(LoginRequired):
        await token_source.get()
    assert world.clock.sleeping == 0
    assert world.endpoint.calls == []


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
