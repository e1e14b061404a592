"""Several accounts: what each inherits, and which settings have to agree."""

from __future__ import annotations

import pytest
import yaml

from cfproxy.config import AccessKey
from cfproxy.secret import Secret
from tests.support.config_loader import BASE, Loader


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """A folder of this module's own."""
    return Loader(tmp_path_factory.mktemp("config"))


def test_an_account_inherits_what_it_does_not_set(load: Loader) -> None:
    """Inheritance works section by section, so one key of a section may differ."""
    got = load.settings(
        BASE + "access: {methods: [GET], keys: [a]}\npacing: {queue: 5}\n"
        "accounts: {acme: {client_id: b, listen: 8090, access: {keys: [b]}}}"
    )
    assert list(got.accounts) == ["default", "acme"]
    acme = got.accounts["acme"]
    assert (acme.name, acme.client_id, acme.redirect_uri) == ("acme", "b", "https://example.com/cb")
    keys = (AccessKey(Secret("b")),)
    assert (acme.access.methods, acme.access.keys, acme.pacing.queue) == (("GET",), keys, 5)


def test_without_a_client_id_at_the_top_there_is_no_default_account(load: Loader) -> None:
    """The top level then only has what the accounts share."""
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


@pytest.mark.parametrize("name", ["Acme", "a.b", "con", "nul", "com1", "-a", "a" * 65, "''", "a b", "é"])
def test_account_names_are_file_names(load: Loader, name: str) -> None:
    """Lower-case letters, digits, - and _, and no device names of Windows."""
    assert "is not an account name" in load.problem(f"accounts: {{{name}: {{listen: 8090}}}}")


def test_default_is_the_top_level(load: Loader) -> None:
    """`accounts.default` beside a client_id at the top level would be a second one."""
    taken, missing = load.problems("client_id: a\naccounts: {default: {listen: 8090}}")
    assert taken.startswith("config.yaml: accounts.default: is taken")
    assert missing.startswith("config.yaml: redirect_uri: needed")


@pytest.mark.parametrize("key", ["admin", "log", "accounts"])
def test_process_wide_keys_belong_to_the_top_level(load: Loader, key: str) -> None:
    """An account can't have its own admin listener, log or accounts."""
    assert load.problem(f"accounts: {{a: {{listen: 8090, {key}: {{}}}}}}") == (
        f"config.yaml: accounts.a.{key}: belongs to the top level: it applies to all accounts"
    )


def test_an_inherited_mistake_is_reported_once(load: Loader) -> None:
    """It is reported where it is written, for any number of accounts."""
    accounts = "accounts: {a: {listen: 8090}, b: {listen: 8091, timeouts: {idle: never}}}"
    assert load.problems(f"{BASE}timeouts: {{connect: soon}}\n{accounts}") == [
        "config.yaml: timeouts.connect: must be a duration such as 10s, 5m, 1h, 30d",
        "config.yaml: accounts.b.timeouts.idle: must be a duration such as 10s, 5m, 1h, 30d",
    ]


def test_an_account_without_client_id_is_named(load: Loader) -> None:
    """If only some accounts have a client id, those without are named."""
    text = "redirect_uri: https://e.com/\naccounts: {a: {client_id: a}, b: {listen: 8090}}"
    (problem,) = load.problems(text)
    assert problem.startswith("config.yaml: accounts.b.client_id: must be set")


# --- conflicts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "owner"),
    [
        ("127.0.0.1:8080", "account 'default'"),
        ("localhost:8080", "account 'default'"),
        ("8081", "admin"),
        ("localhost:8081", "admin"),
        ("[::1]:8080", "account 'default'"),
        ("[::1]:8081", "admin"),
        (None, "account 'default'"),
    ],
)
def test_listeners_do_not_collide(load: Loader, listen: str | None, owner: str) -> None:
    """Each account and the admin listener need an address of their own."""
    account = {"client_id": "b"} | ({"listen": listen} if listen else {})
    problem = load.problem(yaml.safe_dump({"accounts": {"acme": account}}))
    assert problem.startswith("config.yaml: accounts.acme.listen: ")
    assert f"is taken by {owner}; give this account a listen address of its own" in problem


def test_a_wildcard_collides_with_every_address_that_it_takes(load: Loader) -> None:
    """So does [::] with IPv4 addresses, since it takes both families; port 0 never collides."""
    text = "access: {allow_remote: true}\naccounts: {a: {listen: '%s'}}"
    assert "is taken by admin" in load.problem(text % "0.0.0.0:8081")
    assert "is taken by admin" in load.problem(text % "[::]:8081")
    assert "is taken by admin" in load.problem("admin: 127.0.0.1:8081\n" + text % "[::]:8081")
    assert len(load.settings(BASE + "admin: '[::1]:8081'\n" + text % "0.0.0.0:8081").accounts) == 2
    assert len(load.settings(BASE + "listen: 127.0.0.1:0\naccounts: {a: {}, b: {}}").accounts) == 3
    assert "taken by" in load.problem("listen: unix:/s\naccounts: {a: {}}")


def test_accounts_on_one_upstream_agree_on_pacing(load: Loader) -> None:
    """The limit is per IP address, so one upstream can't have two rates."""
    text = "accounts: {a: {client_id: b, listen: 8090, pacing: {rate: 5}%s}}"
    problem = load.problem(text % ", upstream: 'https://gateway.creativeforce.io:443/base'")
    assert problem.startswith("config.yaml: accounts.a.pacing: must be as in account 'default'")
    assert load.settings(BASE + text % ", environment: sandbox").accounts["a"].pacing.rate == 5


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "'[::]", "192.168.1.5", "proxy.lan", "127.1", "'[::ffff:127.0.0.1]"]
)
@pytest.mark.parametrize("key", ["listen", "admin"])
def test_no_listener_is_exposed_by_accident(load: Loader, key: str, host: str) -> None:
    """A listener that other machines can reach needs an access key or an explicit allow_remote."""
    line = f"{key}: {host}:9999" + ("'" if host.startswith("'") else "")
    if host == "127.1":
        assert "must have a valid host name or IP address" in load.problem(line)
        return
    problem = load.problem(line)
    assert problem.startswith(f"config.yaml: {key}: can be reached from other machines")
    assert "anyone who reaches this port acts as you" in problem
    for consent in ("keys: [k]", "allow_remote: true"):
        assert load.account(f"{line}\naccess: {{{consent}}}").name == "default"
