"""Warnings of a login's end: one log line at each step, whatever is refreshed meanwhile."""

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
    """A clock whose sleeps take no time, and which stops after some days."""

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
class Source:
    """A token source that refreshes its token each hour, and whose login lasts 30 days."""

    clock: Days

    def login(self) -> Login:
        hour_at = self.clock.time() // 3600 * 3600
        token = Token(Secret(f"access-{hour_at}"), hour_at, 3600.0)
        return Fakes().login(token=token, login_at=0.0, login_expires_at=30 * DAY_S)

    async def check_store(self) -> None:
        """Nothing else uses the store."""

    def state(self) -> TokenStatus:
        return cast("TokenStatus", type("State", (), {"login": self.login()}))


@dataclass
class Account:
    """The account of such a token source."""

    token_source: Source
    app: App = APP
    warnings: WarnOnce = field(default_factory=WarnOnce)


async def warnings_within(days: float) -> list[tuple[float, Any]]:
    clock = Days(days)
    events: list[tuple[float, Any]] = []

    def note(_logger: Any, _name: str, event: Any) -> Any:
        events.append((round(clock.time() / DAY_S, 2), event))
        raise structlog.DropEvent

    log = structlog.wrap_logger(None, processors=[note])
    accounts = cast("list[RunningAccount]", [Account(Source(clock))])
    with contextlib.suppress(asyncio.CancelledError):
        await watch_logins(accounts, clock, log)
    return events


@pytest.mark.slow
async def test_each_step_is_logged_once_in_a_month() -> None:
    """7, 2 and 1 days before the end, and at the end; the 720 refreshes repeat nothing."""
    events = await warnings_within(31)
    assert [at for at, _ in events] == [23.0, 28.0, 29.0, 30.0]
    assert {event["event"] for _, event in events} == {"login.expiry_neared"}
    assert all("cfproxy login" in event["reason"] for _, event in events)
    assert EXPIRY_LOOK_S < 3600


async def test_nothing_is_logged_while_the_end_is_far() -> None:
    """The first three weeks pass without a warning."""
    assert await warnings_within(22.9) == []
