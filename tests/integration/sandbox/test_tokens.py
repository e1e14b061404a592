"""Tokens: their format, their revocation, and how a test gets them without a request."""

from __future__ import annotations

import base64
import json

import pytest

from cfproxy.sandbox import Sandbox
from tests.integration.sandbox.world import APP, World


async def test_access_tokens_can_be_jwts(world: World) -> None:
    """With `token_format: jwt` a token has three parts and an expiry claim, and the API accepts it."""
    world.behaviour.token_format = "jwt"
    _, answer = await world.token("client_credentials")
    claims_part = answer["access_token"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(claims_part + "=" * (-len(claims_part) % 4)))
    assert claims["iss"] == world.sandbox.url
    assert claims["exp"] == claims["iat"] + 3600 == world.clock.now + 3600
    headers = {"Authorization": f"Bearer {answer['access_token']}"}
    assert await world.status("GET", "/v1/jobs", headers=headers) == 200


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
async def test_a_revoked_token_is_invalid(world: World, kind: str) -> None:
    """Revoking an access token affects only it, revoking a refresh token its whole login (RFC 7009)."""
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
async def test_revocation_follows_the_rfc(
    world: World, changes: dict[str, str], status: int, error: str | None
) -> None:
    """An unknown token is no error; a wrong app, a missing token or an unknown token type is."""
    form = {**APP, "token": "never-issued", **changes}
    async with world.call("POST", "/connect/revocation", headers={}, data=form) as response:
        assert response.status == status
        assert (await response.json())["error"] == error if error else not await response.read()


async def test_the_discovery_document_names_the_endpoints(world: World) -> None:
    """The URLs in the discovery document are the sandbox's own."""
    async with world.call("GET", "/.well-known/openid-configuration", headers={}) as response:
        document = await response.json()
    assert document["issuer"] == world.sandbox.url
    assert document["token_endpoint"] == f"{world.sandbox.url}/connect/token"
    assert document["authorization_response_iss_parameter_supported"] is True


async def test_tokens_issued_without_a_request_are_valid() -> None:
    """A test can start with a login instead of making one."""
    async with Sandbox() as sandbox:
        answer = sandbox.issue_login("cfgateway")
        assert sandbox.access_tokens[0].value == answer["access_token"]
        assert sandbox.token_requests == []
