"""Access keys, users of a Unix socket, encrypted stores and limits in the configuration."""

from __future__ import annotations

import getpass
import os
import sys

import pytest
import yaml

from cfproxy.config import AccessKey, LocalUser, render_settings
from cfproxy.errors import ConfigError
from cfproxy.secret import Secret
from tests.support.config_loader import BASE, ENVIRON, MARKER, Loader

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a socket's peer")


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """A folder of this module's own."""
    return Loader(tmp_path_factory.mktemp("config"))


# --- access keys ----------------------------------------------------------------------------


def test_a_key_may_select_an_account(load: Loader) -> None:
    """An entry is a secret in any of its forms, or `{key: SECRET, account: NAME}`."""
    text = (
        BASE + "access: {keys: [a, {key: b, account: acme}, {key: {env: K}, account: default}, {key: d}]}\n"
        "accounts: {acme: {listen: off}}"
    )
    got = load.settings(text, {"K": "c"})
    assert got.accounts["default"].access.keys == (
        AccessKey(Secret("a")),
        AccessKey(Secret("b"), "acme"),
        AccessKey(Secret("c"), "default"),
        AccessKey(Secret("d")),
    )
    assert got.accounts["acme"].listen is None
    shown = yaml.safe_load(render_settings(got))
    assert shown["access"]["keys"][:2] == ["[redacted]", {"key": "[redacted]", "account": "acme"}]
    assert shown["accounts"]["acme"]["listen"] == "off"


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("[{key: k, account: nobody}]", "0: is for an account that does not exist; there are: default, acme"),
        ("[k, {key: k, account: acme}]", "1: is the same key as access.keys.0, but for another account"),
        ("[{key: k, acount: acme}]", "0: must have no other keys than key and account, which is a name"),
        ("[{key: k, account: [acme]}]", "0: must have no other keys than key and account, which is a name"),
        ("[{key: {env: NOPE}, account: acme}]", "0: the variable that {env: …} names is not set"),
        ("[{account: acme}]", "0: must be text, {env: NAME} or {file: PATH}, or {key: one of these,"),
    ],
)
def test_an_invalid_key_is_reported(load: Loader, keys: str, problem: str) -> None:
    """Unknown accounts, one key for two accounts and misspelt entries are problems; no key is shown."""
    text = f"access: {{keys: {keys}}}\naccounts: {{acme: {{listen: off, access: {{keys: []}}}}}}"
    assert load.problem(text).startswith(f"config.yaml: access.keys.{problem}")


def test_an_inherited_key_is_reported_once(load: Loader) -> None:
    """The problem is reported where the key is written."""
    text = "access: {keys: [{key: k, account: nobody}]}\naccounts: {acme: {listen: off}}"
    assert "access.keys.0: is for an account that does not exist" in load.problem(text)


# --- listeners ------------------------------------------------------------------------------


def test_accounts_without_a_listener_do_not_collide(load: Loader) -> None:
    """Any number of accounts may share one listener."""
    got = load.settings(BASE + "accounts: {a: {listen: off}, b: {listen: OFF}, c: {listen: 'no'}}")
    assert [account.listen for account in got.accounts.values()][1:] == [None] * 3


# --- users ----------------------------------------------------------------------------------


@on_linux
def test_a_user_is_a_name_or_a_number(load: Loader) -> None:
    """Both mean a number to the kernel; the name is kept for display."""
    name, uid = getpass.getuser(), os.getuid()
    got = load.settings(f"{BASE}listen: unix:/s\naccess: {{users: [{name}, 12345]}}")
    assert got.accounts["default"].access.users == (LocalUser(name, uid), LocalUser("12345", 12345))
    assert yaml.safe_load(render_settings(got))["access"]["users"] == [name, "12345"]


