"""Every later release can read, use, refresh and save what the first release has stored.

The files in tests/fixtures/first-release are never changed. A new form of the document gets files of its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.models import App, AttemptGone, login_problem
from cfproxy.auth.token_source import TokenSource
from cfproxy.config.redis_url import parse_redis_url
from cfproxy.errors import LoginRequired, StoreUnusable
from cfproxy.secret import Secret
from cfproxy.stores import open_store
from tests.support.fakes import Alarms, FakeEndpoint
from tests.support.paths import FIXTURES
from tests.support.redis_server import RedisServer

FIRST_RELEASE = FIXTURES / "first-release"
KEY = Secret("first-release-passphrase-never-real")
ACCESS, REFRESH = "first-release-access-token-never-real", "first-release-refresh-token-never-real"
STATE, VERIFIER = "first-release-state-never-real", "first-release-verifier-never-real-0123456789abcdef"
LOGIN_AT = 1_767_225_600.0
OBTAINED_AT = LOGIN_AT + 86_400
APP = App(
    "default",
    "first-release-app",
    "https://accounts.example/connect/token",
    "https://gateway.example:443",
    "cfgateway offline_access",
    "authorization_code",
)
HASH = "ab084efd019f33e4"  # of the state; part of a name in both stores


class FirstReleaseStore:
    """A store, with methods that write what the first release would have."""

    def __init__(
        self, kind: str, stores: Mapping[bool, TokenStore], put: Callable[[str, str], Awaitable[None]]
    ) -> None:
        self._stores = stores
        self.store = stores[False]
        self._kind = kind
        self._put = put

    async def put_login(self, file: str) -> None:
        """Write a login; the store has the key if it is encrypted."""
        self.store = self._stores["encrypted" in file]
        await self._put("login", (FIRST_RELEASE / file).read_text("utf-8"))

    async def save_attempt(self, file: str) -> None:
        """Write a login attempt; the store has the key if it is encrypted."""
        self.store = self._stores["encrypted" in file]
        used = ".used" if "used" in file else ""
        # The stores encrypt attempts for different purposes.
        if self._kind == "redis":
            file = file.replace("encrypted", "encrypted-redis")
        await self._put(f"attempt{used}", (FIRST_RELEASE / file).read_text("utf-8"))


@pytest.fixture(params=["file", "redis"])
async def first_release(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FirstReleaseStore]:
    """A store for the app, with and without the key."""
    if request.param == "file":
        folder = tmp_path / "store"
        names = {"login": "", "attempt": f".login-{HASH}", "attempt.used": f".login-{HASH}.used"}

        async def put(kind: str, text: str) -> None:
            folder.mkdir(mode=0o700, exist_ok=True)
            path = folder / f"default{names[kind]}.json"
            path.touch(mode=0o600)
            path.write_text(text, encoding="ascii")

        stores = {
            keyed: open_store(f"file:{folder}", folder, KEY if keyed else None, app=APP)
            for keyed in (False, True)
        }
    else:
        server: RedisServer = request.getfixturevalue("shared_server")
        await server.ready()
        await server.empty()
        address = parse_redis_url(server.url)
        stores = {
            keyed: open_store(address, None, KEY if keyed else None, app=APP) for keyed in (False, True)
        }

        async def put(kind: str, text: str) -> None:
            record = json.loads((FIRST_RELEASE / "redis.json").read_text("utf-8"))[kind.removesuffix(".used")]
            fields = {name: value.replace("DOCUMENT", text) for name, value in record["fields"].items()}
            words = [word for field in fields.items() for word in field]
            await _send(server, "HSET", record["key"], *words)

    yield FirstReleaseStore(request.param, stores, put)
    for store in stores.values():
        await store.aclose()


async def _send(server: RedisServer, *words: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    packed = [word.encode() for word in words]
    writer.write(b"*%d\r\n" % len(packed) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in packed))
    assert (await reader.readline()).startswith(b":")
    writer.close()
    await writer.wait_closed()


@pytest.mark.slow
@pytest.mark.parametrize("file", ["login.json", "login-encrypted.json", "login-presented.json"])
async def test_login_of_the_first_release_is_used_refreshed_and_saved(
    first_release: FirstReleaseStore, file: str
) -> None:
    """Its access token is used, then its refresh token is sent, and the new login is saved."""
    await first_release.put_login(file)
    login = await first_release.store.load("default")
    assert login is not None
    assert login.belongs_to(APP)
    assert login_problem(login, APP) is None
    assert (login.serial, login.login_at, login.login_expires_at) == (7, LOGIN_AT, LOGIN_AT + 30 * 86_400)
    assert login.presented_at == (OBTAINED_AT + 3600.5 if "presented" in file else None)
    clock = Alarms()
    clock.jump_wall(OBTAINED_AT + 60 - clock.time())
    endpoint = FakeEndpoint(clock)
    endpoint.live = REFRESH
    log: Any = structlog.wrap_logger(None, processors=[LogCapture()])
    token_source = TokenSource(
        APP, first_release.store, endpoint, clock, log, jitter=lambda: 1.0, chance=lambda: 0.0
    )
    await token_source.start()
    try:
        token = await token_source.get()
        assert token.value.reveal() == ACCESS
        fresh = await token_source.replace(token, None)
        assert endpoint.calls == [REFRESH]
        assert fresh.value.reveal() == "access-2"
    finally:
        await token_source.aclose()
    saved = await first_release.store.load("default")
    assert saved is not None
    assert (saved.token.value.reveal(), saved.login_at) == ("access-2", LOGIN_AT)
    assert saved.refresh_token is not None
    assert saved.refresh_token.reveal() == "refresh-2"
    assert saved.serial > login.serial


async def test_refused_login_of_the_first_release_says_why(first_release: FirstReleaseStore) -> None:
    """A login that was lost is reported as such, with the time, and is not tried again."""
    await first_release.put_login("login-refused.json")
    login = await first_release.store.load("default")
    assert login is not None
    assert (login.refused_at, login.answer_lost) == (LOGIN_AT + 90_001.25, True)
    assert isinstance(login_problem(login, APP), LoginRequired)


async def test_login_with_client_credentials_has_no_refresh_token(first_release: FirstReleaseStore) -> None:
    """A document without a refresh token and without an end is read correctly."""
    await first_release.put_login("login-client-credentials.json")
    login = await first_release.store.load("default")
    assert login is not None
    assert (login.refresh_token, login.login_expires_at, login.scope) == (None, None, "cfgateway")
    assert login.token.value.reveal() == ACCESS


async def test_encrypted_login_needs_its_key(tmp_path: Path) -> None:
    """The encrypted document can't be read without a key or with another one."""
    path = tmp_path / "default.json"
    path.touch(mode=0o600)
    path.write_bytes((FIRST_RELEASE / "login-encrypted.json").read_bytes())
    tmp_path.chmod(0o700)
    for key in (None, Secret("another key")):
        with pytest.raises(StoreUnusable):
            await open_store(f"file:{tmp_path}", tmp_path, key).load("default")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["attempt.json", "attempt-encrypted.json"])
async def test_attempt_of_the_first_release_is_claimed_once(
    first_release: FirstReleaseStore, file: str
) -> None:
    """A login that was started before an update can be finished after it, once."""
    await first_release.save_attempt(file)
    attempt = await first_release.store.claim_attempt("default", STATE, LOGIN_AT + 60)
    assert attempt.verifier is not None
    assert attempt.verifier.reveal() == VERIFIER
    assert (attempt.client_id, attempt.redirect_uri) == (
        APP.client_id,
        "https://integration.example/callback",
    )
    with pytest.raises(AttemptGone):
        await first_release.store.claim_attempt("default", STATE, LOGIN_AT + 61)


async def test_used_attempt_of_the_first_release_stays_used(first_release: FirstReleaseStore) -> None:
    """A state that was used before an update is refused as used after it."""
    await first_release.save_attempt("attempt-used.json")
    with pytest.raises(AttemptGone) as caught:
        await first_release.store.claim_attempt("default", STATE, LOGIN_AT + 60)
    assert caught.value.reason == "used"
