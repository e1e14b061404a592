"""Status reports: each state, its consequences and the next step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cfproxy.auth.models import App, Login, Token
from cfproxy.cli.status import render_text
from cfproxy.errors import StoreUnavailable, StoreUnusable
from cfproxy.observability.status import report_beside, report_stored
from cfproxy.secret import Secret
from tests.support.fakes import APP, CREDENTIALS_APP, World

NOW = 1_900_000_000.0
DAY_S = 86_400.0
PACING = {"rate": 20.0, "per_s": 1.0, "queue": 1000, "max_wait_s": 60.0}


def login(**changes: Any) -> Login:
    """A login from yesterday whose access token is half an hour old."""
    fields = {
        "token": Token(Secret("access-1"), NOW - 1800, 3600.0),
        "login_at": NOW - DAY_S,
        "login_expires_at": NOW + 29 * DAY_S,
    }
    return World().login(**fields | changes)


def report_of(
    stored: Login | None, app: App = APP, error: StoreUnavailable | StoreUnusable | None = None
) -> tuple[dict[str, Any], str]:
    """Return the report as data and as text."""
    report = report_stored(app, stored, NOW, "/state", error) | {"pacing": PACING}
    return report, render_text([report])


EXPIRED = Token(Secret("access-1"), NOW - 7200, 3600.0)


def test_without_a_login_the_report_asks_for_one() -> None:
    """There is neither a login nor a token."""
    report, text = report_of(None)
    assert (report["state"], report["login"], report["access_token"]) == ("login-required", None, None)
    assert text.startswith(
        "default: login-required: account 'default' is not logged in; run: cfproxy login\n"
        "  next          cfproxy login\n"
    )


def test_a_login_shows_both_expiry_times() -> None:
    """That of the login, and that of its access token."""
    report, text = report_of(login())
    assert (report["state"], report["detail"]) == ("ok", "logged in")
    assert report["login"]["ended_at"] is None
    assert "login ends    2030-04-15T17:46:40Z (in 29 d)" in text
    assert "access token  expires 2030-03-17T18:16:40Z (in 30 min)" in text


def test_an_expired_access_token_is_reported() -> None:
    """It is no failure: the next request refreshes it."""
    report, text = report_of(login(token=EXPIRED))
    assert (report["state"], report["access_token"]["usable_s"]) == ("ok", 0)
    assert report["detail"] == "the access token has expired; the next request refreshes it"
    assert "access token  expired 2030-03-17T16:46:40Z\n" in text


@pytest.mark.parametrize("answer_lost", [False, True])
def test_a_login_that_has_ended_has_no_expiry(answer_lost: bool) -> None:
    """Once the server has refused it, only the time of its end is shown."""
    stored = login(
        refused_at=NOW - 60, presented_at=NOW - 90 if answer_lost else None, answer_lost=answer_lost
    )
    report, text = report_of(stored)
    assert report["state"] == "login-required"
    assert "run: cfproxy login" in report["detail"]
    assert report["login"]["ended_at"] == "2030-03-17T17:45:40Z"
    assert report["login"]["expires_at"] is None
    assert report["login"]["expires_in_s"] is None
    assert report["login"]["refresh_pending_since"] is None
    assert "login ended   2030-03-17T17:45:40Z" in text
    assert "dies" not in text
    # It keeps serving until then, and no longer.
    assert "access token  expires 2030-03-17T18:16:40Z (in 30 min)" in text


def test_a_refresh_without_an_outcome_is_reported() -> None:
    """Its outcome is unknown, so the login counts as valid."""
    report, _ = report_of(login(presented_at=NOW - 60))
    assert report["state"] == "ok"
    assert "its outcome is not recorded" in report["detail"]
    assert report["login"]["refresh_pending_since"] == "2030-03-17T17:45:40Z"


def test_a_login_past_its_lifetime_is_overdue() -> None:
    """The server may still accept it; the expiry time is no longer certain."""
    report, text = report_of(login(login_expires_at=NOW - 60))
    assert report["state"] == "ok"
    assert "run: cfproxy login" in report["detail"]
    assert "login ends    2030-03-17T17:45:40Z (overdue)" in text


@pytest.mark.parametrize("change", [{"client_id": "another"}, {"upstream": "https://other.test:443"}])
def test_the_login_of_another_app_is_not_described_as_ours(change: dict[str, Any]) -> None:
    """Neither its times nor its token belong to this account."""
    report, text = report_of(replace(login(), **change))
    assert report["state"] == "login-required"
    assert "another app" in report["detail"]
    assert (report["login"], report["access_token"]) == (None, None)
    assert "logged in  " not in text


def test_an_unreadable_store_is_reported_once() -> None:
    """It is the account's state; nothing is reported about a login that could not be read."""
    error = StoreUnusable("/state/default.json is damaged; move it away")
    report, text = report_of(None, error=error)
    assert (report["state"], report["store"]["state"]) == ("store-unusable", "store-unusable")
    assert report["detail"] == report["store"]["detail"] == error.message
    assert text.count(error.message) == 1
    assert "store         /state: store-unusable" in text


