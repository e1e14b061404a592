"""A login that dies is told of in the log: at each step, once, whatever is refreshed meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import structlog

from cfproxy.auth.expiry import WarnOnce
from cfproxy.auth.models import App, Login, Token, TokenStatus
from cfproxy.runtime.account import EXPIRY_LOOK_S, RunningAccount, watch_logins
from cfproxy.secret import Secret
from tests.support.fakes import APP
from tests.support.fakes import World as Fakes

DAY_S = 86_400.0


class Days:
    """A clock on which a sleep takes no time, and that ends after some days."""

    def __init__(self, days: float) -> None:
        self._now, self._end = 0.0, days * DAY_S

    def time(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, delay_s: float) -> None:
        self._now += delay_s
        if self._now > self._end:
            raise asyncio.CancelledError
        await asyncio.sleep(0)


@dataclass
class Account:
    """An account whose token is refreshed each hour, and whose login lasts 30 days."""

    clock: Days
    app: App = APP
    warnings: WarnOnce = field(default_factory=WarnOnce)

    def login(self) -> Login:
        hour_at = self.clock.time() // 3600 * 3600
        token = Token(Secret(f"access-{hour_at}"), hour_at, 3600.0)
        return Fakes().login(token=token, login_at=0.0, login_expires_at=30 * DAY_S)

    async def look(self) -> TokenStatus:
        return cast("TokenStatus", type("State", (), {"login": self.login()}))


async def warned(days: float) -> list[tuple[float, Any]]:
    clock = Days(days)
    told: list[tuple[float, Any]] = []

    def note(_logger: Any, _name: str, event: Any) -> Any:
        told.append((round(clock.time() / DAY_S, 2), event))
        raise structlog.DropEvent

    log = structlog.wrap_logger(None, processors=[note])
    accounts = cast("list[RunningAccount]", [Account(clock)])
    with contextlib.suppress(asyncio.CancelledError):
        await watch_logins(accounts, clock, log)
    return told


@pytest.mark.slow
async def test_each_step_is_told_once_in_a_month() -> None:
    """7, 2 and 1 days before the end, and at the end; not again with each of 720 refreshes."""
    told = await warned(31)
    assert [at for at, _ in told] == [23.0, 28.0, 29.0, 30.0]
    assert {event["event"] for _, event in told} == {"login.expiry_neared"}
    assert all("cfproxy login" in event["reason"] for _, event in told)
    assert EXPIRY_LOOK_S < 3600


async def test_while_there_is_time_nothing_is_told() -> None:
    """Three weeks are quiet."""
    assert await warned(22.9) == []
