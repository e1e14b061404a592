"""Failures of the token endpoint: the old token is used until it expires, attempts are few."""

from __future__ import annotations

import asyncio
import traceback

import pytest

from cfproxy.errors import (
    CfproxyError,
    LoginRequired,
    Misconfigured,
    StoreUnavailable,
    TokenEndpointUnavailable,
)
from cfproxy.secret import Secret
from tests.support.fakes import World, down

# Each kind of failure, and the error that callers get once no valid token is left.
FAILURES = [
    pytest.param(down(), TokenEndpointUnavailable, id="no answer"),
    pytest.param(down(sent=False), TokenEndpointUnavailable, id="not sent"),
    pytest.param(
        TokenEndpointUnavailable("the answer is no JSON object"), TokenEndpointUnavailable, id="malformed"
    ),
    pytest.param(Misconfigured("the app is refused"), Misconfigured, id="invalid_client"),
    pytest.param(ValueError("a bug"), TokenEndpointUnavailable, id="a bug of ours"),
]


@pytest.mark.parametrize(("failure", "expected"), FAILURES)
async def test_valid_token_is_used_until_expiry_and_recovery_needs_no_restart(
    any_world: World, failure: Exception, expected: type[CfproxyError]
) -> None:
    """Whatever the token endpoint does, a valid token is used, an expired one never, and it recovers."""
    world = any_world
    await world.put()
    token_source = await world.token_source()
    world.endpoint.always = failure
    await world.clock.advance(3599)
    assert (await token_source.get()).value == Secret("access-1")
    assert world.endpoint.calls, "a refresh was tried early"
    await world.clock.advance(1)
    with pytest.raises(expected):
        await token_source.get()
    assert not token_source.state().ready
    assert world.clock.sleeping == 1

    world.endpoint.always = None
    await world.clock.advance(36)
    assert (await token_source.get()).value != Secret("access-1")
    assert token_source.state().error is None
    assert token_source.state().ready


async def test_outage_causes_one_attempt_per_backoff_step(any_world: World) -> None:
    """Attempts come after 1, 2, 4, … 30 s, however many requests wait."""
    world = any_world
    await world.put_expired()
    token_source = await world.token_source()
    world.endpoint.always = down()
    for _ in range(480):
        for failed in await asyncio.gather(*(token_source.get() for _ in range(3)), return_exceptions=True):
            assert isinstance(failed, TokenEndpointUnavailable)
        await world.clock.advance(0.25)
    asked = [at - world.endpoint.called_at[0] for at in world.endpoint.called_at]
    assert asked == [0, 1, 3, 7, 15, 31, 61, 91]


async def test_every_caller_gets_the_remaining_backoff(world: World) -> None:
    """Retry-After is the time to the next attempt, for callers that saw the failure and for later ones."""
    await world.put_expired()
    world.endpoint.always = down()
    token_source = await world.token_source()
    for step_s in (1, 2, 4, 8, 16, 30):
        world.endpoint.gate.clear()
        await world.clock.settle()
        waiting = asyncio.create_task(token_source.get())
        await world.clock.settle()
        world.endpoint.gate.set()
        with pytest.raises(TokenEndpointUnavailable) as seen:
            await waiting
        await world.clock.advance(step_s / 4)
        with pytest.raises(TokenEndpointUnavailable) as later:
            await token_source.get()
        assert seen.value.retry_after_s == pytest.approx(step_s)
        assert later.value.retry_after_s == pytest.approx(step_s * 3 / 4)
        await world.clock.advance(step_s * 3 / 4 - 0.01)
        world.endpoint.gate.clear()
        await world.clock.advance(0.01)


async def test_retry_after_of_the_server_is_honoured(world: World) -> None:
    """The token endpoint is not asked again before the time that it named."""
    await world.put_expired()
    world.endpoint.plan = [down(retry_after_s=45.0)]
    token_source = await world.token_source()
    with pytest.raises(TokenEndpointUnavailable) as caught:
        await token_source.get()
    assert caught.value.retry_after_s == pytest.approx(45)
    await world.clock.advance(44.5)
    assert len(world.endpoint.calls) == 1
    await world.clock.advance(1)
    assert len(world.endpoint.calls) == 2
    assert (await token_source.get()).value == Secret("access-2")


