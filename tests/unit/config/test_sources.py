"""How the YAML file and the environment are read, and the messages if they can't be."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cfproxy.config import AccessKey, TcpAddress, load_settings, render_settings
from cfproxy.errors import ConfigError
from cfproxy.secret import Secret
from tests.support.config_loader import BASE, ENVIRON, Loader, outcome
from tests.support.examples import examples


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """A folder of this module's own."""
    return Loader(tmp_path_factory.mktemp("config"))


# --- the file -------------------------------------------------------------------------------


def test_a_byte_order_mark_is_ignored(load: Loader) -> None:
    """Windows editors put one at the start of a UTF-8 file; it is not part of a key."""
    content = BASE.encode()
    assert load.settings(codecs.BOM_UTF8 + content) == load.settings(content)
    assert load.problems(codecs.BOM_UTF8) == load.problems(b"")


def test_plain_scalars_are_text(load: Loader) -> None:
    """A client_id of digits keeps its leading zero, a date stays text, `no` is not a boolean there."""
    for written in ("0123456", "2024-01-01", "no", "1_000", "0x1f", "1e3", "'quoted'"):
        got = load.settings(f"client_id: {written}\nredirect_uri: https://example.com/cb")
        assert got.accounts["default"].client_id == written.strip("'")


@pytest.mark.parametrize("word", ["off", "Off", "OFF", "'off'", '"off"', "false", "no", "False"])
def test_off_is_recognised_in_every_spelling(load: Loader, word: str) -> None:
    """Quoted or not, in any case, and where YAML would read it as false."""
    got = load.settings(f"{BASE}admin: {word}\npacing: {{rate: {word}}}")
    assert got.admin is None
    assert got.accounts["default"].pacing.rate is None
    assert yaml.safe_load(render_settings(got))["admin"] == "off"


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_a_variable_may_contain_the_quotes_of_a_word(load: Loader, quote: str) -> None:
    """A container's env file keeps them."""
    words = {"ADMIN": "Off", "PACING__RATE": "off", "LOG__FORMAT": "AUTO", "LOG__LEVEL": "debug"}
    environ = {f"CFPROXY_{name}": f"{quote}{word}{quote}" for name, word in words.items()}
    got = load.settings(BASE, environ)
    assert (got.admin, got.accounts["default"].pacing.rate) == (None, None)
    assert (got.log.format, got.log.level) == ("auto", "debug")


@pytest.mark.parametrize("written", [" false ", "False ", "'false'", '"off"'])
def test_a_variable_may_contain_spaces_around_a_boolean(load: Loader, written: str) -> None:
    """`set NAME=false && cfproxy` keeps the space on Windows."""
    assert load.account("", {"CFPROXY_PKCE": written}).pkce is False


def test_words_and_booleans_ignore_case(load: Loader) -> None:
    """`JSON`, 'auto' and `Yes` are valid."""
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


def test_anchors_and_merge_keys_work(load: Loader) -> None:
    """YAML's own means to avoid repetition are supported."""
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
    assert (c.listen, c.redirect_uri) == (TcpAddress("localhost", 8083), "https://example.com/c")


