"""When a login ends, and how a refresh token is marked before it is sent."""

from __future__ import annotations

import asyncio

import pytest

from cfproxy.auth.models import Token, TokenReply
from cfproxy.auth.token_source import TokenSource
from cfproxy.errors import (
    GrantRefused,
    LoginRequired,
    Misconfigured,
    StoreUnavailable,
    TokenEndpointUnavailable,
)
from cfproxy.secret import Secret
from tests.support.fakes import LOST, World, access, at_once, down


async def refused_in_flight(world: World) -> tuple[TokenSource, asyncio.Task[Token]]:
    """Return a token source, and a caller whose refresh will be refused once the gate is open."""
    await world.put_expired()
    world.endpoint.live = None
    token_source = await world.token_source()
    world.endpoint.gate.clear()
    waiting = asyncio.create_task(token_source.get())
    await world.clock.settle()
    return token_source, waiting


# --- invalid_grant -----------------------------------------------------------------------


async def test_refused_login_requires_a_new_login_and_no_network(world: World) -> None:
    """After invalid_grant every caller is told to log in, without further requests, and the record stays."""
    await world.put_expired()
    world.endpoint.live = None
    token_source = await world.token_source()
    for _ in range(30):
        with pytest.raises(LoginRequired, match="has ended"):
            await token_source.get()
        await world.clock.advance(60)
    assert world.endpoint.calls == ["refresh-1"]
    assert world.clock.sleeping == 0
    stored = await world.stored()
    assert stored.refresh_token == Secret("refresh-1")
    assert stored.refused_at is not None
    assert not stored.answer_lost
    assert stored.presented_at is None


@pytest.mark.parametrize("code", ["access_denied", "invalid_request", "invalid_token"])
async def test_refusal_of_a_login_that_was_refreshed_before_requires_a_login(world: World, code: str) -> None:
    """The same request worked before, so it is the login that has ended, not the app that is wrong."""
    await world.put_expired(login_at=world.clock.time() - 90_000)
    world.endpoint.always = GrantRefused(f"refused ({code})", code=code)
    token_source = await world.token_source()
    with pytest.raises(LoginRequired, match="has ended"):
        await token_source.get()
    await world.clock.advance(600)
    assert world.endpoint.calls == ["refresh-1"]
    stored = await world.stored()
    assert stored.refresh_token == Secret("refresh-1")
    assert stored.refused_at is not None
    assert [event["reason"] for event in world.named("login.refused")] == [f"refused ({code})"]


async def test_invalid_request_to_the_first_refresh_is_a_matter_of_settings(world: World) -> None:
    """A request that has never worked may be wrong; it is tried again, and heals without a login."""
    login = await world.put_expired()
    await world.put(token=login.token, login_at=login.token.obtained_at)
    world.endpoint.plan = [GrantRefused("refused (invalid_request)", code="invalid_request")]
    token_source = await world.token_source()
    with pytest.raises(Misconfigured, match="invalid_request"):
        await token_source.get()
    stored = await world.stored()
    assert (stored.refused_at, stored.presented_at) == (None, None)
    await world.clock.advance(1)
    assert access(await token_source.get()) == "access-2"


@pytest.mark.parametrize("code", ["access_denied", "invalid_request"])
async def test_refusal_of_what_another_process_replaced_is_no_end(world: World, code: str) -> None:
    """Whatever the server calls it, the store decides whether the refused refresh token is the newest."""
    await world.put_expired(login_at=world.clock.time() - 90_000)
    world.endpoint.plan = [GrantRefused("refused", code=code)]
    token_source = await world.token_source()
    world.endpoint.gate.clear()
    waiting = asyncio.create_task(token_source.get())
    await world.clock.settle()
    await world.put(
        login_at=world.clock.time() - 90_000,
        token=Token(Secret("access-9"), world.clock.time(), 3600.0),
        refresh_token=Secret("refresh-9"),
        serial=9,
    )
    world.endpoint.gate.set()
    assert access(await waiting) == "access-9"


async def test_refusal_survives_a_restart(world: World) -> None:
    """A restarted process does not send a refused refresh token again."""
    await world.put_expired()
    world.endpoint.live = None
    with pytest.raises(LoginRequired):
        await (await world.token_source()).get()
    with pytest.raises(LoginRequired):
        await (await world.token_source()).get()
    assert len(world.endpoint.calls) == 1


