"""The last week of a login, hour by hour, against the sandbox, whose logins end 30 days after they began."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import structlog
from structlog.testing import LogCapture

from cfproxy.admin.view import view_account
from cfproxy.auth.expiry import DAY_S, WarnOnce
from cfproxy.auth.login import finish, start
from cfproxy.auth.token_source import TokenSource
from cfproxy.config import load_settings
from cfproxy.errors import LoginRequired
from cfproxy.observability.metrics import Metrics
from cfproxy.observability.prometheus import MetricsCollector
from cfproxy.observability.status import report_running
from cfproxy.runtime.factory import build_app, build_endpoint, build_login_plan
from cfproxy.sandbox import Behaviour, Sandbox, approve
from cfproxy.stores import open_store
from tests.support.clock import FakeClock

HOUR_S = 3600.0


@pytest.mark.slow
async def test_each_step_is_warned_of_once_and_the_login_ends_on_time() -> None:
    """Log, metric, status and page agree each hour, and tokens are refreshed until the end."""
    clock = FakeClock()
    log = structlog.wrap_logger(None, processors=[LogCapture()])
    async with Sandbox(Behaviour(limiter="off"), clock=clock.time) as sandbox:
        environ = {
            "CFPROXY_CLIENT_ID": sandbox.behaviour.client_id,
            "CFPROXY_CLIENT_SECRET": sandbox.behaviour.client_secret,
            "CFPROXY_REDIRECT_URI": sandbox.behaviour.redirect_uris[0],
            "CFPROXY_UPSTREAM": sandbox.url,
            "CFPROXY_AUTHORIZE_URL": f"{sandbox.url}/connect/authorize",
            "CFPROXY_TOKEN_URL": f"{sandbox.url}/connect/token",
        }
        account, store = load_settings(None, environ).accounts["default"], open_store("memory", None)
        plan = replace(build_login_plan(account, store), clock=clock)
        url, _ = await start(plan)
        login = await finish(plan, await approve(url))
        app = build_app(account)
        token_source = TokenSource(app, store, build_endpoint(account), clock, log)
        once, metrics = WarnOnce(), Metrics()
        metrics.accounts["default"] = token_source.state
        await token_source.start()

        warned: list[tuple[float, int]] = []
        steps: list[int] = []
        ended_at = None
        await clock.advance(22 * DAY_S)
        for hour in itertools.count(22 * 24):
            try:
                token = await token_source.get()
                assert token.remaining_s(clock.time()) > 0
            except LoginRequired:
                ended_at = hour / 24
                break
            state = token_source.state()
            warning = once.due(state.login, app, clock.time())
            if warning is not None:
                warned.append((hour / 24, warning.step))
            report = report_running(app, state, clock.time(), store.location)
            steps.append(state.warning_step)
            assert report["warning_step"] == state.warning_step
            assert f'cfproxy_login_expiry_warning{{account="default"}} {state.warning_step}.0' in (
                MetricsCollector(metrics).render().decode()
            )
            if report["state"] == "ok":
                page = view_account(report | {"listen": "", "url": "", "upstream": ""})
                assert page["detail"] == (report["warning"] or "")
                assert page["tone"] == ("warn" if state.warning_step else "good")
            await clock.advance(HOUR_S)
        await token_source.aclose()
    assert warned == [(23.0, 1), (28.0, 2), (29.0, 3), (30.0, 4)]
    assert [step for step, _ in itertools.groupby(steps)][:4] == [0, 1, 2, 3]
    assert login.login_expires_at is not None
    assert ended_at is not None
    assert 30.0 <= ended_at <= 30.0 + 2 / 24
