"""Requests to the authorization server, and what its replies mean."""

from __future__ import annotations

import json
import re
import traceback
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from oauthlib.oauth2 import WebApplicationClient

from cfproxy.auth import oauth2
from cfproxy.auth.models import TokenReply
from cfproxy.auth.token_response import EndpointResponse
from cfproxy.errors import CfproxyError, GrantRefused, Misconfigured, TokenEndpointUnavailable
from cfproxy.secret import Secret

MARKER = "MARKERsecretMARKER"
AUTHORIZE = "https://accounts.example/connect/authorize"
REDIRECT = "https://integration.example/cb?kind=cf&x=1"
SCOPE = "cfgateway offline_access"
JSON = "application/json"

texts = st.text(st.characters(codec="ascii", min_codepoint=0x20, max_codepoint=0x7E), min_size=1)


def reply(document: Any, status: int = 200, retry_after: str = "") -> TokenReply:
    return oauth2.parse_reply(EndpointResponse(status, JSON, json.dumps(document).encode(), retry_after))


def good(**changes: Any) -> dict[str, Any]:
    return {"access_token": "at", "token_type": "Bearer", "expires_in": 3600} | changes


def assert_silent(error: BaseException) -> None:
    """Fail if the marker appears anywhere that a log might print."""
    shown = [str(error), repr(error), *traceback.format_exception(error)]
    assert not [text for text in shown if MARKER in text]


# --- the forms ---------------------------------------------------------------------------


def test_form_has_the_credentials_of_the_app() -> None:
    """Secrets are revealed, empty fields are left out, and a public client sends no client_secret."""
    fields: oauth2.Fields = {"token": Secret("t"), "token_type_hint": "access_token", "code_verifier": None}
    public = {"token": "t", "token_type_hint": "access_token", "client_id": "c"}
    assert oauth2.build_form("c", None, fields) == public
    assert oauth2.build_form("c", Secret("s"), fields) == public | {"client_secret": "s"}


# --- replies -----------------------------------------------------------------------------


@given(
    access_token=st.from_regex(r"\A[!-~]+\Z"),
    refresh_token=st.none() | texts,
    expires_in=st.integers(1, 10**8),
)
def test_reply_is_parsed_as_by_oauthlib(
    access_token: str, refresh_token: str | None, expires_in: int
) -> None:
    """Every successful reply means the same to another client library."""
    document = good(access_token=access_token, expires_in=expires_in, scope=SCOPE)
    document |= {} if refresh_token is None else {"refresh_token": refresh_token}
    theirs = WebApplicationClient("c").parse_request_body_response(json.dumps(document))
    ours = reply(document)
    assert ours.access_token == Secret(theirs["access_token"])
    assert ours.lifetime_s == theirs["expires_in"]
    assert (ours.refresh_token and ours.refresh_token.reveal()) == theirs.get("refresh_token")
    assert ours.scope == SCOPE


@pytest.mark.parametrize(
    ("expires_in", "lifetime_s"), [(3600, 3600.0), (0.5, 0.5), ("3600", 3600.0), ("59.5", 59.5)]
)
def test_lifetime_is_a_number_of_seconds(expires_in: object, lifetime_s: float) -> None:
    """`expires_in` may be a number or a string that holds one."""
    assert reply(good(expires_in=expires_in)).lifetime_s == lifetime_s


@pytest.mark.parametrize(
    "expires_in",
    [
        *(None, 0, -1, 1e10, 10**400, float("nan"), float("inf"), float("-inf")),
        *("", "0", "-1", "soon", "1e3", "nan", "٣", "9" * 400),
        *(True, False, [60], {}),
    ],
)
def test_absurd_lifetime_is_unknown(expires_in: object) -> None:
    """The token is still accepted, because refusing it could lose a rotated refresh token."""
    assert reply(good(expires_in=expires_in)).lifetime_s is None


def test_optional_fields_may_be_missing() -> None:
    """`expires_in`, `refresh_token`, `scope` and `token_type` may be missing."""
    assert reply({"access_token": "at"}) == TokenReply(Secret("at"), None, None, None)
    empty = good(refresh_token="", scope=None, token_type=None)
    assert reply(empty).refresh_token is None


@pytest.mark.parametrize(
    "document",
    [
        good(access_token=""),
        good(access_token=None),
        good(access_token=["at"]),
        good(access_token="at\r\nX-Evil: 1"),
        good(access_token="a t"),
        good(access_token="tökén"),
        good(access_token="at\n"),
        good(token_type="mac"),
        good(token_type=["Bearer"]),
        good(error={"code": 1}),
        good(error="server_error"),
        {"error": "temporarily_unavailable"},
        {},
        [],
        "at",
        None,
    ],
)
def test_unusable_token_is_refused(document: Any) -> None:
    """What can't be sent as a bearer token, or would break a header, is refused."""
    with pytest.raises(TokenEndpointUnavailable) as caught:
        reply(document)
    assert caught.value.sent


