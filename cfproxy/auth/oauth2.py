"""OAuth 2.0 as pure functions: authorize URL, forms, replies. The redirect is parsed in `redirect.py`.

Covers RFC 6749, RFC 7636 (PKCE) and RFC 7009 as far as a client needs them.

Invariants:
1. No text from the server reaches a message: an error description may repeat a secret.
2. Whatever the input, only errors of `cfproxy.errors` are raised.
3. A new refresh token is never thrown away, however unusable the rest of its reply is.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from cfproxy.auth.models import TokenReply
from cfproxy.auth.token_response import read_object
from cfproxy.errors import CfproxyError, GrantRefused, Misconfigured, TokenEndpointUnavailable
from cfproxy.secret import Secret

RETRY_AFTER_MAX_S = 300.0
LIFETIME_MAX_S = 10 * 365 * 86400.0

# Values of `GrantRefused.description`: our classification, never the server's words.
REFUSED_REDIRECT_URI = "redirect_uri"
REFUSED_VERIFIER = "code_verifier"

_REFUSALS = (
    (REFUSED_REDIRECT_URI, re.compile(r"redirect(ion)?[ _]ur[il]")),
    (REFUSED_VERIFIER, re.compile(r"pkce|code[ _](verifier|challenge)")),
)
_APPS = "in Creative Force under Studio settings > Integrations > Registered Apps"
_REPAIRS = {
    "invalid_client": f"compare client_id and client_secret with the app {_APPS}",
    "unauthorized_client": f"compare grant and redirect_uri with what the app is registered for {_APPS}",
    "invalid_scope": (
        "set scope to 'cfgateway offline_access', or to 'cfgateway' for grant client_credentials, "
        f"and compare it with the app {_APPS}"
    ),
    "unsupported_grant_type": f"check token_url, and compare grant with the app {_APPS}",
    "invalid_request": f"check token_url, redirect_uri and pkce, and compare them with the app {_APPS}",
}
# Beside `invalid_grant`: what real servers answer when consent, session or refresh token have ended.
_ENDED = frozenset(
    {
        "access_denied",
        "account_selection_required",
        "consent_required",
        "expired_refresh_token",
        "expired_token",
        "interaction_required",
        "invalid_grant",
        "invalid_refresh_token",
        "invalid_token",
        "login_required",
    }
)
_DEAD_TOKEN = re.compile(
    r"refresh[ _-]?token\b.*\b(invalid|expired|revoked|unknown|used)\b"
    r"|\b(invalid|expired|revoked|unknown|used)\b.*\brefresh[ _-]?token"
)
# A grant type that no server has (RFC 6749 §4.5 demands an absolute URI).
PROBE_GRANT = "urn:cfproxy:grant:none"
# Errors with which a server that knows the app may respond to it.
_PROBED = frozenset({"unsupported_grant_type", "unauthorized_client", "invalid_request", "invalid_scope"})
_VISIBLE = re.compile(r"[!-~]+")  # no space, no line break: it becomes part of a header
_VSCHAR = re.compile(r"[ -~]+")  # RFC 6749 appendix A
_SCOPE = re.compile(r"[!#-\[\]-~ ]+")  # RFC 6749 §3.3
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
_FORM = re.compile(r"[a-z_]+=[!-%'-~]*(?:&[a-z_]+=[!-%'-~]*){0,50}")


# --- the authorize URL -------------------------------------------------------------------


def new_state() -> Secret:
    """Return 256 random bits that bind a redirect to its attempt (RFC 6749 §10.12)."""
    return Secret(secrets.token_urlsafe(32))


def new_verifier() -> Secret:
    """Return a random code verifier: 43 unreserved characters (RFC 7636 §4.1)."""
    return Secret(secrets.token_urlsafe(32))


def challenge_s256(verifier: Secret) -> str:
    """Return the S256 code challenge of `verifier` (RFC 7636 §4.2)."""
    digest = hashlib.sha256(verifier.reveal().encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def build_authorize_url(
    authorize_url: str,
    *,
    client_id: str,
    redirect_uri: str,
    scope: str,
    state: Secret,
    challenge: str | None,
) -> str:
    """Return the URL to open in a browser (RFC 6749 §4.1.1, RFC 7636 §4.3).

    A query in `authorize_url` is kept (RFC 6749 §3.1); a space becomes `%20`.
    """
    parameters = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": redirect_uri,
        "scope": scope,
        "state": state.reveal(),
    }
    if challenge is not None:
        parameters |= {"code_challenge": challenge, "code_challenge_method": "S256"}
    parts = urlsplit(authorize_url)
    query = "&".join(filter(None, (parts.query, urlencode(parameters, quote_via=quote, safe=""))))
    return parts._replace(query=query, fragment="").geturl()


# --- the forms ---------------------------------------------------------------------------


Fields = Mapping[str, str | Secret | None]


def build_form(client_id: str, client_secret: Secret | None, fields: Fields) -> dict[str, str]:
    """Return the form of a request, with the app's credentials; empty fields are left out."""
    # Client authentication is always in form fields: trying the other style could use the grant up twice.
    values = {**fields, "client_id": client_id, "client_secret": client_secret}
    return {
        name: value.reveal() if isinstance(value, Secret) else value
        for name, value in values.items()
        if value
    }


