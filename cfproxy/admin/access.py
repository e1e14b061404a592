"""Access to the admin listener: the checks that run before any handler.

A page of another site can make a browser send requests here, but can neither read a response nor change
anything: every change takes a POST with `X-Cfproxy-Admin`, which no form can send, or with a token that only
our own forms contain.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass

from cfproxy.admin.messages import AdminRequest
from cfproxy.errors import CrossSite, KeyRequired
from cfproxy.proxy.access import AccessRules, is_fetched_ahead
from cfproxy.secret import Secret

# Pages that may be the target of a link, or of the accounts server's redirect.
PAGES = frozenset({"/", "/login", "/callback"})
CALLBACK = "/callback"
# A browser sends no header of this name for another site without asking first (CORS preflight). No other
# header counts, because reverse proxies add headers to the forms of other sites, too.
ACTION = "X-Cfproxy-Admin"


@dataclass(frozen=True, slots=True)
class AdminRules:
    """Who may send requests, and who may act on the process.

    Args:
        port: of the listener; None for a Unix socket.
        looking: the rules for every request.
        keyed: whether any account requires an access key; then so do actions.
        keys: the access keys that all accounts share.
    """

    port: int | None
    looking: AccessRules
    keyed: bool
    keys: tuple[Secret, ...]

    def check(self, request: AdminRequest, redirect_hosts: tuple[str, ...]) -> None:
        """Refuse requests that `looking` does not allow, and those of web pages on other sites.

        Args:
            request: any request.
            redirect_hosts: public names that may forward to `/callback` only. A redirect proves itself by
                `state` and cookie, so it needs no key.

        Raises:
            HostNotAllowed, CrossSite, KeyRequired
        """
        host = request.header("Host")
        is_callback = request.path == CALLBACK and request.method == "GET"
        rules = AccessRules(hosts=self.looking.hosts + redirect_hosts) if is_callback else self.looking
        rules.check_host(host, self.port, request.connection.own_names)
        if not _is_navigation(request):
            # A reverse proxy in front of us may terminate TLS and serve these pages under its own name.
            tls = (request.header("Origin") or "").lower() == f"https://{host or ''}".lower()
            self.looking.check_origin(request.raw_headers, f"{'https' if tls else 'http'}://{host or ''}")
        if not is_callback:
            self.looking.check_key(request.raw_headers)

    def check_action(self, request: AdminRequest) -> None:
        """Refuse an action on all accounts without a key, if any account requires keys.

        Raises:
            KeyRequired
        """
        if self.keyed:
            check_key(request, self.keys, "no access key is shared by all accounts")


def check_key(request: AdminRequest, keys: tuple[Secret, ...], none: str) -> None:
    """Refuse a request without one of the keys; if there are no keys, refuse every request.

    Args:
        request: any request.
        keys: the keys that are accepted.
        none: what to say if there are none.

    Raises:
        KeyRequired
    """
    if not keys:
        raise KeyRequired(f"{none}; add one to access.keys at the top level")
    AccessRules(keys=keys).check_key(request.raw_headers)


class FormToken:
    """The CSRF token of our own forms; new in each process."""

    def __init__(self) -> None:
        self.value = secrets.token_urlsafe(32)

    async def check(self, request: AdminRequest) -> None:
        """Refuse a POST that a page of another site could have sent.

        Raises:
            CrossSite
        """
        if (request.header(ACTION) or "").strip():
            return
        token = (await request.form()).get("token")
        if token is None:
            raise CrossSite("send this POST with the header 'X-Cfproxy-Admin: 1'")
        if not hmac.compare_digest(token.encode(), self.value.encode()):
            raise CrossSite("this form was loaded before cfproxy last started; reload the page")


def wants_html(request: AdminRequest) -> bool:
    """Return whether a browser shows the response to a person."""
    return "text/html" in (request.header("Accept") or "")


def _is_navigation(request: AdminRequest) -> bool:
    """Return whether a link or a redirect, perhaps of another site, brought a person to one of the pages.

    That changes nothing here and shows nothing to the other site: pages can't be framed, and lose their
    opener (Cross-Origin-Opener-Policy).
    """
    fetched_as = (request.header("Sec-Fetch-Mode"), request.header("Sec-Fetch-Dest"))
    return (
        request.method in {"GET", "HEAD"}
        and request.path in PAGES
        and request.header("Origin") is None
        and not is_fetched_ahead(request.raw_headers)
        and (request.header("Sec-Fetch-Site") is None or fetched_as == ("navigate", "document"))
    )
