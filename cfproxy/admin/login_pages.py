"""Logging in by a browser: the login page, its two forms, and the callback.

Invariants:
1. A redirect that arrives at `/callback` is used only if this browser started that login.
2. No part of a redirect is shown or logged.

The cookie holds the hash of `state`, so it is useless without the redirect. With SameSite=Lax, browsers send
it along with the accounts server's redirect, which comes from another site.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from cfproxy.admin.access import CALLBACK, FormToken, check_key, wants_html
from cfproxy.admin.interfaces import ServedAccount
from cfproxy.admin.messages import AdminRequest, AdminResponse, HttpError, json_response
from cfproxy.admin.pages import render_departure, render_login, render_note
from cfproxy.admin.view import View
from cfproxy.auth import login
from cfproxy.auth.models import ATTEMPT_LIFETIME_S, Attempt
from cfproxy.auth.redirect import parse_redirect
from cfproxy.errors import CfproxyError, LoginFailed

_ELSEWHERE = (
    "This login was not started in this browser, or not under this host name, so it cannot be completed "
    "automatically. If you started it: copy this page's address from the question mark to the end, and "
    "paste it where you started, on the login page or at 'cfproxy login'. If not: close this page; nothing "
    "has changed."
)

# At once: each works on the store, or asks the token endpoint, even if its client has left.
LOGINS_MAX = 16

Describe = Callable[[ServedAccount], Awaitable[View]]


class LoginPages:
    """The handlers of `/login` and `/callback`.

    Args:
        accounts: the accounts; may change.
        describe: returns the view of an account.
        token: the CSRF token of our forms.
    """

    def __init__(self, accounts: Sequence[ServedAccount], describe: Describe, token: FormToken) -> None:
        self._accounts = accounts
        self._describe = describe
        self._token = token
        self._acting = 0

    @property
    def redirect_hosts(self) -> tuple[str, ...]:
        """The hosts of all redirect URIs, as in a `Host` header."""
        uris = (account.redirect_uri for account in self._accounts)
        return tuple(urlsplit(uri).netloc.rpartition("@")[2].lower() for uri in uris if uri)

    async def show(self, request: AdminRequest) -> AdminResponse:
        """Handle `GET /login?account=NAME`."""
        return await self._page(self._account(request.query.get("account")))

    def check_caller(self, request: AdminRequest) -> None:
        """Refuse a caller who has shown a key of no account, if each account requires one.

        Raises:
            KeyRequired
        """
        if all(account.settings.access.keys for account in self._accounts):
            keys = tuple({key for account in self._accounts for key in account.access_keys})
            check_key(request, keys, "no access key selects an account")

    async def act(self, request: AdminRequest) -> AdminResponse:
        """Handle `POST /login`: start a login, or complete it with `redirected`.

        A browser gets pages; a program, which sends `X-Cfproxy-Admin`, gets JSON or a problem document.

        Raises:
            KeyRequired, LoginFailed, Misconfigured, TokenEndpointUnavailable, StoreUnavailable, StoreUnusable
        """
        form = await request.form()
        account = self._account(form.get("account"))
        if account.settings.access.keys:
            none = f"no access key selects account '{account.app.account}'"
            check_key(request, account.access_keys, none)
        name, is_page = account.app.account, wants_html(request)
        redirected = form.get("redirected")
        self._acting += 1
        try:
            if self._acting > LOGINS_MAX:
                raise LoginFailed("too many logins at once; try again in a moment")
            if redirected is not None:
                await self._finish(account, redirected)
                if is_page:
                    return AdminResponse(status=303, headers={"Location": f"/login?account={name}"})
                return json_response({"account": name, "status": "logged-in"})
            url, attempt = await login.start(account.login_plan)
        except CfproxyError as error:
            if not is_page:
                raise
            return await self._page(account, error, pasted=redirected is not None)
        finally:
            self._acting -= 1
        if not is_page:
            return json_response({"account": name, "authorize_url": url})
        response = render_departure(url)
        public = _is_at(request, attempt.redirect_uri)
        response.headers["Set-Cookie"] = _render_cookie(name, attempt, public=public)
        return response

    async def receive(self, request: AdminRequest) -> AdminResponse:
        """Handle `GET /callback`, to which the redirect URI may forward."""
        query = f"?{request.query_string}"
        # Under the redirect URI's own name only the callback can be reached: no style sheet, no other page.
        alone = (request.header("Host") or "").lower() in self.redirect_hosts
        try:
            redirect = parse_redirect(query)
            account = None if redirect.state is None else self._starter(request, redirect.state)
            if account is None:
                return render_note("One more step", _ELSEWHERE, tone="warn", alone=alone, status=403)
            await self._finish(account, query)
        except CfproxyError as error:
            link = None if alone else ("/login", "Go to the login page")
            status = _status_of(error)
            return render_note(
                "Not logged in", error.message, tone="bad", link=link, alone=alone, status=status
            )
        text = f"Account '{account.app.account}' is logged in. You can close this tab."
        link = None if alone else ("/", "Go to the status page")
        return render_note("Logged in", text, link=link, alone=alone)

    async def _finish(self, account: ServedAccount, redirected: str) -> None:
        if account.app.grant == "client_credentials":
            raise LoginFailed(
                "this app logs in by itself (client_credentials); there is no login to complete"
            )
        await login.finish(account.login_plan, redirected)
        await account.token_source.check_store(at_once=True)

    def _starter(self, request: AdminRequest, state: str) -> ServedAccount | None:
        """Return the account for which this browser started the login with that `state`."""
        expected = _hash(state).encode()
        for account in self._accounts:
            cookie = request.cookie(_cookie_name(account.app.account))
            if hmac.compare_digest(cookie.encode(), expected):
                return account
        return None

    def _account(self, name: str | None) -> ServedAccount:
        for account in self._accounts:
            if name is None or account.app.account == name:
                return account
        raise HttpError(404, "No such account")

    async def _page(
        self, account: ServedAccount, error: CfproxyError | None = None, *, pasted: bool = False
    ) -> AdminResponse:
        response = render_login(
            account.app.account,
            await self._describe(account),
            form_token=self._token.value,
            redirect_uri=account.redirect_uri,
            # A login by another process would not reach a store in this process's memory.
            command="" if account.store.location == "memory" else account.app.login_command,
            error="" if error is None else error.message,
            pasted=pasted,
            status=200 if error is None else _status_of(error),
        )
        retry_after_s = getattr(error, "retry_after_s", None)
        if retry_after_s is not None:
            response.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        return response


def _status_of(error: CfproxyError) -> int:
    # The redirect is wrong, not this server.
    return 400 if isinstance(error, LoginFailed) else error.status


def _is_at(request: AdminRequest, uri: str) -> bool:
    """Return whether a request came to the host of `uri`."""
    return (request.header("Host") or "").lower() == urlsplit(uri).netloc.lower()


def _render_cookie(account: str, attempt: Attempt, *, public: bool) -> str:
    """Return the cookie that ties a login to this browser.

    Args:
        account: the account's name.
        attempt: the login that was started.
        public: whether the request came to the redirect URI's host, so that the browser will return to
            that URI's path; otherwise it returns to `/callback`.
    """
    redirect_uri = urlsplit(attempt.redirect_uri)
    path = redirect_uri.path or "/" if public else CALLBACK
    value = f"{_cookie_name(account)}={_hash(attempt.state.reveal())}"
    secure = "; Secure" if public and redirect_uri.scheme == "https" else ""
    return f"{value}; HttpOnly; Max-Age={ATTEMPT_LIFETIME_S:.0f}; Path={path}; SameSite=Lax{secure}"


def _cookie_name(account: str) -> str:
    return f"cfproxy-login-{account}"


def _hash(state: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(state.encode()).digest()).decode().rstrip("=")
