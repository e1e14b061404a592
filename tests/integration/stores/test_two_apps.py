"""Two configurations with one account name and one store: neither touches the login of the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.models import App, AttemptGone, Login, login_problem
from cfproxy.config import RedisAddress
from cfproxy.config.redis_url import parse_redis_url
from cfproxy.errors import StoreUnavailable, StoreUnusable
from cfproxy.secret import Secret
from cfproxy.stores import open_store
from tests.support.redis_server import PATIENCE_S, RedisServer
from tests.support.store_examples import NOW, build_attempt, build_login, put

A = App(
    account="default",
    client_id="app",
    token_url="https://accounts.example/connect/token",
    upstream="https://api.example:443",
    scope="",
    grant="authorization_code",
)
# Each differs in one of the three things that a login is bound to.
OTHERS = {
    "client_id": replace(A, client_id="another"),
    "token_url": replace(A, token_url="https://accounts.test/connect/token"),
    "upstream": replace(A, upstream="https://api.test:443"),
}
Opener = Callable[..., TokenStore]


@pytest.fixture(params=["file", "encrypted file", "redis", "encrypted redis"])
async def opener(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Opener]:
    """Return a function that opens the store for an app, as another process would."""
    monkeypatch.setattr("cfproxy.stores.encryption.SCRYPT_N", 2)
    key = Secret("a key") if "encrypted" in request.param else None
    url: str | RedisAddress = "file"
    if "redis" in request.param:
        server: RedisServer = request.getfixturevalue("shared_server")
        await server.ready()
        await server.empty()
        url = parse_redis_url(server.url)
    opened: list[TokenStore] = []

    def open_for(app: App | None, key: Secret | None = key) -> TokenStore:
        opened.append(open_store(url, tmp_path / "store", key, app=app))
        return opened[-1]

    yield open_for
    for store in opened:
        await store.aclose()


def login_of(app: App, **changes: Any) -> Login:
    return build_login(client_id=app.client_id, token_url=app.token_url, upstream=app.upstream, **changes)


def own(login: Login | None, app: App) -> Login | None:
    """Return the login if it is the app's."""
    return login if login is not None and login.belongs_to(app) else None


@pytest.mark.parametrize("differs", OTHERS)
async def test_each_app_has_its_login(opener: Opener, differs: str) -> None:
    """Saving, refreshing and deleting one app's login leaves the other's alone, whoever came first."""
    b = OTHERS[differs]
    for first, second in ((A, b), (b, A)):
        await opener(first).save(login_of(first))
        assert own(await opener(second).load("default"), second) is None
        await opener(second).save(login_of(second, serial=5))
        await opener(first).save(login_of(first, serial=2))
        assert await opener(first).load("default") == login_of(first, serial=2)
        assert await opener(second).load("default") == login_of(second, serial=5)
        assert await opener(first).delete("default") is True
        assert await opener(first).delete("default") is False
        assert await opener(second).load("default") == login_of(second, serial=5)
        await opener(first).save(login_of(first))
        assert await opener(second).delete("default") is True
        assert await opener(first).load("default") == login_of(first)
        assert await opener(first).delete("default") is True
        assert await opener(second).load("default") is None


async def test_login_of_another_app_explains_why_there_is_none(opener: Opener) -> None:
    """Without a login of its own an app is told of the other one, which is not deleted by its logout."""
    b = OTHERS["upstream"]
    await opener(A).save(login_of(A))
    store = opener(b)
    problem = login_problem(await store.load("default"), b)
    assert problem is not None
    assert "the store has the login of another app or API" in problem.message
    assert await store.delete("default") is False
    assert await opener(A).load("default") == login_of(A)


async def test_login_of_another_app_with_another_key_is_no_obstacle(opener: Opener) -> None:
    """What this app can't read is not its own: it can log in beside it."""
    b, key = OTHERS["client_id"], Secret("another key")
    await opener(A).save(login_of(A))
    store = opener(b, key)
    assert own(await store.load("default"), b) is None
    await store.probe("default")
    async with store.lock("default", 5):
        await store.save(login_of(b))
    await store.save_attempt(build_attempt(state="b"))
    assert await store.load("default") == login_of(b)
    assert await opener(A).load("default") == login_of(A)


async def test_both_can_be_locked_at_once(opener: Opener) -> None:
    """One app's refresh does not wait for the other's, but for that of its own processes."""
    b = OTHERS["token_url"]
    await opener(A).save(login_of(A))
    await opener(b).save(login_of(b))
    async with opener(A).lock("default", 5), opener(b).lock("default", 5):
        for app in (A, b):
            with pytest.raises(StoreUnavailable, match="another process is refreshing"):
                async with opener(app).lock("default", 0.05):
                    pytest.fail("entered")