def test_an_unwritable_store_is_reported_with_the_login() -> None:
    """The login is valid for now; the same sentence names the store's problem."""
    error = StoreUnavailable("/state cannot be written: disk full; make room")
    report, text = report_of(login(), error=error)
    assert (report["state"], report["store"]["state"]) == ("ok", "store-unavailable")
    assert report["detail"] == f"logged in, but {error.message}"
    assert text.count(error.message) == 1


def test_client_credentials_have_a_token_and_no_login() -> None:
    """Such an app has no login that could expire, end or be pending."""
    report, text = report_of(None, CREDENTIALS_APP)
    assert (report["state"], report["detail"]) == ("ok", "no token yet; the first request fetches one")
    # Nor does a record from when the same app used the other grant.
    for stored in (login(login_expires_at=None), login(refused_at=NOW - 60, presented_at=NOW - 90)):
        report, text = report_of(stored, CREDENTIALS_APP)
        assert (report["state"], report["detail"], report["login"]) == ("ok", "the app has a token", None)
        assert "access token  expires" in text
    report, text = report_of(login(token=EXPIRED), CREDENTIALS_APP)
    assert report["detail"] == "the access token has expired; the next request fetches a new one"
    report, text = report_of(login(client_id="another"), CREDENTIALS_APP)
    assert (report["state"], report["detail"]) == ("ok", "no token yet; the first request fetches one")
    assert report["access_token"] is None


def test_a_login_that_expires_soon_is_warned_about() -> None:
    """With the same sentence as log and page, and not earlier than needed."""
    assert "warning" not in report_of(login())[1]
    report, text = report_of(login(login_at=NOW - 28 * DAY_S, login_expires_at=NOW + 2 * DAY_S))
    assert f"  warning       {report['warning']}" in text
    assert "ends in 2 d" in report["warning"]


DOWN = {"state": "upstream-timeout", "detail": "too late\x1b[2J; try again"}


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        ({"state": "ok", "ready": True}, ["  proxy         runs"]),
        (
            {"state": "misconfigured", "detail": "refused; change it", "command": "cfproxy doctor"},
            [
                "  proxy         runs, but misconfigured: refused; change it",
                "  next          cfproxy doctor",
            ],
        ),
        (
            {"state": "ok", "api": DOWN},
            ["  proxy         runs, but upstream-timeout: too late[2J; try again"],
        ),
        # Whatever process has the port may report anything.
        ({}, ["  proxy         runs"]),
        ({"state": 7, "api": [], "command": 1}, ["  proxy         runs, but 7"]),
    ],
)
def test_a_running_proxy_adds_what_only_it_knows(said: dict[str, Any], lines: list[str]) -> None:
    """Whether refreshes and API calls succeed; its texts are repeated without control characters."""
    report, alone = report_of(login())
    text = render_text([report | {"running": report_beside(said)}])
    assert [line for line in text.splitlines() if line not in alone.splitlines()] == lines


def test_the_first_line_is_not_repeated() -> None:
    """A missing login shows in the store, too."""
    report, text = report_of(None)
    beside = report_beside({"state": report["state"], "detail": report["detail"], "command": "cfproxy login"})
    assert render_text([report | {"running": beside}]).count("not logged in") == text.count("not logged in")
