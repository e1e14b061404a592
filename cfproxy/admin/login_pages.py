"""Logging in by a browser: the login page, its two forms, and the callback.

Owns: which account a redirect belongs to, and which browser began its login.
Must not know: how a login is begun and finished (`login.py`), HTML.
Invariants: a redirect that came to `/callback` is spent only if this browser began that login; nothing of
a redirect is shown or logged.

The cookie holds the hash of `state`, so that it is of no use without the redirect. It is sent along with a
redirect of another site (SameSite=Lax), which is what the accounts server's is.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import urlsplit

from aiohttp import web

from cfproxy.admin.access import CALLBACK, FormToken, check_key, wants_html
from cfproxy.admin.pages import LoginView, render_departure, render_login, render_note
from cfproxy.admin.view import View
from cfproxy.auth import login
from cfproxy.auth.login import LoginPlan
from cfproxy.auth.models import ATTEMPT_LIFETIME_S, App, TokenStatus
from cfproxy.auth.redirect import parse_redirect
from cfproxy.errors import CfproxyError, LoginFailed
from cfproxy.secret import Secret

_ELSEWHERE = (
    "This login was not begun in this browser, or not under this name, so it is not finished by itself. If "
    "you began it: copy the address of this page from its question mark to the end, and paste that where you "
    "began, on the login page or at 'cfproxy login'. If not: close this page; nothing has happened."
)


class LoginAccount(Protocol):
    """What a login needs of an account."""

    @property
    def app(self) -> App:
        """The account's app."""

    @property
    def store_location(self) -> str:
        """Where its login is kept."""

    @property
    def redirect_uri(self) -> str | None:
        """Where its login brings the browser; None without a login in a browser."""

    @property
    def login_plan(self) -> LoginPlan:
        """How it logs in."""

    @property
    def access_keys(self) -> tuple[Secret, ...]:
        """The keys that open this account."""

    @property
    def asks_for_key(self) -> bool:
        """Whether its callers need one."""

    async def look(self, *, at_once: bool = False) -> TokenStatus:
        """Return the broker's state, having looked at the store if that is due, or in any case."""


class Describe(Protocol):
    """Returns the texts of an account."""

    async def __call__(self, account: LoginAccount) -> View:
        """Return them."""


