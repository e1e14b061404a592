"""Variables as containers set them: with their quotes, and with others' names among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfproxy.config import AccessKey, Settings, find_config, load_settings
from cfproxy.config.keys import paths_of, section_of
from cfproxy.config.settings import AccountKeys, FileKeys
from cfproxy.errors import ConfigError
from cfproxy.secret import Secret
from tests.support.config_loader import BASE, ENVIRON, Loader

# A value for each key, which differs from the default, and what else that value needs.
REDIS = {"CFPROXY_STORE__URL": "redis://localhost:6379/0"}
SECRET = {"CFPROXY_CLIENT_SECRET": "s"}
SOCKET = {"CFPROXY_LISTEN": "unix:/run/cf.sock"}
VALUES: dict[str, str | tuple[str, dict[str, str]]] = {
    "client_id": "another app",
    "client_secret": "pass word",
    "grant": ("client_credentials", SECRET),
    "redirect_uri": "https://example.com/other",
    "scope": "cfgateway other",
    "pkce": "false",
    "environment": "sandbox",
    "upstream": "https://gw.example.com/base",
    "authorize_url": "https://accounts.example.com/authorize",
    "token_url": "https://accounts.example.com/token",
    "revocation_url": "https://accounts.example.com/revoke",
    "refresh_token_lifetime": "7d",
    "listen": "off",
    "admin": "off",
    "reload": "off",
    "store": "memory",
    "store.url": "file:/var/lib/cf",
    "store.password": ("sesame", REDIS),
    "store.key": "sesame",
    "pacing": "{rate: 5, per: 2s}",
    "pacing.rate": "off",
    "pacing.per": "2s",
    "pacing.queue": "5",
    "pacing.max_wait": "500ms",
    "pacing.shared": ("true", REDIS),
    "retry": "{unauthorized: off}",
    "retry.unauthorized": "no",
    "retry.body_memory": "1KiB",
    "retry.body_max": "128MiB",
    "retry.too_many_requests": "off",
    "access": "{keys: ['a,b', c], methods: [GET]}",
    "access.hosts": "proxy.lan, proxy.lan:81",
    "access.origins": "https://app.example.com",
    "access.keys": "[first, {env: KEY}]",
    "access.users": ("0", SOCKET),
    "access.methods": "get,head",
    "access.paths": "/v1/**, !/v1/jobs/*",
    "access.allow_remote": "yes",
    "timeouts": "{connect: 3s}",
    "timeouts.connect": "3s",
    "timeouts.idle": "3s",
    "timeouts.head": "3s",
    "timeouts.keep_alive": "3s",
    "timeouts.token": "3s",
    "timeouts.drain": "3s",
    "limits": "{connections: 10}",
    "limits.connections": "10",
    "limits.unfinished": "10",
    "limits.line": "8KiB",
    "limits.head": "128KiB",
    "limits.headers": "10",
    "limits.read_ahead": "8KiB",
    "limits.upstream": "10",
    "tls": "{ca_file: /dev/null}",
    "tls.ca_file": "/dev/null",
    "log": "{level: debug}",
    "log.level": "debug",
    "log.format": "json",
    "log.sample": "0.5",
    "log.request_id": "false",
    "log.server_timing": "on",
    "accounts": "{acme: {client_id: x, redirect_uri: 'https://example.com/', listen: 8090}}",
}
QUOTES = ["'{}'", '"{}"', ' "{}" ', '"{}"\r']


def _load(environ: dict[str, str], name: str, value: str) -> Settings:
    return load_settings(None, {**ENVIRON, "KEY": "k", **environ, name: value})


def _example(key: str) -> tuple[str, dict[str, str]]:
    given = VALUES[key]
    return given if isinstance(given, tuple) else (given, {})


def _variable(keys: tuple[str, ...]) -> str:
    return "CFPROXY_" + "__".join(keys).upper()


@pytest.mark.parametrize("quotes", QUOTES)
@pytest.mark.parametrize("key", [".".join(keys) for keys in paths_of(FileKeys)])
def test_the_quotes_of_a_variable_are_no_part_of_its_value(key: str, quotes: str) -> None:
    """`docker --env-file` and old versions of Compose keep them, for every key and every kind of value."""
    value, environ = _example(key)
    name = _variable(tuple(key.split(".")))
    plain = _load(environ, name, value)
    assert plain != load_settings(None, {**ENVIRON, "KEY": "k", **environ}) or name in environ
    assert _load(environ, name, quotes.format(value)) == plain


@pytest.mark.parametrize(
    "keys", [keys for keys, info in paths_of(AccountKeys).items() if not section_of(info)]
)
def test_the_quotes_of_a_variable_of_an_account_are_no_part_of_its_value(keys: tuple[str, ...]) -> None:
    """An account's own keys are like those at the top level."""
    value, environ = _example(".".join(keys))
    acme, environ = "CFPROXY_ACCOUNTS__ACME__", {**ENVIRON, **environ}
    environ = {name.replace("CFPROXY_", acme): text for name, text in environ.items()} | {"KEY": "k"}
    name = _variable(("accounts", "acme", *keys))
    plain = load_settings(None, environ | {name: value})
    assert load_settings(None, environ | {name: f'"{value}"'}) == plain


