"""The pages as HTML: the templates of `static/`, filled with text.

Invariants:
1. Everything put into a template is escaped, except other templates.
2. No page contains inline scripts or styles; the Content-Security-Policy limits what a page may load and
   send, and who may frame it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from cfproxy import __version__
from cfproxy.admin.messages import AdminResponse, HttpError
from cfproxy.admin.view import View, clock_text

_TYPES = {"style.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_NO_REQUEST: View = dict.fromkeys(
    ("at", "account", "method", "path", "status", "queue", "token", "upstream", "total", "note", "tone"), ""
)


def render_status(
    summary: View,
    accounts: Mapping[str, View],
    pacing: Mapping[str, View],
    requests: Sequence[View],
    *,
    logins: Sequence[str],
    try_url: str,
    last_event_id: str,
) -> AdminResponse:
    """Return the status page.

    Args:
        summary: see `view_summary`.
        accounts: by name (see `view_account`).
        pacing: by upstream (see `view_pacing`).
        requests: newest first (see `view_request`).
        logins: names of the accounts that a person can log in.
        try_url: a URL for the first request.
        last_event_id: where the event stream continues.
    """
    cards = [_card(name, view, with_login=name in logins) for name, view in accounts.items()]
    body = _fill(
        "status.html",
        summary,
        accounts_title="Account" if len(accounts) == 1 else "Accounts",
        accounts=_Html("".join(cards)),
        pacing=_Html("".join(_pacing_card(upstream, view) for upstream, view in pacing.items())),
        rows=_Html("".join(_row(view) for view in requests)),
        empty_row=_Html(_row(_NO_REQUEST)),
        requests_hidden=_hidden(bool(requests)),
        table_hidden=_hidden(not requests),
        more_hidden=_hidden(not summary["more"]),
        many="many" if len(accounts) > 1 else "one",
        try_url=try_url,
    )
    return _page(str(summary["title"]), body, names=" ".join(accounts), after=last_event_id)


def render_login(
    name: str,
    account: View,
    *,
    form_token: str,
    redirect_uri: str | None,
    command: str,
    error: str = "",
    pasted: bool = False,
    status: int = 200,
) -> AdminResponse:
    """Return the login page of one account.

    Args:
        name: the account's name.
        account: see `view_account`.
        form_token: the CSRF token.
        redirect_uri: where the login sends the browser; None without a login in a browser.
        command: the command that does the same in a terminal; empty if none can.
        error: why the last attempt failed; empty if none did.
        pasted: whether that attempt was a pasted address.
        status: HTTP status.
    """
    steps = _fill(
        "app.html" if redirect_uri is None else "steps.html",
        {"form_token": form_token, "name": name, "command": command, "redirect_uri": redirect_uri or ""},
        described="alert redirected-hint" if pasted else "redirected-hint",
        # Screen readers start at the rejected field, and read the reason.
        refused=_Html(' aria-invalid="true" autofocus' if pasted else ""),
        command_hidden=_hidden(not command),
    )
    alert = f'<p class="alert" id="alert" role="alert"><b>Login failed:</b> {escape(error)}</p>'
    body = _fill(
        "login.html",
        account | {"name": name},
        alert=_Html(alert if error else ""),
        steps=_Html(steps),
        done_hidden=_hidden(not account["just_now"]),
        detail_hidden=_hidden(not account["detail"]),
    )
    title = f"{'Not logged in' if error else 'Log in'}: {name} · cfproxy"
    response = _page(title, body, names=name, status=status)
    # With no-referrer, browsers send `Origin: null` even with our own forms (Fetch, "append a request
    # `Origin` header"), as other sites' pages may. Other origins learn nothing either way.
    response.headers["Referrer-Policy"] = "same-origin"
    return response


def render_note(
    title: str,
    text: str,
    *,
    tone: str = "good",
    link: tuple[str, str] | None = None,
    alone: bool = False,
    status: int = 200,
) -> AdminResponse:
    """Return a page with one message.

    Args:
        title: the heading.
        text: the message.
        tone: `good`, `warn` or `bad`.
        link: URL and label of a link below the message.
        alone: whether the page must do without our style sheet and script.
        status: HTTP status.
    """
    more = "" if link is None else f'<p><a href="{escape(link[0])}">{escape(link[1])}</a></p>\n'
    role = "status" if tone == "good" else "alert"
    body = _fill("note.html", {"title": title, "text": text, "tone": tone, "role": role}, more=_Html(more))
    return _page(f"{title} · cfproxy", body, status=status, frame="plain.html" if alone else "page.html")


def render_departure(authorize_url: str) -> AdminResponse:
    """Return a page, for a new tab, that goes to the authorize URL at once.

    Not a redirect: browsers apply a page's `form-action` to every redirect that follows a form, and the
    accounts server may redirect anywhere.
    """
    link = (authorize_url, "Continue to Creative Force")
    response = render_note(
        "Opening Creative Force", "This tab opens the login page of Creative Force.", link=link
    )
    response.headers["Refresh"] = f"0; url={authorize_url}"
    return response


def render_file(name: str) -> AdminResponse:
    """Return one of the files that pages load.

    Raises:
        HttpError: there is no such file.
    """
    if name not in _TYPES:
        raise HttpError(404)
    return AdminResponse(_read(name).encode(), headers={"Content-Type": f"{_TYPES[name]}; charset=utf-8"})


class _Html(str):
    """Text that is markup already, and not escaped again."""

    __slots__ = ()


def _page(
    title: str,
    body: str,
    *,
    names: str = "",
    after: str = "",
    status: int = 200,
    frame: str = "page.html",
) -> AdminResponse:
    html = _fill(frame, {}, title=title, body=_Html(body), names=names, after=after, version=__version__)
    return AdminResponse(html.encode(), status, {"Content-Type": "text/html; charset=utf-8"})


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


def _pacing_card(upstream: str, view: View) -> str:
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
    return (Path(__file__).parent / "static" / name).read_text(encoding="utf-8")
