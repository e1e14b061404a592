"""What a configuration means, where its file is searched for, and how it is rendered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cfproxy.config import (
    Account,
    Pacing,
    TcpAddress,
    UnixAddress,
    load_settings,
    render_settings,
)
from cfproxy.secret import Secret
from tests.support.config_loader import BASE, ENVIRON, MARKER, Loader


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """A folder of this module's own."""
    return Loader(tmp_path_factory.mktemp("config"))


def test_two_keys_are_a_working_configuration(load: Loader) -> None:
    """A client_id and a redirect_uri are enough; all other keys have the documented defaults."""
    got = load.settings(BASE)
    account = got.accounts["default"]
    assert list(got.accounts) == ["default"]
    assert got.source == str(load.path)
    assert (str(got.admin), got.log.level, got.log.format) == ("localhost:8081", "info", "auto")
    assert (account.name, account.client_id, account.client_secret) == ("default", "app", None)
    assert (account.grant, account.scope, account.pkce) == (
        "authorization_code",
        "cfgateway offline_access",
        True,
    )
    assert account.upstream == "https://gateway.creativeforce.io"
    assert account.token_url == "https://accounts.creativeforce.io/connect/token"
    assert account.refresh_token_lifetime_s == 30 * 86_400
    assert account.listen == TcpAddress("localhost", 8080)
    assert account.pacing == Pacing(rate=20.0, per_s=1.0, queue=1000, max_wait_s=60.0)
    assert (account.retry.body_memory_bytes, account.retry.body_max_bytes) == (256 * 1024, 64 * 1024**2)
    assert (account.retry.unauthorized, account.retry.too_many_requests) == (True, True)
    assert (account.timeouts.connect_s, account.timeouts.idle_s) == (10.0, 300.0)
    assert (account.timeouts.token_s, account.timeouts.drain_s) == (30.0, 9.0)
    assert (account.access.hosts, account.access.keys, account.access.allow_remote) == ((), (), False)
    assert account.tls.ca_file is None


def test_no_file_is_needed() -> None:
    """The environment alone is a configuration."""
    got = load_settings(None, ENVIRON)
    assert got.source == "environment"
    assert got.accounts["default"].redirect_uri == "https://example.com/cb"


def test_the_environment_overrides_the_file(load: Loader) -> None:
    """A variable replaces the file's value for its key and leaves neighbouring keys alone."""
    environ = {"CFPROXY_PACING__RATE": "5", "CFPROXY_CLIENT_ID": "other", "CFPROXY_LISTEN": ""}
    account = load.account("pacing: {rate: 7, queue: 3}\nlisten: 9000", environ)
    assert (account.pacing.rate, account.pacing.queue, account.client_id) == (5.0, 3, "other")
    assert account.listen == TcpAddress("localhost", 9000)


def test_the_sandbox_has_hosts_of_its_own(load: Loader) -> None:
    """`environment: sandbox` selects all four URLs; one that is set overrides it, wherever it is set."""
    account = load.account("environment: Sandbox\ntoken_url: http://localhost:1/t")
    assert account.upstream == "https://sandbox-gateway.creativeforce.io"
    assert account.authorize_url == "https://sandbox-accounts.creativeforce.io/connect/authorize"
    assert account.revocation_url == "https://sandbox-accounts.creativeforce.io/connect/revocation"
    assert account.token_url == "http://localhost:1/t"


def test_client_credentials_need_a_secret_and_no_redirect_uri(load: Loader) -> None:
    """The grant decides which keys are needed and which scope is requested."""
    got = load.settings("client_id: a\nclient_secret: s\ngrant: client_credentials")
    assert got.accounts["default"].scope == "cfgateway"
    assert load.problems("client_id: a\ngrant: client_credentials") == [
        "config.yaml: client_secret: needed with grant: client_credentials"
    ]
    (problem,) = load.problems("client_id: a")
    assert problem.startswith("config.yaml: redirect_uri: needed for login: the redirect URI as registered")


def test_null_is_the_default(load: Loader) -> None:
    """A key without a value has its default, even if an account would inherit another value."""
    got = load.settings(BASE + "client_secret: s\npacing:\ntls: {ca_file: null}\nlog: ~\naccess: {hosts: }\n"
                        "accounts: {a: {client_secret: null, listen: 8090}}")  # fmt: skip
    assert got.accounts["default"].pacing == Pacing()
    assert got.accounts["a"].client_secret is None


def test_settings_can_be_constructed_in_python() -> None:
    """Values have the settings' own types, and the attributes' names."""
    listen = UnixAddress("/run/cf.sock")
    account = Account(
        name="a", client_id="x", client_secret=Secret("s"), listen=listen, pacing=Pacing(rate=None, per_s=2.0)
    )
    assert (account.listen, account.client_secret) == (listen, Secret("s"))
    assert (account.pacing.rate, account.pacing.per_s) == (None, 2.0)


def test_addresses_are_values() -> None:
    """They can be compared and replaced, and know whether other machines can reach them."""
    address = TcpAddress("::1", 8080)
    assert str(replace(address, port=1)) == "[::1]:1"
    assert address.is_loopback
    assert not TcpAddress("0.0.0.0", 80).is_loopback


# --- rendering ------------------------------------------------------------------------------


def test_the_effective_configuration_reads_back(load: Loader) -> None:
    """The output of `config show` is a configuration with the same effect, except for secrets."""
    text = (
        BASE + "client_secret: s\naccess: {keys: [k1, k2], paths: ['!/x/**']}\nstore: file:/var/lib/cf\n"
        "pacing: {rate: 2.5, per: 90s, max_wait: 1500ms}\nadmin: off\n"
        "accounts: {a: {client_id: b, client_secret: null, listen: 'unix:/s', retry: {body_memory: 1000}}}"
    )
    before = load.settings(text)
    shown = render_settings(before)
    after = load.settings(shown.replace("[redacted]", "s").replace("- s\n  - s", "- k1\n  - k2"))
    assert after.admin is None
    assert shown.count("[redacted]") == 5
    for name, account in before.accounts.items():
        redone = after.accounts[name]
        assert redone.model_copy(update={"access": account.access}) == account


def test_render_shows_no_password_in_a_url(load: Loader) -> None:
    """Settings constructed in Python are rendered without passwords too."""
    got = load.settings(BASE)
    account = got.accounts["default"].model_copy(update={"upstream": f"https://user:{MARKER}@host/x"})
    shown = render_settings(got.model_copy(update={"accounts": {"default": account}}))
    assert MARKER not in shown
    assert "upstream: https://[redacted]@host/x\n" in shown


# --- finding the file -----------------------------------------------------------------------
