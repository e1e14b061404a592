"""Logging in and out: from the authorize URL over a stored attempt to a stored `Login`.

Invariants:
1. A code is sent only after the store was found to be writable and was locked. From then on neither ^C nor a
   closed browser interrupts before the login is saved.
2. An attempt gives one login at most. It is put back as long as its own code may still be valid: a wrong code
   does not use it up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cfproxy.auth import oauth2
from cfproxy.auth.interfaces import TokenEndpoint, TokenStore
from cfproxy.auth.models import App, Attempt, AttemptGone, Login, TokenReply, new_login
from cfproxy.auth.redirect import check_redirect, explain_error, parse_redirect
from cfproxy.clock import Clock
from cfproxy.errors import (
    CfproxyError,
    GrantRefused,
    LoginFailed,
    Misconfigured,
    StoreUnavailable,
    StoreUnusable,
    TokenEndpointUnavailable,
)
from cfproxy.hosts import is_loopback, resolves_here
from cfproxy.secret import Secret

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LoginPlan:
    """What a login needs.

    Args:
        app: the app that logs in; the login is used with no other one.
        redirect_uri: as registered; None with client credentials.
        authorize_url: the page where a person logs in; its origin is the expected issuer (RFC 9207).
        pkce: whether to bind the code to the attempt (RFC 7636).
        refresh_token_lifetime_s: seconds for which a login with a refresh token lasts.
        store: keeps attempts and the login.
        endpoint: exchanges codes.
        clock: its wall clock gives `login_at`.
        lock_timeout_s: seconds to wait for a refresh by another process.
    """

    app: App
    redirect_uri: str | None
    authorize_url: str
    pkce: bool
    refresh_token_lifetime_s: float
    store: TokenStore
    endpoint: TokenEndpoint
    clock: Clock
    lock_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class LoggedOut:
    """What `logout` did.

    Args:
        found: whether there was a login.
        revoked: True if the server revoked all tokens, False if it can't, None if the outcome is unknown or
            there was nothing to revoke.
        others: whether the store has a login of another app or API, which was left alone.
    """

    found: bool
    revoked: bool | None
    others: bool = False


async def start(plan: LoginPlan) -> tuple[str, Attempt]:
    """Return the URL to open in a browser, and the attempt, which is stored for `finish`.

    Raises:
        LoginFailed: there is no redirect_uri.
        Misconfigured, StoreUnavailable, StoreUnusable
    """
    if plan.redirect_uri is None:
        raise LoginFailed("a login in the browser needs redirect_uri; set it as registered for the app")
    page = urlsplit(plan.authorize_url)
    if page.scheme == "http" and not (is_loopback(name := page.hostname or "") or await resolves_here(name)):
        raise Misconfigured("authorize_url does not resolve to this machine; use https for any other")
    # Check first, so that no one logs in in the browser for a login that can't be saved.
    await plan.store.probe(plan.app.account)
    verifier = oauth2.new_verifier() if plan.pkce else None
    attempt = Attempt(
        account=plan.app.account,
        state=oauth2.new_state(),
        verifier=verifier,
        redirect_uri=plan.redirect_uri,
        client_id=plan.app.client_id,
        created_at=plan.clock.time(),
        app_id=plan.app.app_id,
    )
    await plan.store.save_attempt(attempt)
    url = oauth2.build_authorize_url(
        plan.authorize_url,
        client_id=plan.app.client_id,
        redirect_uri=plan.redirect_uri,
        scope=plan.app.scope,
        state=attempt.state,
        challenge=None if verifier is None else oauth2.challenge_s256(verifier),
    )
    return url, attempt


async def finish(plan: LoginPlan, text: str) -> Login:
    """Exchange what came back from the browser for tokens, and save the login.

    Args:
        plan: as given to `start`.
        text: the whole redirect URL, its query, or the bare code (see `redirect.parse_redirect`).

    Raises:
        LoginFailed: each cause with a message of its own.
        Misconfigured, TokenEndpointUnavailable, StoreUnavailable, StoreUnusable
    """
    redirect = parse_redirect(text)
    again = _again(plan)
    check_redirect(
        redirect, redirect_uri=plan.redirect_uri or "", authorize_url=plan.authorize_url, again=again
    )
    if redirect.error is not None:
        if redirect.state is not None:
            await _claim(plan, redirect.state)
        raise LoginFailed(explain_error(redirect.error, again))
    attempt = await _claim(plan, redirect.state)
    assert redirect.code is not None  # noqa: S101 - check_redirect has made sure
    code = _Code(redirect.code)
    try:
        if attempt.client_id != plan.app.client_id:
            raise LoginFailed(f"client_id was changed since this login was started; {again}")
        async with plan.store.lock(plan.app.account, plan.lock_timeout_s):
            return await _uninterrupted(_exchange(plan, attempt, code))
    except (CfproxyError, asyncio.CancelledError):
        if code.unused:
            with contextlib.suppress(StoreUnavailable, StoreUnusable):
                await plan.store.save_attempt(attempt)
        raise


async def login_app(plan: LoginPlan) -> Login:
    """Request a token in the app's own name and save it: the login of client credentials.

    Raises:
        Misconfigured, TokenEndpointUnavailable, StoreUnavailable, StoreUnusable
    """

    async def fetch() -> Login:
        before = await _load_before(plan)
        requested_at = plan.clock.time()
        reply = await plan.endpoint.client_credentials()
        login = _new_login(plan, reply, requested_at, before)
        await plan.store.save(login)
        return login

    async with plan.store.lock(plan.app.account, plan.lock_timeout_s):
        return await _uninterrupted(fetch())


async def logout(plan: LoginPlan) -> LoggedOut:
    """Revoke the login's tokens if possible, and forget them in any case; another app's login stays.

    Raises:
        StoreUnavailable, StoreUnusable
    """

    async def forget() -> LoggedOut:
        login = await plan.store.load(plan.app.account)
        if login is not None and not login.belongs_to(plan.app):
            return LoggedOut(found=False, revoked=None, others=True)
        revoked = None if login is None else await _revoke(plan, login)
        await plan.store.delete(plan.app.account)
        return LoggedOut(found=login is not None, revoked=revoked)

    async with plan.store.lock(plan.app.account, plan.lock_timeout_s):
        return await _uninterrupted(forget())


@dataclass(slots=True)
class _Code:
    """A code; `unused` as long as the server has certainly not used up that of the attempt."""

    value: Secret
    unused: bool = True


async def _claim(plan: LoginPlan, state: str | None) -> Attempt:
    try:
        return await plan.store.claim_attempt(plan.app.account, state, plan.clock.time())
    except AttemptGone as gone:
        reason = gone.reason
    unknown_state = reason == "unknown" and state is not None
    texts = {
        "used": "this login was finished already; if it was not by you, log out, and",
        "expired": "this login was started more than 30 minutes ago, and its code has expired;",
        "foreign": "this login was started for another app or API (client_id, token_url or upstream differ); "
        "finish it with the configuration that it was started with, or",
        "unknown": "a bare code needs a login that was started here, and none is pending;",
    }
    text = texts[reason]
    if unknown_state:
        text = (
            "this address belongs to no login that was started here (unknown state); "
            "paste the one that this login ended on, or"
        )
    raise LoginFailed(f"{text} {_again(plan)}", curable=unknown_state)


async def _load_before(plan: LoginPlan) -> Login | None:
    """Return the login to be replaced, after making sure that it can be."""
    await plan.store.probe(plan.app.account)
    return await plan.store.load(plan.app.account)


async def _exchange(plan: LoginPlan, attempt: Attempt, code: _Code) -> Login:
    before = await _load_before(plan)
    requested_at = plan.clock.time()
    code.unused = False
    try:
        reply = await plan.endpoint.exchange(code.value, attempt.redirect_uri, attempt.verifier)
        login = _new_login(plan, reply, requested_at, before)
    except TokenEndpointUnavailable as error:
        code.unused = not error.sent
        advice = (
            f"the code may be used up: {_again(plan)}"
            if error.sent
            else f"then give the same address again: {finish_command(plan)}"
        )
        raise replace(error, message=f"{error.message}; {advice}") from None
    except Misconfigured:
        # Servers check the app before the code. If this one used the code up all the same, the next attempt
        # fails with that message.
        code.unused = True
        raise
    except GrantRefused as error:
        code.unused = True  # the attempt's own code may be another one, of which this is a part
        raise LoginFailed(_refusal(plan, error.description)) from None
    await plan.store.save(login)
    return login


def _refusal(plan: LoginPlan, description: str) -> str:
    if description == oauth2.REFUSED_REDIRECT_URI:
        return (
            "the code was refused because redirect_uri differs from the registered one; correct redirect_uri "
            f"to the letter, then {_again(plan)}"
        )
    if description == oauth2.REFUSED_VERIFIER:
        return f"the code was refused because it belongs to another attempt (PKCE); {_again(plan)}"
    return (
        "the code was refused: it is incomplete, over 30 minutes old, used already, or not of this app and "
        f"redirect_uri; give the whole address with '{finish_command(plan)}', or {_again(plan)}"
    )


def _new_login(plan: LoginPlan, reply: TokenReply, requested_at: float, before: Login | None) -> Login:
    serial = 1 if before is None else before.serial + 1
    lasts_s = plan.refresh_token_lifetime_s
    if reply.refresh_token is None:
        lasts_s = reply.token(requested_at).lifetime_s  # the login ends with its access token
    return new_login(plan.app, reply, requested_at, serial=serial, expires_at=requested_at + lasts_s)


async def _revoke(plan: LoginPlan, login: Login) -> bool | None:
    try:
        results = [await plan.endpoint.revoke(login.token.value, "access_token")]
        if login.refresh_token is not None:
            results.append(await plan.endpoint.revoke(login.refresh_token, "refresh_token"))
    except CfproxyError:
        return None
    return all(results)


def finish_command(plan: LoginPlan) -> str:
    """Return the command line that finishes a login that was started."""
    return f"{plan.app.login_command} --finish URL"


def _again(plan: LoginPlan) -> str:
    return f"start again with: {plan.app.login_command}"


async def _uninterrupted(work: Coroutine[Any, Any, _T]) -> _T:
    """Run `work` to its end, and only then let a cancellation through.

    A shield alone is not enough: a command's event loop ends with its main task.
    """
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled and not task.cancelled():
        task.exception()  # Retrieved, or asyncio would log it; the caller gets the cancellation.
        raise asyncio.CancelledError
    return task.result()
