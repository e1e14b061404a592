"""The authorize URL, its state and its PKCE challenge."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oauthlib.oauth2 import WebApplicationClient

from cfproxy.auth import oauth2
from cfproxy.secret import Secret

AUTHORIZE = "https://accounts.example/connect/authorize"
REDIRECT = "https://integration.example/cb?kind=cf&x=1"
SCOPE = "cfgateway offline_access"

texts = st.text(st.characters(codec="ascii", min_codepoint=0x20, max_codepoint=0x7E), min_size=1)


def test_challenge_is_that_of_the_rfc() -> None:
    """The S256 challenge of the verifier in RFC 7636 appendix B is the one printed there."""
    verifier = Secret("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
    assert oauth2.challenge_s256(verifier) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_states_and_verifiers_are_random_and_long_enough() -> None:
    """Each has 256 random bits in 43 unreserved characters, the minimum of RFC 7636 §4.1."""
    for make in (oauth2.new_state, oauth2.new_verifier):
        values = {make().reveal() for _ in range(100)}
        assert len(values) == 100
        assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", value) for value in values)


@given(client_id=texts, redirect_uri=texts, state=texts, scope=texts)
def test_authorize_url_carries_all_parameters(
    client_id: str, redirect_uri: str, state: str, scope: str
) -> None:
    """Whatever the values, the server reads each of them back exactly once."""
    url = oauth2.build_authorize_url(
        AUTHORIZE,
        client_id=client_id,
        redirect_uri=redirect_uri,
        scope=scope,
        state=Secret(state),
        challenge=None,
    )
    assert dict(parse_qsl(urlsplit(url).query, strict_parsing=True)) == {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": redirect_uri,
        "scope": scope,
        "state": state,
    }
    assert " " not in url
    assert "+" not in url


@pytest.mark.parametrize("challenge", [None, "a-challenge"])
def test_authorize_url_agrees_with_oauthlib(challenge: str | None) -> None:
    """Another client library builds the same request."""
    pkce = {} if challenge is None else {"code_challenge": challenge, "code_challenge_method": "S256"}
    theirs = WebApplicationClient("app 1").prepare_request_uri(
        AUTHORIZE, redirect_uri=REDIRECT, scope=SCOPE, state="s/1+", **pkce
    )
    ours = oauth2.build_authorize_url(
        AUTHORIZE,
        client_id="app 1",
        redirect_uri=REDIRECT,
        scope=SCOPE,
        state=Secret("s/1+"),
        challenge=challenge,
    )
    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(theirs).query)
    assert ours.partition("?")[0] == theirs.partition("?")[0]


def test_query_of_the_authorize_url_is_kept() -> None:
    """A query in the configured authorize_url stays as it is (RFC 6749 §3.1)."""
    url = oauth2.build_authorize_url(
        f"{AUTHORIZE}?tenant=a%20b#x",
        client_id="c",
        redirect_uri="https://r.example/",
        scope="a b",
        state=Secret("s"),
        challenge=None,
    )
    assert url == (
        f"{AUTHORIZE}?tenant=a%20b&response_type=code&client_id=c"
        "&redirect_uri=https%3A%2F%2Fr.example%2F&scope=a%20b&state=s"
    )
