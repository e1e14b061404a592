"""The token endpoint: who gets a token, who gets which error, and what a refresh token is good for."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any

import pytest
from oauthlib.oauth2 import BackendApplicationClient, InvalidGrantError, WebApplicationClient

from cfproxy.sandbox import Sandbox

from .world import APP, CALLBACK, World

VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()


async def test_a_code_becomes_tokens(world: World) -> None:
    """A code gives an access token for an hour and a refresh token, in an answer that may not be cached."""
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


async def test_an_error_answer_is_one_that_clients_understand(world: World) -> None:
    """An error is HTTP 400 with its code as JSON, as RFC 6749 has it."""
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
    """Without a person there is nothing to stay signed in for, and no other scope exists."""
    assert await world.token("client_credentials", scope=scope) == (400, {"error": "invalid_scope"})


async def test_a_login_without_offline_access_gives_no_refresh_token(world: World) -> None:
    """Only `offline_access` asks for a refresh token."""
    status, answer = await world.exchange(world.sandbox.issue_code(scope="cfgateway"))
    assert (status, answer["scope"]) == (200, "cfgateway")
    assert "refresh_token" not in answer


async def test_a_wrong_secret_does_not_burn_the_code(world: World) -> None:
    """After `invalid_client` the same code still works."""
    code = world.sandbox.issue_code()
    assert await world.exchange(code, client_secret="wrong") == (400, {"error": "invalid_client"})
    assert await world.exchange(code, client_id="wrong") == (400, {"error": "invalid_client"})
    assert (await world.exchange(code))[0] == 200


async def test_a_wrong_redirect_uri_burns_the_code(world: World) -> None:
    """A code that was shown with the wrong redirect URI is gone."""
    code = world.sandbox.issue_code()
    refused = (400, {"error": "invalid_grant"})
    assert await world.exchange(code, redirect_uri=f"{CALLBACK}/") == refused
    assert await world.exchange(code) == refused
    assert [each.reason for each in world.sandbox.token_requests] == [
        "other redirect_uri than the login's",
        "code used before",
    ]


async def test_a_code_works_once(world: World) -> None:
    """A replayed code gets `invalid_grant`."""
    code = world.sandbox.issue_code()
    assert (await world.exchange(code))[0] == 200
    assert await world.exchange(code) == (400, {"error": "invalid_grant"})


async def test_a_code_expires(world: World) -> None:
    """A code lives for `code_lifetime_s`."""
    old, fresh = world.sandbox.issue_code(), world.sandbox.issue_code()
    world.clock.now += 1799.0
    assert (await world.exchange(fresh))[0] == 200
    world.clock.now += 1.0
    assert await world.exchange(old) == (400, {"error": "invalid_grant"})


async def test_a_code_belongs_to_its_app(world: World) -> None:
    """Another app's credentials do not help."""
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
async def test_pkce_is_checked_when_the_login_used_it(
    world: World, challenge: str, verifier: str, status: int
) -> None:
    """The verifier has to match the login's challenge, and may not come without one."""
    code = world.sandbox.issue_code(challenge=challenge)
    fields = {"code_verifier": verifier} if verifier else {}
    assert (await world.exchange(code, **fields))[0] == status


async def test_a_rotated_refresh_token_works_once(world: World) -> None:
    """With rotation each refresh gives a new refresh token; the old one gets `invalid_grant` from then on."""
    first = world.sandbox.issue_login()["refresh_token"]
    status, answer = await world.refresh(first)
    assert status == 200
    assert answer["refresh_token"] != first
    assert await world.refresh(first) == (400, {"error": "invalid_grant"})
    assert world.sandbox.reuse_seen == 1
    assert (await world.refresh(answer["refresh_token"]))[0] == 200


async def test_a_detected_reuse_revokes_the_whole_login(world: World) -> None:
    """With `reuse_detection: revoke` a replay kills the refresh token in use, too; other logins live."""
    world.behaviour.reuse_detection = "revoke"
    first = world.sandbox.issue_login()["refresh_token"]
    other = world.sandbox.issue_login()["refresh_token"]
    _, answer = await world.refresh(first)
    await world.refresh(first)
    assert await world.refresh(answer["refresh_token"]) == (400, {"error": "invalid_grant"})
    assert world.sandbox.token_requests[-1].reason == "login revoked"
    assert (await world.refresh(other))[0] == 200


async def test_of_parallel_refreshes_one_wins(world: World) -> None:
    """The refresh token is marked used before any answer leaves."""
    first = world.sandbox.issue_login()["refresh_token"]
    answers = await asyncio.gather(*(world.refresh(first) for _ in range(10)))
    assert sorted(status for status, _ in answers) == [200] + [400] * 9


async def test_without_rotation_the_refresh_token_stays(world: World) -> None:
    """A server that does not rotate repeats the refresh token, or leaves it out of its answer."""
    world.behaviour.rotation = False
    first = world.sandbox.issue_login()["refresh_token"]
    assert (await world.refresh(first))[1]["refresh_token"] == first
    world.behaviour.refresh_token_in_reply = False
    status, answer = await world.refresh(first)
    assert (status, "refresh_token" in answer) == (200, False)
    world.behaviour.rotation = True
    assert "refresh_token" in (await world.refresh(first))[1]


