"""The contract of `TokenStore`, run against every store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from pathlib import Path

import pytest

from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.models import ATTEMPT_LIFETIME_S, Attempt, AttemptGone, Token
from cfproxy.config import RedisAddress
from cfproxy.config.redis_url import parse_redis_url
from cfproxy.errors import ConfigError, StoreUnavailable
from cfproxy.secret import Secret
from cfproxy.stores import open_store
from cfproxy.stores.attempts import ATTEMPTS_MAX
from cfproxy.stores.file import FileStore
from tests.support.redis_server import PATIENCE_S, RedisServer, running_server
from tests.support.store_examples import NOW, build_attempt, build_login

Opener = Callable[[], TokenStore]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["memory", "file", "encrypted file", "redis", "encrypted redis"])
async def reopen(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Opener]:
    """Return a function that opens the store as another process would, if there can be one."""
    monkeypatch.setattr("cfproxy.stores.encryption.SCRYPT_N", 2)
    key = Secret("a key") if "encrypted" in request.param else None
    url: str | RedisAddress = request.param.split()[-1]
    if url == "redis":
        server: RedisServer = request.getfixturevalue("server")
        await server.ready()
        await server.empty()
        url = parse_redis_url(server.url)
    memory = open_store("memory", None)
    opened: list[TokenStore] = []

    def reopen() -> TokenStore:
        opened.append(memory if url == "memory" else open_store(url, tmp_path / "store", key))
        return opened[-1]

    yield reopen
    for store in opened:
        await store.aclose()


@pytest.fixture
def store(reopen: Opener) -> TokenStore:
    return reopen()


async def new_stamp(store: TokenStore, *old: Hashable) -> Hashable:
    """Return the stamp once it is none of `old`: news of a change may take a moment."""
    async with asyncio.timeout(PATIENCE_S):
        while (stamp := store.stamp("default")) in old:
            await asyncio.sleep(0.001)
    return stamp


async def gone(store: TokenStore, state: str | None, now: float = NOW, account: str = "default") -> str:
    with pytest.raises(AttemptGone) as caught:
        await store.claim_attempt(account, state, now)
    return caught.value.reason


async def test_saved_login_is_loaded_unchanged(reopen: Opener) -> None:
    """Every field of a login survives the store, also for another process."""
    login = build_login(login_expires_at=NOW + 9, presented_at=NOW + 1, refused_at=NOW + 2, answer_lost=True)
    await reopen().save(login)
    assert await reopen().load("default") == login


async def test_unknown_account_has_no_login(store: TokenStore) -> None:
    """An account without a login is None, not an error."""
    assert await store.load("default") is None
    assert store.stamp("default") is None


async def test_save_replaces_the_whole_login(reopen: Opener) -> None:
    """Nothing of an older login is left."""
    first = build_login(presented_at=NOW)
    second = first.next(token=Token(Secret("access-2"), NOW, 60.0), refresh_token=None, presented_at=None)
    store = reopen()
    await store.save(first)
    await store.save(second)
    assert await reopen().load("default") == second


async def test_delete_forgets_the_login_and_the_attempts(store: TokenStore) -> None:
    """After a logout there is no token and no attempt; a second logout finds nothing."""
    await store.save(build_login())
    await store.save_attempt(build_attempt())
    assert await store.delete("default") is True
    assert await store.load("default") is None
    assert await gone(store, "state-1") == "unknown"
    assert await store.delete("default") is False


async def test_attempts_alone_are_no_login(store: TokenStore) -> None:
    """Deleting an account that only has an attempt reports no login, and ends the attempt."""
    await store.save_attempt(build_attempt())
    assert await store.delete("default") is False
    assert await gone(store, None) == "unknown"


async def test_stamp_changes_with_the_login(reopen: Opener) -> None:
    """A stamp stays while nothing changes, and differs after each save and after a delete."""
    store, watcher = reopen(), reopen()
    stamps = [watcher.stamp("default")]
    for serial in range(1, 6):
        await store.save(build_login(serial=serial))
        stamps.append(await new_stamp(watcher, *stamps))
        assert watcher.stamp("default") == stamps[-1]
    await store.delete("default")
    gone = await new_stamp(watcher, stamps[-1])
    await store.save(build_login(serial=1))
    await new_stamp(watcher, gone, *stamps[1:])


async def test_probe_changes_nothing(store: TokenStore) -> None:
    """Probing the store changes nothing that it holds."""
    await store.probe("default")
    assert await store.load("default") is None
    await store.save(build_login())
    stamp = await new_stamp(store, None)
    await store.probe("default")
    assert store.stamp("default") == stamp


async def test_lock_has_one_holder(reopen: Opener) -> None:
    """There is one holder at a time, however the others opened the store; reading stays possible."""
    store, other = reopen(), reopen()
    await store.save(build_login())
    async with store.lock("default", 5):
        with pytest.raises(StoreUnavailable, match="is refreshing account 'default'"):
            async with other.lock("default", 0.02):
                pytest.fail("two holders")
        assert await other.load("default") is not None
    async with other.lock("default", 0):
        pass


async def test_lock_goes_to_a_waiter(reopen: Opener) -> None:
    """Waiters get the lock one after the other."""
    inside: list[int] = []
    crowd: list[int] = []

    async def refresh(number: int) -> None:
        async with reopen().lock("default", 60):
            inside.append(number)
            await asyncio.to_thread(lambda: None)
            crowd.append(len(inside))
            inside.remove(number)

    await asyncio.gather(*(refresh(number) for number in range(8)))
    assert crowd == [1] * 8


async def test_error_releases_the_lock(store: TokenStore) -> None:
    """A refresh that fails does not block the next one."""
    with pytest.raises(ZeroDivisionError):
        async with store.lock("default", 5):
            raise ZeroDivisionError
    async with store.lock("default", 0):
        pass


async def test_cancelled_waiter_does_not_hold_the_lock(reopen: Opener) -> None:
    """A cancelled wait for the lock does not acquire it."""

    async def wait() -> None:
        async with reopen().lock("default", 60):
            pytest.fail("entered")

    store = reopen()
    async with store.lock("default", 5):
        waiter = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    async with store.lock("default", 5):
        pass


async def test_accounts_have_locks_of_their_own(store: TokenStore) -> None:
    """Accounts do not wait for each other."""
    async with store.lock("a", 5), store.lock("b", 0):
        pass


async def test_attempt_is_claimed_once(reopen: Opener) -> None:
    """A redirect finishes one login; any process recognises its replay."""
    attempt = build_attempt()
    await reopen().save_attempt(attempt)
    assert await reopen().claim_attempt("default", "state-1", NOW + 1) == attempt
    assert await gone(reopen(), "state-1", NOW + 2) == "used"
    assert await gone(reopen(), None, NOW + 2) == "used"


async def test_attempt_that_is_saved_again_can_be_claimed_again(store: TokenStore) -> None:
    """A login that failed before its code was sent can be finished with the same address."""
    attempt = build_attempt()
    await store.save_attempt(attempt)
    for state in ("state-1", None):
        assert await store.claim_attempt("default", state, NOW) == attempt
        await store.save_attempt(attempt)
    assert await store.claim_attempt("default", "state-1", NOW) == attempt
    assert await gone(store, "state-1") == "used"


async def test_attempt_may_have_no_verifier(store: TokenStore) -> None:
    """Logins with `pkce: false` have attempts too."""
    attempt = build_attempt(verifier=None)
    await store.save_attempt(attempt)
    assert await store.claim_attempt("default", "state-1", NOW) == attempt


async def test_foreign_state_is_unknown(store: TokenStore) -> None:
    """A state that was not issued here claims nothing."""
    attempt = build_attempt()
    await store.save_attempt(attempt)
    assert await gone(store, "state-2") == "unknown"
    assert await gone(store, "") == "unknown"
    assert await store.claim_attempt("default", "state-1", NOW) == attempt


async def test_no_state_claims_the_newest_attempt(store: TokenStore) -> None:
    """A code that was pasted without a state belongs to the newest unused attempt."""
    for state, age_s in [("old", 30.0), ("newest", 10.0), ("middle", 20.0)]:
        await store.save_attempt(build_attempt(state=state, created_at=NOW - age_s))
    taken = [(await store.claim_attempt("default", None, NOW)).state.reveal() for _ in range(3)]
    assert taken == ["newest", "middle", "old"]
    assert await gone(store, None) == "used"


@pytest.mark.parametrize("state", ["state-1", None])
async def test_attempt_expires(store: TokenStore, state: str | None) -> None:
    """After half an hour an attempt is reported as expired once, and then forgotten."""
    await store.save_attempt(build_attempt())
    assert await gone(store, state, NOW + ATTEMPT_LIFETIME_S) == "expired"
    assert await gone(store, state, NOW + ATTEMPT_LIFETIME_S) == "unknown"


async def test_the_oldest_of_many_attempts_is_dropped(store: TokenStore) -> None:
    """Whoever may start logins can't fill the store; a claim drops none that it could get."""
    for number in range(ATTEMPTS_MAX + 5):
        await store.save_attempt(build_attempt(state=f"state-{number}", created_at=NOW + number))
    assert await gone(store, "state-4", NOW + 100) == "unknown"
    for number in range(5, ATTEMPTS_MAX + 5):
        claimed = await store.claim_attempt("default", f"state-{number}", NOW + 100)
        assert claimed.created_at == NOW + number
    await store.save_attempt(build_attempt(account="other"))
    assert await store.claim_attempt("other", "state-1", NOW) is not None