def test_quoted_words_select_what_they_name() -> None:
    """A quoted environment and a quoted grant have their effect on other keys, too."""
    account = _load(SECRET, "CFPROXY_ENVIRONMENT", '"sandbox"').accounts["default"]
    assert account.upstream == "https://sandbox-gateway.creativeforce.io"
    assert account.token_url == "https://sandbox-accounts.creativeforce.io/connect/token"
    account = _load(SECRET, "CFPROXY_GRANT", "'client_credentials'").accounts["default"]
    assert account.scope == "cfgateway"


@pytest.mark.parametrize("word", ['"sandbox"', "'\"sandbox\"'", "' Sandbox '", "SANDBOX", "'''sandbox'''"])
def test_a_word_of_the_file_is_compared_as_it_is_accepted(tmp_path: Path, word: str) -> None:
    """However it is written, no word passes the check and then selects the other hosts."""
    account = Loader(tmp_path).account(f"environment: {word}")
    assert account.environment == "sandbox"
    assert account.upstream == "https://sandbox-gateway.creativeforce.io"


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ('"ab"', "ab"),
        ("'ab'", "ab"),
        ('""ab""', '"ab"'),
        ("'\"ab\"'", '"ab"'),
        ('"it\'s"', "it's"),
        ('"a"b"', 'a"b'),
        ('"ab', '"ab'),
        ("ab'", "ab'"),
        ("\"ab'", "\"ab'"),
        ('" ab "', " ab "),
        ('"', '"'),
    ],
)
def test_one_matching_outer_pair_is_taken_off(written: str, kept: str) -> None:
    """What is inside is the value, quotes and spaces included; a single quote is a character."""
    secret = _load({}, "CFPROXY_CLIENT_SECRET", written).accounts["default"].client_secret
    assert secret == Secret(kept)
    secret = _load({"NAME": written}, "CFPROXY_CLIENT_SECRET__ENV", "NAME").accounts["default"].client_secret
    assert secret == Secret(kept)


@pytest.mark.parametrize("written", ['""', "''", ' "" ', '"  "'])
def test_a_variable_with_nothing_in_its_quotes_sets_nothing(written: str) -> None:
    """Like an empty one."""
    for name in ("CFPROXY_CLIENT_SECRET", "CFPROXY_LISTEN", "CFPROXY_ACCESS__KEYS", "CFPROXY_ENVIRONMENT"):
        assert _load({}, name, written) == load_settings(None, ENVIRON)
    with pytest.raises(ConfigError, match="CLIENT_SECRET__ENV: must not be empty"):
        _load({"NAME": written}, "CFPROXY_CLIENT_SECRET__ENV", "NAME")


@pytest.mark.parametrize(
    "written",
    ['"a,b",c', "'[\"a,b\", c]'", '["a,b", c]', "\"['a,b', c]\"", "\"['a,b', {env: C}]\"", "'a,b','c'"],
)
def test_the_items_of_a_list_may_have_quotes_too(written: str) -> None:
    """With brackets or without, and whether or not the whole list has quotes."""
    access = _load({"C": '"c"'}, "CFPROXY_ACCESS__KEYS", written).accounts["default"].access
    assert access.keys == (AccessKey(Secret("a,b")), AccessKey(Secret("c")))


@pytest.mark.parametrize("written", ['"a.lan","b.lan"', "'a.lan', b.lan", '"a.lan, b.lan"', 'a.lan,"b.lan" '])
def test_hosts_with_quotes_are_hosts(written: str) -> None:
    """Not one host with quotes in it."""
    access = _load({}, "CFPROXY_ACCESS__HOSTS", written).accounts["default"].access
    assert access.hosts == ("a.lan", "b.lan")


@pytest.mark.parametrize("name", ["CFPROXY_CLIENT_SECRET", "CFPROXY_CLIENT_SECRET__FILE"])
def test_a_quoted_reference_is_a_reference(tmp_path: Path, name: str) -> None:
    """It never becomes the secret itself."""
    place = tmp_path / "secret"
    place.write_text("'sesame'\n")
    value = f'"{place}"' if name.endswith("FILE") else f'"{{file: {place}}}"'
    secret = _load({}, name, value).accounts["default"].client_secret
    assert secret == Secret("'sesame'")  # the file says what it says