@pytest.mark.parametrize("rotation", [True, False])
@pytest.mark.parametrize(("expiry", "status"), [("absolute", 400), ("sliding", 200)])
async def test_a_login_ends_as_configured(world: World, rotation: bool, expiry: str, status: int) -> None:
    """`absolute` counts the refresh token's lifetime from the login, `sliding` from the last refresh."""
    world.behaviour.update({"rotation": rotation, "refresh_expiry": expiry})
    token = world.sandbox.issue_login()["refresh_token"]
    world.clock.now += 20 * 86400
    token = (await world.refresh(token))[1]["refresh_token"]
    world.clock.now += 20 * 86400
    assert (await world.refresh(token))[0] == status
    world.clock.now += 30 * 86400
    assert (await world.refresh(token))[1] == {"error": "invalid_grant"}


async def test_a_refresh_may_ask_for_less_but_not_for_more(world: World) -> None:
    """The scope of a refresh lies within the login's, and a refused scope does not spend the token."""
    token = world.sandbox.issue_login()["refresh_token"]
    assert await world.refresh(token, scope="cfgateway admin") == (400, {"error": "invalid_scope"})
    assert (await world.refresh(token, scope="cfgateway"))[1]["scope"] == "cfgateway"


async def test_a_refresh_token_belongs_to_its_app(world: World) -> None:
    """Another app's credentials do not help."""
    token = world.sandbox.issue_login()["refresh_token"]
    world.behaviour.client_id = "another"
    assert await world.refresh(token, client_id="another") == (400, {"error": "invalid_grant"})


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
    """A grant that the server never heard of gets `unsupported_grant_type`."""
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
    """A missing, empty, doubled or badly encoded field gets `invalid_request`."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with world.call("POST", "/connect/token", headers=headers, data=body) as response:
        assert (response.status, await response.json()) == (400, {"error": "invalid_request"})


async def test_credentials_in_a_header_are_not_looked_at(world: World) -> None:
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
async def test_what_is_no_form_is_refused_by_http(
    world: World, method: str, options: dict[str, Any], status: int
) -> None:
    """GET gets 405, another content type 415, a huge form 413."""
    assert await world.status(method, "/connect/token", headers={}, **options) == status


async def test_every_call_is_kept_for_a_look(world: World) -> None:
    """Calls are listed with their grant, outcome and instant."""
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


async def test_access_tokens_can_look_like_jwts(world: World) -> None:
    """With `token_format: jwt` a token has three parts, its claims tell its expiry, and the API takes it."""
    world.behaviour.token_format = "jwt"
    _, answer = await world.token("client_credentials")
    claims_part = answer["access_token"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(claims_part + "=" * (-len(claims_part) % 4)))
    assert claims["iss"] == world.sandbox.url
    assert claims["exp"] == claims["iat"] + 3600 == world.clock.now + 3600
    headers = {"Authorization": f"Bearer {answer['access_token']}"}
    assert await world.status("GET", "/v1/jobs", headers=headers) == 200


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
async def test_a_revoked_token_is_worthless(world: World, kind: str) -> None:
    """Revoking an access token kills that one, revoking a refresh token its whole login (RFC 7009)."""
    login, other = world.sandbox.issue_login(), world.bearer()
    form = {**APP, "token": login[kind], "token_type_hint": kind}
    assert await world.status("POST", "/connect/revocation", headers={}, data=form) == 200
    headers = {"Authorization": f"Bearer {login['access_token']}"}
    assert await world.status("GET", "/v1/jobs", headers=headers) == 401
    assert await world.status("GET", "/v1/jobs", headers=other) == 200
    assert (await world.refresh(login["refresh_token"]))[0] == (200 if kind == "access_token" else 400)


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        ({"token": "never-issued"}, 200, None),
        ({"client_secret": "wrong"}, 400, "invalid_client"),
        ({"token": ""}, 400, "invalid_request"),
        ({"token_type_hint": "id_token"}, 400, "unsupported_token_type"),
    ],
)
async def test_revocation_answers_as_its_rfc_says(
    world: World, changes: dict[str, str], status: int, error: str | None
) -> None:
    """An unknown token is no error; a wrong app, no token or an unknown kind of token is."""
    form = {**APP, "token": "never-issued", **changes}
    async with world.call("POST", "/connect/revocation", headers={}, data=form) as response:
        assert response.status == status
        assert (await response.json())["error"] == error if error else not await response.read()


async def test_the_discovery_document_names_the_endpoints(world: World) -> None:
    """The addresses in the discovery document are the sandbox's own."""
    async with world.call("GET", "/.well-known/openid-configuration", headers={}) as response:
        document = await response.json()
    assert document["issuer"] == world.sandbox.url
    assert document["token_endpoint"] == f"{world.sandbox.url}/connect/token"
    assert document["authorization_response_iss_parameter_supported"] is True


async def test_tokens_issued_without_a_request_are_as_good() -> None:
    """A test can begin with a login instead of making one."""
    async with Sandbox() as sandbox:
        answer = sandbox.issue_login("cfgateway")
        assert sandbox.access_tokens[0].value == answer["access_token"]
        assert sandbox.token_requests == []