async def test_success_resets_the_backoff(world: World) -> None:
    """The backoff counts failures in a row."""
    login = await world.put_expired()
    world.endpoint.plan = [down(), down(), down()]
    token_source = await world.token_source()
    await world.clock.advance(8)
    world.endpoint.plan = [down()]
    with pytest.raises(TokenEndpointUnavailable) as caught:
        await token_source.replace(await token_source.get(), None)
    assert caught.value.retry_after_s == pytest.approx(1)
    assert login.serial < (await world.stored()).serial


async def test_recovered_store_does_not_reset_the_backoff_of_the_endpoint(world: World) -> None:
    """When only the store is back, the next attempt comes at once, and the pause after it is still long."""
    await world.put_expired()
    world.endpoint.always = down()
    token_source = await world.token_source()
    await world.clock.advance(50)
    world.store.load_fault = StoreUnavailable("out of reach")
    await world.clock.advance(20)
    world.store.mend()
    asked = len(world.endpoint.calls)
    with pytest.raises(TokenEndpointUnavailable) as caught:
        await token_source.get()
    assert len(world.endpoint.calls) == asked + 1
    assert caught.value.retry_after_s == pytest.approx(30)


async def test_store_is_used_again_soon_after_a_long_failure(world: World) -> None:
    """The backoff stays short for the store: it is ours, and asking it often disturbs nobody."""
    await world.put_expired()
    token_source = await world.token_source()
    world.store.lock_fault = StoreUnavailable("out of reach")
    await world.clock.advance(95)
    with pytest.raises(StoreUnavailable) as caught:
        await token_source.get()
    assert 0 < caught.value.retry_after_s <= 5
    world.store.mend()
    await world.clock.advance(5)
    assert (await token_source.get()).value == Secret("access-2")


async def test_token_that_expired_in_transit_causes_no_loop(any_world: World) -> None:
    """A token endpoint that is slower than its tokens live is asked at the pace of the backoff."""
    world = any_world
    await world.put_expired()
    world.endpoint.lifetime_s = 5.0
    world.endpoint.gate.clear()
    token_source = await world.token_source()
    waiting = asyncio.create_task(token_source.get())
    await world.clock.advance(6)
    world.endpoint.lifetime_s = 0.0
    world.endpoint.gate.set()
    with pytest.raises(TokenEndpointUnavailable, match="expired"):
        await waiting
    for _ in range(60):
        with pytest.raises(TokenEndpointUnavailable):
            await token_source.get()
        await world.clock.advance(0.5)
    assert len(world.endpoint.calls) == 5


async def test_waiters_get_exceptions_of_their_own(world: World) -> None:
    """Each waiter gets its own copy of the failure, so that tracebacks don't grow with their number."""
    await world.put_expired()
    world.endpoint.always = down()
    token_source = await world.token_source()
    failures = await asyncio.gather(*(token_source.get() for _ in range(200)), return_exceptions=True)
    assert len({id(failure) for failure in failures}) == 200
    depths = set()
    for failure in failures:
        assert isinstance(failure, TokenEndpointUnavailable)
        depths.add(len(traceback.extract_tb(failure.__traceback__)))
    assert max(depths) <= 5


async def test_bug_in_a_refresh_is_logged_with_its_traceback(world: World) -> None:
    """An internal error is logged as such, and refreshing goes on."""
    await world.put_expired()
    world.endpoint.plan = [ValueError("a bug")]
    token_source = await world.token_source()
    await world.clock.advance(2)
    assert [event["exc_info"] for event in world.named("token.refresh_crashed")] == [True]
    assert (await token_source.get()).value == Secret("access-2")


async def test_logout_during_an_outage_is_reported_as_a_logout(world: World) -> None:
    """After a logout the error asks for a login, not for patience with the token endpoint."""
    await world.put_expired()
    world.endpoint.always = down(retry_after_s=200.0)
    token_source = await world.token_source()
    with pytest.raises(TokenEndpointUnavailable):
        await token_source.get()
    await world.store.delete("default")
    await world.clock.advance(1)
    with pytest.raises(LoginRequired):
        await token_source.get()
