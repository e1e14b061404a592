"""`store: redis://…`: which URLs are valid, and what they mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cfproxy.config import RedisAddress, render_settings
from cfproxy.config.redis_url import parse_redis_url
from cfproxy.secret import Secret
from tests.support.config_loader import BASE, MARKER, Loader


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    return Loader(tmp_path)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", RedisAddress((("localhost", 6379),))),
        ("redis://10.0.0.1:7000/3", RedisAddress((("10.0.0.1", 7000),), database=3)),
        ("rediss://[::1]:7000/", RedisAddress((("::1", 7000),), tls=True)),
        ("REDIS://u@h", RedisAddress((("h", 6379),), username="u")),
        ("redis://u:p%40ss@h", RedisAddress((("h", 6379),), username="u", password=Secret("p@ss"))),
        ("redis://:p@h", RedisAddress((("h", 6379),), password=Secret("p"))),
        ("redis://h/0?replicas=2", RedisAddress((("h", 6379),), replicas=2)),
        (
            "redis+sentinel://a,b:7,c/main/1",
            RedisAddress((("a", 26379), ("b", 7), ("c", 26379)), database=1, service="main"),
        ),
        ("rediss+sentinel://a/main", RedisAddress((("a", 26379),), tls=True, service="main")),
    ],
)
def test_a_url_names_the_server(url: str, address: RedisAddress) -> None:
    """Host, port, database, user and password, TLS, Sentinels, and the replicas to wait for."""
    assert parse_redis_url(url) == address
    assert parse_redis_url(str(address)) == replace(address, password=None)


@pytest.mark.parametrize(
    "url",
    [
        "redis:",
        "redis://",
        "redis:///0",
        "redis://h:0",
        "redis://h:99999",
        "redis://h/x",
        "redis://h/0/1",
        "redis://a,b/0",
        "redis://h?db=1",
        "redis://h?replicas=x",
        "redis://h?replicas=99",
        "redis://h#0",
        "redis+sentinel://a,b",
        "redis+sentinel://a/",
        "redis+unix:///run/redis.sock",
        "redis://hö",
    ],
)
def test_an_invalid_url_is_reported_without_repeating_it(load: Loader, url: str) -> None:
    """The message says what is valid."""
    problem = load.problem(f"store: '{url}'")
    assert problem.startswith("config.yaml: store: ")
    assert len(url) < 9 or url not in problem


def test_a_password_can_be_separate_from_the_url(load: Loader) -> None:
    """As a literal, from a variable or from a file, like every secret; the user stays in the URL."""
    (load.folder / "p").write_text("from file\n")
    for password in ("from file", "{file: p}", "{env: P}"):
        account = load.account(f"store: {{url: 'redis://u@h', password: {password}}}", {"P": "from file"})
        url = account.store_url
        assert isinstance(url, RedisAddress)
        assert (url.username, url.password) == ("u", Secret("from file"))


def test_a_password_needs_a_redis_store_and_is_given_once(load: Loader) -> None:
    """A second password, or one for a store without passwords, is a mistake."""
    path = "config.yaml: store.password"
    assert load.problem("store: {password: p}") == f"{path}: is for a Redis store only"
    twice = f"store: {{url: 'redis://:{MARKER}@h', password: p}}"
    assert load.problem(twice) == f"{path}: is also in store.url; keep one of them"


def test_no_rendering_of_an_address_shows_the_password(load: Loader) -> None:
    """Neither `config show` nor repr nor str."""
    settings = load.settings(f"{BASE}store: 'redis://u:{MARKER}@h:1/2'")
    shown = render_settings(settings)
    assert yaml.safe_load(shown)["store"] == "redis://[redacted]@h:1/2"
    address = settings.accounts["default"].store.url
    assert MARKER not in shown + repr(settings) + repr(address) + str(address)


def test_a_redis_store_without_the_library_is_a_problem(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported before anything is served, with the command to install it."""
    monkeypatch.setattr("cfproxy.config.conflicts.find_spec", lambda _: None)
    problem = load.problem("store: redis://h")
    assert problem == "config.yaml: store: needs a library; run: pip install 'cfproxy[redis]'"