@on_linux
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("listen: unix:/s\naccess: {users: [no-such-user-here]}", "0: is not a user of this machine"),
        ("listen: unix:/s\naccess: {users: [['root']]}", "0: must be a user's name or number"),
        ("access: {users: [0]}", " works with a Unix socket only (listen: unix:/path)"),
    ],
)
def test_a_user_that_cannot_be_identified_is_a_problem(load: Loader, text: str, problem: str) -> None:
    """An unknown name, or a listener that can't identify its callers."""
    assert problem.strip() in load.problem(text)
    assert load.problem(text).startswith("config.yaml: access.users")


def test_users_outside_linux_are_a_problem(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that could not protect anything is refused."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "works on Linux only" in load.problem("listen: unix:/s\naccess: {users: [root]}")


# --- the store ------------------------------------------------------------------------------


def test_a_store_is_a_value_or_a_section(load: Loader) -> None:
    """`store: memory` and `store: {url: memory}` are the same; a key needs the section."""
    assert load.account("store: memory").store == load.account("store: {url: memory}").store
    got = load.settings(f"{BASE}store: {{key: {MARKER}}}\naccounts: {{a: {{listen: off, store: file:x}}}}")
    assert [account.store.key for account in got.accounts.values()] == [Secret(MARKER)] * 2
    assert got.accounts["a"].store_dir == load.folder / "x"
    shown = yaml.safe_load(render_settings(got))
    assert shown["store"] == {"url": "file", "password": None, "key": "[redacted]"}
    assert yaml.safe_load(render_settings(load.settings(BASE)))["store"] == "file"
    assert MARKER not in repr(got)


def test_accounts_that_share_a_rate_share_its_store(load: Loader) -> None:
    """Two servers could not keep one rate."""
    one = "store: redis://a/0\npacing: {shared: true}\n"
    accounts = "accounts: {b: {listen: 'off', store: 'redis://b/0'}}"
    with pytest.raises(ConfigError, match=r"accounts.b.pacing: is shared in the store of account 'default'"):
        load.settings(f"{BASE}{one}{accounts}")


def test_the_environment_sets_the_url_and_the_key_of_a_store(load: Loader) -> None:
    """`CFPROXY_STORE` is the URL, `CFPROXY_STORE__KEY` the key."""
    (load.folder / "k").write_text("from file\n")
    for key in (
        {"CFPROXY_STORE__KEY": "from file"},
        {"CFPROXY_STORE__KEY__FILE": "k"},
        {"CFPROXY_STORE__KEY__ENV": "K", "K": "from file"},
    ):
        got = load.account("store: file", {**ENVIRON, "CFPROXY_STORE": "memory", **key}).store
        assert (got.url, got.key) == ("memory", Secret("from file"))
    got = load.account("", {"CFPROXY_STORE": "{url: memory, key: k}"}).store
    assert (got.url, got.key) == ("memory", Secret("k"))


def test_a_mistake_in_a_shorthand_names_the_key_that_was_written(load: Loader) -> None:
    """`store: cloud` is reported as `store`, the section as `store.url`."""
    want = "must be file, file:DIR, memory or redis://host:port/0"
    assert load.problem("store: cloud") == f"config.yaml: store: {want}"
    assert load.problem("store: {url: cloud}") == f"config.yaml: store.url: {want}"
    assert load.problem("", {"CFPROXY_STORE": "cloud"}) == f"environment: CFPROXY_STORE: {want}"


def test_a_key_without_the_library_is_a_problem(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported before anything is stored, with the command to install it."""
    monkeypatch.setattr("cfproxy.config.conflicts.find_spec", lambda _: None)
    problem = load.problem("store: {key: k}")
    assert problem == "config.yaml: store.key: needs a library; run: pip install 'cfproxy[encrypt]'"


# --- limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ("{line: 64KiB, head: 32KiB}", "limits: line must not be larger than head"),
        ("{head: 10}", "limits.head: must be 1024 or more"),
        ("{connections: 0}", "limits.connections: must be 1 or more"),
    ],
)
def test_limits_that_admit_no_request_are_a_problem(load: Loader, limits: str, problem: str) -> None:
    """A limit may be small, but not useless."""
    assert load.problem(f"limits: {limits}") == f"config.yaml: {problem}"
