"""Token sources on a fake clock, with a scripted token endpoint and a store that can fail.

The endpoint rotates refresh tokens as IdentityServer does by default: each is valid once, and it is used up
before the response is sent.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import structlog
from structlog.testing import LogCapture
from structlog.typing import FilteringBoundLogger

from cfproxy.auth.interfaces import Lease
from cfproxy.auth.models import UNKNOWN_LIFETIME_S, App, Login, Token, TokenReply
from cfproxy.auth.token_source import TokenSource
from cfproxy.errors import CfproxyError, GrantRefused, StoreUnavailable, TokenEndpointUnavailable
from cfproxy.secret import Secret
from cfproxy.stores.memory import MemoryStore
from tests.support.clock import FakeClock

TOKEN_URL = "https://accounts.example/connect/token"
UPSTREAM = "https://api.example:443"
APP = App("default", "app", TOKEN_URL, UPSTREAM, "cfgateway offline_access", "authorization_code")
CREDENTIALS_APP = App("default", "app", TOKEN_URL, UPSTREAM, "cfgateway", "client_credentials")

LOST = "lost"  # the server issues a token, but its response never arrives


def reply(access: str, lifetime_s: float | None = 3600.0, refresh: str | None = None) -> TokenReply:
    return TokenReply(Secret(access), lifetime_s, None if refresh is None else Secret(refresh), None)


def down(*, sent: bool = True, retry_after_s: float = 1.0) -> TokenEndpointUnavailable:
    return TokenEndpointUnavailable("the token endpoint is down", sent=sent, retry_after_s=retry_after_s)


def refused() -> GrantRefused:
    return GrantRefused("the token endpoint refused the refresh token (invalid_grant)")


class Alarms(FakeClock):
    """A fake clock that detects busy loops: sleeps of no length, again and again at one instant."""

    def __init__(self) -> None:
        super().__init__()
        self.naps: Counter[float] = Counter()

    async def sleep(self, delay_s: float) -> None:
        if delay_s <= 0:
            self.naps[self.monotonic()] += 1
        await super().sleep(delay_s)


class FakeEndpoint:
    """An authorization server for one app; it follows `plan` first, and then behaves correctly."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.plan: list[Exception | TokenReply | str] = []
        self.always: Exception | None = None  # the outcome of every request, once the plan is used up
        self.live: str | None = "refresh-1"
        self.rotates = True
        self.lifetime_s: float | None = 3600.0
        self.calls: list[str] = []
        self.called_at: list[float] = []  # on the monotonic clock
        self.answered: list[str] = []  # refresh tokens that were used and whose response arrived
        self.failed: list[str] = []  # refresh tokens of failed requests
        self.dies_at: dict[str, float] = {}  # access token → monotonic instant
        self.gate = asyncio.Event()
        self.gate.set()
        self.in_flight = 0
        self.most_in_flight = 0
        self._serial = count(2)

    async def refresh(self, refresh_token: Secret, may_send: Callable[[], bool] | None = None) -> TokenReply:
        if may_send is not None and not may_send():
            raise down(sent=False)
        return await self._answer(refresh_token.reveal())

    async def client_credentials(self) -> TokenReply:
        return await self._answer("")

    async def exchange(self, code: Secret, redirect_uri: str, verifier: Secret | None) -> TokenReply:
        raise NotImplementedError

    async def revoke(self, token: Secret, kind: str) -> bool:
        raise NotImplementedError

    async def _answer(self, presented: str) -> TokenReply:
        self.calls.append(presented)
        asked_at = self._clock.monotonic()
        self.called_at.append(asked_at)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            step = self.plan.pop(0) if self.plan else self.always
            if isinstance(step, Exception):
                raise step
            answer = step if isinstance(step, TokenReply) else self.issue(presented)
            if step == LOST:
                raise down()
            self.answered.append(presented)
            lifetime_s = UNKNOWN_LIFETIME_S if answer.lifetime_s is None else answer.lifetime_s
            if answer.access_token is not None:
                self.dies_at[answer.access_token.reveal()] = asked_at + lifetime_s
            return answer
        except Exception:
            self.failed.append(presented)
            raise
        finally:
            self.in_flight -= 1

    def issue(self, presented: str) -> TokenReply:
        """Use `presented` up and return the next tokens."""
        if presented not in ("", self.live):  # "": client credentials
            raise refused()
        number = next(self._serial)
        if not presented:
            return reply(f"access-{number}", self.lifetime_s)
        if self.rotates:
            self.live = f"refresh-{number}"
        return reply(f"access-{number}", self.lifetime_s, self.live)


def _whose(login: Login) -> tuple[str, float]:
    return login.client_id, login.login_at


class FakeLease(Lease):
    """A lock that can be lost while it is held."""

    def __init__(self) -> None:
        self.lost = False

    def is_held(self) -> bool:
        return not self.lost


