"""The messages for invalid settings."""

from __future__ import annotations

import pytest

from tests.support.config_loader import Loader


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """A folder of this module's own."""
    return Loader(tmp_path_factory.mktemp("config"))


def test_all_problems_are_reported_at_once(load: Loader) -> None:
    """One run reports everything that has to change, in the file and in the environment."""
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
def test_an_empty_configuration_is_one_problem(load: Loader, text: str) -> None:
    """An empty file is valid; only the client id is missing, and the message says how to start."""
    (problem,) = [each for each in load.problems(text) if "listen" not in each]
    assert problem.startswith("config.yaml: client_id: must be set, here or as CFPROXY_CLIENT_ID")
    assert "cfproxy config init" in problem


@pytest.mark.parametrize(
    ("text", "place", "cause"),
    [
        ("a: b\nc:\n\td: e\n", "line 3, column 1", "a tab is used for indentation"),
        ("a:\tb\nc:\td\n", "line 1, column 3", "a tab is used for indentation"),
        ("a: b\n---\nc: d\n", "line 2, column 1", "a second document starts here; a file has only one"),
    ],
)
def test_a_common_yaml_mistake_is_named(load: Loader, text: str, place: str, cause: str) -> None:
    """A tab from an editor and a stray `---` are reported as such."""
    (problem,) = load.problems(text)
    assert problem.startswith(f"config.yaml: {place}: ")
    assert cause in problem


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfclient_id: app\nredirect_uri: https://example.com/cb\n",
        b"client_id: app\r\nredirect_uri: https://example.com/cb\r\n",
        b"client_id: app\rredirect_uri: https://example.com/cb",
    ],
    ids=["byte-order mark", "CRLF", "CR"],
)
def test_a_byte_order_mark_and_all_line_ends_are_accepted(load: Loader, text: bytes) -> None:
    """Editors of any system may write the file."""
    account = load.settings(text).accounts["default"]
    assert (account.client_id, account.redirect_uri) == ("app", "https://example.com/cb")


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
        ("store: cloud", "store: must be file, file:DIR, memory or redis://host:port/0"),
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
        ('client_secret: "a\\nb"', "client_secret: must not contain line breaks"),
        ("tls: {ca_file: nope.pem}", "tls.ca_file: names a file that can't be read"),
        ("{: }", "line 3, column"),
        ("accounts: {a: {listen: 8090, pkce:off}}", "accounts.a.pkce: needs a space after its colon"),
        ("pacing: !!python/object:os.system {}", "line 3: tags (words that start with !) are not supported"),
        ("!x y: z", "line 3: a key must be plain text"),
        ("? [a]\n: b", "line 3: a key must be plain text"),
        ("<<: 5", "line 3: << takes a mapping"),
        ("<<: {pkce: on}\n<<: {pkce: off}", "?: is given twice (again in line 4)"),
        ("upstream: https://u:p@a.b", "upstream: must not contain a user name or password"),
        ('scope: "\\UFFFFFFFF"', "contains a character or an escape that YAML does not allow"),
        ("scope: \x07", "contains a character or an escape that YAML does not allow"),
        ("pkce: true\npkce: true", "pkce: is given twice (again in line 4)"),
        ("log: {level: info, level: info}", "log.level: is given twice (again in line 3)"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_in_plain_words(load: Loader, text: str, problem: str) -> None:
    """`file: key.path: what is valid`, one line for each mistake."""
    assert load.problem(text).startswith(f"config.yaml: {problem}")