class LoginPages:
    """The handlers.

    Args:
        accounts: who can log in; may change while it is used.
        describe: the texts of an account.
        token: what our own forms carry.
    """

    def __init__(self, accounts: Sequence[LoginAccount], describe: Describe, token: FormToken) -> None:
        self._accounts = accounts
        self._describe = describe
        self._token = token

    @property
    def redirect_hosts(self) -> tuple[str, ...]:
        """The hosts of all redirect URIs, as `Host` has them."""
        uris = (account.redirect_uri for account in self._accounts)
        return tuple(urlsplit(uri).netloc.rpartition("@")[2].lower() for uri in uris if uri)

    async def show(self, request: web.Request) -> web.Response:
        """Answer `GET /login?account=NAME`."""
        return await self._page(self._account(request.query.get("account")))

    async def act(self, request: web.Request) -> web.Response:
        """Answer `POST /login`: begin a login, or with `redirected` finish it.

        A page's form gets pages; a program, which sends a header of its own, gets JSON or a problem.

        Raises:
            KeyRequired, LoginFailed, Misconfigured, TokenEndpointUnavailable, StoreUnavailable, StoreUnusable
        """
        form = await request.post()
        account = self._account(_text(form.get("account")))
        if account.asks_for_key:
            check_key(request, account.access_keys, f"no access key opens account '{account.app.account}'")
        redirected = _text(form.get("redirected"))
        if not wants_html(request):
            return await self._act_for_program(account, redirected)
        try:
            if redirected is None:
                return await self._depart(request, account)
            await self._finish(account, redirected)
        except CfproxyError as error:
            return await self._page(account, error, pasted=redirected is not None)
        raise web.HTTPSeeOther(f"/login?account={account.app.account}")

    async def receive(self, request: web.Request) -> web.Response:
        """Answer `GET /callback`, where a redirect arrives that was forwarded here."""
        query, alone = request.rel_url.raw_query_string, self._is_public(request)
        try:
            came = parse_redirect(f"?{query}")
            account = None if came.state is None else self._who_began(request, came.state)
            if account is None:
                title = "One step is left to you"
                return render_note(title, _ELSEWHERE, tone="warn", alone=alone, status=403)
            await self._finish(account, f"?{query}")
        except CfproxyError as error:
            again = None if alone else ("/login", "To the login page")
            status = _status_of(error)
            return render_note(
                "Not logged in", error.message, tone="bad", link=again, alone=alone, status=status
            )
        text = f"Account '{account.app.account}' is logged in. You can close this tab."
        link = None if alone else ("/", "To the status page")
        return render_note("Logged in", text, link=link, alone=alone)

    async def _act_for_program(self, account: LoginAccount, redirected: str | None) -> web.Response:
        name = account.app.account
        if redirected is None:
            url, _ = await login.start(account.login_plan)
            return web.json_response({"account": name, "authorize_url": url})
        await self._finish(account, redirected)
        return web.json_response({"account": name, "status": "logged-in"})

    async def _depart(self, request: web.Request, account: LoginAccount) -> web.Response:
        url, attempt = await login.start(account.login_plan)
        response = render_departure(url)
        redirect_uri = urlsplit(attempt.redirect_uri)
        public = request.headers.get("Host", "").lower() == redirect_uri.netloc.lower()
        response.set_cookie(
            _cookie_of(account),
            _hash(attempt.state.reveal()),
            max_age=int(ATTEMPT_LIFETIME_S),
            # Under the redirect URI's own name the browser comes back to that one's path.
            path=redirect_uri.path or "/" if public else CALLBACK,
            secure=public and redirect_uri.scheme == "https",
            httponly=True,
            samesite="Lax",
        )
        return response

    async def _finish(self, account: LoginAccount, redirected: str) -> None:
        if account.app.grant == "client_credentials":
            raise LoginFailed("this app logs in by itself (client_credentials); there is nothing to finish")
        await login.finish(account.login_plan, redirected)
        await account.look(at_once=True)

    def _who_began(self, request: web.Request, state: str) -> LoginAccount | None:
        wanted = _hash(state)
        for account in self._accounts:
            if hmac.compare_digest(request.cookies.get(_cookie_of(account), "").encode(), wanted.encode()):
                return account
        return None

    def _is_public(self, request: web.Request) -> bool:
        """Return whether only the callback can be had under the name that it came by."""
        return request.headers.get("Host", "").lower() in self.redirect_hosts

    def _account(self, name: str | None) -> LoginAccount:
        for account in self._accounts:
            if name is None or account.app.account == name:
                return account
        raise web.HTTPNotFound(reason="No such account")

    async def _page(
        self, account: LoginAccount, error: CfproxyError | None = None, *, pasted: bool = False
    ) -> web.Response:
        asked = LoginView(
            name=account.app.account,
            form_token=self._token.value,
            redirect_uri=account.redirect_uri,
            # What another process logs in would not reach a store in this one's memory.
            command="" if account.store_location == "memory" else account.app.login_command,
            alert="" if error is None else error.message,
            pasted=pasted,
        )
        response = render_login(
            asked, await self._describe(account), status=200 if error is None else _status_of(error)
        )
        retry_after_s = getattr(error, "retry_after_s", None)
        if retry_after_s is not None:
            response.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        return response


def _status_of(error: CfproxyError) -> int:
    # What was pasted or received is at fault, and not this server.
    return 400 if isinstance(error, LoginFailed) else error.status


def _cookie_of(account: LoginAccount) -> str:
    return f"cfproxy-login-{account.app.account}"


def _hash(state: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(state.encode()).digest()).decode().rstrip("=")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
