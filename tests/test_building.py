"""What an account's settings make."""

from __future__ import annotations

from cfproxy.building import build_endpoint, build_origin
from cfproxy.config import Account, load_settings
from cfproxy.secret import Secret


def account(**changes: str) -> Account:
    environ = {"CFPROXY_CLIENT_ID": "app", "CFPROXY_REDIRECT_URI": "https://example.com/cb"}
    return load_settings(None, environ | changes).accounts["default"]


async def test_secrets_are_never_sent_to_another_server_than_the_token_endpoints() -> None:
    """With token_url changed alone, the default revocation_url is somebody else's, and is not called."""
    endpoint = build_endpoint(account(CFPROXY_TOKEN_URL="http://127.0.0.1:1/connect/token"))
    assert await endpoint.revoke(Secret("token"), "access_token") is False


def test_an_origin_is_written_as_a_host_header_wants_it() -> None:
    """Default ports are left out, IPv6 addresses stand in brackets, a base path has no slash at its end."""
    origin = build_origin("https://gateway.example:443/api/")
    assert (origin.scheme, origin.authority, origin.base_path) == ("https", b"gateway.example", b"/api")
    assert build_origin("http://[::1]:8080").authority == b"[::1]:8080"
    assert build_origin("https://a").via != build_origin("https://a").via