async def test_attempt_lasts_until_it_expires(store: TokenStore) -> None:
    """A slow person can still log in within half an hour."""
    attempt = build_attempt()
    await store.save_attempt(attempt)
    assert await store.claim_attempt("default", "state-1", NOW + ATTEMPT_LIFETIME_S - 1) == attempt


async def test_new_attempt_removes_expired_ones(store: TokenStore) -> None:
    """Attempts that nobody finished do not accumulate."""
    await store.save_attempt(build_attempt(state="old"))
    await store.save_attempt(build_attempt(state="new", created_at=NOW + ATTEMPT_LIFETIME_S))
    assert await gone(store, "old", NOW + 1) == "unknown"
    assert (await store.claim_attempt("default", "new", NOW + ATTEMPT_LIFETIME_S)).state == Secret("new")


@pytest.mark.parametrize("state", ["state-1", None])
async def test_one_of_fifty_claims_succeeds(reopen: Opener, state: str | None) -> None:
    """An attempt is used once, even with simultaneous claims."""
    await reopen().save_attempt(build_attempt())
    results = await asyncio.gather(
        *(reopen().claim_attempt("default", state, NOW) for _ in range(50)), return_exceptions=True
    )
    taken = [result for result in results if isinstance(result, Attempt)]
    refused = [result for result in results if isinstance(result, AttemptGone)]
    assert (len(taken), len(refused)) == (1, 49)
    if state is not None:
        assert {refusal.reason for refusal in refused} == {"used"}


