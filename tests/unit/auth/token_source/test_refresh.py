"""One refresh is shared by all callers and made early, so that nobody waits for it."""

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

# --- sharing one refresh -----------------------------------------------------------------


async def test_a_thousand_callers_share_one_refresh(world: World) -> None:
    """However many requests find the token expired, the token endpoint is asked once."""
    await world.put_expired()
    token_source = await world.token_source()
    tokens = await asyncio.gather(*(token_source.get() for _ in range(1000)))
    assert {access(token) for token in tokens} == {"access-2"}
    assert world.endpoint.calls == ["refresh-1"]
    assert access((await world.stored()).token) == "access-2"


async def test_a_hundred_rejections_of_a_token_cause_one_refresh(world: World) -> None:
    """If the API rejects a token for many requests at once, it is replaced once."""
    login = await world.put()
    token_source = await world.token_source()
    tokens = await asyncio.gather(*(token_source.replace(login.token, None) for _ in range(100)))
    assert {access(token) for token in tokens} == {"access-2"}
    assert world.endpoint.calls == ["refresh-1"]


async def test_late_rejection_of_an_old_token_causes_no_refresh(world: World) -> None:
    """A 401 for a token that was already replaced gets the current token without any network."""
    login = await world.put()
    token_source = await world.token_source()
    await token_source.replace(login.token, None)
    assert access(at_once(token_source.replace(login.token, None))) == "access-2"
    assert len(world.endpoint.calls) == 1


async def test_rejection_during_a_refresh_joins_it(world: World) -> None:
    """A 401 does not start a second refresh of a token that is being refreshed."""
    login = await world.put()
    token_source = await world.token_source()
    world.endpoint.gate.clear()
    await world.clock.advance(3400)
    late = asyncio.create_task(token_source.replace(login.token, None))
    await world.clock.settle()
    world.endpoint.gate.set()
    assert access(await late) == "access-2"
    assert len(world.endpoint.calls) == 1


# --- early, and in the background --------------------------------------------------------


@pytest.mark.parametrize(
    ("lifetime_s", "early_at_s"), [(3600.0, 3300.0), (1200.0, 900.0), (400.0, 300.0), (None, 225.0)]
)
async def test_refresh_starts_early(world: World, lifetime_s: float | None, early_at_s: float) -> None:
    """A refresh starts 5 min or a quarter of the lifetime early; an unknown lifetime counts as 5 min."""
    await world.put_expired()
    world.endpoint.lifetime_s = lifetime_s
    token_source = await world.token_source()
    await token_source.get()
    await world.clock.advance(early_at_s - 0.5)
    assert len(world.endpoint.calls) == 1
    await world.clock.advance(1)
    assert len(world.endpoint.calls) == 2


async def test_valid_token_does_not_wait_for_a_refresh(world: World) -> None:
    """While the token endpoint stalls, requests use the valid token until it expires."""
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


async def test_idle_proxy_refreshes_its_token_with_one_timer(world: World) -> None:
    """The token is refreshed without any requests, and there is one timer at any time."""
    await world.put()
    token_source = await world.token_source()
    for _ in range(48):
        assert world.clock.sleeping == 1
        await world.clock.advance(1800)
        assert token_source.state().usable_s > 0
    assert 24 <= len(world.endpoint.calls) <= 27


# --- the clocks --------------------------------------------------------------------------


async def test_wall_clock_set_forward_ages_the_token(world: World) -> None:
    """After a suspend, or with the wall clock set forward, the token is as old as the wall clock says."""
    await world.put()
    token_source = await world.token_source()
    await token_source.get()
    world.clock.jump_wall(3601)
    world.endpoint.always = down()
    with pytest.raises(TokenEndpointUnavailable):
        await token_source.get()


async def test_request_after_a_suspend_refreshes_an_aged_token(world: World) -> None:
    """After a suspend the next request notices that the token is about to expire, not only the timer."""
    await world.put()
    token_source = await world.token_source()
    world.clock.jump_wall(3400)
    assert access(at_once(token_source.get())) == "access-1"
    await world.clock.settle()
    assert access(at_once(token_source.get())) == "access-2"


