"""How single values are written: durations, sizes, addresses, URLs, secrets, stores."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.config import UnixAddress, render_settings
from cfproxy.config.types import parse_duration, parse_size, render_duration, render_size
from cfproxy.secret import Secret
from tests.support.config_loader import Loader


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """A folder of this module's own."""
    return Loader(tmp_path_factory.mktemp("config"))


# --- quantities and words -------------------------------------------------------------------


@given(st.integers(1, 3_000_000_000_000).map(lambda ms: ms / 1000))
def test_durations_read_back(seconds: float) -> None:
    """A rendered duration is read back unchanged."""
    assert parse_duration(render_duration(seconds)) == seconds


@given(st.integers(0, 10**15 - 1))
def test_sizes_read_back(size_bytes: int) -> None:
    """A rendered size is read back unchanged."""
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


@pytest.mark.parametrize("client_id", ["''", "' '", "é", '"a\\tb"', "[a]"])
def test_a_client_id_is_printable_ascii(load: Loader, client_id: str) -> None:
    """RFC 6749 allows nothing else."""
    (problem,) = load.problems(f"client_id: {client_id}\nredirect_uri: https://example.com/cb")
    assert problem == "config.yaml: client_id: must be text of printable ASCII characters, not empty"


# --- addresses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        (":9000", "localhost:9000"),
        ("9000", "localhost:9000"),
        ("'[::1]:9000'", "[::1]:9000"),
        ("'[0:0:0:0:0:0:0:1]:9000'", "[::1]:9000"),
        ("LOCALHOST:9000", "localhost:9000"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("unix:/run/cf.sock", "unix:/run/cf.sock"),
    ],
)
def test_a_listen_address_has_many_forms(load: Loader, written: str, shown: str) -> None:
    """A port alone means this machine only; IPv6 addresses are in brackets."""
    assert str(load.account(f"listen: {written}").listen) == shown


def test_a_socket_path_is_a_listen_address(load: Loader) -> None:
    """unix:/path listens on a Unix socket, which no other machine can reach."""
    assert load.account("listen: unix:/run/cf.sock").listen == UnixAddress("/run/cf.sock")


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
def test_tokens_are_sent_to_plain_https_urls_only(load: Loader, key: str, url: str) -> None:
    """No user name, query, fragment, dot segment or odd character, and http to this machine only."""
    problem = load.problem(yaml.safe_dump({key: url}))
    assert problem.startswith(f"config.yaml: {key}: must ")


def test_a_redirect_uri_is_kept_unchanged(load: Loader) -> None:
    """Servers compare it as text, so it is not normalised."""
    written = "HTTP://Studio.Example.com:80/cb/?a=1"
    assert load.settings(f"client_id: a\nredirect_uri: {written}").accounts["default"].redirect_uri == written


@pytest.mark.parametrize(
    "redirect_uri", ["/cb", "cf://x", "https://a.b/#f", "https://u:p@a.b/", "https://a b/", "[a]"]
)
def test_a_redirect_uri_is_an_absolute_http_url(load: Loader, redirect_uri: str) -> None:
    """A relative URL, another scheme or a fragment can't have been registered."""
    (problem,) = load.problems(f"client_id: a\nredirect_uri: {redirect_uri}")
    assert problem.startswith("config.yaml: redirect_uri: must ")


def test_access_lists_are_normalised(load: Loader) -> None:
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


# --- references -----------------------------------------------------------------------------


def test_a_secret_comes_from_text_a_variable_or_a_file(load: Loader) -> None:
    """A path starts at the configuration's folder; a trailing newline and a byte-order mark are removed."""
    for content in (b"from file", b"from file\n", b"from file\r\n", codecs.BOM_UTF8 + b"from file\r\n"):
        (load.folder / "secret.txt").write_bytes(content)
        assert load.account("client_secret: {file: secret.txt}").client_secret == Secret("from file")
    assert load.account("client_secret: {env: S}", {"S": "from env"}).client_secret == Secret("from env")
    assert load.account("client_secret: 00123").client_secret == Secret("00123")
    environ = {"CFPROXY_CLIENT_SECRET__FILE": str(load.folder / "secret.txt")}
    assert load.account("client_secret: {env: UNSET}", environ).client_secret == Secret("from file")
    environ = {"CFPROXY_CLIENT_SECRET__ENV": "S", "S": "from env"}
    assert load.account("", environ).client_secret == Secret("from env")


def test_a_secret_file_is_a_short_text(load: Loader) -> None:
    """Binary content, a large file and an unknown home folder are reported as such."""
    (load.folder / "binary").write_bytes(b"\xff")
    (load.folder / "long").write_bytes(b"x" * 70_000)
    text = "client_secret: {file: %s}"
    assert "names a file that is not UTF-8 text" in load.problem(text % "binary")
    assert "names a file of more than 65536 bytes" in load.problem(text % "long")
    assert "home folder is unknown" in load.problem(text % "~no-such-user-here/x")


def test_a_file_store_has_a_folder(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """`file` is the user's state folder, `file:DIR` starts at the configuration's folder, memory has none."""
    assert load.account("store: file:tokens").store.url == f"file:{load.folder / 'tokens'}"
    assert load.account("store: file:tokens").store_dir == load.folder / "tokens"
    home = Path("~").expanduser()
    assert load.account("store: file:~/cf").store_dir == home / "cf"
    folder = load.account("").store_dir
    assert folder is not None
    assert folder.is_absolute()
    assert "cfproxy" in folder.parts
    assert load.account("store: memory").store_dir is None


@pytest.mark.parametrize(
    ("written", "is_auto"),
    [
        *((word, True) for word in ("auto", "AUTO", "'auto'", "~")),
        *((w, False) for w in ("off", "'Off'", "no", "false")),
    ],
)
def test_reload_is_auto_or_off(load: Loader, written: str, is_auto: bool) -> None:
    """In every spelling of the two words; null is the default."""
    got = load.settings(f"client_id: a\nredirect_uri: https://example.com/cb\nreload: {written}")
    assert got.reload is is_auto
    assert yaml.safe_load(render_settings(got))["reload"] == ("auto" if is_auto else "off")


@pytest.mark.parametrize("written", ["on", "true", "5s", "[auto]", "''"])
def test_reload_has_no_other_value(load: Loader, written: str) -> None:
    """An interval, for example, is not a setting."""
    assert load.problem(f"reload: {written}") == "config.yaml: reload: must be auto or off"
