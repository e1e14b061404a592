"""What people write into the file and the environment, and what they are told when it is wrong."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cfproxy.config import (
    Access,
    Account,
    Pacing,
    Settings,
    TcpAddress,
    UnixAddress,
    find_config,
    load_settings,
    render_settings,
)
from cfproxy.errors import ConfigError
from cfproxy.secret import Secret
from cfproxy.settings_types import parse_duration, parse_size, render_duration, render_size

BASE = "client_id: app\nredirect_uri: https://example.com/cb\n"
ENVIRON = {"CFPROXY_CLIENT_ID": "app", "CFPROXY_REDIRECT_URI": "https://example.com/cb"}
MARKER = "S3cret-Marker.zz9"


class Loader:
    """Loads a text as the file config.yaml in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "config.yaml"

    def settings(self, text: str | bytes, environ: Mapping[str, str] | None = None) -> Settings:
        self.path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_settings(self.path, environ or {})

    def account(self, text: str, environ: Mapping[str, str] | None = None) -> Account:
        return self.settings(BASE + text, environ).accounts["default"]

    def problems(self, text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.settings(text, environ)
        assert caught.value.problems
        return str(caught.value).replace(str(self.path), "config.yaml").splitlines()

    def problem(self, text: str, environ: Mapping[str, str] | None = None) -> str:
        (only,) = self.problems(BASE + text, environ)
        return only


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    return Loader(tmp_path_factory.mktemp("config"))


# --- what one gets --------------------------------------------------------------------------


def test_two_keys_make_a_working_configuration(load: Loader) -> None:
    """A client_id and a redirect_uri are enough; all else has the documented defaults."""
    got = load.settings(BASE)
    account = got.accounts["default"]
    assert list(got.accounts) == ["default"]
    assert got.source == str(load.path)
    assert (str(got.admin), got.log.level, got.log.format) == ("127.0.0.1:8081", "info", "auto")
    assert (account.name, account.client_id, account.client_secret) == ("default", "app", None)
    assert (account.grant, account.scope, account.pkce) == (
        "authorization_code",
        "cfgateway offline_access",
        True,
    )
    assert account.upstream == "https://gateway.creativeforce.io"
    assert account.token_url == "https://accounts.creativeforce.io/connect/token"
    assert account.refresh_token_lifetime_s == 30 * 86_400
    assert account.listen == TcpAddress("127.0.0.1", 8080)
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


def test_the_environment_wins(load: Loader) -> None:
    """A variable replaces the file's value for its key and leaves the key's neighbours alone."""
    environ = {"CFPROXY_PACING__RATE": "5", "CFPROXY_CLIENT_ID": "other", "CFPROXY_LISTEN": ""}
    account = load.account("pacing: {rate: 7, queue: 3}\nlisten: 9000", environ)
    assert (account.pacing.rate, account.pacing.queue, account.client_id) == (5.0, 3, "other")
    assert account.listen == TcpAddress("127.0.0.1", 9000)


def test_variables_carry_lists_mappings_and_accounts() -> None:
    """Lists are comma-separated or in brackets, mappings in braces, account names in capitals."""
    got = load_settings(
        None,
        {
            **ENVIRON,
            "CFPROXY_ACCESS__METHODS": "get, HEAD",
            "CFPROXY_ACCESS__KEYS": '["a,b", {env: KEY}]',
            "KEY": "c",
            "CFPROXY_TIMEOUTS": "{connect: 3s}",
            "CFPROXY_TIMEOUTS__IDLE": "4s",
            "CFPROXY_ACCOUNTS__ACME__LISTEN": ":8090",
            "CFPROXY_ACCOUNTS__ACME__CLIENT_ID": "acme-app",
            "CFPROXY_ACCOUNTS__B": "{client_id: b, listen: 8091}",
        },
    )
    default, acme, b = got.accounts.values()
    assert default.access.methods == ("GET", "HEAD")
    assert default.access.keys == (Secret("a,b"), Secret("c"))
    assert (default.timeouts.connect_s, default.timeouts.idle_s) == (3.0, 4.0)
    assert (acme.name, acme.client_id, str(acme.listen)) == ("acme", "acme-app", "127.0.0.1:8090")
    assert (b.name, b.client_id, str(b.listen)) == ("b", "b", "127.0.0.1:8091")


def test_the_whole_accounts_mapping_may_come_from_one_variable() -> None:
    """CFPROXY_ACCOUNTS takes all accounts at once."""
    got = load_settings(None, {"CFPROXY_ACCOUNTS": "{a: {client_id: x, redirect_uri: 'https://e.com/'}}"})
    assert list(got.accounts) == ["a"]


def test_a_service_named_cfproxy_does_no_harm() -> None:
    """The variables that Kubernetes sets for a service of that name are not taken for settings."""
    links = {
        "CFPROXY_PORT": "tcp://10.0.0.1:8080",
        "CFPROXY_SERVICE_HOST": "10.0.0.1",
        "CFPROXY_SERVICE_PORT": "8080",
        "CFPROXY_SERVICE_PORT_HTTP": "8080",
        "CFPROXY_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "CFPROXY_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    assert load_settings(None, {**ENVIRON, **links}) == load_settings(None, ENVIRON)
    with pytest.raises(ConfigError, match="CFPROXY_PORT: is not a known variable"):
        load_settings(None, {**ENVIRON, "CFPROXY_PORT": "8080"})


def test_plain_scalars_mean_what_they_look_like(load: Loader) -> None:
    """A client_id of digits keeps its leading zero, a date stays text, `no` is no boolean there."""
    for written in ("0123456", "2024-01-01", "no", "1_000", "0x1f", "1e3", "'quoted'"):
        got = load.settings(f"client_id: {written}\nredirect_uri: https://example.com/cb")
        assert got.accounts["default"].client_id == written.strip("'")


@pytest.mark.parametrize("word", ["off", "Off", "OFF", "'off'", '"off"', "false", "no", "False"])
def test_off_is_a_word_however_it_is_written(load: Loader, word: str) -> None:
    """Quoted or not, in any case, and where YAML would read it as false."""
    got = load.settings(f"{BASE}admin: {word}\npacing: {{rate: {word}}}")
    assert got.admin is None
    assert got.accounts["default"].pacing.rate is None
    assert yaml.safe_load(render_settings(got))["admin"] == "off"


def test_words_and_booleans_are_read_in_any_case(load: Loader) -> None:
    """`JSON`, 'auto' and `Yes` are understood."""
    assert load.settings(BASE + "log: {format: JSON}").log.format == "json"
    assert load.settings(BASE + "log: {format: 'AUTO'}").log.format == "auto"
    for word, value in {
        "true": True,
        "Yes": True,
        "on": True,
        "false": False,
        "no": False,
        "OFF": False,
    }.items():
        assert load.account(f"pkce: {word}").pkce is value


def test_null_is_the_default(load: Loader) -> None:
    """A key without a value is as if it were not there, and un-inherits in an account."""
    got = load.settings(BASE + "client_secret: s\npacing:\ntls: {ca_file: null}\nlog: ~\naccess: {hosts: }\n"
                        "accounts: {a: {client_secret: null, listen: 8090}}")  # fmt: skip
    assert got.accounts["default"].pacing == Pacing()
    assert got.accounts["a"].client_secret is None


def test_anchors_and_merge_keys_work(load: Loader) -> None:
    """YAML's own ways to say a thing once may be used."""
    got = load.settings(
        "accounts:\n"
        "  a: &a {client_id: x, redirect_uri: 'https://example.com/cb', pkce: off}\n"
        "  b: {<<: *a, listen: 8082}\n"
        "  c: {<<: [{listen: 8083, client_id: y}, *a], redirect_uri: 'https://example.com/c'}\n"
    )
    a, b, c = got.accounts.values()
    assert (a.client_id, b.client_id, c.client_id) == ("x", "x", "y")
    assert not a.pkce
    assert not b.pkce
    assert (c.listen, c.redirect_uri) == (TcpAddress("127.0.0.1", 8083), "https://example.com/c")


# --- notations ------------------------------------------------------------------------------


@given(st.integers(1, 3_000_000_000_000).map(lambda ms: ms / 1000))
def test_durations_read_back(seconds: float) -> None:
    """A duration that is shown and read again is the same."""
    assert parse_duration(render_duration(seconds)) == seconds


@given(st.integers(0, 10**15 - 1))
def test_sizes_read_back(size_bytes: int) -> None:
    """A size that is shown and read again is the same."""
    assert parse_size(render_size(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("300ms", 0.3), ("5m", 300), ("1h", 3600), ("30d", 2_592_000), ("7", 7), ("1.5h", 5400)],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    """ms, s, m, h, d; a plain number means seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("10", 10), ("10B", 10), ("1KB", 1000), ("2MB", 2_000_000), ("1GB", 10**9),
        ("256KiB", 262_144), ("64MiB", 67_108_864), ("1GiB", 2**30), ("0", 0),
    ],
)  # fmt: skip
def test_sizes_have_units(text: str, size_bytes: int) -> None:
    """Decimal and binary units; a plain number means bytes."""
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        (":9000", "127.0.0.1:9000"),
        ("9000", "127.0.0.1:9000"),
        ("'[::1]:9000'", "[::1]:9000"),
        ("'[0:0:0:0:0:0:0:1]:9000'", "[::1]:9000"),
        ("LOCALHOST:9000", "localhost:9000"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("unix:/run/cf.sock", "unix:/run/cf.sock"),
    ],
)
def test_a_listener_is_written_in_many_ways(load: Loader, written: str, shown: str) -> None:
    """A port alone listens on this machine only; IPv6 addresses stand in brackets."""
    assert str(load.account(f"listen: {written}").listen) == shown


def test_a_socket_path_is_a_listener(load: Loader) -> None:
    """unix:/path listens on a Unix socket, which no other machine can reach."""
    assert load.account("listen: unix:/run/cf.sock").listen == UnixAddress("/run/cf.sock")


def test_the_sandbox_has_hosts_of_its_own(load: Loader) -> None:
    """`environment: sandbox` picks all four URLs; one that is set wins, wherever it is set."""
    account = load.account("environment: Sandbox\ntoken_url: http://localhost:1/t")
    assert account.upstream == "https://sandbox-gateway.creativeforce.io"
    assert account.authorize_url == "https://sandbox-accounts.creativeforce.io/connect/authorize"
    assert account.revocation_url == "https://sandbox-accounts.creativeforce.io/connect/revocation"
    assert account.token_url == "http://localhost:1/t"


def test_client_credentials_need_a_secret_and_no_redirect_uri(load: Loader) -> None:
    """The grant decides what is needed and what is asked for."""
    got = load.settings("client_id: a\nclient_secret: s\ngrant: client_credentials")
    assert got.accounts["default"].scope == "cfgateway"
    assert load.problems("client_id: a\ngrant: client_credentials") == [
        "config.yaml: client_secret: needed with grant: client_credentials"
    ]
    (problem,) = load.problems("client_id: a")
    assert problem.startswith("config.yaml: redirect_uri: needed for login: the redirect URI as registered")


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("https://gw.example.com/base/", "https://gw.example.com/base"),
        ("HTTPS://GW.Example.com:8443/", "https://gw.example.com:8443"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9"),
        ("http://127.8.8.8", "http://127.8.8.8"),
        ("http://[::1]:9/x", "http://[::1]:9/x"),
        ("http://api.localhost", "http://api.localhost"),
    ],
)
def test_an_upstream_is_https_or_this_machine(load: Loader, written: str, kept: str) -> None:
    """Without TLS tokens go to loopback only; a base path loses its trailing slash."""
    assert load.account(f"upstream: '{written}'").upstream == kept


def test_a_redirect_uri_stays_as_it_is_written(load: Loader) -> None:
    """Servers compare it as text, so nothing about it is tidied."""
    written = "HTTP://Studio.Example.com:80/cb/?a=1"
    assert load.settings(f"client_id: a\nredirect_uri: {written}").accounts["default"].redirect_uri == written


def test_a_secret_comes_from_the_text_a_variable_or_a_file(load: Loader) -> None:
    """A file's path starts at the configuration's folder; one trailing newline is cut."""
    for content in (b"from file", b"from file\n", b"from file\r\n"):
        (load.folder / "secret.txt").write_bytes(content)
        assert load.account("client_secret: {file: secret.txt}").client_secret == Secret("from file")
    assert load.account("client_secret: {env: S}", {"S": "from env"}).client_secret == Secret("from env")
    assert load.account("client_secret: 00123").client_secret == Secret("00123")
    environ = {"CFPROXY_CLIENT_SECRET__FILE": str(load.folder / "secret.txt")}
    assert load.account("client_secret: {env: UNSET}", environ).client_secret == Secret("from file")
    environ = {"CFPROXY_CLIENT_SECRET__ENV": "S", "S": "from env"}
    assert load.account("", environ).client_secret == Secret("from env")


def test_a_secret_file_is_a_short_text(load: Loader) -> None:
    """Binary content, an endless file and an unknown home folder are told as such."""
    (load.folder / "binary").write_bytes(b"\xff")
    (load.folder / "long").write_bytes(b"x" * 70_000)
    text = "client_secret: {file: %s}"
    assert "names a file that is not UTF-8 text" in load.problem(text % "binary")
    assert "names a file of more than 65536 bytes" in load.problem(text % "long")
    assert "home folder is unknown" in load.problem(text % "~no-such-user-here/x")


def test_a_file_store_has_a_folder(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """`file` is the user's state folder, `file:DIR` starts at the configuration's folder, memory has none."""
    assert load.account("store: file:tokens").store == f"file:{load.folder / 'tokens'}"
    assert load.account("store: file:tokens").store_dir == load.folder / "tokens"
    home = Path("~").expanduser()
    assert load.account("store: file:~/cf").store_dir == home / "cf"
    folder = load.account("").store_dir
    assert folder is not None
    assert folder.is_absolute()
    assert "cfproxy" in folder.parts
    assert load.account("store: memory").store_dir is None


def test_access_lists_are_tidied(load: Loader) -> None:
    """Hosts and origins are compared as clients send them: lower case, no default port."""
    access = load.account(
        "access:\n"
        "  hosts: [Proxy.LAN, 'proxy.lan:81', '[::1]:82', 10.0.0.1]\n"
        "  origins: ['HTTPS://App.example.com:443', 'http://localhost:3000', 'chrome-extension://abc']\n"
        "  methods: [get, M-SEARCH]\n"
        "  paths: [/v1/**, '!/v1/jobs/*']\n"
    ).access
    assert access.hosts == ("proxy.lan", "proxy.lan:81", "[::1]:82", "10.0.0.1")
    assert access.origins == ("https://app.example.com", "http://localhost:3000", "chrome-extension://abc")
    assert access.methods == ("GET", "M-SEARCH")
    assert access.paths == ("/v1/**", "!/v1/jobs/*")


# --- accounts -------------------------------------------------------------------------------


def test_an_account_inherits_what_it_does_not_set(load: Loader) -> None:
    """Inheritance goes section by section, so one key of a section may differ."""
    got = load.settings(
        BASE + "access: {methods: [GET], keys: [a]}\npacing: {queue: 5}\n"
        "accounts: {acme: {client_id: b, listen: 8090, access: {keys: [b]}}}"
    )
    assert list(got.accounts) == ["default", "acme"]
    acme = got.accounts["acme"]
    assert (acme.name, acme.client_id, acme.redirect_uri) == ("acme", "b", "https://example.com/cb")
    assert (acme.access.methods, acme.access.keys, acme.pacing.queue) == (("GET",), (Secret("b"),), 5)


def test_without_a_client_id_at_the_top_there_is_no_default_account(load: Loader) -> None:
    """The top level then only says what the accounts share."""
    got = load.settings(
        "redirect_uri: https://example.com/cb\naccounts: {b: {client_id: b}, a: {client_id: a, listen: 0}}"
    )
    assert list(got.accounts) == ["b", "a"]


def test_a_secret_of_an_account_replaces_the_inherited_one(load: Loader) -> None:
    """{env} over {file} is {env}, not a mixture."""
    text = BASE + "client_secret: {file: /nowhere}\naccounts: {a: {client_secret: {env: S}, listen: 8090}}"
    assert load.problems(text, {"S": "s"}) == [
        "config.yaml: client_secret: names a file that can't be read: No such file or directory"
    ]


@pytest.mark.parametrize(
    ("listen", "owner"),
    [
        ("127.0.0.1:8080", "account 'default'"),
        ("localhost:8080", "account 'default'"),
        ("8081", "admin"),
        ("localhost:8081", "admin"),
        (None, "account 'default'"),
    ],
)
def test_listeners_do_not_collide(load: Loader, listen: str | None, owner: str) -> None:
    """Each account needs an address of its own, and the admin listener has its own, too."""
    account = {"client_id": "b"} | ({"listen": listen} if listen else {})
    problem = load.problem(yaml.safe_dump({"accounts": {"acme": account}}))
    assert problem.startswith("config.yaml: accounts.acme.listen: ")
    assert f"is taken by {owner}; give this account a listen address of its own" in problem


def test_a_wildcard_collides_with_every_address_of_its_kind(load: Loader) -> None:
    """0.0.0.0:8081 takes the admin's port, [::]:8081 does not; port 0 never collides."""
    text = "access: {allow_remote: true}\naccounts: {a: {listen: '%s'}}"
    assert "is taken by admin" in load.problem(text % "0.0.0.0:8081")
    assert len(load.settings(BASE + text % "[::]:8081").accounts) == 2
    assert len(load.settings(BASE + "listen: 127.0.0.1:0\naccounts: {a: {}, b: {}}").accounts) == 3
    assert "taken by" in load.problem("listen: unix:/s\naccounts: {a: {}}")


def test_accounts_on_one_upstream_agree_on_pacing(load: Loader) -> None:
    """The limit is per IP address, so two pacings for one upstream can't both be right."""
    text = "accounts: {a: {client_id: b, listen: 8090, pacing: {rate: 5}%s}}"
    problem = load.problem(text % ", upstream: 'https://gateway.creativeforce.io:443/base'")
    assert problem.startswith("config.yaml: accounts.a.pacing: must be as in account 'default'")
    assert load.settings(BASE + text % ", environment: sandbox").accounts["a"].pacing.rate == 5


@pytest.mark.parametrize("name", ["Acme", "a.b", "con", "nul", "com1", "-a", "a" * 65, "''", "a b", "é"])
def test_account_names_are_file_names(load: Loader, name: str) -> None:
    """Small letters, digits, - and _, and none of the names that Windows keeps for devices."""
    assert "is not an account name" in load.problem(f"accounts: {{{name}: {{listen: 8090}}}}")


def test_default_is_the_top_level(load: Loader) -> None:
    """`accounts.default` beside a client_id at the top would be a second one."""
    taken, missing = load.problems("client_id: a\naccounts: {default: {listen: 8090}}")
    assert taken.startswith("config.yaml: accounts.default: is taken")
    assert missing.startswith("config.yaml: redirect_uri: needed")


@pytest.mark.parametrize("key", ["admin", "log", "accounts"])
def test_process_wide_keys_are_for_the_top_level(load: Loader, key: str) -> None:
    """An account can't have its own admin page, log or accounts."""
    assert load.problem(f"accounts: {{a: {{listen: 8090, {key}: {{}}}}}}") == (
        f"config.yaml: accounts.a.{key}: belongs to the top level: it holds for all accounts"
    )


def test_an_inherited_mistake_is_told_once(load: Loader) -> None:
    """It is shown where it is written, whatever the number of accounts."""
    accounts = "accounts: {a: {listen: 8090}, b: {listen: 8091, timeouts: {idle: never}}}"
    assert load.problems(f"{BASE}timeouts: {{connect: soon}}\n{accounts}") == [
        "config.yaml: timeouts.connect: must be a duration such as 10s, 5m, 1h, 30d",
        "config.yaml: accounts.b.timeouts.idle: must be a duration such as 10s, 5m, 1h, 30d",
    ]


# --- safety ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "'[::]", "192.168.1.5", "proxy.lan", "127.1", "'[::ffff:127.0.0.1]"]
)
@pytest.mark.parametrize("key", ["listen", "admin"])
def test_no_listener_is_open_to_others_by_accident(load: Loader, key: str, host: str) -> None:
    """Beyond this machine a listener needs an access key or an explicit allow_remote."""
    line = f"{key}: {host}:9999" + ("'" if host.startswith("'") else "")
    if host == "127.1":
        assert "must have a valid host name or IP address" in load.problem(line)
        return
    problem = load.problem(line)
    assert problem.startswith(f"config.yaml: {key}: can be reached from other machines")
    assert "whoever reaches this port acts as you" in problem
    for consent in ("keys: [k]", "allow_remote: true"):
        assert load.account(f"{line}\naccess: {{{consent}}}").name == "default"


@pytest.mark.parametrize(
    "url",
    [
        "http://gateway.example.com", "http://localhost.evil.com", "http://127.0.0.1.evil.com", "ftp://a.b",
        "https://", "https:///path", "https://u:p@a.b", "https://u@a.b", "https://a.b?x=1", "https://a.b/?",
        "https://a.b/#f", "https://a b", "https://a.b/\\x", "https://a.b:99999", "https://a.b:0", "//a.b",
        "https://a.b/../c", "https://a.b/%2E%2e/c", "https://a..b", "https://[::1", "https://a.b:", "a.b",
        "https://1.2.3", "https://exämple.com", "https://a.b/\u0007",
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["upstream", "authorize_url", "token_url", "revocation_url"])
def test_tokens_go_to_plain_https_urls_only(load: Loader, key: str, url: str) -> None:
    """No user name, query, fragment, dot segment or odd character, and no http beyond this machine."""
    problem = load.problem(yaml.safe_dump({key: url}))
    assert problem.startswith(f"config.yaml: {key}: must ")


def test_redis_urls_are_refused_without_being_shown(load: Loader) -> None:
    """This version keeps tokens in files or in memory."""
    for scheme in ("redis", "rediss"):
        assert load.problem(f"store: {scheme}://user:{MARKER}@host/0") == (
            "config.yaml: store: this version has no Redis store; use file, file:DIR or memory"
        )


def test_render_shows_no_password_in_an_url(load: Loader) -> None:
    """Even settings that were made by hand are shown without passwords."""
    got = load.settings(BASE)
    account = got.accounts["default"].model_copy(update={"upstream": f"https://user:{MARKER}@host/x"})
    shown = render_settings(got.model_copy(update={"accounts": {"default": account}}))
    assert MARKER not in shown
    assert "upstream: https://[redacted]@host/x\n" in shown


def test_the_effective_configuration_reads_back(load: Loader) -> None:
    """What `config show` prints is a configuration with the same effect, secrets apart."""
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


# --- mistakes -------------------------------------------------------------------------------


def test_every_problem_is_told_at_once(load: Loader) -> None:
    """One run shows all there is to mend, in the file and in the environment."""
    text = (
        "client_id: a\nclient_idd: b\npkce: maybe\npacing: {rate: -1, queue: many}\nretry: 5\n"
        "accounts: {con: {}, a: {listen: here}}\nlisten: 0.0.0.0:80\nlog: {level: loud}\nstore: cloud\n"
    )
    got = load.problems(text, {"CFPROXY_TIMEOUTS__IDLE": "x", "CFPROXY_PACING_RATE": "1"})
    places = [tuple(problem.split(": ")[:2]) for problem in got]
    assert sorted(places) == sorted(
        [
            ("config.yaml", "client_idd"),
            ("config.yaml", "pkce"),
            ("config.yaml", "pacing.rate"),
            ("config.yaml", "pacing.queue"),
            ("config.yaml", "retry"),
            ("config.yaml", "accounts.con"),
            ("config.yaml", "accounts.a.listen"),
            ("config.yaml", "listen"),
            ("config.yaml", "log.level"),
            ("config.yaml", "store"),
            ("config.yaml", "redirect_uri"),
            ("config.yaml", "accounts.a.redirect_uri"),
            ("environment", "CFPROXY_TIMEOUTS__IDLE"),
            ("environment", "CFPROXY_PACING_RATE"),
        ]
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "accounts: {}", "accounts: {a: {}, b: {}}", "---"])
def test_nothing_configured_is_one_problem(load: Loader, text: str) -> None:
    """An empty file is fine as such; then the client id is what is missing, and how to start is said."""
    (problem,) = [each for each in load.problems(text) if "listen" not in each]
    assert problem.startswith("config.yaml: client_id: must be set, here or as CFPROXY_CLIENT_ID")
    assert "cfproxy config init" in problem


def test_an_account_without_client_id_is_named(load: Loader) -> None:
    """When some accounts have one, the one without is told."""
    text = "redirect_uri: https://e.com/\naccounts: {a: {client_id: a}, b: {listen: 8090}}"
    (problem,) = load.problems(text)
    assert problem.startswith("config.yaml: accounts.b.client_id: must be set")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("pacing: {per_s: 1}", "pacing.per_s: is not a known key; did you mean per?"),
        ("client_secrett: x", "client_secrett: is not a known key; did you mean client_secret?"),
        ("clientId: x", "clientId: is not a known key; did you mean client_id?"),
        ("zzz: x", "zzz: is not a known key"),
        ("name: x", "name: is not a known key"),
        ("pacing: 5", "pacing: must be a mapping with keys such as rate"),
        ("accounts: [a]", "accounts: must be a mapping of account names to their settings"),
        ("accounts: {a: 8090}", "accounts.a: must be a mapping with keys such as client_id"),
        ("pacing: {rate: 0}", "pacing.rate: must be a positive number"),
        ("pacing: {rate: inf}", "pacing.rate: must be a positive number"),
        ("pacing: {rate: [1]}", "pacing.rate: must be a positive number"),
        ("pacing: {queue: -1}", "pacing.queue: must be 0 or more"),
        ("pacing: {queue: 1.5}", "pacing.queue: must be a whole number"),
        ("pacing: {queue: 99999999}", "pacing.queue: must be 1000000 or less"),
        ("pacing: {per: 0}", "pacing.per: must be a duration such as 10s, 5m, 1h, 30d, from 1ms to 36500d"),
        ("timeouts: {idle: -5s}", "timeouts.idle: must be a duration"),
        ("timeouts: {idle: 99999d}", "timeouts.idle: must be a duration"),
        ("retry: {body_max: 1TB}", "retry.body_max: must be a size"),
        ("retry: {body_max: 1KiB}", "retry: body_memory must not be larger than body_max"),
        ("retry: {unauthorized: maybe}", "retry.unauthorized: must be true or false"),
        ("retry: {unauthorized: [1]}", "retry.unauthorized: must be true or false"),
        ("grant: password", "grant: must be 'authorization_code' or 'client_credentials'"),
        ("environment: {}", "environment: must be 'production' or 'sandbox'"),
        ("scope: ''", "scope: must be scope names"),
        ("listen: here", "listen: must be an address such as"),
        ("listen: 99999", "listen: must be an address such as"),
        ("listen: '::1:80'", "listen: must be an address such as"),
        ("listen: 'unix:s.sock'", "listen: must name an absolute path"),
        (f"listen: 'unix:/{'s' * 200}'", "listen: has a path longer than 103 bytes"),
        ("admin: unix:/s", "admin: must be a TCP address"),
        ("store: cloud", "store: must be file, file:DIR or memory"),
        ("store: 'file:'", "store: must name a path"),
        ("access: {keys: k}", "access.keys: must be a list such as [a, b]"),
        ("access: {keys: ['']}", "access.keys.0: must not be empty"),
        ("access: {keys: [{env: A, file: B}]}", "access.keys.0: must be text, {env: NAME} or {file: PATH}"),
        ("access: {hosts: ['http://a']}", "access.hosts.0: must be host or host:port"),
        ("access: {origins: ['null']}", "access.origins.0: must be an origin such as"),
        ("access: {origins: ['https://a/b']}", "access.origins.0: must be an origin such as"),
        ("access: {methods: ['GET POST']}", "access.methods.0: must be an HTTP method"),
        ("access: {paths: [v1]}", "access.paths.0: must be a path that starts with /"),
        ("client_secret: {env: NOPE}", "client_secret: the variable that {env: …} names is not set"),
        ("client_secret: {file: nope}", "client_secret: names a file that can't be read: No such file"),
        ("client_secret: {vault: x}", "client_secret: must be text, {env: NAME} or {file: PATH}"),
        ("client_secret: ''", "client_secret: must not be empty"),
        ('client_secret: "a\\nb"', "client_secret: must not hold line breaks"),
        ("tls: {ca_file: nope.pem}", "tls.ca_file: names a file that can't be read"),
        ("{: }", "line 3, column"),
        ("accounts: {a: {listen: 8090, pkce:off}}", "accounts.a.pkce: needs a space after its colon"),
        ("pacing: !!python/object:os.system {}", "line 3: tags (words that begin with !) can't be used"),
        ("!x y: z", "line 3: a key must be plain text"),
        ("? [a]\n: b", "line 3: a key must be plain text"),
        ("<<: 5", "line 3: << takes a mapping"),
        ("<<: {pkce: on}\n<<: {pkce: off}", "?: is given twice (again in line 4)"),
        ("upstream: https://u:p@a.b", "upstream: must not hold a user name or password"),
        ('scope: "\\UFFFFFFFF"', "holds a character or an escape that YAML does not have"),
        ("scope: \x07", "holds a character or an escape that YAML does not have"),
        ("pkce: true\npkce: true", "pkce: is given twice (again in line 4)"),
        ("log: {level: info, level: info}", "log.level: is given twice (again in line 3)"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_plain_words(load: Loader, text: str, problem: str) -> None:
    """`file: key.path: what is wanted`, one line for one mistake."""
    assert load.problem(text).startswith(f"config.yaml: {problem}")


@pytest.mark.parametrize(
    "redirect_uri", ["/cb", "cf://x", "https://a.b/#f", "https://u:p@a.b/", "https://a b/", "[a]"]
)
def test_a_redirect_uri_is_an_absolute_web_address(load: Loader, redirect_uri: str) -> None:
    """A relative address, another scheme or a fragment can't have been registered."""
    (problem,) = load.problems(f"client_id: a\nredirect_uri: {redirect_uri}")
    assert problem.startswith("config.yaml: redirect_uri: must ")


@pytest.mark.parametrize("client_id", ["''", "' '", "é", '"a\\tb"', "[a]"])
def test_a_client_id_is_printable_ascii(load: Loader, client_id: str) -> None:
    """RFC 6749 allows nothing else."""
    (problem,) = load.problems(f"client_id: {client_id}\nredirect_uri: https://example.com/cb")
    assert problem == "config.yaml: client_id: must be text of printable ASCII characters, not empty"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("CFPROXY_PACING_RATE", "1", "is not a known variable; did you mean CFPROXY_PACING__RATE?"),
        ("CFPROXY_client_id", "1", "is not a known variable: their names are in capitals"),
        ("CFPROXY_ACCOUNTS__A__PKC", "x", "is not a known variable; did you mean CFPROXY_ACCOUNTS__A__PKCE?"),
        ("CFPROXY_", "x", "is not a known variable"),
        ("CFPROXY_PACING__RATE__ENV", "x", "is not a known variable"),
        ("CFPROXY_ACCOUNTS__A.B__PKCE", "x", "is not an account name"),
        ("CFPROXY_PACING", "5", "must be a mapping in one line, such as {key: value}"),
        ("CFPROXY_PACING", "{rate: 1, rate: 2}", "must be a mapping in one line"),
        ("CFPROXY_PACING", "{rtae: 1}", "is not a known key; did you mean rate?"),
        ("CFPROXY_ACCESS__HOSTS", "[a", "must be a list in one line, such as [a, b]"),
        ("CFPROXY_ACCESS__HOSTS", "a, http://b", "must be host or host:port"),
        ("CFPROXY_CLIENT_SECRET__ENV", "NOPE", "the variable that {env: …} names is not set"),
        ("CFPROXY_LISTEN", "0.0.0.0:80", "can be reached from other machines"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_named(name: str, value: str, problem: str) -> None:
    """A problem that comes from the environment names its variable."""
    with pytest.raises(ConfigError) as caught:
        load_settings(None, {**ENVIRON, name: value})
    (only,) = caught.value.problems
    assert str(only).startswith(f"environment: {name}: {problem}")


def test_one_key_is_set_by_one_variable() -> None:
    """Two variables for one key are a contradiction, also when one is the {file} form."""
    environ = {**ENVIRON, "CFPROXY_CLIENT_SECRET": "x", "CFPROXY_CLIENT_SECRET__FILE": "/x"}
    with pytest.raises(
        ConfigError, match="CFPROXY_CLIENT_SECRET__FILE: sets the same as CFPROXY_CLIENT_SECRET;"
    ):
        load_settings(None, environ)


def test_an_unknown_variable_is_told_beside_a_broken_file(load: Loader) -> None:
    """A file that can't be read does not hide what is wrong in the environment."""
    got = load.problems("a: [", {"CFPROXY_WRONG": "1"})
    assert [problem.split(": ")[0] for problem in got] == ["config.yaml", "environment"]


# Nine levels of nine aliases each: 400 million values in 300 bytes.
_ALIAS_BOMB = b"x0: &x0 [1]\n" + b"".join(
    b"x%d: &x%d [%s]\n" % (n, n, b",".join([b"*x%d" % (n - 1)] * 9)) for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\xef\xbb\xbfclient_id: a", "begins with a byte-order mark; save it as UTF-8 without BOM"),
        ("client_id: a".encode("utf-16"), "begins with a byte-order mark"),
        (b"client_id: \xff", "is not UTF-8 text"),
        (b"just text", "must consist of lines such as `key: value`"),
        (b"client_secret:hunter2", "lines such as `key: value`, with a space after the colon"),
        (b"[a]", "must consist of lines"),
        (b"a: 1\n---\nb: 2", "line 2, column 1: not valid YAML"),
        (b"#" * 300_000, "is larger than 256 KiB"),
        (b"[" * 5_000, "too many levels"),
        (b"a: &a [*a]", "line 1: too many values, levels or aliases"),
        (_ALIAS_BOMB, "too many values, levels or aliases"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_problem(load: Loader, content: bytes, problem: str) -> None:
    """Wrong encodings, other shapes and alias bombs are refused in plain words."""
    (only,) = load.problems(content)
    assert problem in only


def test_a_missing_file_is_a_problem(load: Loader) -> None:
    """So is a folder in its place."""
    for path in (load.folder / "missing.yaml", load.folder):
        with pytest.raises(ConfigError, match="can't be read") as caught:
            load_settings(path, {})
        assert [problem.source for problem in caught.value.problems] == [str(path)]


# --- secrets never show ---------------------------------------------------------------------

# A secret may look like a word, which a key does too.
MARKERS = (MARKER, "HunterMarker")


def _secret_forms(marker: str) -> list[Any]:
    return [
        *(marker, f"{marker}\n", [marker], [[marker]], {marker: None}, {marker: marker}, {"a": {marker: 1}}),
        *({"env": marker}, {"file": marker}, {"env": [marker]}, {"file": f"{marker}\0"}, {"ENV": marker}),
        {"env": marker, "file": marker},
    ]


_SECRET_PLACES = [
    "client_secret: %s",
    "access: {keys: [%s]}",
    "access: {keys: %s}",
    "access: {keys: [ok, %s, {env: K}]}",
    "accounts: {a: {client_secret: %s}}",
    "accounts: {a: {access: {keys: [%s]}}}",
    "client_secrett: %s",
    "client_secret: %s\nclient_secret: %s",
    "client_secret: [%s, !x %s]",
]
_RAW_PLACES = [
    "client_secret:%s",
    "{client_id: a, client_secret:%s}",
    "accounts: {a: {client_secret:%s}}",
    "access: {keys:[%s]}",
    "client_secret: '%s",
    'client_secret: "%s\\q"',
    "client_secret: %s: x",
    "client_secret: *%s",
    "client_secret: !%s x",
    "client_secret: | %s",
    "client_secret: @%s",
    "client_secret: {%s: 1, %s: 2}",
    "client_secret: {%s: 1, %s: 2, {x: 1}: 3}",
    "client_secret: &%s\n  %s: &%s 1\n  %s: 2",
    "\tclient_secret: %s",
    "store: redis://u:%s@h/0",
    "store: rediss://:%s@h",
    "upstream: https://u:%s@h/",
    "token_url: 'https://u:%s@h/'",
    "redirect_uri: https://u:%s@h/",
]
_MISTAKES = [
    *("", "pacing: {rate: soon}", "a: [", "client_id: x", "listen: 0.0.0.0:1", "grant: client_credentials"),
    *(
        "accounts: {b: {listen: 8080}}",
        "\t",
        "&a *b",
        "pacing:rate",
        "access: 5",
        "- x",
        "unknown: 1",
        "%YAML 9",
    ),
]


def _variables(marker: str) -> list[dict[str, str]]:
    return [
        {"CFPROXY_CLIENT_SECRET": marker},
        {"CFPROXY_CLIENT_SECRET": f"{marker}\x07"},
        {"CFPROXY_CLIENT_SECRET__FILE": marker},
        {"CFPROXY_CLIENT_SECRET__ENV": marker},
        {"CFPROXY_CLIENT_SECRETT": marker},
        {"CFPROXY_ACCESS__KEYS": f"{marker},{marker}\x07"},
        {"CFPROXY_ACCESS__KEYS": f"[{marker}"},
        {"CFPROXY_ACCESS": f"{{keys: [{marker}], {marker}: 1}}"},
        {"CFPROXY_ACCOUNTS__A": f"{{client_secret:{marker}}}"},
        {"CFPROXY_STORE": f"redis://:{marker}@h"},
        {"CFPROXY_CLIENT_SECRET__ENV": "S", "S": f"{marker}\x07"},
        {},
    ]


@st.composite
def _texts_with_a_secret(draw: st.DrawFn, marker: str) -> str:
    form = yaml.safe_dump(draw(st.sampled_from(_secret_forms(marker))), default_flow_style=True, width=1000)
    in_yaml = form.removesuffix("...\n").strip()
    lines = [place.replace("%s", in_yaml) for place in _SECRET_PLACES]
    lines += [place.replace("%s", marker) for place in _RAW_PLACES]
    around = draw(st.lists(st.sampled_from([*_MISTAKES, BASE]), max_size=3))
    around.insert(draw(st.integers(0, len(around))), draw(st.sampled_from(lines)))
    return "\n".join(around)


def _outcome(load_it: Callable[[], Settings]) -> Settings | ConfigError:
    try:
        return load_it()
    except ConfigError as error:
        return error


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(MARKERS))
def test_no_secret_ever_shows(load: Loader, data: st.DataObject, marker: str) -> None:
    """Whatever is wrong near a secret, its value is in no message, repr, traceback or rendering."""
    text = data.draw(_texts_with_a_secret(marker))
    environ = data.draw(st.sampled_from(_variables(marker)))
    got = _outcome(lambda: load.settings(text, environ))
    shown = repr(got) + str(got)
    if isinstance(got, Settings):
        shown += render_settings(got)
    else:
        shown += "".join(traceback.format_exception(got))
    assert marker not in shown


def test_every_kind_of_secret_is_redacted(load: Loader) -> None:
    """A configuration with secrets everywhere shows each as [redacted]."""
    environ = {"K": f"{MARKER}-2"}
    got = load.settings(
        f"{BASE}client_secret: {MARKER}\naccess: {{keys: [{MARKER}-1, {{env: K}}]}}\n"
        f"accounts: {{a: {{listen: 8090, client_secret: {MARKER}-3}}}}",
        environ,
    )
    assert got.accounts["default"].client_secret == Secret(MARKER)
    assert render_settings(got).count("[redacted]") == 6
    assert MARKER not in render_settings(got) + repr(got)


def test_settings_can_be_made_by_hand() -> None:
    """A program gives values of the settings' own types, by the attributes' names."""
    listen = UnixAddress("/run/cf.sock")
    account = Account(
        name="a", client_id="x", client_secret=Secret("s"), listen=listen, pacing=Pacing(rate=None, per_s=2.0)
    )
    assert (account.listen, account.client_secret) == (listen, Secret("s"))
    assert (account.pacing.rate, account.pacing.per_s) == (None, 2.0)


def test_settings_made_by_hand_hide_their_input_too() -> None:
    """A program that builds settings with a value of a wrong kind gets an error without that value."""
    with pytest.raises(ValidationError) as caught:
        Access(keys=({"vault": MARKER},))  # type: ignore[arg-type] # the mistake under test
    assert "must be text, {env: NAME} or {file: PATH}" in str(caught.value)
    assert MARKER not in str(caught.value) + repr(caught.value)


_fragments = st.sampled_from(
    [
        *("client_id: ", "accounts: ", "pacing: ", "listen: ", "upstream: https://", "store: file:", "~x/"),
        *(
            "client_secret: ",
            "{file: ",
            "{env: ",
            "tls: {ca_file: ",
            "{",
            "}",
            "[",
            "]",
            "a",
            ": ",
            "\n",
            "  ",
        ),
        *("- ", "&a ", "*a", "<<: ", "!!int ", '"', "'", "\\U", "~", "#", "|", ">", "%", "?", "\0", "\ud7ff"),
        "9" * 5000,
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(_fragments, max_size=25).map("".join), st.binary()))
def test_any_content_gives_settings_or_a_config_error(load: Loader, content: str | bytes) -> None:
    """No file, however strange, ends in a traceback, and each problem is one printable line."""
    got = _outcome(lambda: load.settings(content))
    if isinstance(got, ConfigError):
        assert got.problems
        assert all(problem.text.isprintable() and problem.path.isprintable() for problem in got.problems)
    else:
        assert got.accounts


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(
        ["CLIENT_ID", "PACING", "PACING__RATE", "ACCESS__KEYS", "LISTEN", "ACCOUNTS__A", "UPSTREAM"]
    ),
    st.one_of(st.text(), st.lists(_fragments, max_size=8).map("".join)),
)
def test_any_variable_gives_settings_or_a_config_error(name: str, value: str) -> None:
    """No variable, however strange, ends in a traceback, and each problem is laid to the environment."""
    got = _outcome(lambda: load_settings(None, {**ENVIRON, f"CFPROXY_{name}": value}))
    if isinstance(got, ConfigError):
        assert {problem.source for problem in got.problems} == {"environment"}
    else:
        assert "default" in got.accounts


# --- where the file is ----------------------------------------------------------------------


def test_the_file_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """-c, then CFPROXY_CONFIG, then ./config.yaml, then the user's folder, then none."""
    user_folder = tmp_path / "user"
    monkeypatch.setattr("platformdirs.user_config_path", lambda _: user_folder)
    assert find_config(None, {"CFPROXY_CONFIG": ""}, tmp_path) is None
    user_folder.mkdir()
    for path in (
        user_folder / "config.yaml",
        tmp_path / "config.yaml",
        tmp_path / "e.yaml",
        tmp_path / "c.yaml",
    ):
        path.write_text("")
    assert find_config("c.yaml", {"CFPROXY_CONFIG": "e.yaml"}, tmp_path) == tmp_path / "c.yaml"
    assert find_config(None, {"CFPROXY_CONFIG": "e.yaml"}, tmp_path) == tmp_path / "e.yaml"
    assert find_config(None, {}, tmp_path) == tmp_path / "config.yaml"
    (tmp_path / "config.yaml").unlink()
    assert find_config(None, {}, tmp_path) == user_folder / "config.yaml"


@pytest.mark.parametrize(
    ("explicit", "environ"), [("nope.yaml", {}), (None, {"CFPROXY_CONFIG": "nope.yaml"})]
)
def test_a_file_that_was_asked_for_must_exist(
    tmp_path: Path, explicit: str | None, environ: dict[str, str]
) -> None:
    """No other file is read in its place."""
    (tmp_path / "config.yaml").write_text(BASE)
    with pytest.raises(ConfigError, match=r"nope\.yaml: does not exist \(named by (-c|CFPROXY_CONFIG)\)"):
        find_config(explicit, environ, tmp_path)


def test_a_path_that_cannot_be_looked_up_is_told_when_it_is_read(tmp_path: Path) -> None:
    """It is neither skipped nor a traceback."""
    path = find_config("x" * 5_000, {}, tmp_path)
    assert path is not None
    with pytest.raises(ConfigError, match="can't be read"):
        load_settings(path, {})


def test_addresses_are_values() -> None:
    """They can be compared and varied, and know whether others can reach them."""
    address = TcpAddress("::1", 8080)
    assert str(replace(address, port=1)) == "[::1]:1"
    assert address.is_loopback
    assert not TcpAddress("0.0.0.0", 80).is_loopback
