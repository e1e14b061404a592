"""Logging in and out: attempts, when codes are sent, and what the messages say."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from cfproxy.auth import oauth2
from cfproxy.auth.login import LoggedOut, finish, login_app, logout, start
from cfproxy.auth.models import ATTEMPT_LIFETIME_S, UNKNOWN_LIFETIME_S, TokenReply
from cfproxy.errors import (
    CfproxyError,
    GrantRefused,
    LoginFailed,
    Misconfigured,
    StoreUnavailable,
    StoreUnusable,
    TokenEndpointUnavailable,
)
from cfproxy.secret import Secret
from cfproxy.stores.memory import MemoryStore
from tests.support.names import resolve_by
from tests.unit.auth.login_world import (
    ACCOUNTS,
    APP,
    BAD_APP,
    LOST,
    MONTH_S,
    REDIRECT,
    REPLY,
    UNSENT,
    Endpoint,
    World,
)

# --- success -----------------------------------------------------------------------------


async def test_start_returns_the_url_and_stores_the_attempt() -> None:
    """The URL asks for what is configured, and state and PKCE bind it to the attempt."""
    world = World()
    url, attempt = await start(world.plan)
    assert url.startswith(f"{ACCOUNTS}/connect/authorize?")
    asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert attempt.verifier is not None
    assert asked == {
        "response_type": "code",
        "client_id": "app-1",
        "redirect_uri": REDIRECT,
        "scope": "cfgateway offline_access",
        "state": attempt.state.reveal(),
        "code_challenge": oauth2.challenge_s256(attempt.verifier),
        "code_challenge_method": "S256",
    }
    assert await world.store.claim_attempt("default", None, world.clock.time()) == attempt


@pytest.mark.parametrize(
    ("page", "works"),
    [
        *(("http://here.localhost:1/a", True), ("http://localhost:1/a", True), ("http://[::1]:1/a", True)),
        *(("http://there.localhost:1/a", False), ("http://unknown.localhost/a", False)),
        *(("https://there.localhost/a", True), ("https://unknown.example/a", True)),
    ],
)
async def test_a_login_page_without_tls_must_be_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, page: str, works: bool
) -> None:
    """Nobody is sent to a machine that DNS made up (RFC 6749 §3.1)."""
    resolve_by(monkeypatch, here__localhost=["127.0.0.1"], there__localhost=["192.0.2.7"])
    world = World()
    plan = replace(world.plan, authorize_url=page)
    if works:
        assert (await start(plan))[0].startswith(f"{page}?")
        return
    with pytest.raises(Misconfigured, match="use https"):
        await start(plan)
    assert world.store.done == []


@pytest.mark.parametrize("pkce", [True, False])
async def test_finish_saves_the_login_under_the_lock(pkce: bool) -> None:
    """The store is probed and locked before the code is sent, and the login is saved before the unlock."""
    world = World(REPLY, pkce=pkce)
    url, attempt = await start(world.plan)
    assert ("code_challenge" in url) is pkce
    world.store.done.clear()
    login = await finish(world.plan, f"{REDIRECT}?code=the-code-1&state={attempt.state.reveal()}")
    verifier = attempt.verifier.reveal() if attempt.verifier else None
    assert world.endpoint.presented == [("the-code-1", REDIRECT, verifier)]
    assert world.store.done == ["claim", "lock", "probe", "load", "send", "save", "unlock"]
    now = world.clock.time()
    assert login == await MemoryStore.load(world.store, "default")
    assert (login.serial, login.login_at, login.login_expires_at) == (1, now, now + MONTH_S)
    assert (login.token.obtained_at, login.token.lifetime_s) == (now, 3600.0)
    assert (login.client_id, login.token_url) == ("app-1", f"{ACCOUNTS}/connect/token")
    assert login.scope == "cfgateway offline_access"


async def test_new_login_replaces_a_refused_one() -> None:
    """The serial goes on counting, and nothing is left of what was wrong with the old login."""
    world = World(REPLY)
    address = await world.start()
    first = await login_app(replace(world.plan, endpoint=Endpoint(world.store, REPLY)))
    await world.store.save(replace(first, serial=6, refused_at=1.0, presented_at=1.0, answer_lost=True))
    login = await finish(world.plan, address)
    assert login.serial == 7
    assert (login.refused_at, login.presented_at, login.answer_lost) == (None, None, False)


async def test_login_lasts_as_long_as_what_was_granted() -> None:
    """Without a refresh token it ends with the access token; an unknown lifetime counts as five minutes."""
    world = World(TokenReply(Secret("at"), None, None, "cfgateway"))
    login = await finish(world.plan, await world.start())
    assert login.token.lifetime_s == UNKNOWN_LIFETIME_S
    assert login.login_expires_at == world.clock.time() + UNKNOWN_LIFETIME_S
    assert login.scope == "cfgateway"


async def test_bare_code_finishes_the_newest_attempt() -> None:
    """A code that is pasted alone belongs to the login that was started last."""
    world = World(REPLY)
    await world.start()
    await world.clock.advance(60)
    _, newest = await start(world.plan)
    await finish(world.plan, "the-code-1")
    assert newest.verifier is not None
    assert world.endpoint.presented[0][2] == newest.verifier.reveal()


async def test_app_can_log_in_again_at_any_time() -> None:
    """With client credentials there is no refresh token, and the login has no end."""
    world = World(REPLY, REPLY, redirect_uri=None)
    plan = replace(world.plan, app=replace(world.plan.app, grant="client_credentials"))
    await login_app(plan)
    login = await login_app(plan)
    assert (login.serial, login.refresh_token, login.login_expires_at) == (2, None, None)
    with pytest.raises(LoginFailed, match="redirect_uri"):
        await start(world.plan)


# --- messages of failures ----------------------------------------------------------------


async def test_each_cause_of_failure_has_its_own_message() -> None:
    """State, replay, age, denial, server error, refused code, wrong URL: all messages differ."""
    messages = []

    world = World(GrantRefused("x"), REPLY)
    address = await world.start()
    state = address.split("state=")[1]
    messages.append(await world.failure("another-code-1"))
    await finish(world.plan, address)
    messages.append(await world.failure(address))
    messages.append(await world.failure(f"?code=the-code-1&state={state}x"))

    world = World()
    address = await world.start()
    await world.clock.advance(ATTEMPT_LIFETIME_S + 1)
    messages.append(await world.failure(address))
    messages.append(await World().failure("the-code-1"))

    for query in ("error=access_denied", "error=server_error", "error=invalid_scope", "error=marker"):
        messages.append(await World().failure(f"{REDIRECT}?{query}"))
    for kind in (oauth2.REFUSED_REDIRECT_URI, oauth2.REFUSED_VERIFIER):
        world = World(GrantRefused("x", description=kind))
        messages.append(await world.failure(await world.start()))
    for wrong in (
        f"https://elsewhere.example/?code=the-code-1&state={state}",
        f"{ACCOUNTS}/home/error?errorId=1",
        f"{ACCOUNTS}/connect/authorize?client_id=app-1",
        f"{REDIRECT}?code=the-code-1&state={state}&iss=https://evil.example",
        REDIRECT,
        f"{REDIRECT}?code=the-code-1",
    ):
        messages.append(await World().failure(wrong))

    assert len(set(messages)) == len(messages)


async def test_next_step_names_the_account() -> None:
    """With several accounts the message names the one to log in."""
    acme = World(app=replace(APP, account="acme"))
    assert "with: cfproxy login --account acme" in await acme.failure("the-code-1")
    assert "with: cfproxy login" in await World().failure("the-code-1")


async def test_denial_ends_its_attempt() -> None:
    """A redirect with an error counts only for an attempt that was started here, and only once."""
    world = World()
    address = await world.start()
    denial = f"?error=access_denied&state={address.split('state=')[1]}"
    assert "denied" in await world.failure(denial)
    assert "finished already" in await world.failure(denial)
    assert "unknown state" in await world.failure("?error=access_denied&state=forged")


async def test_changed_app_gets_no_code() -> None:
    """A code of one app is not sent in the name of another one, and can still be used by its own."""
    world = World(REPLY)
    address, plan = await world.start(), world.plan
    world.plan = replace(plan, app=replace(APP, client_id="app-2"))
    assert "client_id was changed" in await world.failure(address)
    assert world.endpoint.presented == []
    assert (await finish(plan, address)).serial == 1


# --- when a code is used up --------------------------------------------------------------

WRONG = GrantRefused("the token endpoint at accounts.example refused the code (invalid_grant)")


@pytest.mark.parametrize(
    "failure",
    [
        WRONG,
        GrantRefused("refused", description=oauth2.REFUSED_VERIFIER),
        GrantRefused("refused", code="access_denied"),
    ],
    ids=["unknown code", "another verifier", "access_denied"],
)
async def test_wrong_code_does_not_use_the_attempt_up(failure: CfproxyError) -> None:
    """A code that was damaged or belongs to another login is refused; the right one still works."""
    world = World(failure, failure, REPLY)
    address = await world.start()
    for wrong in ("another-code", address.replace("code=", "code=x")):
        assert "refused" in await world.failure(wrong)
    assert (await finish(world.plan, address)).serial == 1
    assert "finished already" in await world.failure(address)


async def test_wrong_code_does_not_make_an_older_attempt_the_newest() -> None:
    """Put back, the attempt keeps its time: it expires as it would have."""
    world = World(WRONG, REPLY)
    address = await world.start()
    await world.clock.advance(ATTEMPT_LIFETIME_S - 1)
    await world.failure("another-code")
    await world.clock.advance(2)
    assert "30 minutes" in await world.failure(address)


async def test_reply_without_an_access_token_asks_for_a_new_login() -> None:
    """The code is used up, and there is nothing to save."""
    world = World(TokenReply(None, None, Secret("rt-1"), None))
    with pytest.raises(TokenEndpointUnavailable, match=r"without a usable bearer token; .* start again"):
        await finish(world.plan, await world.start())
    assert await world.store.load("default") is None


@pytest.mark.parametrize("failure", [UNSENT, BAD_APP])
async def test_finish_can_be_repeated_if_the_code_is_unused(failure: CfproxyError) -> None:
    """After an unreachable endpoint or a wrong secret the same address works once that is corrected."""
    world = World(failure, REPLY)
    address = await world.start()
    with pytest.raises(type(failure)) as caught:
        await finish(world.plan, address)
    assert str(failure) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (await finish(world.plan, address)).serial == 1


@pytest.mark.parametrize("step", ["lock", "probe", "load"])
@pytest.mark.parametrize("kind", [StoreUnavailable, StoreUnusable])
async def test_failing_store_costs_no_code(step: str, kind: type[CfproxyError]) -> None:
    """No code is sent while the login could not be saved, and the address stays valid."""
    world = World(REPLY)
    address = await world.start()
    world.store.failing[step] = kind("the store is in trouble")
    with pytest.raises(kind):
        await finish(world.plan, address)
    assert world.endpoint.presented == []
    world.store.failing.clear()
    assert (await finish(world.plan, address)).serial == 1


async def test_lost_answer_is_not_retried() -> None:
    """If the code may have arrived, the message says to log in again."""
    world = World(LOST, REPLY)
    address = await world.start()
    with pytest.raises(TokenEndpointUnavailable, match="start again") as caught:
        await finish(world.plan, address)
    assert caught.value.sent
    assert "finished already" in await world.failure(address)


async def test_attempt_that_is_finished_twice_sends_one_code() -> None:
    """If a browser loads the callback twice, one code is sent, and one of the two gets an error."""
    world = World(REPLY)
    address = await world.start()
    results = await asyncio.gather(*[finish(world.plan, address) for _ in range(2)], return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Login", "LoginFailed"]
    assert len(world.endpoint.presented) == 1


@pytest.mark.parametrize("turns", range(16))
async def test_cancellation_loses_no_login(turns: int) -> None:
    """Wherever ^C strikes: a code that was sent ends in a saved login, another one can be used again."""
    world = World(REPLY, REPLY)
    address = await world.start()
    task = asyncio.ensure_future(finish(world.plan, address))
    for _ in range(turns):
        await asyncio.sleep(0)
    was_done = task.done()
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled() is not was_done
    assert asyncio.all_tasks() == {asyncio.current_task()}
    saved = await world.store.load("default")
    assert (saved is not None) is bool(world.endpoint.presented)
    if saved is None:
        assert (await finish(world.plan, address)).serial == 1


async def test_second_cancellation_loses_no_login() -> None:
    """An impatient second ^C does not interrupt the save."""
    world = World(REPLY)
    address = await world.start()
    task = asyncio.ensure_future(finish(world.plan, address))
    while not world.endpoint.presented:
        await asyncio.sleep(0)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait({task})
    assert task.cancelled()
    assert await MemoryStore.load(world.store, "default") is not None


# --- logging out -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "revoked"),
    [
        ((True, True), True),
        ((True, False), False),
        ((False, False), False),
        ((UNSENT,), None),
        ((True, LOST), None),
    ],
)
async def test_logout_forgets_whatever_the_server_answers(
    outcomes: tuple[bool | CfproxyError, ...], revoked: bool | None
) -> None:
    """Both tokens are revoked if the server can; the login and pending attempts are deleted in any case."""
    world = World(REPLY, *outcomes)
    await finish(world.plan, await world.start())
    other = await world.start()
    assert await logout(world.plan) == LoggedOut(found=True, revoked=revoked)
    assert await world.store.load("default") is None
    assert (
        world.endpoint.presented[1:][:2]
        == [
            ("at-1", "access_token"),
            ("rt-1", "refresh_token"),
        ][: len(outcomes)]
    )
    assert "unknown state" in await world.failure(other)


async def test_logout_of_an_app_revokes_its_one_token() -> None:
    """With client credentials there is only an access token to revoke."""
    world = World(REPLY, True)
    plan = replace(world.plan, app=replace(world.plan.app, grant="client_credentials"))
    await login_app(plan)
    assert await logout(plan) == LoggedOut(found=True, revoked=True)
    assert world.endpoint.presented[1:] == [("at-1", "access_token")]


async def test_logout_without_a_login_asks_nobody() -> None:
    """There is nothing to revoke, and that is no error."""
    world = World()
    assert await logout(world.plan) == LoggedOut(found=False, revoked=None)
    assert world.endpoint.presented == []


@pytest.mark.parametrize("changes", [{"client_id": "app-2"}, {"token_url": "https://other.example/token"}])
async def test_token_is_not_sent_to_another_server(changes: dict[str, Any]) -> None:
    """A login of another app or endpoint is neither sent anywhere nor deleted."""
    world = World(REPLY)
    login = await finish(world.plan, await world.start())
    plan = replace(world.plan, app=replace(APP, **changes))
    assert await logout(plan) == LoggedOut(found=False, revoked=None, others=True)
    assert len(world.endpoint.presented) == 1
    assert await world.plan.store.load(APP.account) == login