async def test_first_logins_at_the_same_time_are_both_kept(opener: Opener) -> None:
    """While the store is empty both want the same names; whoever is second gets names of its own."""
    b = OTHERS["client_id"]

    async def log_in(app: App) -> None:
        store = opener(app)
        async with store.lock("default", PATIENCE_S):
            before = await store.load("default")
            assert own(before, app) is None
            await store.save(login_of(app))

    await asyncio.gather(log_in(A), log_in(b))
    assert await opener(A).load("default") == login_of(A)
    assert await opener(b).load("default") == login_of(b)


async def test_stamp_tells_of_the_app_s_own_login(opener: Opener) -> None:
    """A process that has seen only the other app's login notices a login and a logout of its own app."""
    b = OTHERS["client_id"]
    await opener(A).save(login_of(A))
    watcher = opener(b)
    assert own(await watcher.load("default"), b) is None

    async def changed(before: Hashable) -> Hashable:
        async with asyncio.timeout(PATIENCE_S):
            while (stamp := watcher.stamp("default")) == before:
                await asyncio.sleep(0.001)
        return stamp

    stamp = watcher.stamp("default")
    await opener(b).save(login_of(b))
    stamp = await changed(stamp)
    assert await watcher.load("default") == login_of(b)
    await opener(b).delete("default")
    await changed(stamp)
    assert own(await watcher.load("default"), b) is None


async def test_attempts_are_the_app_s_own(opener: Opener) -> None:
    """A bare code, a state and a logout concern only what the same app has started."""
    b = OTHERS["upstream"]
    await opener(A).save_attempt(replace(build_attempt(state="a"), app_id=A.app_id))
    await opener(b).save_attempt(replace(build_attempt(state="b", created_at=NOW - 9), app_id=b.app_id))
    with pytest.raises(AttemptGone) as caught:
        await opener(b).claim_attempt("default", "a", NOW)
    assert caught.value.reason == "foreign"
    assert (await opener(b).claim_attempt("default", None, NOW)).state == Secret("b")
    await opener(b).delete("default")
    assert (await opener(A).claim_attempt("default", "a", NOW)).app_id == A.app_id


async def test_login_of_an_earlier_release_stays_in_its_place(opener: Opener) -> None:
    """It is found, refreshed where it is, and still found by that release; another app comes beside it."""
    b = OTHERS["client_id"]
    await opener(None).save(login_of(A))
    await opener(b).save(login_of(b))
    assert await opener(A).load("default") == login_of(A)
    await opener(A).save(login_of(A, serial=2))
    assert await opener(None).load("default") == login_of(A, serial=2)
    assert await opener(b).load("default") == login_of(b)


async def test_accounts_with_similar_names_are_told_apart(opener: Opener) -> None:
    """An account whose name looks like another app's document is an account of its own."""
    b = OTHERS["client_id"]
    name = f"default@{b.app_id}"
    await opener(A).save(login_of(A))
    await opener(A).save(replace(login_of(A), account=name))
    await opener(b).save(login_of(b))
    assert await opener(A).load(name) == replace(login_of(A), account=name)
    assert await opener(b).load("default") == login_of(b)


async def test_damaged_login_is_nobody_else_s(tmp_path: Path) -> None:
    """What can't be read may be this app's: it is neither replaced nor passed over."""
    put(tmp_path / "store" / "default.json", b"{")
    store = open_store("file", tmp_path / "store", app=A)
    for refused in (store.load("default"), store.save(login_of(A))):
        with pytest.raises(StoreUnusable, match="not JSON"):
            await refused


