"""A login plan with a scripted endpoint and a store that records what is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cfproxy.auth.interfaces import Lease
from cfproxy.auth.login import LoginPlan, finish, start
from cfproxy.auth.models import App, Attempt, Login, TokenReply
from cfproxy.errors import (
    CfproxyError,
    LoginFailed,
    Misconfigured,
    TokenEndpointUnavailable,
    without_traceback,
)
from cfproxy.secret import Secret
from cfproxy.stores.memory import MemoryStore
from tests.support.clock import FakeClock

REDIRECT = "https://integration.example/cb"
ACCOUNTS = "https://accounts.example"
MONTH_S = 30 * 86400.0
APP = App(
    "default",
    "app-1",
    f"{ACCOUNTS}/connect/token",
    "https://api.example:443",
    "cfgateway offline_access",
    "authorization_code",
)
REPLY = TokenReply(Secret("at-1"), 3600.0, Secret("rt-1"), None)
UNSENT = TokenEndpointUnavailable("the token endpoint at accounts.example cannot be reached", sent=False)
LOST = TokenEndpointUnavailable("the token endpoint at accounts.example sent no complete response in time")
BAD_APP = Misconfigured("the token endpoint at accounts.example refused the app (invalid_client)")


class Store(MemoryStore):
    """A store that yields before each operation, fails on request, and records what it did."""

    def __init__(self) -> None:
        super().__init__()
        self.failing: dict[str, CfproxyError] = {}
        self.done: list[str] = []

    async def _step(self, name: str) -> None:
        await asyncio.sleep(0)
        if name in self.failing:
            raise self.failing[name]
        self.done.append(name)

    @asynccontextmanager
    async def lock(self, account: str, timeout_s: float) -> AsyncIterator[Lease]:
        await self._step("lock")
        async with super().lock(account, timeout_s) as lease:
            yield lease
        self.done.append("unlock")

    async def load(self, account: str) -> Login | None:
        await self._step("load")
        return await super().load(account)

    async def save(self, login: Login) -> None:
        await self._step("save")
        await super().save(login)

    async def delete(self, account: str) -> bool:
        await self._step("delete")
        return await super().delete(account)

    async def probe(self, account: str) -> None:
        await self._step("probe")

    async def save_attempt(self, attempt: Attempt) -> None:
        await self._step("save_attempt")
        await super().save_attempt(attempt)

    async def claim_attempt(self, account: str, state: str | None, now: float) -> Attempt:
        await self._step("claim")
        return await super().claim_attempt(account, state, now)


class Endpoint:
    """An endpoint with scripted outcomes that records what was sent."""

    def __init__(self, store: Store, *outcomes: TokenReply | bool | CfproxyError) -> None:
        self.store = store
        self.outcomes = list(outcomes)
        self.presented: list[tuple[Any, ...]] = []

    async def _next(self, *presented: Any) -> Any:
        self.presented.append(presented)
        self.store.done.append("send")
        await asyncio.sleep(0)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, CfproxyError):
            raise without_traceback(outcome)
        return outcome

    async def refresh(self, refresh_token: Secret, may_send: Callable[[], bool] | None = None) -> TokenReply:
        raise AssertionError("a login refreshes nothing")

    async def client_credentials(self) -> TokenReply:
        reply: TokenReply = await self._next("app")
        return reply

    async def exchange(self, code: Secret, redirect_uri: str, verifier: Secret | None) -> TokenReply:
        reply: TokenReply = await self._next(code.reveal(), redirect_uri, verifier and verifier.reveal())
        return reply

    async def revoke(self, token: Secret, kind: str) -> bool:
        revoked: bool = await self._next(token.reveal(), kind)
        return revoked


class World:
    """A login plan with its store, endpoint and clock."""

    def __init__(self, *outcomes: TokenReply | bool | CfproxyError, **changes: Any) -> None:
        self.store = Store()
        self.endpoint = Endpoint(self.store, *outcomes)
        self.clock = FakeClock()
        settings: dict[str, Any] = {
            "app": APP,
            "redirect_uri": REDIRECT,
            "authorize_url": f"{ACCOUNTS}/connect/authorize",
            "pkce": True,
            "refresh_token_lifetime_s": MONTH_S,
            "store": self.store,
            "endpoint": self.endpoint,
            "clock": self.clock,
        }
        self.plan = LoginPlan(**settings | changes)

    async def start(self) -> str:
        """Start a login, and return the address that the browser ends up on."""
        _, attempt = await start(self.plan)
        self.store.done.clear()
        return f"{REDIRECT}?code=the-code-1&scope=cfgateway&state={attempt.state.reveal()}"

    async def failure(self, text: str) -> str:
        """Return the one-line message with which `finish` fails."""
        with pytest.raises(LoginFailed) as caught:
            await finish(self.plan, text)
        message = str(caught.value)
        assert "\n" not in message
        assert "the-code" not in message
        return message