# Nine levels of nine aliases each: 400 million values in 300 bytes.
_ALIAS_BOMB = b"x0: &x0 [1]\n" + b"".join(
    b"x%d: &x%d [%s]\n" % (n, n, b",".join([b"*x%d" % (n - 1)] * 9)) for n in range(1, 10)
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("client_id: a".encode("utf-16"), "config.yaml: is UTF-16 text; save it as UTF-8"),
        (b"\xfe\xff" + "client_id: a".encode("utf-16-be"), "config.yaml: is UTF-16 text; save it as UTF-8"),
        (b"client_id: \xff", "is not UTF-8 text; save it as UTF-8"),
        (b"\xef\xbb\xbfclient_id: \xff", "is not UTF-8 text; save it as UTF-8"),
        (b"just text", "must consist of lines such as `key: value`"),
        (b"client_secret:hunter2", "lines such as `key: value`, with a space after the colon"),
        (b"[a]", "must consist of lines"),
        (b"a: 1\n---\nb: 2", "line 2, column 1: a second document"),
        (b"#" * 300_000, "is larger than 256 KiB"),
        (b"[" * 5_000, "too many levels"),
        (b"a: &a [*a]", "line 1: too many values, levels or aliases"),
        (_ALIAS_BOMB, "too many values, levels or aliases"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_problem(load: Loader, content: bytes, problem: str) -> None:
    """Wrong encodings, other structures and alias bombs are refused in plain words."""
    (only,) = load.problems(content)
    assert problem in only


def test_a_missing_file_is_a_problem(load: Loader) -> None:
    """So is a folder in its place."""
    for path in (load.folder / "missing.yaml", load.folder):
        with pytest.raises(ConfigError, match="can't be read") as caught:
            load_settings(path, {})
        assert [problem.source for problem in caught.value.problems] == [str(path)]


# --- the environment ------------------------------------------------------------------------


def test_variables_can_contain_lists_mappings_and_accounts() -> None:
    """Lists are comma-separated or in brackets, mappings in braces, account names in upper case."""
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
    assert default.access.keys == (AccessKey(Secret("a,b")), AccessKey(Secret("c")))
    assert (default.timeouts.connect_s, default.timeouts.idle_s) == (3.0, 4.0)
    assert (acme.name, acme.client_id, str(acme.listen)) == ("acme", "acme-app", "localhost:8090")
    assert (b.name, b.client_id, str(b.listen)) == ("b", "b", "localhost:8091")


def test_the_whole_accounts_mapping_may_come_from_one_variable() -> None:
    """CFPROXY_ACCOUNTS accepts all accounts at once."""
    got = load_settings(None, {"CFPROXY_ACCOUNTS": "{a: {client_id: x, redirect_uri: 'https://e.com/'}}"})
    assert list(got.accounts) == ["a"]


def test_variables_of_a_service_named_cfproxy_are_ignored() -> None:
    """Kubernetes sets them for a service of that name; they are not settings."""
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


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("CFPROXY_PACING_RATE", "1", "is not a known variable; did you mean CFPROXY_PACING__RATE?"),
        ("CFPROXY_client_id", "1", "is not a known variable: their names are in upper case"),
        ("CFPROXY_ACCOUNTS__A__PKC", "x", "is not a known variable; did you mean CFPROXY_ACCOUNTS__A__PKCE?"),
        ("CFPROXY_", "x", "is not a known variable"),
        ("CFPROXY_PACING__RATE__ENV", "x", "is not a known variable"),
        ("CFPROXY_ACCOUNTS__A.B__PKCE", "x", "is not an account name"),
        ("CFPROXY_PACING", "5", "must be a mapping on one line, such as {key: value}"),
        ("CFPROXY_PACING", "{rate: 1, rate: 2}", "must be a mapping on one line"),
        ("CFPROXY_PACING", "{rtae: 1}", "is not a known key; did you mean rate?"),
        ("CFPROXY_ACCESS__HOSTS", "[a", "must be a list on one line, such as [a, b]"),
        ("CFPROXY_ACCESS__HOSTS", "a, http://b", "must be host or host:port"),
        ("CFPROXY_CLIENT_SECRET__ENV", "NOPE", "the variable that {env: …} names is not set"),
        ("CFPROXY_LISTEN", "0.0.0.0:80", "can be reached from other machines"),
    ],
)  # fmt: skip
def test_an_invalid_variable_is_named(name: str, value: str, problem: str) -> None:
    """A problem that comes from the environment names its variable."""
    with pytest.raises(ConfigError) as caught:
        load_settings(None, {**ENVIRON, name: value})
    (only,) = caught.value.problems
    assert str(only).startswith(f"environment: {name}: {problem}")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("CFPROXY_CLIENT_SECRET_FILE", "; did you mean CFPROXY_CLIENT_SECRET__FILE?"),
        ("CFPROXY_STORE_KEY_FILE", "; did you mean CFPROXY_STORE__KEY__FILE?"),
        ("CFPROXY_ACCOUNTS__A__CLIENT_SECRET_ENV", "; did you mean CFPROXY_ACCOUNTS__A__CLIENT_SECRET__ENV?"),
        ("CFPROXY_SECRET", "; did you mean CFPROXY_CLIENT_SECRET?"),
        ("CFPROXY_HOST", ""),
        ("CFPROXY_PORT", ""),
        ("CFPROXY_UID", ""),
        ("CFPROXY_COMMIT", ""),
        ("CFPROXY_DEBUG", ""),
    ],
)
def test_a_suggestion_resembles_what_was_written(name: str, suggestion: str) -> None:
    """The prefix that all names share makes none of them alike; a path is not suggested to be a secret."""
    with pytest.raises(ConfigError) as caught:
        load_settings(None, {**ENVIRON, name: "x"})
    (only,) = caught.value.problems
    assert str(only) == f"environment: {name}: is not a known variable{suggestion}"