def test_the_name_of_the_file_may_have_quotes(tmp_path: Path) -> None:
    """CFPROXY_CONFIG is a variable like the others; nothing in its quotes names no file."""
    place = tmp_path / "my config.yaml"
    place.write_text(BASE)
    assert find_config(None, {"CFPROXY_CONFIG": f'"{place}"'}, tmp_path).path == place
    assert find_config(None, {"CFPROXY_CONFIG": '""'}, tmp_path).path is None


# --- variables of others ----------------------------------------------------------------------


LINKS = [
    ("{}_PORT", "tcp://10.0.0.1:6379"),
    ("{}_PORT", "udp://[fd00::1]:6379"),
    ("{}_SERVICE_HOST", "10.0.0.1"),
    ("{}_SERVICE_HOST", "fd00::1"),
    ("{}_SERVICE_PORT", "6379"),
    ("{}_SERVICE_PORT_HTTP", "6379"),
    ("{}_SERVICE_PORT_HTTP_METRICS", "6379"),
    ("{}_PORT_6379_TCP", "tcp://10.0.0.1:6379"),
    ("{}_PORT_6379_TCP_ADDR", "10.0.0.1"),
    ("{}_PORT_6379_TCP_PROTO", "tcp"),
    ("{}_PORT_6379_TCP_PORT", "6379"),
    ("{}_PORT_53_UDP", "udp://10.0.0.1:53"),
    ("{}_PORT_53_UDP_ADDR", "fd00::1"),
    ("{}_PORT_53_UDP_PROTO", "udp"),
    ("{}_PORT_53_UDP_PORT", "53"),
    ("{}_PORT_53_SCTP", "sctp://10.0.0.1:53"),
    ("{}_PORT_6379_TCP_START", "tcp://10.0.0.1:6379"),
    ("{}_PORT_6379_TCP_END", "tcp://10.0.0.1:6380"),
]


@pytest.mark.parametrize(
    "service", ["CFPROXY", "CFPROXY_REDIS", "CFPROXY_ACCESS", "CFPROXY_REDIS_MASTER_0", "CFPROXY__STORE"]
)
@pytest.mark.parametrize(("form", "value"), LINKS)
def test_the_links_of_services_are_no_settings(service: str, form: str, value: str) -> None:
    """Kubernetes sets them for each service of the namespace, Docker for each linked container."""
    assert _load({}, form.format(service), value) == load_settings(None, ENVIRON)


def test_the_details_of_a_linked_container_are_no_settings() -> None:
    """`docker run --link` sets them beside the container's port; alone they would be mistakes."""
    details = {"CFPROXY_REDIS_NAME": "/worker/redis", "CFPROXY_REDIS_ENV_PATH": "/bin", "CFPROXY_ENV_X": "1"}
    ports = {"CFPROXY_REDIS_PORT": "tcp://172.17.0.2:6379", "CFPROXY_PORT": "tcp://172.17.0.3:80"}
    assert load_settings(None, ENVIRON | details | ports) == load_settings(None, ENVIRON)
    with pytest.raises(ConfigError) as caught:
        load_settings(None, ENVIRON | details)
    assert [problem.path for problem in caught.value.problems] == sorted(details)


@pytest.mark.parametrize("value", ["0.1.0", "v1.2", "latest", "sha-0a1b2c3"])
def test_the_version_of_an_image_is_no_setting(value: str) -> None:
    """Images tell it in a variable, as those of Python and Redis do."""
    assert _load({}, "CFPROXY_VERSION", value) == load_settings(None, ENVIRON)


@pytest.mark.parametrize(
    ("name", "value", "suggestion"),
    [
        ("CFPROXY_PORT", "8080", ""),
        ("CFPROXY_REDIS_PORT", "6379", ""),
        ("CFPROXY_LISTEN_PORT", "8080", ""),
        ("CFPROXY_SERVICE_PORT", "http", ""),
        ("CFPROXY_REDIS_PORT_6379_TCP", "10.0.0.1", ""),
        ("CFPROXY_CLIENT_NAME", "worker", ""),
        ("CFPROXY_STORE_URL", "tcp://10.0.0.1:6379", "CFPROXY_STORE__URL"),
        ("CFPROXY_CLIENT_IDD", "10.0.0.1", "CFPROXY_CLIENT_ID"),
        ("CFPROXY_LISTEM", "tcp://10.0.0.1:80", "CFPROXY_LISTEN"),
        ("CFPROXY_VERSIONS", "1.0", ""),
    ],
)
def test_a_mistake_is_not_taken_for_a_link(name: str, value: str, suggestion: str) -> None:
    """Name and value have to have the form of a link."""
    with pytest.raises(ConfigError, match=f"{name}: is not a known variable") as caught:
        _load({}, name, value)
    assert f"did you mean {suggestion}?" in str(caught.value) or not suggestion
