"""The token endpoint: tokens, errors, and what they depend on."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from oauthlib.oauth2 import BackendApplicationClient, InvalidGrantError, WebApplicationClient

from tests.integration.sandbox.world import APP, CALLBACK, World

VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()


async def test_a_code_is_exchanged_for_tokens(world: World) -> None:
    """A code gives an access token for an hour and a refresh token, in a response that may not be cached."""
    form = {
        **APP,
        "grant_type": "authorization_code",
        "code": world.sandbox.issue_code(),
        "redirect_uri": CALLBACK,
    }
    async with world.client.post(f"{world.sandbox.url}/connect/token", data=form) as response:
        assert response.status == 200
        assert response.headers["Cache-Control"] == "no-store"
        text = await response.text()
    answer = WebApplicationClient("sandbox-client").parse_request_body_response(text)
    assert answer["expires_in"] == 3600
    assert answer["token_type"] == "Bearer"
    assert answer["scope"] == ["cfgateway", "offline_access"]
    assert answer["refresh_token"]
    assert [each.value for each in world.sandbox.access_tokens] == [answer["access_token"]]


async def test_an_error_response_follows_the_rfc(world: World) -> None:
    """An error is HTTP 400 with its code as JSON (RFC 6749)."""
    status, answer = await world.exchange("never-issued")
    assert (status, answer) == (400, {"error": "invalid_grant"})
    with pytest.raises(InvalidGrantError):
        WebApplicationClient("sandbox-client").parse_request_body_response(json.dumps(answer))


async def test_client_credentials_give_no_refresh_token(world: World) -> None:
    """An app that acts in its own name gets an access token only."""
    status, answer = await world.token("client_credentials", scope="cfgateway")
    parsed = BackendApplicationClient("sandbox-client").parse_request_body_response(json.dumps(answer))
    assert status == 200
    assert parsed["scope"] == ["cfgateway"]
    assert "refresh_token" not in parsed


@pytest.mark.parametrize("scope", ["cfgateway offline_access", "everything", " "])
async def test_client_credentials_with_another_scope_are_refused(world: World, scope: str) -> None:
    """`offline_access` needs a user, and no other scope exists."""
    assert await world.token("client_credentials", scope=scope) == (400, {"error": "invalid_scope"})


async def test_a_login_without_offline_access_gives_no_refresh_token(world: World) -> None:
    """Only `offline_access` requests a refresh token."""
    status, answer = await world.exchange(world.sandbox.issue_code(scope="cfgateway"))
    assert (status, answer["scope"]) == (200, "cfgateway")
    assert "refresh_token" not in answer


async def test_a_wrong_secret_does_not_spend_the_code(world: World) -> None:
    """After `invalid_client` the same code still works."""
    code = world.sandbox.issue_code()
    assert await world.exchange(code, client_secret="wrong") == (400, {"error": "invalid_client"})
    assert await world.exchange(code, client_id="wrong") == (400, {"error": "invalid_client"})
    assert (await world.exchange(code))[0] == 200


async def test_a_wrong_redirect_uri_spends_the_code(world: World) -> None:
    """A code that was sent with the wrong redirect URI is invalid afterwards."""
    code = world.sandbox.issue_code()
    refused = (400, {"error": "invalid_grant"})
    assert await world.exchange(code, redirect_uri=f"{CALLBACK}/") == refused
    assert await world.exchange(code) == refused
    assert [each.reason for each in world.sandbox.token_requests] == [
        "redirect_uri differs from the login's",
        "code used before",
    ]


async def test_a_code_works_once(world: World) -> None:
    """A replayed code gets `invalid_grant`."""
    code = world.sandbox.issue_code()
    assert (await world.exchange(code))[0] == 200
    assert await world.exchange(code) == (400, {"error": "invalid_grant"})


async def test_a_code_expires(world: World) -> None:
    """A code is valid for `code_lifetime_s`."""
    old, fresh = world.sandbox.issue_code(), world.sandbox.issue_code()
    world.clock.now += 1799.0
    assert (await world.exchange(fresh))[0] == 200
    world.clock.now += 1.0
    assert await world.exchange(old) == (400, {"error": "invalid_grant"})


async def test_a_code_belongs_to_its_app(world: World) -> None:
    """It can't be used with another app's credentials."""
    code = world.sandbox.issue_code()
    world.behaviour.client_id = "another"
    assert await world.exchange(code, client_id="another") == (400, {"error": "invalid_grant"})


@pytest.mark.parametrize(
    ("challenge", "verifier", "status"),
    [
        (CHALLENGE, VERIFIER, 200),
        (CHALLENGE, "w" * 43, 400),
        (CHALLENGE, "", 400),
        ("", VERIFIER, 400),
        ("", "", 200),
        (base64.urlsafe_b64encode(hashlib.sha256(b"short").digest()).rstrip(b"=").decode(), "short", 400),
    ],
)
async def test_pkce_is_checked_if_the_login_used_it(
    world: World, challenge: str, verifier: str, status: int
) -> None:
    """The verifier has to match the login's challenge, and must not be sent without one."""
    code = world.sandbox.issue_code(challenge=challenge)
    fields = {"code_verifier": verifier} if verifier else {}
    assert (await world.exchange(code, **fields))[0] == status