# --- the replies -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EndpointResponse:
    """A response of the token or revocation endpoint.

    Args:
        status: the HTTP status.
        content_type: used for messages only; JSON is parsed whatever its type.
        body: without framing and compression.
        retry_after: the header; a number of seconds, capped at `RETRY_AFTER_MAX_S`.
        where: names the endpoint in messages.
        complete: False if the body breaks off.
        packed: the body has a content coding that can't be unpacked.
    """

    status: int
    content_type: str
    body: bytes = field(repr=False)
    retry_after: str = ""
    where: str = "the token endpoint"
    complete: bool = True
    packed: bool = False

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def is_client_error(self) -> bool:
        """Whether the status is 4xx."""
        return 400 <= self.status < 500

    @property
    def refuses_client(self) -> bool:
        """Whether the app's own credentials were refused, before anything else was looked at."""
        return self.is_client_error and self.parse_object().get("error") == "invalid_client"

    def parse_object(self) -> dict[str, Any]:
        """Return the JSON object in the body, {} if there is none.

        Of an object that breaks off, nothing is used unless its end can't change what is known already: a
        refusal, or that there is a new refresh token. Some servers send a form instead of JSON.
        """
        members, closed = read_object(self.body)
        if closed or members.get("refresh_token") or members.get("error"):
            return members
        form = self.body.decode("ascii", "replace").strip()
        if self.complete and _FORM.fullmatch(form):
            return dict(parse_qsl(form))
        return {}

    def error(self, what: str = "") -> TokenEndpointUnavailable:
        """Return the error for a response described by `what`, or for its status."""
        text = f"{self.where} answered {self.status} {what}" if what else self._explain_status()
        retry_after_s = self._retry_after_s()
        return TokenEndpointUnavailable(text, retry_after_s=retry_after_s, answered=not self.is_success)

    def _explain_status(self) -> str:
        text = f"{self.where} answered {self.status}"
        if 300 <= self.status < 400:
            return f"{text}; redirects are never followed: check the URL in the configuration"
        if self.is_success:
            return f"{text} with an error"
        if self.is_client_error and self.status != 429:
            return f"{text} without a known reason: check the URL in the configuration"
        return f"{text}: try again later"

    def _retry_after_s(self) -> float:
        # A date (RFC 9110 §10.2.3) would need a clock; the caller's own backoff applies instead.
        least_s = TokenEndpointUnavailable.retry_after_s
        value = self.retry_after.strip()
        if self.status not in {429, 503} or not re.fullmatch(r"[0-9]{1,18}", value):
            return least_s
        return max(least_s, min(float(value), RETRY_AFTER_MAX_S))