def test_one_key_is_set_by_one_variable() -> None:
    """Two variables for one key are a contradiction, even if one is the {file} form."""
    environ = {**ENVIRON, "CFPROXY_CLIENT_SECRET": "x", "CFPROXY_CLIENT_SECRET__FILE": "/x"}
    with pytest.raises(
        ConfigError, match="CFPROXY_CLIENT_SECRET__FILE: sets the same key as CFPROXY_CLIENT_SECRET;"
    ):
        load_settings(None, environ)


def test_an_unknown_variable_is_reported_beside_an_unreadable_file(load: Loader) -> None:
    """A file that can't be read does not hide problems in the environment."""
    got = load.problems("a: [", {"CFPROXY_WRONG": "1"})
    assert [problem.split(": ")[0] for problem in got] == ["config.yaml", "environment"]


# --- arbitrary input ------------------------------------------------------------------------


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


@settings(max_examples=examples(300))
@given(st.one_of(st.text(), st.lists(_fragments, max_size=25).map("".join), st.binary()))
def test_any_content_gives_settings_or_a_config_error(load: Loader, content: str | bytes) -> None:
    """No file, however strange, ends in a traceback, and each problem is one printable line."""
    got = outcome(lambda: load.settings(content))
    if isinstance(got, ConfigError):
        assert got.problems
        assert all(problem.text.isprintable() and problem.path.isprintable() for problem in got.problems)
    else:
        assert got.accounts


@settings(max_examples=examples(200))
@given(
    st.sampled_from(
        ["CLIENT_ID", "PACING", "PACING__RATE", "ACCESS__KEYS", "LISTEN", "ACCOUNTS__A", "UPSTREAM"]
    ),
    st.one_of(st.text(), st.lists(_fragments, max_size=8).map("".join)),
)
def test_any_variable_gives_settings_or_a_config_error(name: str, value: str) -> None:
    """No variable, however strange, ends in a traceback, and each problem names the environment."""
    got = outcome(lambda: load_settings(None, {**ENVIRON, f"CFPROXY_{name}": value}))
    if isinstance(got, ConfigError):
        assert {problem.source for problem in got.problems} == {"environment"}
    else:
        assert "default" in got.accounts


@pytest.mark.parametrize("form", ["CFPROXY_CLIENT_SECRET", "CFPROXY_CLIENT_SECRET__FILE"])
def test_a_variable_refers_to_a_secret_as_the_file_does(tmp_path: Path, form: str) -> None:
    """With `{file: PATH}` or with a variable of its own; the reference itself is never the secret."""
    place = tmp_path / "secret"
    place.write_text("sesame\n")
    value = str(place) if form.endswith("FILE") else f"{{file: {place}}}"
    secret = load_settings(None, {**ENVIRON, form: value}).accounts["default"].client_secret
    assert secret is not None
    assert secret.reveal() == "sesame"


def test_a_store_password_can_be_a_file_named_by_a_variable(tmp_path: Path) -> None:
    """Like other secrets."""
    place = tmp_path / "secret"
    place.write_text("sesame\n")
    variables = {"CFPROXY_STORE__URL": "redis://127.0.0.1:1", "CFPROXY_STORE__PASSWORD__FILE": str(place)}
    password = load_settings(None, {**ENVIRON, **variables}).accounts["default"].store.password
    assert password is not None
    assert password.reveal() == "sesame"
