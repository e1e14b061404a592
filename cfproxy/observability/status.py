"""Status reports as plain data, for `cfproxy status`, `/status.json`, `/readyz` and the status page.

Pure functions: no network, no disk, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cfproxy.auth.expiry import expiry_warning
from cfproxy.auth.models import App, Login, TokenStatus, instant, login_problem
from cfproxy.errors import CfproxyError, LoginRequired, error_kinds, state_of
from cfproxy.pacing.queue import FULL, QueueState

STATES = ("ok", *dict.fromkeys(kind.state for kind in error_kinds()))
ACCOUNT_STATES = tuple(state for state in STATES if not state.startswith("upstream-"))


def report_stored(
    app: App, login: Login | None, now: float, location: str, store_error: CfproxyError | None
) -> dict[str, Any]:
    """Return the report of an account, from its stored login.

    Args:
        app: the account's app.
        login: the stored login.
        now: wall-clock time in seconds.
        location: the store's location.
        store_error: why the store can't be read, or can't be written.
    """
    error = store_error if store_error is not None and login is None else login_problem(login, app)
    usable_s = login.token.remaining_s(now) if login is not None else 0.0
    return _report(app, login, max(0.0, usable_s), error, location, store_error, now)


def report_running(
    app: App,
    state: TokenStatus,
    now: float,
    location: str,
    failure: CfproxyError | None = None,
    refused: int = 0,
) -> dict[str, Any]:
    """Return the report of an account of a running proxy.

    Args:
        app: the account's app.
        state: of its token source.
        now: wall-clock time in seconds.
        location: the store's location.
        failure: why the API did not respond to the latest request.
        refused: how many requests the queue has refused recently.
    """
    report = _report(app, state.login, state.usable_s, state.error, location, state.store_error, now)
    report["ready"] = state.ready
    report["retry_in_s"] = round(state.retry_in_s, 1)
    report["store"]["unsaved"] = state.unsaved
    report["refreshes"] = state.refreshes
    report["api"] = {"state": state_of(failure), "detail": None if failure is None else failure.message}
    report["refused"] = refused
    if failure is not None and report["command"] is None:
        report["command"] = app.doctor_command
    return report


def report_checks(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the readiness checks of one account of a running proxy: login, token, store and API.

    A check that is not `ok` does not make the account unready while its current token is valid. Nor does an
    API that does not respond: another replica would not reach it either.
    """
    state, usable = report["state"], bool(report["access_token"] and report["access_token"]["usable_s"])
    of_login = {"login-required": "login"}
    of_store = {"store-unavailable": "store", "store-unusable": "store"}
    failing = "" if state == "ok" else {**of_login, **of_store}.get(state, "token")
    checks: list[dict[str, Any]] = []
    for name in ("login", "token", "store", "api"):
        check: dict[str, Any] = {"check": name, "account": report["account"], "state": "ok", "detail": None}
        if name == failing:
            check |= {"state": state, "detail": report["detail"]}
        elif name in {"store", "api"}:
            check |= {"state": report[name]["state"], "detail": report[name]["detail"]}
        elif name == "token" and not usable:
            token = "none yet" if report["access_token"] is None else "expired"
            check["detail"] = f"{token}; the next request fetches one" if not failing else "none is valid"
        elif name == "login" and report["warning"] is not None:
            check["detail"] = report["warning"]
        checks.append(check | {"ok": check["state"] == "ok"})
    return checks


def report_beside(reported: Mapping[str, Any]) -> dict[str, Any]:
    """Return what another process, a running proxy, reports about an account.

    Args:
        reported: the account's part of its `/status.json`; its version may differ, so no key is certain.
    """
    parts = (reported, reported.get("api"), reported.get("store"))
    failures = (part for part in parts if isinstance(part, Mapping) and part.get("state", "ok") != "ok")
    failure = next(failures, None)
    texts = [None, None] if failure is None else [failure.get("detail"), reported.get("command")]
    detail, command = (_printable(text) if isinstance(text, str) else None for text in texts)
    return {
        "ready": reported.get("ready") is True,
        "state": "ok" if failure is None else _printable(str(failure["state"])),
        "detail": detail,
        "command": command,
    }


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable())


def report_pacing(state: QueueState) -> dict[str, Any]:
    """Return the report of one upstream's queue."""
    full = state.waiting >= state.capacity > 0
    return {
        "state": "queue-full" if full else "ok",
        "detail": FULL if full else None,
        "waiting": state.waiting,
        "capacity": state.capacity,
        "oldest_wait_s": round(state.oldest_wait_s, 3),
        "departures": state.departures,
        "refusals": state.refusals,
        "rate": state.rate,
        "per_s": state.per_s,
        "paused": state.paused_until is not None,
        "shared": "off" if state.replicas is None else "alone" if state.alone else "on",
        "replicas": state.replicas,
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
    if login is not None and not login.belongs_to(app):
        login = None  # it was stored for another app
    warning = expiry_warning(login, app, now)
    return {
        "account": app.account,
        "client_id": app.client_id,
        "grant": app.grant,
        "state": state_of(error),
        "detail": error.message if error is not None else _describe(app, login, usable_s, store_error, now),
        "command": _next_command(app, error or store_error, urgent=warning is not None),
        "warning": None if warning is None else warning.message,
        "warning_step": 0 if warning is None else warning.step,
        "access_token": None
        if login is None
        else {
            "obtained_at": instant(login.token.obtained_at),
            "expires_at": instant(login.token.expires_at),
            "lifetime_s": round(login.token.lifetime_s),
            "usable_s": round(usable_s),
        },
        # With client credentials there is no login, only a token.
        "login": None if login is None or app.grant == "client_credentials" else _dates(login, now),
        "store": {
            "location": location,
            "state": state_of(store_error),
            "detail": None if store_error is None else store_error.message,
        },
    }


def _dates(login: Login, now: float) -> dict[str, Any]:
    """Return when a login started, and when it will end or has ended."""
    ended_at = login.refused_at
    expires_at = login.login_expires_at if ended_at is None else None
    pending_at = login.presented_at if ended_at is None else None
    return {
        "scope": login.scope,
        "logged_in_at": instant(login.login_at),
        "age_s": round(now - login.login_at),
        "ended_at": None if ended_at is None else instant(ended_at),
        "expires_at": None if expires_at is None else instant(expires_at),
        "expires_in_s": None if expires_at is None else round(expires_at - now),
        "refresh_pending_since": None if pending_at is None else instant(pending_at),
    }


def _next_command(app: App, error: CfproxyError | None, *, urgent: bool) -> str | None:
    """Return the command to run now; None if there is nothing to do."""
    if isinstance(error, LoginRequired) or (error is None and urgent):
        return app.login_command
    return None if error is None else app.doctor_command


def _describe(
    app: App, login: Login | None, usable_s: float, store_error: CfproxyError | None, now: float
) -> str:
    if login is None:
        text = "no token yet; the first request fetches one"
    elif app.grant == "client_credentials":
        renewal = "the access token has expired; the next request fetches a new one"
        text = "the app has a token" if usable_s > 0 else renewal
    elif login.presented_at is not None:
        text = (
            f"a refresh started at {instant(login.presented_at)} and its outcome is not recorded; "
            "the next refresh will show it"
        )
    elif login.login_expires_at is not None and login.login_expires_at < now:
        text = f"the login is older than refresh_token_lifetime; soon run: {app.login_command}"
    elif usable_s <= 0:
        text = "the access token has expired; the next request refreshes it"
    else:
        text = "logged in"
    return text if store_error is None else f"{text}, but {store_error.message}"