async def test_unreadable_document_beside_an_own_login_stays(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first release noted no app on what it encrypted: with another key it can't be told whose it is."""
    b, key = OTHERS["client_id"], Secret("another key")
    await opener(A).save(login_of(A))
    await opener(b).save(login_of(b))
    with monkeypatch.context() as patch:
        patch.setattr(Login, "app_id", None)
        await opener(None, key).delete("default")
        await opener(None, key).save(login_of(A))
    assert await opener(b).load("default") == login_of(b)
    await opener(b).save(login_of(b, serial=2))
    assert await opener(b).delete("default") is True
    assert await opener(None, key).load("default") == login_of(A)


async def test_names_of_files(tmp_path: Path) -> None:
    """The app that came first has the account's name; another one has its own, which holds no secret."""
    b = OTHERS["client_id"]
    for app in (A, b):
        store = open_store("file", tmp_path / "store", app=app)
        async with store.lock("default", 5):
            await store.save(login_of(app))
    names = {path.name for path in (tmp_path / "store").iterdir()}
    beside = f"default@{b.app_id}"
    assert names == {"default.json", "default.lock", f"{beside}.json", f"{beside}.lock"}


@pytest.mark.redis
async def test_emptied_server_gets_both_logins_back(shared_server: RedisServer) -> None:
    """Whichever is put back first, the other one comes beside it."""
    await shared_server.ready()
    await shared_server.empty()
    stores = {app: open_store(parse_redis_url(shared_server.url), None, app=app) for app in OTHERS.values()}
    for app, store in stores.items():
        await store.save(login_of(app))
    await shared_server.empty()
    for store in reversed(stores.values()):
        with pytest.raises(StoreUnavailable, match="it was put back"):
            await store.load("default")
    for app, store in stores.items():
        assert await store.load("default") == login_of(app)
        await store.aclose()


@pytest.mark.redis
async def test_logout_is_not_undone_by_a_process_that_slept(shared_server: RedisServer) -> None:
    """The account's keys stay with the app that had them, also without a login."""
    await shared_server.ready()
    await shared_server.empty()
    b = OTHERS["client_id"]
    address = parse_redis_url(shared_server.url)
    sleeper, other, beside = (open_store(address, None, app=app) for app in (A, A, b))
    await sleeper.save(login_of(A))
    await other.delete("default")
    await beside.save(login_of(b))
    assert await sleeper.load("default") is None
    assert await beside.load("default") == login_of(b)
    raw = redis.asyncio.Redis(port=shared_server.port)
    document: Any = await raw.hget(f"cfproxy:{{default}}@{b.app_id}:login", "document")
    assert json.loads(document)["client_id"] == "another"
    for each in (sleeper, other, beside, raw):
        await each.aclose()


@pytest.mark.redis
async def test_login_that_an_earlier_release_overwrote_is_put_back_beside(shared_server: RedisServer) -> None:
    """That release knows no apps: its login of one takes the other's place."""
    await shared_server.ready()
    await shared_server.empty()
    address = parse_redis_url(shared_server.url)
    b = OTHERS["client_id"]
    mine, earlier = open_store(address, None, app=A), open_store(address, None)
    await mine.save(login_of(A))
    await earlier.save(login_of(b))
    with pytest.raises(StoreUnavailable, match="it was put back"):
        await mine.load("default")
    updated = open_store(address, None, app=b)
    await updated.save(login_of(b, serial=2))
    assert await mine.load("default") == login_of(A)
    assert await earlier.load("default") == await updated.load("default") == login_of(b, serial=2)
    for each in (mine, earlier, updated):
        await each.aclose()


@pytest.mark.redis
async def test_login_in_clear_in_redis_is_adopted_only_in_an_explicit_step(
    shared_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write there could have put it there; so could an attempt whose state they know."""
    monkeypatch.setattr("cfproxy.stores.encryption.SCRYPT_N", 2)
    await shared_server.ready()
    await shared_server.empty()
    address, key = parse_redis_url(shared_server.url), Secret("a key")
    clear, strict = open_store(address, None, app=A), open_store(address, None, key, app=A)
    explicit = open_store(address, None, key, app=A, accept_clear=True)
    await clear.save(login_of(A))
    await clear.save_attempt(replace(build_attempt(state="planted", created_at=NOW + 9), app_id=A.app_id))
    for refused in (strict.load("default"), strict.save(login_of(A, serial=2)), strict.probe("default")):
        with pytest.raises(StoreUnusable, match=r"not encrypted .* run: cfproxy store encrypt;"):
            await refused
    for state in ("planted", None):
        with pytest.raises(StoreUnusable, match=r"not encrypted .*; start the login again"):
            await strict.claim_attempt("default", state, NOW + 10)
    await strict.save_attempt(replace(build_attempt(), app_id=A.app_id))
    assert (await strict.claim_attempt("default", None, NOW + 10)).state == Secret("state-1")
    async with explicit.lock("default", PATIENCE_S):
        login = await explicit.load("default")
        assert login is not None
        await explicit.save(login)
    assert await strict.load("default") == login_of(A)
    with pytest.raises(StoreUnusable, match=r"is encrypted; set `store\.key`"):
        await clear.load("default")
    for each in (clear, strict, explicit):
        await each.aclose()
