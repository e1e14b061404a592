"""One refresh for everybody, in time; and nobody waits who need not."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from structlog.testing import LogCapture

from cfproxy.auth.models import TokenReply
from cfproxy.auth.token_source import TokenSource
from cfproxy.errors import Misconfigured, TokenEndpointUnavailable
from cfproxy.secret import Secret
from tests.support.fakes import World, access, at_once, down, reply

# --- one flight --------------------------------------------------------------------------


async def test_a_thousand_callers_of_an_expired_token_share_one_refresh(world: World) -> None:
    """However many requests find the token expired, the token endpoint is asked once."""
    await world.put_expired()
    token_source = await world.token_source()
    tokens = await asyncio.gather(*(token_source.get() for _ in range(1000)))
    assert {access(token) for token in tokens} == {"access-2"}
    assert world.endpoint.calls == ["refresh-1"]
    assert access((await world.stored()).token) == "access-2"


async def test_a_hundred_rejections_of_one_token_cause_one_refresh(world: World) -> None:
    """When the API rejects a token for many requests at once, it is replaced once."""
    login = await world.put()
    token_source = await world.token_source()
    tokens = await asyncio.gather(*(token_source.replace(login.token) for _ in range(100)))
    assert {access(token) for token in tokens} == {"access-2"}
    assert world.endpoint.calls == ["refresh-1"]


async def test_a_late_rejection_of_an_old_token_asks_nobody(world: World) -> None:
    """A 401 for a token that was replaced meanwhile gets the current token, without any network."""
    login = await world.put()
    token_source = await world.token_source()
    await token_source.replace(login.token)
    assert access(at_once(token_source.replace(login.token))) == "access-2"
    assert len(world.endpoint.calls) == 1


async def test_a_rejection_during_an_early_refresh_joins_it(world: World) -> None:
    """A token that is being refreshed already is not refreshed a second time for a 401."""
    login = await world.put()
    token_source = await world.token_source()
    world.endpoint.gate.clear()
    await world.clock.advance(3400)
    late = asyncio.create_task(token_source.replace(login.token))
    await world.clock.settle()
    world.endpoint.gate.set()
    assert access(await late) == "access-2"
    assert len(world.endpoint.calls) == 1


# --- early, and in the background --------------------------------------------------------


@pytest.mark.parametrize(
    ("lifetime_s", "early_at_s"), [(3600.0, 3300.0), (1200.0, 900.0), (400.0, 300.0), (None, 225.0)]
)
async def test_a_refresh_begins_early(world: World, lifetime_s: float | None, early_at_s: float) -> None:
    """A refresh begins 5 min, or a quarter of the lifetime, before expiry; an unknown lifetime is 5 min."""
    await world.put_expired()
    world.endpoint.lifetime_s = lifetime_s
    token_source = await world.token_source()
    await token_source.get()
    await world.clock.advance(early_at_s - 0.5)
    assert len(world.endpoint.calls) == 1
    await world.clock.advance(1)
    assert len(world.endpoint.calls) == 2


async def test_a_valid_token_never_waits_for_a_refresh(world: World) -> None:
    """While the token endpoint stalls, requests go on with the token that is still valid, to its end."""
    await world.put()
    token_source = await world.token_source()
    world.endpoint.gate.clear()
    for _ in range(36):
        assert access(at_once(token_source.get())) == "access-1"
        await world.clock.advance(99.9)
    assert world.endpoint.in_flight == 1
    assert world.store.locks == 1
    await world.clock.advance(10)
    waiting = asyncio.create_task(token_source.get())
    await world.clock.settle()
    assert not waiting.done()
    world.endpoint.gate.set()
    assert access(await waiting) == "access-2"


async def test_an_idle_proxy_keeps_its_token_fresh_with_one_alarm(world: World) -> None:
    """Without any request the token is refreshed all the same, and one alarm is set at any time."""
    await world.put()
    token_source = await world.token_source()
    for _ in range(48):
        assert world.clock.sleeping == 1
        await world.clock.advance(1800)
        assert token_source.state().usable_s > 0
    assert 24 <= len(world.endpoint.calls) <= 27


# --- the clocks --------------------------------------------------------------------------


async def test_a_wall_clock_that_leaps_ahead_ages_the_token(world: World) -> None:
    """After a suspend, or a wall clock set forward, the token is as old as the wall clock says."""
    await world.put()
    token_source = await world.token_source()
    await token_source.get()
    world.clock.jump_wall(3601)
    world.endpoint.always = down()
    with pytest.raises(TokenEndpointUnavailable):
        await token_source.get()


async def test_a_token_that_a_suspend_made_old_is_refreshed_by_the_next_request(world: World) -> None:
    """After a suspend no request waits for an alarm to notice that the token is about to expire."""
    await world.put()
    token_source = await world.token_source()
    world.clock.jump_wall(3400)
    assert access(at_once(token_source.get())) == "access-1"
    await world.clock.settle()
    assert access(at_once(token_source.get())) == "access-2"


async def test_an_alarm_that_comes_too_early_is_set_again(world: World) -> None:
    """A wall clock that leapt ahead and back does not cost the early refresh."""
    login = await world.put()
    token_source = await world.token_source()
    world.clock.jump_wall(2000)
    await world.put(serial=2, token=login.token, login_at=login.login_at)
    await world.clock.advance(1)
    await token_source.check_store()
    await world.clock.settle()
    world.clock.jump_wall(-2000)
    await world.clock.advance(3200)
    assert world.endpoint.calls == []
    await world.clock.advance(120)
    assert world.endpoint.calls == ["refresh-1"]


async def test_a_wall_clock_that_is_set_back_does_not_prolong_the_token(world: World) -> None:
    """After the wall clock was set back, the token is as old as the monotonic clock says."""
    await world.put()
    token_source = await world.token_source()
    world.clock.jump_wall(-86400)
    world.endpoint.always = down()
    await world.clock.advance(3599)
    assert access(await token_source.get()) == "access-1"
    await world.clock.advance(1)
    with pytest.raises(TokenEndpointUnavailable):
        await token_source.get()


async def test_a_token_is_as_old_as_its_request(world: World) -> None:
    """The lifetime counts from when the token was asked for, whatever the wall clock does meanwhile."""
    await world.put_expired()
    token_source = await world.token_source()
    world.endpoint.gate.clear()
    await world.clock.advance(20)
    world.clock.jump_wall(-7200)
    world.endpoint.gate.set()
    await world.clock.settle()
    assert 3579 <= token_source.state().usable_s <= 3580


# --- rejected tokens ---------------------------------------------------------------------


async def rejected_request(token_source: TokenSource) -> None:
    """Do what a request does whose every token the API rejects."""
    token = await token_source.get()
    fresh = await token_source.replace(token)
    if fresh.value != token.value:
        token_source.distrust(fresh)


async def test_an_api_that_rejects_every_token_is_not_answered_with_a_storm(world: World) -> None:
    """Refreshes that do not help are held back, twice as long each time up to 60 s."""
    await world.put()
    token_source = await world.token_source()
    for _ in range(500):
        await asyncio.gather(*(rejected_request(token_source) for _ in range(3)))
        await world.clock.advance(0.5)
    asked = [round(at - world.endpoint.called_at[0]) for at in world.endpoint.called_at]
    assert asked == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]


async def test_the_hold_on_refreshes_starts_small_again_after_a_quiet_minute(world: World) -> None:
    """When tokens were accepted again for a minute, the next rejection begins with a short hold."""
    await world.put()
    token_source = await world.token_source()
    for _ in range(100):
        await rejected_request(token_source)
        await world.clock.advance(0.5)
    await world.clock.advance(130)
    await rejected_request(token_source)
    before = len(world.endpoint.calls)
    await world.clock.advance(1)
    await rejected_request(token_source)
    assert len(world.endpoint.calls) == before + 1


async def test_two_processes_do_not_undo_each_others_hold(world: World) -> None:
    """A token that another process refreshed does not end the hold: both slow down."""
    await world.put()
    one, other = await world.token_source(), await world.token_source()
    for _ in range(240):
        await rejected_request(one)
        await rejected_request(other)
        await world.clock.advance(0.5)
    assert len(world.endpoint.calls) <= 18


async def test_the_same_token_again_is_no_replacement(world: World) -> None:
    """A server that hands the rejected token out again is not asked again at once."""
    login = await world.put()
    token_source = await world.token_source()
    world.endpoint.plan = [reply("access-1") for _ in range(9)]
    for _ in range(10):
        assert access(await token_source.replace(login.token)) == "access-1"
    assert len(world.endpoint.calls) == 1


async def test_distrust_of_an_old_token_means_nothing(world: World) -> None:
    """Only the current token can be distrusted."""
    login = await world.put()
    token_source = await world.token_source()
    current = await token_source.replace(login.token)
    token_source.distrust(login.token)
    assert access(await token_source.replace(current)) == "access-3"


async def test_a_rejected_token_waits_for_the_back_off_too(world: World) -> None:
    """When a forced refresh fails, further rejections fail at once until the back-off is over."""
    login = await world.put()
    token_source = await world.token_source()
    world.endpoint.always = Misconfigured("the app is refused")
    for _ in range(20):
        with pytest.raises(Misconfigured):
            await token_source.replace(login.token)
    assert len(world.endpoint.calls) == 1
    assert access(await token_source.get()) == "access-1"


# --- what an answer holds ----------------------------------------------------------------


async def test_the_old_refresh_token_stays_good_when_none_comes(world: World) -> None:
    """An answer without refresh_token leaves the old one in place (RFC 6749 §6)."""
    await world.put_expired()
    world.endpoint.plan = [reply("access-2")]
    token_source = await world.token_source()
    assert access(await token_source.get()) == "access-2"
    stored = await world.stored()
    assert stored.refresh_token == Secret("refresh-1")
    assert stored.presented_at is None
    assert stored.scope == "cfgateway offline_access"
    assert token_source.state().refreshes == 1


async def test_what_the_server_says_was_granted_is_kept(world: World) -> None:
    """A scope in the answer replaces the one that was asked for (RFC 6749 §5.1)."""
    await world.put_expired()
    world.endpoint.plan = [TokenReply(Secret("access-2"), 3600.0, None, "cfgateway")]
    await (await world.token_source()).get()
    assert (await world.stored()).scope == "cfgateway"


async def test_a_fault_in_logging_does_not_end_refreshing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong while a refresh ends, the next one can begin."""

    def fail(*_: object) -> None:
        raise OSError("a bug")

    await world.put_expired()
    token_source = await world.token_source()
    with monkeypatch.context() as patch:
        patch.setattr(LogCapture, "__call__", fail)
        with contextlib.suppress(OSError):
            await token_source.get()
    await world.clock.advance(3600)
    assert access(await token_source.get()) == "access-3"
