"""Cancelled callers and a stopping process lose no refresh."""

from __future__ import annotations

import asyncio

import pytest

from cfproxy.errors import CfproxyError, LoginRequired, StoreUnavailable
from cfproxy.secret import Secret
from tests.support.fakes import World, at_once, down

# More turns of the event loop than any call takes.
TURNS = 25


async def test_cancelled_callers_do_not_cancel_the_shared_refresh(world: World) -> None:
    """If 300 of a thousand callers hang up, one refresh is made and saved, and the others get its token."""
    await world.put_expired()
    token_source = await world.token_source()
    world.endpoint.gate.clear()
    callers = [asyncio.create_task(token_source.get()) for _ in range(1000)]
    await world.clock.settle()
    for caller in callers[:300]:
        caller.cancel()
    await world.clock.settle()
    world.endpoint.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results[:300])
    assert {getattr(result, "value", None) for result in results[300:]} == {Secret("access-2")}
    assert world.endpoint.calls == ["refresh-1"]
    assert (await world.stored()).token.value == Secret("access-2")


async def test_refresh_without_callers_is_completed_and_saved(world: World) -> None:
    """If the only caller hangs up, the rotated refresh token still reaches the store."""
    await world.put_expired()
    token_source = await world.token_source()
    world.endpoint.gate.clear()
    caller = asyncio.create_task(token_source.get())
    await world.clock.settle()
    caller.cancel()
    await asyncio.wait({caller})
    world.endpoint.gate.set()
    await world.clock.settle()
    assert (await world.stored()).refresh_token == Secret("refresh-2")


@pytest.mark.parametrize("call", ["get", "replace"])
@pytest.mark.parametrize("outcome", ["answers", "fails", "refuses"])
@pytest.mark.parametrize("after_turns", range(TURNS))
async def test_call_may_be_cancelled_at_every_await(
    world: World, call: str, outcome: str, after_turns: int
) -> None:
    """Wherever a caller is cancelled, the next call works, and no refresh token is sent twice."""
    login = await (world.put_expired() if call == "get" else world.put())
    world.endpoint.plan = [down(sent=False)] if outcome == "fails" else []
    world.endpoint.live = None if outcome == "refuses" else "refresh-1"
    token_source = await world.token_source()
    caller = asyncio.create_task(
        token_source.get() if call == "get" else token_source.replace(login.token, None)
    )
    for _ in range(after_turns):
        await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait({caller})
    await world.clock.settle()

    world.endpoint.plan = []
    await world.clock.advance(2)
    if outcome == "refuses":
        with pytest.raises(LoginRequired):
            await (token_source.get() if call == "get" else token_source.replace(login.token, None))
    else:
        token = await (token_source.get() if call == "get" else token_source.replace(login.token, None))
        assert token.value == Secret("access-2")
    assert len(world.endpoint.calls) <= (2 if outcome == "fails" else 1)
    assert token_source.state().login == await world.stored()


async def test_cancellation_matrix_covers_a_whole_call(world: World) -> None:
    """An undisturbed call takes fewer turns than the matrix above has."""
    await world.put_expired()
    caller = asyncio.create_task((await world.token_source()).get())
    for _ in range(TURNS - 1):
        await asyncio.sleep(0)
    assert caller.done()
    assert world.endpoint.calls == ["refresh-1"]


# --- closing -----------------------------------------------------------------------------


async def test_close_waits_for_a_running_refresh_and_saves_it(world: World) -> None:
    """Stopping in the middle of a refresh does not lose the login."""
    await world.put_expired()
    token_source = await world.token_source()
    world.endpoint.gate.clear()
    await world.clock.settle()
    closing = asyncio.create_task(token_source.aclose())
    await world.clock.settle()
    assert world.endpoint.in_flight == 1
    assert not closing.done()
    world.endpoint.gate.set()
    await closing
    assert (await world.stored()).refresh_token == Secret("refresh-2")
    assert world.clock.sleeping == 0


async def test_close_saves_an_unsaved_token(world: World) -> None:
    """A token that is only in memory gets one last chance."""
    await world.put_expired()
    world.store.save_fault, world.store.good_saves = StoreUnavailable("the disk is full"), 1
    token_source = await world.token_source()
    await token_source.get()
    world.store.mend()
    await token_source.aclose()
    assert (await world.stored()).refresh_token == Secret("refresh-2")


async def test_close_returns_even_without_the_store(world: World) -> None:
    """A store that can't be reached does not keep the process from stopping."""
    await world.put_expired()
    world.store.save_fault = StoreUnavailable("the disk is full")
    token_source = await world.token_source()
    await token_source.get()
    world.store.break_down()
    await token_source.aclose()
    assert token_source.state().unsaved


async def test_nothing_is_started_after_close(world: World) -> None:
    """Late requests are served from memory or refused; they start no refresh and no read."""
    login = await world.put()
    token_source = await world.token_source()
    await token_source.aclose()
    await world.put(serial=2)
    await world.clock.advance(3400)
    loads = world.store.loads
    assert at_once(token_source.get()).value == Secret("access-1")
    with pytest.raises(CfproxyError, match="shutting down"):
        await token_source.replace(login.token, None)
    await world.clock.advance(300)
    with pytest.raises(CfproxyError, match="shutting down"):
        await token_source.get()
    assert (world.endpoint.calls, world.store.loads) == ([], loads)