async def test_alarm_that_fires_too_early_is_set_again(world: World) -> None:
    """A wall clock that was set forward and back does not prevent the early refresh."""
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


async def test_wall_clock_set_back_does_not_prolong_the_token(world: World) -> None:
    """With the wall clock set back, the token is as old as the monotonic clock says."""
    await world.put()
    token_source = await world.token_source()
    world.clock.jump_wall(-86400)
    world.endpoint.always = down()
    await world.clock.advance(3599)
    assert access(await token_source.get()) == "access-1"
    await world.clock.advance(1)
    with pytest.raises(TokenEndpointUnavailable):
        await token_source.get()


async def test_token_is_as_old_as_its_request(world: World) -> None:
    """The lifetime counts from the token request, whatever the wall clock does meanwhile."""
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
    """Act as a request whose tokens the API rejects, every one of them."""
    token = await token_source.get()
    fresh = await token_source.replace(token, None)
    if fresh.value != token.value:
        token_source.distrust(fresh, None)


async def test_api_that_rejects_every_token_causes_no_refresh_storm(world: World) -> None:
    """Refreshes that do not help are held back, twice as long each time up to 60 s."""
    await world.put()
    token_source = await world.token_source()
    for _ in range(500):
        await asyncio.gather(*(rejected_request(token_source) for _ in range(3)))
        await world.clock.advance(0.5)
    asked = [round(at - world.endpoint.called_at[0]) for at in world.endpoint.called_at]
    assert asked == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]


async def recovery_s(world: World, token_source: TokenSource, path: str) -> float:
    """Revoke the token, and return the seconds until a request for `path` gets another one."""
    revoked = await token_source.get()
    started = world.clock.monotonic()
    while (await token_source.replace(revoked, path)).value == revoked.value:
        await world.clock.advance(0.5)
    return world.clock.monotonic() - started


@pytest.mark.parametrize("replayable", [True, False])
@pytest.mark.parametrize("paths", [1, 100], ids=["one path", "many paths"])
async def test_paths_that_are_always_401_hold_nobody_up(world: World, replayable: bool, paths: int) -> None:
    """They cause few refreshes, and other requests recover from a revocation within seconds."""
    await world.put()
    token_source = await world.token_source()
    for number in range(240):
        token, path = await token_source.get(), f"/always-401/{number % paths}"
        if not replayable:
            token_source.reject(token, path)
        elif (fresh := await token_source.replace(token, path)).value != token.value:
            token_source.distrust(fresh, path)
        await world.clock.advance(0.5)
    refreshes = len(world.endpoint.calls)
    assert refreshes <= (8 if paths == 1 else 32)
    assert await recovery_s(world, token_source, "/v1/jobs") <= (0 if paths == 1 else 5)
    assert len(world.endpoint.calls) == refreshes + 1


async def test_request_that_cannot_be_repeated_refreshes_in_the_background(any_world: World) -> None:
    """The next request gets another token, and nobody waits meanwhile."""
    await any_world.put()
    token_source = await any_world.token_source()
    rejected = await token_source.get()
    for _ in range(10):
        token_source.reject(rejected, "/uploads")
    assert at_once(token_source.get()) == rejected
    await any_world.clock.settle()
    assert access(at_once(token_source.get())) == "access-2"
    token_source.reject(rejected, "/uploads")
    await any_world.clock.settle()
    assert len(any_world.endpoint.calls) == 1


async def test_request_that_cannot_be_repeated_respects_the_backoff(world: World) -> None:
    """Background refreshes fail quietly, and no more often than others."""
    login = await world.put()
    token_source = await world.token_source()
    world.endpoint.always = down()
    for number in range(10):
        token_source.reject(login.token, number)
        await world.clock.settle()
    assert len(world.endpoint.calls) == 1
    assert access(at_once(token_source.get())) == "access-1"


