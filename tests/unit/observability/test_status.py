"""What `status` says: each state in one consistent story, with the next step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cfproxy.auth.models import App, Login, Token
from cfproxy.cli.status_text import render_text
from cfproxy.errors import StoreUnavailable, StoreUnusable
from cfproxy.observability.status import report_beside, report_stored
from cfproxy.secret import Secret
from tests.support.fakes import APP, CREDENTIALS_APP, World

NOW = 1_900_000_000.0
DAY_S = 86_400.0
PACING = {"rate": 20.0, "per_s": 1.0, "queue": 1000, "max_wait_s": 60.0}


def login(**changes: Any) -> Login:
    """A login of a day ago whose access token is half an hour old."""
    fields = {
        "token": Token(Secret("access-1"), NOW - 1800, 3600.0),
        "login_at": NOW - DAY_S,
        "login_expires_at": NOW + 29 * DAY_S,
    }
    return World().login(**fields | changes)


def told(
    stored: Login | None, app: App = APP, error: StoreUnavailable | StoreUnusable | None = None
) -> tuple[dict[str, Any], str]:
    """The report for machines and the one for people."""
    report = report_stored(app, stored, NOW, "/state", error) | {"pacing": PACING}
    return report, render_text([report])


EXPIRED = Token(Secret("access-1"), NOW - 7200, 3600.0)


def test_who_never_logged_in_is_told_to() -> None:
    """There is no login and no token to tell of."""
    report, text = told(None)
    assert (report["state"], report["login"], report["access_token"]) == ("login-required", None, None)
    assert text.startswith(
        "default: login-required: account 'default' is not logged in; run: cfproxy login\n"
        "  next          cfproxy login\n"
    )


def test_who_is_logged_in_sees_both_ends() -> None:
    """A good login tells when it dies, and when its access token expires."""
    report, text = told(login())
    assert (report["state"], report["detail"]) == ("ok", "logged in")
    assert report["login"]["ended_at"] is None
    assert "login dies    2030-04-15T17:46:40Z (in 29 d)" in text
    assert "access token  expires 2030-03-17T18:16:40Z (in 30 min)" in text


def test_an_expired_access_token_is_said_to_have_expired() -> None:
    """It is over, and that is no trouble."""
    report, text = told(login(token=EXPIRED))
    assert (report["state"], report["access_token"]["usable_s"]) == ("ok", 0)
    assert report["detail"] == "the access token has expired; the next request refreshes it"
    assert "access token  expired 2030-03-17T16:46:40Z\n" in text


@pytest.mark.parametrize("answer_lost", [False, True])
def test_a_login_that_ended_dies_no_more(answer_lost: bool) -> None:
    """Once refused, a login has an end in the past; the date that it could have reached is gone."""
    stored = login(
        refused_at=NOW - 60, presented_at=NOW - 90 if answer_lost else None, answer_lost=answer_lost
    )
    report, text = told(stored)
    assert report["state"] == "login-required"
    assert "run: cfproxy login" in report["detail"]
    assert report["login"]["ended_at"] == "2030-03-17T17:45:40Z"
    assert report["login"]["expires_at"] is None
    assert report["login"]["expires_in_s"] is None
    assert report["login"]["refresh_pending_since"] is None
    assert "login ended   2030-03-17T17:45:40Z" in text
    assert "dies" not in text
    # It goes on serving until then, and no longer.
    assert "access token  expires 2030-03-17T18:16:40Z (in 30 min)" in text


def test_a_refresh_without_an_outcome_is_told_as_such() -> None:
    """Nobody knows yet, so the login counts as good."""
    report, _ = told(login(presented_at=NOW - 60))
    assert report["state"] == "ok"
    assert "its outcome is not recorded" in report["detail"]
    assert report["login"]["refresh_pending_since"] == "2030-03-17T17:45:40Z"


def test_a_login_past_its_time_is_overdue() -> None:
    """The server may still take it; the date is no promise any more."""
    report, text = told(login(login_expires_at=NOW - 60))
    assert report["state"] == "ok"
    assert "run: cfproxy login" in report["detail"]
    assert "login dies    2030-03-17T17:45:40Z (overdue)" in text


@pytest.mark.parametrize("change", [{"client_id": "another"}, {"upstream": "https://other.test:443"}])
def test_the_login_of_another_app_is_not_described_as_ours(change: dict[str, Any]) -> None:
    """Neither its dates nor its token are this account's."""
    report, text = told(replace(login(), **change))
    assert report["state"] == "login-required"
    assert "another app" in report["detail"]
    assert (report["login"], report["access_token"]) == (None, None)
    assert "logged in  " not in text