def parse_reply(response: EndpointResponse, *, refreshing: bool = False) -> TokenReply:
    """Parse a response of the token endpoint (RFC 6749 §5.1, §5.2).

    An `error` in a 200 counts too. An absurd `expires_in` (not positive, over ten years, not a number) counts
    as absent, and so does an unusable refresh token: refusing the reply could lose more.

    Args:
        response: of the token endpoint.
        refreshing: it answers a refresh. `invalid_request`, too, is a refused grant then: some servers say it
            of a refresh token that has expired, and only the caller knows whether the same request worked
            before.

    Raises:
        GrantRefused: the code or refresh token is refused, with one of the `REFUSED_…` words or "" as its
            description.
        Misconfigured: the app's settings are refused.
        TokenEndpointUnavailable: anything else, with `sent` true, and `answered` unless the status is 2xx.
    """
    document = response.parse_object()
    if not response.is_success or document.get("error"):
        raise _refusal(response, document, refreshing=refreshing)
    access_token = _text(document.get("access_token"), _VISIBLE)
    # RFC 6749 §5.1 requires token_type, yet some servers omit it. Only bearer tokens are usable (§7.1);
    # some servers write BearerToken.
    token_type = document.get("token_type") or "bearer"
    if not isinstance(token_type, str) or not token_type.lower().startswith("bearer"):
        access_token = None
    refresh_token = _text(document.get("refresh_token"), _VSCHAR)
    if access_token is None and refresh_token is None:
        raise response.error(_explain_missing(response, document, refreshing=refreshing))
    return TokenReply(
        access_token=None if access_token is None else Secret(access_token),
        lifetime_s=_lifetime_s(document.get("expires_in")),
        refresh_token=None if refresh_token is None else Secret(refresh_token),
        scope=_text(document.get("scope"), _SCOPE),
    )


def _explain_missing(response: EndpointResponse, document: dict[str, Any], *, refreshing: bool) -> str:
    if document:
        return "without a usable bearer token; try again later"
    if response.packed:
        what = "a compressed body that cannot be unpacked, although it was asked not to compress"
    elif "html" in response.content_type.lower():
        what = "a web page, not a token"
    else:
        what = "something that is not a token"
    # The refresh token came from the same URL.
    suspects = "" if refreshing else "token_url and "
    return f"with {what}: check {suspects}whatever intercepts the connection"


def parse_revocation(response: EndpointResponse) -> bool:
    """Return whether a token was revoked, or False if the server can't (RFC 7009 §2.2).

    Raises:
        TokenEndpointUnavailable: anything else.
    """
    if response.status in {200, 204}:
        return True
    unsupported = response.parse_object().get("error") == "unsupported_token_type"
    if response.status in {404, 405, 501} or (response.is_client_error and unsupported):
        return False
    raise response.error()


def parse_probe(response: EndpointResponse) -> None:
    """Check the response to a form with `PROBE_GRANT`, which should be a refusal of the grant.

    Raises:
        Misconfigured: the app is refused (`invalid_client`).
        TokenEndpointUnavailable: this is no token endpoint, or it has a problem.
    """
    if response.is_client_error and response.parse_object().get("error") in _PROBED:
        return
    try:
        parse_reply(response)
    except GrantRefused:
        return
    raise TokenEndpointUnavailable(
        f"{response.where} gave a token for a grant that does not exist: check token_url"
    )


def _refusal(response: EndpointResponse, document: dict[str, Any], *, refreshing: bool) -> CfproxyError:
    code = document.get("error")
    # Only a plain refusal ends a login; a server error says nothing about the grant.
    if isinstance(code, str) and (response.is_success or response.is_client_error) and response.status != 429:
        description = document.get("error_description")
        words = description.lower() if isinstance(description, str) else ""
        if code in _ENDED or (refreshing and code == "unauthorized_client" and _DEAD_TOKEN.search(words)):
            text = f"{response.where} refused the code or refresh token ({code})"
            return GrantRefused(text, description=_classify(words), code=code)
        if code in _REPAIRS:
            text = f"{response.where} refused the app ({code}): {_REPAIRS[code]}"
            if refreshing and code == "invalid_request":
                return GrantRefused(text, code=code)
            return Misconfigured(text)
    return response.error()


def _classify(words: str) -> str:
    return next((word for word, pattern in _REFUSALS if pattern.search(words)), "")


def _text(value: object, pattern: re.Pattern[str]) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


def _lifetime_s(value: object) -> float | None:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LIFETIME_MAX_S:
        return None
    return float(value)
