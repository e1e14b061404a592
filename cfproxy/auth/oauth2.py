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
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from cfproxy.auth.models import TokenReply
from cfproxy.auth.token_response import EndpointResponse
from cfproxy.errors import CfproxyError, GrantRefused, Misconfigured, TokenEndpointUnavailable
from cfproxy.secret import Secret

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
_TOKEN_CHARS = 16  # of any token that can't be guessed; honest scopes may contain a shorter one by chance
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")


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
        scope=_scope(document.get("scope"), (access_token, refresh_token)),
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


def _scope(value: object, tokens: tuple[str | None, ...]) -> str | None:
    """Return the scope; None also if a malformed reply repeats a token in it, because a scope is shown."""
    scope = _text(value, _SCOPE)
    repeats = (
        any(token in scope for token in tokens if token and len(token) >= _TOKEN_CHARS) if scope else False
    )
    return None if repeats else scope


def _lifetime_s(value: object) -> float | None:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LIFETIME_MAX_S:
        return None
    return float(value)
