"""A configuration of the first release is accepted by every later one, with the same meaning.

The files in tests/fixtures/first-release are never changed once that release is out.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

import cfproxy
from cfproxy.config import RedisAddress, load_settings, render_settings
from tests.docs.test_configuration import _schema_keys
from tests.support.paths import FIXTURES
from tests.support.store_examples import posix_only

FOLDER = FIXTURES / "first-release"
FIRST_RELEASE = "0.1.0"
SECRETS = {
    "FIRST_RELEASE_SECRET": "first-release-client-secret-never-real",
    "FIRST_RELEASE_KEY": "first-release-acme-key-never-real",
    "FIRST_RELEASE_REDIS": "first-release-redis-password-never-real",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The configuration with the two files that it names."""
    key = tmp_path / "store.key"
    key.touch(mode=0o600)
    key.write_text("first-release-passphrase-never-real\n", encoding="ascii")
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "authorities.pem"))
    return Path(shutil.copy(FOLDER / "config.yaml", tmp_path))


def _keys_of(tree: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the keys of an account, dotted; a plain value for the store is its `url`."""
    keys: set[str] = set()
    for key, value in tree.items():
        if key in {"store", "pacing", "retry", "access", "timeouts", "limits", "tls", "log"}:
            keys |= _keys_of(value if isinstance(value, dict) else {"url": value}, f"{key}.")
        else:
            keys.add(prefix + key)
    return keys


def _missing(expected: Any, found: Any, where: str = "") -> list[str]:
    """Return where `found` lacks what is expected; it may have more."""
    if not isinstance(expected, dict) or not isinstance(found, dict):
        return [] if expected == found else [f"{where}: {found!r} instead of {expected!r}"]
    return [
        problem
        for key, value in expected.items()
        for problem in _missing(value, found.get(key, "nothing"), f"{where}.{key}")
    ]


@posix_only
def test_a_configuration_of_the_first_release_means_the_same(path: Path) -> None:
    """Each key is accepted and has the same effect, in all accounts."""
    meaning = (FOLDER / "meaning.yaml").read_text("utf-8").replace("{folder}", str(path.parent))
    shown = render_settings(load_settings(path, SECRETS))
    assert not _missing(yaml.safe_load(meaning), yaml.safe_load(shown))


@posix_only
def test_its_secrets_are_resolved_as_before(path: Path) -> None:
    """Texts, variables and files give the same secrets, and keys select the same accounts."""
    accounts = load_settings(path, SECRETS).accounts
    default, acme = accounts["default"], accounts["acme"]
    assert default.client_secret is not None
    assert default.client_secret.reveal() == SECRETS["FIRST_RELEASE_SECRET"]
    assert default.store.key is not None
    assert default.store.key.reveal() == "first-release-passphrase-never-real"
    assert [(key.secret.reveal(), key.account) for key in default.access.keys] == [
        ("first-release-access-key-never-real", None),
        (SECRETS["FIRST_RELEASE_KEY"], "acme"),
    ]
    assert acme.client_secret is not None
    assert acme.client_secret.reveal() == "first-release-acme-secret-never-real"
    store = acme.store_url
    assert isinstance(store, RedisAddress)
    assert store.password is not None
    assert (store.username, store.password.reveal(), store.replicas) == (
        "cfproxy",
        SECRETS["FIRST_RELEASE_REDIS"],
        1,
    )


def test_the_configuration_has_every_key_of_the_first_release() -> None:
    """Until that release, a new key is added to both files; afterwards they stay unchanged."""
    tree = yaml.safe_load((FOLDER / "config.yaml").read_text("utf-8"))
    held = _keys_of(tree).union(*(_keys_of(account) for account in tree["accounts"].values()))
    assert held <= set(_schema_keys()), "a key of the first release is gone"
    if cfproxy.__version__ == FIRST_RELEASE:
        assert held == set(_schema_keys()), "put the new key into config.yaml and meaning.yaml"