async def test_accounts_are_separate(store: TokenStore) -> None:
    """No account name reaches another account's login or attempts, however it is spelt."""
    attempt = build_attempt("a")
    look_alikes = [
        "a.login-x",
        f"a.login-{attempt.state.fingerprint()}",
        "a_b",
        "a-b",
        "a.lock",
        "../a",
        "ä",
        "a/b",
    ]
    names = ["a", *look_alikes]
    await store.save_attempt(attempt)
    for name in names:
        await store.save(build_login(name, client_id=f"app of {name}"))
    for name in look_alikes:
        assert await gone(store, "state-1", account=name) == "unknown"
        assert await gone(store, None, account=name) == "unknown"
    for name in names:
        assert await store.load(name) == build_login(name, client_id=f"app of {name}")
    assert await store.claim_attempt("a", None, NOW) == attempt
    assert await store.delete("a") is True
    assert [name for name in names if await store.load(name) is None] == ["a"]


async def test_setting_selects_the_store(tmp_path: Path) -> None:
    """`memory` is new each time, `file` and `file:DIR` use the folder; other values are refused unquoted."""
    await open_store("memory", None).save(build_login())
    assert await open_store("memory", None).load("default") is None
    for setting in ("file", f"file:{tmp_path}"):
        store = open_store(setting, tmp_path)
        assert isinstance(store, FileStore)
        assert store.location == str(tmp_path)
    with pytest.raises(ConfigError) as caught:
        open_store("postgres://user:marker@host", None)
    assert "marker" not in str(caught.value)
    store = open_store(parse_redis_url("redis://user:marker@host"), None)
    assert store.location == "redis://user@host:6379/0"


async def test_store_has_a_location(store: TokenStore) -> None:
    """It is used in messages."""
    assert store.location
