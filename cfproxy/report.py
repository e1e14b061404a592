"""What is going on, as plain data: for `cfproxy status`, the admin listener and readiness.

Owns: the words and fields of a status report. Pure: asks no network, no disk and no clock.
"""

from __future__ import annotations

from typing import Any

from cfproxy.broker import BrokerState
from cfproxy.errors import (
    CfproxyError,
    LoginRequired,
    Misconfigured,
    StoreUnavailable,
    StoreUnusable,
    TokenEndpointUnavailable,
)
from cfproxy.shaper import ShaperState
from cfproxy.token import App, Login, instant, login_problem

_STATES: dict[type[CfproxyError], str] = {
    LoginRequired: "login-required",
    Misconfigured: "misconfigured",
    StoreUnusable: "store-unusable",
    StoreUnavailable: "store-unavailable",
    TokenEndpointUnavailable: "token-endpoint-unavailable",
}


def state_of(error: CfproxyError | None) -> str:
    """Return the one word for what an error means to an account; `ok` for none."""
    if error is None:
        return "ok"
    return next((word for kind, word in _STATES.items() if isinstance(error, kind)), "misconfigured")


def report_stored(
    app: App, login: Login | None, now: float, location: str, store_error: CfproxyError | None
) -> dict[str, Any]:
    """Describe an account from what its store holds.

    Args:
        app: the account's app.
        login: the stored record.
        now: wall clock, seconds.
        location: the store's place.
        store_error: why it could not be read or could not be written now.
    """
    error = store_error if store_error is not None and login is None else login_problem(login, app)
    usable_s = login.token.remaining_s(now) if login is not None and login.belongs_to(app) else 0.0
    return _report(app, login, max(0.0, usable_s), error, location, store_error, now)


def report_running(app: App, state: BrokerState, now: float, location: str) -> dict[str, Any]:
    """Describe an account of a running proxy, from its broker's memory."""
    report = _report(app, state.login, state.usable_s, state.error, location, state.store_error, now)
    report["ready"] = state.ready
    report["retry_in_s"] = round(state.retry_in_s, 1)
    report["store"]["unsaved"] = state.unsaved
    report["refreshes"] = state.refreshes
    return report


def report_pacing(state: ShaperState) -> dict[str, Any]:
    """Describe the queue of one upstream."""
    return {
        "waiting": state.waiting,
        "oldest_wait_s": round(state.oldest_wait_s, 3),
        "departures": state.departures,
        "refusals": state.refusals,
        "rate": state.rate,
        "paused": state.paused_until is not None,
    }


def _report(
    app: App,
    login: Login | None,
    usable_s: float,
    error: CfproxyError | None,
    location: str,
    store_error: CfproxyError | None,
    now: float,
) -> dict[str, Any]:
    return {
        "account": app.account,
        "client_id": app.client_id,
        "grant": app.grant,
        "state": state_of(error),
        "detail": error.message if error is not None else _good_news(app, login, usable_s, now),
        "access_token": None
        if login is None
        else {
            "obtained_at": instant(login.token.obtained_at),
            "expires_at": instant(login.token.expires_at),
            "usable_s": round(usable_s),
        },
        "login": None
        if login is None
        else {
            "scope": login.scope,
            "logged_in_at": instant(login.login_at),
            "expires_at": None if login.login_expires_at is None else instant(login.login_expires_at),
            "expires_in_s": None if login.login_expires_at is None else round(login.login_expires_at - now),
            "refresh_pending_since": None
            if login.presented_at is None or login.refused_at is not None
            else instant(login.presented_at),
        },
        "store": {
            "location": location,
            "state": state_of(store_error),
            "detail": None if store_error is None else store_error.message,
        },
    }


def _good_news(app: App, login: Login | None, usable_s: float, now: float) -> str:
    if login is None:
        return "no token yet; the first request fetches one"
    if login.presented_at is not None:
        return (
            f"a refresh was begun at {instant(login.presented_at)} and its outcome is not recorded; "
            "the next refresh will tell"
        )
    if (
        app.grant == "authorization_code"
        and login.login_expires_at is not None
        and login.login_expires_at < now
    ):
        return f"the login is older than refresh_token_lifetime; soon run: {app.login_command}"
    if usable_s <= 0:
        return "the access token has expired; the next request refreshes it"
    return "logged in"


def render_text(reports: list[dict[str, Any]]) -> str:
    """Return the reports for people, a few lines an account."""
    lines: list[str] = []
    for report in reports:
        lines.append(f"{report['account']}: {report['state']}: {report['detail']}")
        lines.append(f"  app           {report['client_id']} ({report['grant']})")
        if report["login"] is not None:
            lines.append(f"  logged in     {report['login']['logged_in_at']}")
            if report["login"]["expires_at"] is not None:
                left = _span(report["login"]["expires_in_s"])
                lines.append(f"  login dies    {report['login']['expires_at']} ({left})")
        if report["access_token"] is not None:
            left = _span(report["access_token"]["usable_s"])
            lines.append(f"  access token  expires {report['access_token']['expires_at']} ({left})")
        pacing = report["pacing"]
        pace = "off" if pacing["rate"] is None else f"{pacing['rate']:g} requests in {pacing['per_s']:g} s"
        lines.append(f"  pacing        {pace} (a running proxy's queue: /status.json of its admin listener)")
        store = report["store"]
        problem = "" if store["detail"] is None else f": {store['state']}: {store['detail']}"
        lines.append(f"  store         {store['location']}{problem}")
    return "\n".join(lines)


def _span(seconds: int) -> str:
    """Return a span of time in its two largest units."""
    if seconds <= 0:
        return "over"
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count} {unit}")
    return "in " + " ".join(parts[:2])
