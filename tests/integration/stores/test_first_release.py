"""What the first release stored, every later one reads, uses, refreshes and writes again.

The files in tests/fixtures/first-release are never changed. A new form of the document gets files of its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
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


class UploadSlot:
    """A store, and a way to leave in it what the first release did."""

    def __init__(self, kind: str, store: TokenStore, put: Callable[[str, str], Awaitable[None]]) -> None:
        self.store = store
        self._kind = kind
        self._put = put

    async def put_login(self, file: str) -> None:
        """Leave a login there."""
        await self._put("login", (FIRST_RELEASE / file).read_text("utf-8"))

    async def save_attempt(self, file: str) -> None:
        """Leave a login attempt there."""
        used = ".used" if "used" in file else ""
        # The stores seal attempts for purposes of their own.
        if self._kind == "redis":
            file = file.replace("encrypted", "encrypted-redis")
        await self._put(f"attempt{used}", (FIRST_RELEASE / file).read_text("utf-8"))


@pytest.fixture(params=["file", "redis"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[UploadSlot]:
    """A store with the key; what it reads in clear it reads with one as well."""
    if request.param == "file":
        folder = tmp_path / "store"
        names = {"login": "", "attempt": f".login-{HASH}", "attempt.used": f".login-{HASH}.used"}

        async def put(kind: str, text: str) -> None:
            folder.mkdir(mode=0o700, exist_ok=True)
            path = folder / f"default{names[kind]}.json"
            path.touch(mode=0o600)
            path.write_text(text, encoding="ascii")

        store = open_store(f"file:{folder}", folder, KEY)
    else:
        server: RedisServer = request.getfixturevalue("shared_server")
        await server.ready()
        await server.empty()
        store = open_store(parse_redis_url(server.url), None, KEY)

        async def put(kind: str, text: str) -> None:
            record = json.loads((FIRST_RELEASE / "redis.json").read_text("utf-8"))[kind.removesuffix(".used")]
            fields = {name: value.replace("DOCUMENT", text) for name, value in record["fields"].items()}
            words = [word for field in fields.items() for word in field]
            await _send(server, "HSET", record["key"], *words)

    yield UploadSlot(request.param, store, put)
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
async def test_a_login_of_the_first_release_is_used_refreshed_and_saved(place: UploadSlot, file: str) -> None:
    """Its access token serves while it lives; then its refresh token is spent and the new login is kept."""
    await place.put_login(file)
    login = await place.store.load("default")
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
    token_source = TokenSource(APP, place.store, endpoint, clock, log, jitter=lambda: 1.0, chance=lambda: 0.0)
    await token_source.start()
    try:
        token = await token_source.get()
        assert token.value.reveal() == ACCESS
        fresh = await token_source.replace(token)
        assert endpoint.calls == [REFRESH]
        assert fresh.value.reveal() == "access-2"
    finally:
        await token_source.aclose()
    saved = await place.store.load("default")
    assert saved is not None
    assert (saved.token.value.reveal(), saved.login_at) == ("access-2", LOGIN_AT)
    assert saved.refresh_token is not None
    assert saved.refresh_token.reveal() == "refresh-2"
    assert saved.serial > login.serial


async def test_a_refused_login_of_the_first_release_says_why(place: UploadSlot) -> None:
    """A login that had been lost is told as such, with the instant, and is not tried again."""
    await place.put_login("login-refused.json")
    login = await place.store.load("default")
    assert login is not None
    assert (login.refused_at, login.answer_lost) == (LOGIN_AT + 90_001.25, True)
    assert isinstance(login_problem(login, APP), LoginRequired)


async def test_a_login_with_client_credentials_has_no_refresh_token(place: UploadSlot) -> None:
    """A document without a refresh token and without an end is read as it was meant."""
    await place.put_login("login-client-credentials.json")
    login = await place.store.load("default")
    assert login is not None
    assert (login.refresh_token, login.login_expires_at, login.scope) == (None, None, "cfgateway")
    assert login.token.value.reveal() == ACCESS


async def test_an_encrypted_login_stays_closed_to_another_key(tmp_path: Path) -> None:
    """The encrypted document asks for the key that it was written with."""
    path = tmp_path / "default.json"
    path.touch(mode=0o600)
    path.write_bytes((FIRST_RELEASE / "login-encrypted.json").read_bytes())
    tmp_path.chmod(0o700)
    for key in (None, Secret("another key")):
        with pytest.raises(StoreUnusable):
            await open_store(f"file:{tmp_path}", tmp_path, key).load("default")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["attempt.json", "attempt-encrypted.json"])
async def test_an_attempt_of_the_first_release_is_finished_once(place: UploadSlot, file: str) -> None:
    """A login that was begun before an update is finished after it, once."""
    await place.save_attempt(file)
    attempt = await place.store.claim_attempt("default", STATE, LOGIN_AT + 60)
    assert attempt.verifier is not None
    assert attempt.verifier.reveal() == VERIFIER
    assert (attempt.client_id, attempt.redirect_uri) == (
        APP.client_id,
        "https://integration.example/callback",
    )
    with pytest.raises(AttemptGone):
        await place.store.claim_attempt("default", STATE, LOGIN_AT + 61)


async def test_a_used_attempt_of_the_first_release_stays_used(place: UploadSlot) -> None:
    """A state that was used before an update is refused as used after it."""
    await place.save_attempt("attempt-used.json")
    with pytest.raises(AttemptGone) as caught:
        await place.store.claim_attempt("default", STATE, LOGIN_AT + 60)
    assert caught.value.reason == "used"