@pytest.mark.parametrize("token_type", ["bearer", "Bearer", "BEARER"])
def test_token_type_is_case_insensitive(token_type: str) -> None:
    """RFC 6749 §5.1: the case of the type does not matter."""
    assert reply(good(token_type=token_type)).access_token == Secret("at")


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe{}", b"<html>log in</html>", b"[" * 60000, b'{"a":' * 10000, b"1" * 5000, b'{"access_'],
)
def test_reply_that_is_not_json_can_be_retried(body: bytes) -> None:
    """Web pages, empty bodies, truncated JSON and hostile nesting are problems of the endpoint."""
    for status in (200, 400, 500):
        with pytest.raises(TokenEndpointUnavailable) as caught:
            oauth2.parse_reply(
                EndpointResponse(status, "text/html", body, where="the token endpoint at accounts.example")
            )
        assert str(caught.value).startswith("the token endpoint at accounts.example answered ")


def test_byte_order_mark_is_ignored() -> None:
    """Some servers start their JSON with a byte order mark."""
    body = b"\xef\xbb\xbf" + json.dumps(good()).encode()
    assert oauth2.parse_reply(EndpointResponse(200, JSON, body)).lifetime_s == 3600


@pytest.mark.parametrize("status", [200, 400, 401])
def test_only_invalid_grant_refuses_the_grant(status: int) -> None:
    """`invalid_grant` ends a login, also in a 200, but not with a status that means a server error."""
    with pytest.raises(GrantRefused):
        reply({"error": "invalid_grant"}, status)
    for trouble in (302, 429, 500, 503):
        with pytest.raises(TokenEndpointUnavailable):
            reply({"error": "invalid_grant"}, trouble)


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        ("invalid_client", "client_secret"),
        ("unauthorized_client", "grant"),
        ("invalid_scope", "scope"),
        ("unsupported_grant_type", "token_url"),
        ("invalid_request", "pkce"),
    ],
)
def test_refusal_of_the_app_says_what_to_correct(code: str, fix: str) -> None:
    """Each message names the key to correct and where Creative Force shows its value."""
    with pytest.raises(Misconfigured) as caught:
        reply({"error": code}, 400)
    assert code in str(caught.value)
    assert fix in str(caught.value)
    assert "Registered Apps" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "code",
    [
        "access_denied",
        "account_selection_required",
        "consent_required",
        "expired_refresh_token",
        "expired_token",
        "interaction_required",
        "invalid_refresh_token",
        "invalid_token",
        "login_required",
    ],
)
def test_refusal_that_only_a_person_can_lift_refuses_the_grant(code: str) -> None:
    """Real servers answer so when consent, session or refresh token have ended; waiting does not help."""
    with pytest.raises(GrantRefused, match=code) as caught:
        reply({"error": code, "error_description": MARKER}, 403)
    assert caught.value.code == code
    assert_silent(caught.value)
    with pytest.raises(TokenEndpointUnavailable):
        reply({"error": code}, 503)


def refusal(code: str, description: object = None) -> CfproxyError:
    document = json.dumps({"error": code, "error_description": description}).encode()
    try:
        oauth2.parse_reply(EndpointResponse(400, JSON, document), refreshing=True)
    except CfproxyError as error:
        return error
    raise AssertionError("accepted")


def test_invalid_request_may_mean_the_refresh_token() -> None:
    """Servers on authlib and others answer `invalid_request` to a refresh token that has expired."""
    error = refusal("invalid_request")
    assert isinstance(error, GrantRefused)
    assert error.code == "invalid_request"
    assert "token_url" in str(error)


@pytest.mark.parametrize(
    ("description", "kind"),
    [
        ("refresh_token is invalid", GrantRefused),
        ("Unknown or invalid refresh token.", GrantRefused),
        ("The refresh token has expired", GrantRefused),
        ("This client may not use the grant type refresh_token", Misconfigured),
        ("Invalid client", Misconfigured),
        (None, Misconfigured),
        (["refresh_token is invalid"], Misconfigured),
    ],
)
def test_unauthorized_client_is_told_apart_by_its_description(
    description: object, kind: type[CfproxyError]
) -> None:
    """Atlassian says it of an ended refresh token, RFC 6749 §5.2 of an app without that grant."""
    assert isinstance(refusal("unauthorized_client", description), kind)


@pytest.mark.parametrize("code", ["invalid_client", "invalid_scope", "unsupported_grant_type"])
def test_other_refusals_of_a_refresh_are_about_the_app(code: str) -> None:
    """What the configuration or the registration can correct does not end a login."""
    assert isinstance(refusal(code, "the refresh token is invalid"), Misconfigured)