class FaultyStore(MemoryStore):
    """A store that fails on request, and yields to the event loop in every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.lock_fault: CfproxyError | None = None
        self.load_fault: Exception | None = None
        self.save_fault: Exception | None = None
        self.save_lands = False  # a failing save is carried out all the same
        self.good_saves = 0  # how many saves succeed before `save_fault` counts
        self.shrunk: list[Login] = []  # saves whose serial did not grow within one login
        self.slow_read: asyncio.Event | None = None  # the next load returns once this is set
        self.loads = 0
        self.locks = 0
        self.lease = FakeLease()
        self.unheard = False  # changes show in the stamp only after `confirm`
        self.confirm_fault: CfproxyError | None = None
        self._heard: Hashable = None

    def stamp(self, account: str) -> Hashable:
        if not self.unheard:
            self._heard = super().stamp(account)
        return self._heard

    async def confirm(self, account: str) -> None:
        await asyncio.sleep(0)
        if self.confirm_fault is not None:
            raise self.confirm_fault
        self._heard = super().stamp(account)

    @asynccontextmanager
    async def lock(self, account: str, timeout_s: float) -> AsyncIterator[Lease]:
        self.locks += 1
        await asyncio.sleep(0)
        if self.lock_fault is not None:
            raise self.lock_fault
        async with super().lock(account, timeout_s):
            yield self.lease

    async def load(self, account: str) -> Login | None:
        self.loads += 1
        await asyncio.sleep(0)
        if self.load_fault is not None:
            raise self.load_fault
        login = await super().load(account)
        gate, self.slow_read = self.slow_read, None
        if gate is not None:
            await gate.wait()
        return login

    async def save(self, login: Login) -> None:
        await asyncio.sleep(0)
        if self.save_fault is not None:
            if self.good_saves == 0:
                if self.save_lands:
                    await self._land(login)
                raise self.save_fault
            self.good_saves -= 1
        await self._land(login)

    async def _land(self, login: Login) -> None:
        before = await super().load(login.account)
        if before is not None and _whose(before) == _whose(login) and login.serial <= before.serial:
            self.shrunk.append(login)
        await super().save(login)

    def break_down(self) -> None:
        """Fail in everything."""
        self.lock_fault = self.load_fault = self.save_fault = StoreUnavailable("the store is out of reach")

    def mend(self) -> None:
        self.lock_fault = self.load_fault = self.save_fault = None
        self.save_lands = False
        self.good_saves = 0


class World:
    """One store, one authorization server and any number of token sources, on one clock."""

    def __init__(self, app: App = APP) -> None:
        self.app = app
        self.clock = Alarms()
        self.store = FaultyStore()
        self.endpoint = FakeEndpoint(self.clock)
        self.sources: list[TokenSource] = []
        self.events = LogCapture()

    def build_log(self) -> FilteringBoundLogger:
        log: FilteringBoundLogger = structlog.wrap_logger(
            structlog.PrintLogger(),
            processors=[self.events],
            wrapper_class=structlog.make_filtering_bound_logger(0),
        )
        return log

    async def token_source(self, app: App | None = None, chance: float = 0.0) -> TokenSource:
        """Return a started token source, which acts as another process with the same store."""
        token_source = TokenSource(
            app or self.app,
            self.store,
            self.endpoint,
            self.clock,
            self.build_log(),
            jitter=lambda: 1.0,
            chance=lambda: chance,
        )
        self.sources.append(token_source)
        await token_source.start()
        return token_source

    def login(self, **changes: Any) -> Login:
        """Return a login that is made now; its tokens have the number 1."""
        fields: dict[str, Any] = {
            "account": self.app.account,
            "client_id": self.app.client_id,
            "token_url": self.app.token_url,
            "upstream": self.app.upstream,
            "scope": self.app.scope,
            "token": Token(Secret("access-1"), self.clock.time(), 3600.0),
            "refresh_token": Secret("refresh-1"),
            "serial": 1,
            "login_at": self.clock.time(),
        }
        return Login(**(fields | changes))

    async def put(self, **changes: Any) -> Login:
        """Save a login as another process would."""
        login = self.login(**changes)
        await MemoryStore.save(self.store, login)
        return login

    async def put_expired(self, **changes: Any) -> Login:
        """Save a login whose access token has expired."""
        return await self.put(token=Token(Secret("access-1"), self.clock.time() - 4000.0, 3600.0), **changes)

    async def stored(self) -> Login:
        login = await MemoryStore.load(self.store, self.app.account)
        assert login is not None
        return login

    def named(self, event: str) -> list[Any]:
        return [entry for entry in self.events.entries if entry["event"] == event]

    async def aclose(self, most_naps: int = 4) -> None:
        """Close the token sources, and check that no task is left and that none was in a busy loop."""
        self.endpoint.gate.set()
        for token_source in self.sources:
            await token_source.aclose()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        assert self.clock.sleeping == 0
        assert self.endpoint.most_in_flight <= 1
        assert self.store.shrunk == []
        assert max(self.clock.naps.values(), default=0) <= most_naps


@asynccontextmanager
async def open_world(app: App = APP) -> AsyncIterator[World]:
    """Yield a world, and close it."""
    world = World(app)
    yield world
    await world.aclose()


def access(token: Token) -> str:
    """Return the text of the access token."""
    return token.value.reveal()


def at_once(call: Coroutine[Any, Any, Token]) -> Token:
    """Return what `call` returns, and fail if it waits for anything."""
    try:
        call.send(None)
    except StopIteration as stop:
        token = stop.value
        assert isinstance(token, Token)
        return token
    call.close()
    raise AssertionError("it waited")
