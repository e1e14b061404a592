"""The parts built from an account's settings."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from cfproxy.config import Account, load_settings
from cfproxy.errors import ListenError
from cfproxy.http1.parser import HeadLimits
from cfproxy.runtime import factory
from cfproxy.runtime.factory import SPARE_FILES, build_endpoint, build_limits, build_origin, build_tls
from cfproxy.secret import Secret
from cfproxy.server.request import Limits


def account(**changes: str) -> Account:
    environ = {"CFPROXY_CLIENT_ID": "app", "CFPROXY_REDIRECT_URI": "https://example.com/cb"}
    return load_settings(None, environ | changes).accounts["default"]


async def test_secrets_are_sent_to_the_token_endpoints_server_only() -> None:
    """If token_url alone is changed, the default revocation_url is another server's and is not called."""
    endpoint = build_endpoint(account(CFPROXY_TOKEN_URL="http://127.0.0.1:1/connect/token"))
    assert await endpoint.revoke(Secret("token"), "access_token") is False


def test_an_origin_has_the_syntax_of_a_host_header() -> None:
    """No default port, brackets around an IPv6 address, no slash at the end of the base path."""
    origin = build_origin("https://gateway.example:443/api/")
    assert (origin.scheme, origin.authority, origin.base_path) == ("https", b"gateway.example", b"/api")
    assert build_origin("http://[::1]:8080").authority == b"[::1]:8080"
    assert build_origin("https://a").via != build_origin("https://a").via


PLAIN = {"CFPROXY_UPSTREAM": "http://127.0.0.1:1", "CFPROXY_TOKEN_URL": "http://127.0.0.1:1/token"}


def _with_authority(path: Path, **changes: str) -> Account:
    trustme.CA().cert_pem.write_to_path(str(path))
    return account(CFPROXY_TLS__CA_FILE=str(path), **changes)


def test_the_systems_authorities_are_loaded_once(tmp_path: Path) -> None:
    """Not for each server, account and reload, because that is the slowest step of a start."""
    assert build_tls(account()) is build_tls(account(CFPROXY_CLIENT_ID="another"))
    one = _with_authority(tmp_path / "ca.pem")
    trusting = build_tls(one)
    assert trusting is build_tls(one)
    assert trusting is not None
    assert (
        trusting.cert_store_stats()["x509_ca"]
        == ssl.create_default_context().cert_store_stats()["x509_ca"] + 1
    )


def test_a_new_authority_in_the_same_file_makes_a_new_context(tmp_path: Path) -> None:
    """A reload uses it."""
    before = build_tls(_with_authority(tmp_path / "ca.pem"))
    assert build_tls(_with_authority(tmp_path / "ca.pem")) is not before


def test_the_systems_authorities_are_not_loaded_without_tls(tmp_path: Path) -> None:
    """Only the file is loaded, and nothing else is trusted."""
    assert build_tls(account(**PLAIN)) is None
    trusting = build_tls(_with_authority(tmp_path / "ca.pem", **PLAIN))
    assert trusting is not None
    assert trusting.cert_store_stats()["x509"] == 1
    assert trusting.verify_mode == ssl.CERT_REQUIRED


@pytest.mark.parametrize("urls", [{}, PLAIN])
def test_a_file_without_a_certificate_is_refused_at_the_start(tmp_path: Path, urls: dict[str, str]) -> None:
    """Even if no server needs it."""
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ListenError, match=r"tls\.ca_file .*ca\.pem holds no certificate in PEM form"):
        build_tls(account(CFPROXY_TLS__CA_FILE=str(tmp_path / "ca.pem"), **urls))


def test_each_limit_of_the_settings_reaches_the_listener() -> None:
    """None is lost or mistaken for another one."""
    made = build_limits(
        account(
            CFPROXY_LIMITS__LINE="2KiB",
            CFPROXY_LIMITS__HEAD="3KiB",
            CFPROXY_LIMITS__HEADERS="7",
            CFPROXY_LIMITS__READ_AHEAD="5KiB",
            CFPROXY_TIMEOUTS__HEAD="8s",
            CFPROXY_TIMEOUTS__KEEP_ALIVE="9s",
            CFPROXY_TIMEOUTS__IDLE="10s",
        )
    )
    assert made == Limits(
        HeadLimits(2048, 3072, 7), head_s=8.0, keep_alive_s=9.0, idle_s=10.0, ahead_bytes=5120
    )
    assert build_limits(account()) == Limits()


@pytest.mark.parametrize(
    ("allowed", "connections", "upstream", "share"),
    [
        (20_000, 10_100, 1000, 1.0),  # waiting requests have no connection to the API
        (4096, 4096, 1000, (4096 - SPARE_FILES) / 5096),
        (4096, 1500, 9000, 1.0),  # there are never more connections to the API than clients
        (4096, 3000, 9000, (4096 - SPARE_FILES) / 6000),
        (64, 4096, 1000, 0.0),
    ],
)
def test_the_limit_of_open_files_limits_the_connections(
    monkeypatch: pytest.MonkeyPatch, allowed: int, connections: int, upstream: int, share: float
) -> None:
    """Each client connection needs a file, and each connection to the API another one."""
    monkeypatch.setattr(factory, "open_files_for", lambda wanted: min(wanted, allowed))
    made = account(CFPROXY_LIMITS__CONNECTIONS=str(connections), CFPROXY_LIMITS__UPSTREAM=str(upstream))
    assert factory.affordable_share([made]) == pytest.approx(share)
