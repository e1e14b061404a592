"""The pages as HTML: templates of `static/` filled with texts.

Owns: which template takes which text, the pages' headers, and the files that they load.
Must not know: requests, logins, where a text comes from.
Invariants: whatever is put into a template is escaped, except templates; no script and no style stands in
a page, and what a page may load, send and be framed by is in its Content-Security-Policy.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template

from aiohttp import web

from cfproxy import __version__
from cfproxy.admin.view import View, clock_text

_TYPES = {"style.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
# A script can put texts into a page, but can't make markup of them (Trusted Types).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "cfproxy",  # else aiohttp tells its version and Python's
    "X-Content-Type-Options": "nosniff",
}
# With no-referrer a browser sends `Origin: null` with our own forms, too (Fetch, section "append a request
# `Origin` header"), and they could not be told from another site's. Other origins learn nothing either way.
FORM_HEADERS = SECURITY_HEADERS | {"Referrer-Policy": "same-origin"}

_NO_REQUEST: View = dict.fromkeys(
    ("at", "account", "method", "path", "status", "queue", "token", "upstream", "total", "note", "tone"), ""
)


@dataclass(frozen=True, slots=True)
class LoginView:
    """What the login page needs besides the account's texts.

    Args:
        name: the account.
        form_token: proves that a form is ours.
        redirect_uri: where the browser ends up; None where there is no login in a browser.
        command: does the same in a terminal; empty where it can't.
        alert: why the last try failed; empty without one.
        pasted: whether it was a pasted address.
    """

    name: str
    form_token: str
    redirect_uri: str | None
    command: str
    alert: str = ""
    pasted: bool = False


def render_status(
    summary: View,
    accounts: Mapping[str, View],
    pacing: Mapping[str, View],
    requests: Sequence[View],
    *,
    logins: Sequence[str],
    try_url: str,
    mark: str,
) -> web.Response:
    """Return the status page.

    Args:
        summary: the first line.
        accounts: by name.
        pacing: by upstream.
        requests: the newest first.
        logins: the accounts that a person can log in.
        try_url: an address that a first request could go to.
        mark: up to where the page tells of requests, for the event stream.
    """
    cards = [_card(name, view, with_login=name in logins) for name, view in accounts.items()]
    body = _fill(
        "status.html",
        summary,
        accounts_title="Account" if len(accounts) == 1 else "Accounts",
        accounts=_Html("".join(cards)),
        pacing=_Html("".join(_pace(upstream, view) for upstream, view in pacing.items())),
        rows=_Html("".join(_row(view) for view in requests)),
        empty_row=_Html(_row(_NO_REQUEST)),
        requests_hidden=_hidden(bool(requests)),
        table_hidden=_hidden(not requests),
        more_hidden=_hidden(not summary["more"]),
        many="many" if len(accounts) > 1 else "one",
        try_url=try_url,
    )
    return _page(str(summary["title"]), body, names=" ".join(accounts), after=mark)


def render_login(login: LoginView, account: View, *, status: int = 200) -> web.Response:
    """Return the login page of one account."""
    texts = {"form_token": login.form_token, "name": login.name, "command": login.command}
    steps = _fill(
        "app.html" if login.redirect_uri is None else "steps.html",
        texts | {"redirect_uri": login.redirect_uri or ""},
        described="alert redirected-hint" if login.pasted else "redirected-hint",
        # Who hears the page begins at the field that was refused, with the reason.
        refused=_Html(' aria-invalid="true" autofocus' if login.pasted else ""),
        command_hidden=_hidden(not login.command),
    )
    said = f'<p class="alert" id="alert" role="alert"><b>That did not work:</b> {escape(login.alert)}</p>'
    body = _fill(
        "login.html",
        account | {"name": login.name},
        alert=_Html(said if login.alert else ""),
        steps=_Html(steps),
        done_hidden=_hidden(not account["just_now"]),
        detail_hidden=_hidden(not account["detail"]),
    )
    title = f"{'Not logged in' if login.alert else 'Log in'}: {login.name} · cfproxy"
    return _page(title, body, names=login.name, status=status, headers=FORM_HEADERS)


def render_note(
    title: str,
    text: str,
    *,
    tone: str = "good",
    link: tuple[str, str] | None = None,
    alone: bool = False,
    status: int = 200,
) -> web.Response:
    """Return a page that says one thing.

    Args:
        title: its heading.
        text: what it says.
        tone: `good`, `warn` or `bad`.
        link: address and label of the way on.
        alone: nothing else can be had where it is shown: no style, no link.
        status: of the answer.
    """
    more = "" if link is None else f'<p><a href="{escape(link[0])}">{escape(link[1])}</a></p>\n'
    role = "status" if tone == "good" else "alert"
    body = _fill("note.html", {"title": title, "text": text, "tone": tone, "role": role}, more=_Html(more))
    return _page(f"{title} · cfproxy", body, status=status, frame="plain.html" if alone else "page.html")


def render_departure(authorize_url: str) -> web.Response:
    """Return the page of the new tab that goes to the authorize URL at once.

    Not a redirect: browsers apply the page's `form-action` to every redirect that follows a form, and where
    the accounts server sends people to log in is its own affair.
    """
    link = (authorize_url, "Go on to Creative Force")
    response = render_note("On the way to Creative Force", "This tab goes there now.", link=link)
    response.headers["Refresh"] = f"0; url={authorize_url}"
    return response


def render_file(name: str) -> web.Response:
    """Return one of the files that pages load.

    Raises:
        HTTPNotFound: it is none of them.
    """
    if name not in _TYPES:
        raise web.HTTPNotFound
    return web.Response(text=_read(name), content_type=_TYPES[name], charset="utf-8")


class _Html(str):
    """A text that is markup already."""

    __slots__ = ()


def _page(
    title: str,
    body: str,
    *,
    names: str = "",
    after: str = "",
    status: int = 200,
    headers: Mapping[str, str] = SECURITY_HEADERS,
    frame: str = "page.html",
) -> web.Response:
    html = _fill(frame, {}, title=title, body=_Html(body), names=names, after=after, version=__version__)
    return web.Response(text=html, content_type="text/html", charset="utf-8", status=status, headers=headers)


def _card(name: str, view: View, *, with_login: bool) -> str:
    urgent, link = bool(view["login_helps"]), ""
    if with_login:
        label, kind = ("Log in", "button primary") if urgent else ("Log in again", "button")
        link = f'<p><a class="{kind}" href="/login?account={escape(name)}">{label}</a></p>'
    return _fill(
        "account.html",
        view | {"name": name},
        login_first=_Html(link if urgent else ""),
        login_last=_Html("" if urgent else link),
        login_max=max(1.0, float(view["login_life"])),
        detail_hidden=_hidden(not view["detail"]),
        command_hidden=_hidden(not view["command"]),
        token_hidden=_hidden(not view["token_at"]),
        login_hidden=_hidden(not view["login_at"]),
        bar_hidden=_hidden(not view["login_life"]),
        retry_hidden=_hidden(not view["retry"]),
    )


def _pace(upstream: str, view: View) -> str:
    return _fill("pacing.html", view, upstream=upstream, note_hidden=_hidden(not view["note"]))


def _row(view: View) -> str:
    return _fill("row.html", view, clock=clock_text(str(view["at"])))


def _hidden(hide: bool) -> _Html:
    return _Html(" hidden" if hide else "")


def _fill(name: str, view: Mapping[str, object], **more: object) -> str:
    texts = {
        key: value if isinstance(value, _Html) else escape(str(value))
        for key, value in (*view.items(), *more.items())
    }
    return _template(name).substitute(texts)


@functools.cache
def _template(name: str) -> Template:
    return Template(_read(name).removesuffix("\n"))


@functools.cache
def _read(name: str) -> str:
    return files("cfproxy.admin").joinpath("static", name).read_text(encoding="utf-8")