@pytest.mark.parametrize("status", [301, 307, 400, 404, 405, 415, 500, 502, 503])
def test_other_failures_are_temporary(status: int) -> None:
    """Redirects, unknown refusals and server errors say nothing about the grant."""
    with pytest.raises(TokenEndpointUnavailable, match=str(status)):
        reply({"error": "something_new"}, status)


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [
        (503, "7", 7.0),
        (429, " 30 ", 30.0),
        (503, "86400", 300.0),
        (503, "9" * 18, 300.0),
        (503, "0", 1.0),
        (503, "-5", 1.0),
        (503, "Wed, 21 Oct 2015 07:28:00 GMT", 1.0),
        (503, "", 1.0),
        (500, "7", 1.0),
    ],
)
def test_retry_after_is_honoured(status: int, header: str, seconds: float) -> None:
    """Retry-After in seconds counts with 429 and 503, up to five minutes."""
    with pytest.raises(TokenEndpointUnavailable) as caught:
        reply({}, status, retry_after=header)
    assert caught.value.retry_after_s == seconds


@pytest.mark.parametrize(
    ("description", "word"),
    [
        ("Invalid 'redirect_uri' in request.", oauth2.REFUSED_REDIRECT_URI),
        ("Mismatching redirect URI.", oauth2.REFUSED_REDIRECT_URI),
        ("Code challenge failed.", oauth2.REFUSED_VERIFIER),
        ("The code has expired", ""),
        ("the grant was refused", ""),
        (f"no such code: {MARKER}", ""),
        (None, ""),
        (["redirect_uri"], ""),
    ],
)
def test_description_is_classified_and_never_repeated(description: object, word: str) -> None:
    """The server's words may repeat a secret: only our classification is kept."""
    with pytest.raises(GrantRefused) as caught:
        reply({"error": "invalid_grant", "error_description": description}, 400)
    assert caught.value.description == word
    assert_silent(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.just(MARKER),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
documents = st.dictionaries(
    st.sampled_from(
        ["access_token", "token_type", "expires_in", "refresh_token", "scope", "error", "error_description"]
    ),
    json_values | st.sampled_from(["invalid_grant", "invalid_client", "Bearer", f"x\r\n{MARKER}"]),
)
bodies = st.binary() | documents.map(lambda document: json.dumps(document).encode())


@given(status=st.integers(100, 599), content_type=st.text(), body=bodies, retry_after=st.text())
@example(status=200, content_type="", body=b'{"access_token":"' + MARKER.encode() + b'\\n"}', retry_after="")
@example(
    status=200, content_type="", body=b'{"access_token""at""scope""' + MARKER.encode() + b'"}', retry_after=""
)
def test_any_reply_is_a_token_or_a_known_error(
    status: int, content_type: str, body: bytes, retry_after: str
) -> None:
    """Whatever comes back, it is a token or one of three errors, and none of them quotes it."""
    try:
        answer = oauth2.parse_reply(EndpointResponse(status, content_type, body, retry_after))
    except (GrantRefused, Misconfigured, TokenEndpointUnavailable) as error:
        assert_silent(error)
    else:
        # A scope is shown; the only secrets that it could repeat are those of its own reply (see below).
        assert MARKER not in repr(replace(answer, scope=None))
        assert answer.access_token or answer.refresh_token
        if answer.access_token is not None:
            assert re.fullmatch("[!-~]+", answer.access_token.reveal())
        assert answer.lifetime_s is None or 0 < answer.lifetime_s <= oauth2.LIFETIME_MAX_S
        if answer.refresh_token is not None:
            urlencode({"refresh_token": answer.refresh_token.reveal()})


@pytest.mark.parametrize("scope", [MARKER, f"cfgateway {MARKER}", f"x{MARKER}y offline_access"])
@pytest.mark.parametrize("name", ["access_token", "refresh_token"])
def test_scope_that_repeats_a_token_is_not_used(name: str, scope: str) -> None:
    """A scope is stored and shown in the clear, so that of a malformed reply counts as absent."""
    answer = reply(good(**{name: MARKER}, scope=scope))
    assert answer.scope is None
    assert MARKER not in repr(answer)


# --- revocation --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "revoked"),
    [
        (200, None, True),
        (204, None, True),
        (404, None, False),
        (405, None, False),
        (501, None, False),
        (400, "unsupported_token_type", False),
        (401, "unsupported_token_type", False),
    ],
)
def test_revocation_succeeds_or_is_not_supported(status: int, error: str | None, revoked: bool) -> None:
    """RFC 7009: 200 is success; no such endpoint or token type means that the server can't."""
    response = EndpointResponse(status, JSON, json.dumps({"error": error}).encode())
    assert oauth2.parse_revocation(response) is revoked


@given(
    status=st.integers(100, 599).filter(lambda status: status not in {200, 204, 404, 405, 501}), body=bodies
)
def test_any_other_revocation_response_is_an_error(status: int, body: bytes) -> None:
    """The error does not quote the response."""
    assume(b"unsupported_token_type" not in body)
    with pytest.raises(TokenEndpointUnavailable) as caught:
        oauth2.parse_revocation(EndpointResponse(status, JSON, body))
    assert_silent(caught.value)