def test_a_store_that_cannot_be_read_is_told_once() -> None:
    """Its trouble is the account's trouble; nothing is said of a login that nobody has seen."""
    error = StoreUnusable("/state/default.json is damaged; move it away")
    report, text = told(None, error=error)
    assert (report["state"], report["store"]["state"]) == ("store-unusable", "store-unusable")
    assert report["detail"] == report["store"]["detail"] == error.message
    assert text.count(error.message) == 1
    assert "store         /state: store-unusable" in text


def test_a_store_that_cannot_be_written_is_told_beside_the_login() -> None:
    """The login is good for now, and the store's trouble stands in the same sentence."""
    error = StoreUnavailable("/state cannot be written: disk full; make room")
    report, text = told(login(), error=error)
    assert (report["state"], report["store"]["state"]) == ("ok", "store-unavailable")
    assert report["detail"] == f"logged in, but {error.message}"
    assert text.count(error.message) == 1


def test_client_credentials_have_a_token_and_no_login() -> None:
    """An app is never logged in, so there is no login that could die, end or be pending."""
    report, text = told(None, CREDENTIALS_APP)
    assert (report["state"], report["detail"]) == ("ok", "no token yet; the first request fetches one")
    # A record of the time when the same app had the other grant tells nothing either.
    for stored in (login(login_expires_at=None), login(refused_at=NOW - 60, presented_at=NOW - 90)):
        report, text = told(stored, CREDENTIALS_APP)
        assert (report["state"], report["detail"], report["login"]) == ("ok", "the app has a token", None)
        assert "access token  expires" in text
    report, text = told(login(token=EXPIRED), CREDENTIALS_APP)
    assert report["detail"] == "the access token has expired; the next request fetches a new one"
    report, text = told(login(client_id="another"), CREDENTIALS_APP)
    assert (report["state"], report["detail"]) == ("ok", "no token yet; the first request fetches one")
    assert report["access_token"] is None


def test_a_login_that_dies_soon_is_warned_of() -> None:
    """In the sentence that log, page and metric have; not before there is a reason to."""
    assert "warning" not in told(login())[1]
    report, text = told(login(login_at=NOW - 28 * DAY_S, login_expires_at=NOW + 2 * DAY_S))
    assert f"  warning       {report['warning']}" in text
    assert "ends in 2 d" in report["warning"]


DOWN = {"state": "upstream-timeout", "detail": "too late\x1b[2J; try again"}


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        ({"state": "ok", "ready": True}, ["  proxy         runs"]),
        (
            {"state": "misconfigured", "detail": "refused; mend it", "command": "cfproxy doctor"},
            [
                "  proxy         runs, but misconfigured: refused; mend it",
                "  next          cfproxy doctor",
            ],
        ),
        (
            {"state": "ok", "api": DOWN},
            ["  proxy         runs, but upstream-timeout: too late[2J; try again"],
        ),
        # Whoever has the port may say anything.
        ({}, ["  proxy         runs"]),
        ({"state": 7, "api": [], "command": 1}, ["  proxy         runs, but 7"]),
    ],
)
def test_a_proxy_that_runs_adds_what_only_it_can_know(said: dict[str, Any], lines: list[str]) -> None:
    """Whether tokens and answers come is no matter of the store; its words are taken, without controls."""
    report, alone = told(login())
    text = render_text([report | {"running": report_beside(said)}])
    assert [line for line in text.splitlines() if line not in alone.splitlines()] == lines


def test_what_the_first_line_says_is_not_said_twice() -> None:
    """A login that is missing is seen from here as well."""
    report, text = told(None)
    beside = report_beside({"state": report["state"], "detail": report["detail"], "command": "cfproxy login"})
    assert render_text([report | {"running": beside}]).count("not logged in") == text.count("not logged in")
