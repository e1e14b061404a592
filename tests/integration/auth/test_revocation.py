"""Revocation, and the URLs that may receive secrets."""

from __future__ import annotations

import pytest

from cfproxy.auth.token_endpoint import HttpTokenEndpoint
from cfproxy.errors import Misconfigured, TokenEndpointUnavailable
from cfproxy.secret import Secret
from tests.integration.auth.raw_server import (
    GOOD,
    REFRESH_TOKEN,
    answer,
    assert_silent,
    endpoint_at,
    failed_refresh,
    listening,
)
from tests.support.names import resolve_by

# --- revocation --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "revoked"),
    [
        (answer(200, {}), True),
        (answer(404, {}), False),
        (answer(400, {"error": "unsupported_token_type"}), False),
    ],
)
async def test_token_is_revoked_if_the_server_can(script: bytes, revoked: bool) -> None:
    """RFC 7009: the response tells whether the token is revoked or the server can't."""
    async with listening(script) as server:
        assert await endpoint_at(server.origin).revoke(Secret("t"), "refresh_token") is revoked
    assert server.heads[0].startswith("POST /connect/revocation ")
    assert server.forms[0]["token_type_hint"] == "refresh_token"


async def test_failed_revocation_shows_no_secret() -> None:
    """The error holds no token; without a revocation URL nothing is sent."""
    async with listening(answer(500, {})) as server:
        with pytest.raises(TokenEndpointUnavailable, match="the revocation endpoint at localhost") as caught:
            await endpoint_at(server.origin).revoke(Secret(REFRESH_TOKEN), "refresh_token")
        assert_silent(caught.value)
        assert not await endpoint_at(server.origin, revocation_url=None).revoke(Secret("t"), "access_token")
    assert server.connections == 1


# --- URLs that may receive secrets -------------------------------------------------------


@pytest.mark.parametrize("key", ["token_url", "revocation_url"])
@pytest.mark.parametrize(
    "url",
    [
        "http://accounts.example/token",
        "http://127.0.0.1.example/token",
        "http://localhost.example/token",
        "ftp://localhost/token",
        "accounts.example/token",
        "https://user:pass@accounts.example/token",
        "https://accounts.example/token#x",
        "https://accounts.example:99999/token",
        "https://",
        "",
    ],
)
def test_secrets_never_travel_in_clear(key: str, url: str) -> None:
    """Only https, or http on loopback, may receive a secret; the message names the key to correct."""
    with pytest.raises(Misconfigured, match=key):
        endpoint_at("https://accounts.example", **{key: url})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8443", "[::1]:9", "127.9.9.9", "a.localhost:9"])
def test_loopback_needs_no_tls(host: str) -> None:
    """A test server on this machine needs no certificate."""
    assert isinstance(endpoint_at(f"http://{host}"), HttpTokenEndpoint)


@pytest.mark.parametrize("name", ["accounts.localhost", "localhost"])
async def test_without_tls_a_name_must_be_this_machine(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A form goes to loopback, or nowhere; each request looks again."""
    async with listening(GOOD) as server:
        endpoint = endpoint_at(server.origin.replace("localhost", name))
        names = resolve_by(monkeypatch, **{name: ["127.0.0.1"]})
        await endpoint.refresh(Secret(REFRESH_TOKEN))
        for addresses in (["127.0.0.1", "192.0.2.7"], ["192.0.2.7"], ["0.0.0.0"]):
            names.addresses[name] = addresses
            error = await failed_refresh(endpoint)
            assert "is not on this machine" in str(error)
            assert not error.sent
        assert server.connections == 1