async def test_last_token_of_a_refused_login_is_used_until_expiry(world: World) -> None:
    """If an early refresh is refused, the current access token is still sent until it expires."""
    await world.put()
    token_source = await world.token_source()
    world.endpoint.live = None
    await world.clock.advance(3590)
    locks = world.store.locks
    for _ in range(9):
        assert access(at_once(token_source.get())) == "access-1"
        await world.clock.advance(1)
    assert world.store.locks == locks, "nothing is tried any more"
    assert world.endpoint.calls == ["refresh-1"]
    assert world.clock.sleeping == 0
    await world.clock.advance(1)
    with pytest.raises(LoginRequired):
        await token_source.get()


async def test_rejected_token_of_an_ended_login_is_not_sent_again(world: World) -> None:
    """If the API rejects the last token of an ended login, callers are told to log in at once."""
    login = await world.put()
    token_source = await world.token_source()
    world.endpoint.live = None
    with pytest.raises(LoginRequired):
        await token_source.replace(login.token, None)
    with pytest.raises(LoginRequired):
        await token_source.get()
    assert not token_source.state().ready


async def test_invalid_grant_is_ignored_if_another_process_has_refreshed(world: World) -> None:
    """A refresh token that another process has used is no reason to log in: its successor is used."""
    await world.put_expired()
    token_source = await world.token_source()
    world.endpoint.gate.clear()
    waiting = asyncio.create_task(token_source.get())
    await world.clock.settle()
    answer = world.endpoint.issue("refresh-1")
    await world.put(
        token=answer.token(world.clock.time()),
        refresh_token=answer.refresh_token,
        serial=9,
    )
    world.endpoint.gate.set()
    assert access(await waiting) == "access-2"
    assert token_source.state().error is None
    assert (await world.stored()).refused_at is None


async def test_refresh_token_of_another_process_is_used_if_its_token_has_expired(world: World) -> None:
    """If the other process's access token is too old, the next attempt sends its refresh token."""
    await world.put_expired()
    token_source = await world.token_source()
    world.endpoint.gate.clear()
    waiting = asyncio.create_task(token_source.get())
    await world.clock.settle()
    await world.put_expired(refresh_token=world.endpoint.issue("refresh-1").refresh_token, serial=9)
    world.endpoint.gate.set()
    with pytest.raises(TokenEndpointUnavailable, match="another process"):
        await waiting
    await world.clock.advance(1)
    assert access(await token_source.get()) == "access-3"


async def test_invalid_grant_is_ignored_if_the_store_cannot_be_read(world: World) -> None:
    """Nobody is told to log in as long as the store could hold a newer login."""
    token_source, waiting = await refused_in_flight(world)
    world.store.load_fault = StoreUnavailable("the store is out of reach")
    world.endpoint.gate.set()
    with pytest.raises(StoreUnavailable):
        await waiting
    assert (await world.stored()).refused_at is None
    world.store.mend()
    await world.clock.advance(1)
    with pytest.raises(LoginRequired):
        await token_source.get()


async def test_refusal_does_not_restore_a_deleted_login(world: World) -> None:
    """A logout during a refresh stays a logout."""
    _, waiting = await refused_in_flight(world)
    await world.store.delete("default")
    world.endpoint.gate.set()
    with pytest.raises(LoginRequired, match="not logged in"):
        await waiting
    assert await world.store.load("default") is None


# --- the mark ----------------------------------------------------------------------------


async def test_refresh_token_is_marked_in_the_store_before_it_is_sent(world: World) -> None:
    """After a crash the record shows that its refresh token was sent, and when."""
    await world.put_expired()
    token_source = await world.token_source()
    world.endpoint.gate.clear()
    waiting = asyncio.create_task(token_source.get())
    await world.clock.settle()
    assert world.endpoint.in_flight == 1
    assert (await world.stored()).presented_at == world.clock.time()
    world.endpoint.gate.set()
    await waiting
    assert (await world.stored()).presented_at is None


