"""Who may use the admin listener.

Owns: the checks before any of its handlers runs.
Must not know: what the handlers do.
Invariants: a page of another site can make a browser come here, but neither read an answer nor change
anything; whatever changes something is a POST with a header that no form can send, or a form with a token
that only our own pages have.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cfproxy.errors import CrossSite, KeyRequired
from cfproxy.http1.headers import OWNED, OWNED_PREFIX, normalise
from cfproxy.proxy.access import AccessRules
from cfproxy.secret import Secret

if TYPE_CHECKING:  # the rules are made at the start, aiohttp's server is imported later
    from aiohttp import web

# Where a person may arrive by a link, or be sent back to by the accounts server.
PAGES = frozenset({"/", "/login", "/callback"})
CALLBACK = "/callback"
# What reverse proxies add to every request, those of foreign forms included.
_ADDED = OWNED - {b"x-cfproxy-key"} | {b"x-amzn-trace-id", b"x-correlation-id", b"x-request-id"}


@dataclass(frozen=True, slots=True)
class AdminRules:
    """Who may ask, and who may act.

    Args:
        looking: for every request.
        keyed: whether callers of any account need a key; then so do actions.
        keys: those that all accounts share.
    """

    looking: AccessRules
    keyed: bool
    keys: tuple[Secret, ...]

    def check(self, request: web.Request, port: int, redirect_hosts: tuple[str, ...]) -> None:
        """Refuse whom `access` keeps out, and web pages of other sites.

        Args:
            request: what came.
            port: the listener's.
            redirect_hosts: the public names that may forward to `/callback`, and to nothing else. What
                comes there proves itself by `state` and cookie, so no key is asked for.

        Raises:
            HostNotAllowed, CrossSite, KeyRequired
        """
        host = request.headers.get("Host", "")
        local = None if request.transport is None else request.transport.get_extra_info("sockname")
        forwarded = request.path == CALLBACK and request.method == "GET"
        named = AccessRules(hosts=self.looking.hosts + redirect_hosts) if forwarded else self.looking
        named.check_host(request.headers.get("Host"), port, local[0] if isinstance(local, tuple) else None)
        if not _is_arrival(request):
            # TLS may end before us, at a proxy that serves this page to others under its name.
            tls = request.headers.get("Origin", "").lower() == f"https://{host}".lower()
            self.looking.check_origin(request.raw_headers, f"{'https' if tls else 'http'}://{host}")
        if not forwarded:
            self.looking.check_key(request.raw_headers)

    def check_action(self, request: web.Request) -> None:
        """Refuse a POST that concerns all accounts without a key where keys are asked for.

        Raises:
            KeyRequired
        """
        if self.keyed:
            check_key(request, self.keys, "no access key is shared by all accounts")


def check_key(request: web.Request, keys: tuple[Secret, ...], none: str) -> None:
    """Refuse a request without one of the keys; without any key nobody gets in.

    Raises:
        KeyRequired
    """
    if not keys:
        raise KeyRequired(f"{none}; put one into access.keys at the top")
    AccessRules(keys=keys).check_key(request.raw_headers)


class FormToken:
    """Tells our own pages' forms from others'; new with each process."""

    def __init__(self) -> None:
        self.value = secrets.token_urlsafe(32)

    async def check(self, request: web.Request) -> None:
        """Refuse a POST that a page of another site could have sent.

        Raises:
            CrossSite
        """
        if has_custom_header(request):
            return
        form = await request.post() if request.content_type == "application/x-www-form-urlencoded" else {}
        given = form.get("token")
        if isinstance(given, str) and hmac.compare_digest(given.encode(), self.value.encode()):
            return
        if given is not None:
            raise CrossSite("this form is from before the last start of cfproxy; load the page again")
        raise CrossSite("send this POST with a header of your own, such as 'X-Cfproxy-Admin: 1'")


def has_custom_header(request: web.Request) -> bool:
    """Return whether a header is there that would have cost a page of another site a CORS preflight."""
    names = {normalise(name) for name, _ in request.raw_headers} - _ADDED
    return any(name.startswith(b"x-") and not name.startswith(OWNED_PREFIX) for name in names)


def wants_html(request: web.Request) -> bool:
    """Return whether a person is looking."""
    return "text/html" in request.headers.get("Accept", "")


def _is_arrival(request: web.Request) -> bool:
    """Return whether a link or a redirect of another site brought a person to one of the pages.

    That changes nothing here, and the other site sees nothing of it: pages can't be framed, and lose
    their opener (Cross-Origin-Opener-Policy).
    """
    headers = request.headers
    return (
        request.method in {"GET", "HEAD"}
        and request.path in PAGES
        and "Origin" not in headers
        and ("Sec-Fetch-Site" not in headers or _fetched_as(headers) == ("navigate", "document"))
    )


def _fetched_as(headers: Mapping[str, str]) -> tuple[str, str]:
    return headers.get("Sec-Fetch-Mode", ""), headers.get("Sec-Fetch-Dest", "")