async def test_rejected_token_without_refresh_token_stays_in_use(world: World) -> None:
    """One path that is always 401 is no reason to log everybody out while nothing else is known."""
    login = await world.put(refresh_token=None)
    token_source = await world.token_source()
    assert await token_source.replace(login.token, "/always-401") == login.token
    token_source.reject(login.token, "/always-401")
    assert access(at_once(token_source.get())) == "access-1"


async def test_hold_is_short_again_after_a_quiet_minute(world: World) -> None:
    """After a minute of accepted tokens, the next rejection starts with a short hold."""
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


async def test_refresh_by_another_process_does_not_end_the_hold(world: World) -> None:
    """If the API rejects every token, both of two processes slow down."""
    await world.put()
    one, other = await world.token_source(), await world.token_source()
    for _ in range(240):
        await rejected_request(one)
        await rejected_request(other)
        await world.clock.advance(0.5)
    assert len(world.endpoint.calls) <= 18


async def test_same_token_again_is_no_replacement(world: World) -> None:
    """A server that returns the rejected token again is not asked again at once."""
    login = await world.put()
    token_source = await world.token_source()
    world.endpoint.plan = [reply("access-1") for _ in range(9)]
    for _ in range(10):
        assert access(await token_source.replace(login.token, None)) == "access-1"
    assert len(world.endpoint.calls) == 1


async def test_distrust_of_an_old_token_has_no_effect(world: World) -> None:
    """Only the current token can be distrusted."""
    login = await world.put()
    token_source = await world.token_source()
    current = await token_source.replace(login.token, None)
    token_source.distrust(login.token, None)
    assert access(await token_source.replace(current, None)) == "access-3"


async def test_rejected_token_waits_for_the_backoff_too(world: World) -> None:
    """After a forced refresh has failed, further rejections fail at once until the backoff is over."""
    login = await world.put()
    token_source = await world.token_source()
    world.endpoint.always = Misconfigured("the app is refused")
    for _ in range(20):
        with pytest.raises(Misconfigured):
            await token_source.replace(login.token, None)
    assert len(world.endpoint.calls) == 1
    assert access(await token_source.get()) == "access-1"


async def test_refreshes_that_help_are_not_limited(world: World) -> None:
    """A token that is revoked again and again is replaced each time, in less than a second, too."""
    token = (await world.put()).token
    token_source = await world.token_source()
    for _ in range(50):
        fresh = await token_source.replace(token, "/v1/jobs")
        assert fresh.value != token.value
        token = fresh


async def test_refreshes_that_fail_use_up_no_allowance(world: World) -> None:
    """While the endpoint is down, a caller learns that, rather than that the API rejects the token."""
    token = (await world.put()).token
    token_source = await world.token_source()
    for _ in range(5):
        token = await token_source.replace(token, None)
    world.endpoint.always = down()
    for _ in range(10):
        with pytest.raises(TokenEndpointUnavailable):
            await token_source.replace(token, None)
        await world.clock.advance(0.5)


# --- the reply ---------------------------------------------------------------------------


async def test_old_refresh_token_stays_valid_without_a_new_one(world: World) -> None:
    """A reply without refresh_token leaves the old one in place (RFC 6749 §6)."""
    await world.put_expired()
    world.endpoint.plan = [reply("access-2")]
    token_source = await world.token_source()
    assert access(await token_source.get()) == "access-2"
    stored = await world.stored()
    assert stored.refresh_token == Secret("refresh-1")
    assert stored.presented_at is None
    assert stored.scope == "cfgateway offline_access"
    assert token_source.state().refreshes == 1


async def test_granted_scope_is_stored(world: World) -> None:
    """A scope in the reply replaces the one that was requested (RFC 6749 §5.1)."""
    await world.put_expired()
    world.endpoint.plan = [TokenReply(Secret("access-2"), 3600.0, None, "cfgateway")]
    await (await world.token_source()).get()
    assert (await world.stored()).scope == "cfgateway"


async def test_error_in_logging_does_not_end_refreshing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails at the end of a refresh, the next one can start."""

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