@pytest.mark.parametrize(
    ("failure", "open_after"),
    [(down(), True), (down(sent=False), False), (Misconfigured("the app is refused"), False)],
    ids=["maybe arrived", "not sent", "refused the app"],
)
async def test_mark_stays_only_while_the_outcome_is_unknown(
    world: World, failure: Exception, open_after: bool
) -> None:
    """The mark is cleared if the refresh token is certainly unused, and stays if it may be used."""
    await world.put_expired()
    world.endpoint.plan = [failure]
    token_source = await world.token_source()
    await asyncio.gather(token_source.get(), return_exceptions=True)
    stored = await world.stored()
    assert (stored.presented_at is not None) == open_after
    assert token_source.state().login == stored


async def test_later_failure_does_not_clear_an_older_mark(world: World) -> None:
    """An attempt that was not sent says nothing about the one before it; the mark keeps its time."""
    await world.put_expired()
    world.endpoint.plan = [down(), down(sent=False)]
    await world.token_source()
    await world.clock.settle()
    first = (await world.stored()).presented_at
    await world.clock.advance(1)
    assert len(world.endpoint.calls) == 2
    assert first is not None
    assert (await world.stored()).presented_at == first


async def test_lost_answer_is_reported_as_such(world: World) -> None:
    """If a one-time refresh token is refused after an answer was lost, the message says what happened."""
    await world.put_expired()
    world.endpoint.plan = [LOST]
    token_source = await world.token_source()
    with pytest.raises(TokenEndpointUnavailable):
        await token_source.get()
    await world.clock.advance(1)
    with pytest.raises(LoginRequired, match="its answer never arrived"):
        await token_source.get()
    assert (await world.stored()).answer_lost


async def test_error_response_is_not_a_lost_answer(world: World) -> None:
    """After a 503 the outcome is known: no mark stays, and a later refusal is an ordinary one."""
    await world.put_expired()
    world.endpoint.plan = [TokenEndpointUnavailable("the token endpoint answered 503", answered=True)]
    token_source = await world.token_source()
    with pytest.raises(TokenEndpointUnavailable):
        await token_source.get()
    assert (await world.stored()).presented_at is None
    world.endpoint.live = None
    await world.clock.advance(1)
    with pytest.raises(LoginRequired, match="has ended") as caught:
        await token_source.get()
    assert "never arrived" not in str(caught.value)
    assert not (await world.stored()).answer_lost


async def test_refresh_token_of_an_unusable_reply_is_kept_and_used(world: World) -> None:
    """Its predecessor is used up: it is saved, without a mark, and presented after the backoff."""
    before = await world.put_expired()
    world.endpoint.live = "refresh-new"
    world.endpoint.plan = [TokenReply(None, None, Secret("refresh-new"), None)]
    token_source = await world.token_source()
    with pytest.raises(TokenEndpointUnavailable, match="without a usable bearer token"):
        await token_source.get()
    stored = await world.stored()
    assert stored.refresh_token == Secret("refresh-new")
    assert (stored.token, stored.presented_at) == (before.token, None)
    await world.clock.advance(1)
    assert access(await token_source.get()) == "access-2"
    assert world.endpoint.calls == ["refresh-1", "refresh-new"]


async def test_client_credentials_keep_no_refresh_token_of_an_unusable_reply(
    credentials_world: World,
) -> None:
    """They need none, and ask again."""
    world = credentials_world
    await world.put_expired()
    world.endpoint.plan = [TokenReply(None, None, Secret("refresh-new"), None)]
    token_source = await world.token_source()
    with pytest.raises(TokenEndpointUnavailable, match="without a usable bearer token"):
        await token_source.get()
    await world.clock.advance(1)
    await token_source.get()
    assert (await world.stored()).refresh_token != Secret("refresh-new")


async def test_pending_refresh_is_resolved_while_the_token_is_valid(world: World) -> None:
    """After a crash during a refresh its outcome is found out at once, not at expiry."""
    await world.put(presented_at=world.clock.time() - 60)
    token_source = await world.token_source()
    assert access(at_once(token_source.get())) == "access-1"
    await world.clock.settle()
    assert access(at_once(token_source.get())) == "access-2"
    assert (await world.stored()).presented_at is None