async def test_an_app_may_use_only_the_grants_it_is_registered_for(world: World) -> None:
    """Another grant gets `unauthorized_client`; refreshing belongs to the authorization code grant."""
    world.behaviour.grants = ("client_credentials",)
    refused = (400, {"error": "unauthorized_client"})
    assert await world.exchange(world.sandbox.issue_code()) == refused
    assert await world.refresh(world.sandbox.issue_login()["refresh_token"]) == refused
    assert (await world.token("client_credentials"))[0] == 200
    world.behaviour.grants = ("authorization_code",)
    assert await world.token("client_credentials") == refused


async def test_an_unknown_grant_is_refused(world: World) -> None:
    """An unknown grant type gets `unsupported_grant_type`."""
    assert await world.token("password") == (400, {"error": "unsupported_grant_type"})


@pytest.mark.parametrize(
    "body",
    [
        "client_id=sandbox-client&client_secret=sandbox-secret",
        "client_id=sandbox-client&client_secret=sandbox-secret&grant_type=authorization_code",
        "client_id=sandbox-client&client_secret=sandbox-secret&grant_type=refresh_token&refresh_token=",
        "client_id=sandbox-client&client_id=sandbox-client&grant_type=client_credentials",
        "client_id=%ED%A0%80",
    ],
)
async def test_a_form_that_lacks_or_repeats_a_field_is_refused(world: World, body: str) -> None:
    """A missing, empty, duplicate or badly encoded field gets `invalid_request`."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with world.call("POST", "/connect/token", headers=headers, data=body) as response:
        assert (response.status, await response.json()) == (400, {"error": "invalid_request"})


async def test_credentials_in_a_header_are_ignored(world: World) -> None:
    """The app's credentials are form fields; HTTP Basic gets `invalid_client`."""
    basic = basic_credentials()
    async with world.call("POST", "/connect/token", headers=basic, data={"grant_type": "x"}) as response:
        assert (response.status, await response.json()) == (400, {"error": "invalid_client"})


def basic_credentials() -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(b"sandbox-client:sandbox-secret").decode()}


@pytest.mark.parametrize(
    ("method", "options", "status"),
    [
        ("GET", {}, 405),
        ("POST", {"json": {"grant_type": "client_credentials"}}, 415),
        ("POST", {"data": {"grant_type": "x" * 70_000}}, 413),
    ],
)
async def test_a_request_without_a_form_is_refused(
    world: World, method: str, options: dict[str, Any], status: int
) -> None:
    """GET gets 405, another content type 415, an oversized form 413."""
    assert await world.status(method, "/connect/token", headers={}, **options) == status


async def test_every_call_is_recorded(world: World) -> None:
    """Calls are listed with their grant, outcome and time."""
    world.clock.now = 1_900_000_000.5
    await world.token("client_credentials")
    await world.refresh("never-issued")
    await world.status("POST", "/connect/token", headers={}, json={})
    seen = [(each.grant, each.outcome, each.at) for each in world.sandbox.token_requests]
    assert seen == [
        ("client_credentials", "issued", 1_900_000_000.5),
        ("refresh_token", "invalid_grant", 1_900_000_000.5),
        ("", "415", 1_900_000_000.5),
    ]
