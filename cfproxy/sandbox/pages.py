"""The pages for the user's browser: consent, paste and refusal.

Everything from a request is escaped. No script runs, nothing is loaded from other origins, no other page can
frame them, and their address is not sent as a referrer.
"""

from __future__ import annotations

import re
from html import escape
from importlib.resources import files
from string import Template
from urllib.parse import urlsplit

from aiohttp import web

_SCOPE_TEXTS = {
    "cfgateway": "Read and change the studio's data through the API",
    "offline_access": "Stay signed in while you are away",
}


def render_consent(app_name: str, scopes: list[str], redirect_uri: str) -> web.Response:
    """Return the consent page; its form is sent to the same address with `decision`."""
    permissions = "".join(
        f"<li>{escape(_SCOPE_TEXTS[scope])} <span class='soft'>({escape(scope)})</span></li>"
        for scope in scopes
    )
    body = (
        f"<p><strong>{escape(app_name)}</strong> asks for permission to act for you. It could then:</p>"
        f"<ul>{permissions}</ul>"
        f"<p class='soft'>Your decision is sent to {escape(redirect_uri)}</p>"
        "<form method='post'>"
        "<button class='primary' name='decision' value='allow'>Yes, Allow</button>"
        "<button name='decision' value='deny'>No</button></form>"
    )
    # Browsers apply form-action to the redirect after the form as well.
    return _page("The Demo Studio asks for your consent", body, form_action=f"'self' {_source(redirect_uri)}")


def render_paste(redirected_url: str) -> web.Response:
    """Return a page with the redirected URL, for the user to paste into `cfproxy login`."""
    body = (
        "<p>Copy this address and paste it into cfproxy login:</p>"
        f"<pre tabindex='0'>{escape(redirected_url)}</pre>"
        "<p class='soft'>One click selects all of it. Its code works once and expires soon.</p>"
    )
    return _page("Almost there", body)


def render_refusal(reason: str) -> web.Response:
    """Return a page that says why a login cannot continue, without a redirect."""
    return _page("This login cannot continue", f"<p>{escape(reason)}</p>", status=400)


async def serve_style(_request: web.Request) -> web.Response:
    """Return the style sheet of all pages."""
    return web.Response(text=_read("style.css"), content_type="text/css", charset="utf-8")


def _page(title: str, body: str, *, status: int = 200, form_action: str = "'none'") -> web.Response:
    html = Template(_read("page.html")).substitute(title=escape(title), body=body)
    policy = (
        f"default-src 'none'; style-src 'self'; form-action {form_action}; "
        "base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return web.Response(text=html, content_type="text/html", status=status, headers=headers)


def _source(url: str) -> str:
    """Return `url`'s origin as a CSP source, or its scheme if CSP has no syntax for the host."""
    parts = urlsplit(url)
    if re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]+)?", parts.netloc):
        return f"{parts.scheme}://{parts.netloc}"
    return f"{parts.scheme}:"


def _read(name: str) -> str:
    return files("cfproxy.sandbox").joinpath(name).read_text(encoding="utf-8")
