"""The views of accounts, pacing and requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cfproxy.admin.view import view_account, view_pacing, view_request, view_summary
from cfproxy.auth.expiry import DAY_S
from cfproxy.auth.models import Token, TokenStatus
from cfproxy.errors import (
    CfproxyError,
    LoginRequired,
    Misconfigured,
    StoreUnavailable,
    StoreUnusable,
    TokenEndpointUnavailable,
    UpstreamError,
    UpstreamUnreachable,
    error_kinds,
)
from cfproxy.observability.request_stats import Finished
from cfproxy.observability.status import report_checks, report_pacing, report_running
from cfproxy.pacing.queue import QueueState
from cfproxy.secret import Secret
from tests.unit.auth.test_expiry import APP, LOGIN_AT, a_login

NOW = LOGIN_AT + 600.0
GOOD = TokenStatus(a_login(), 3000.0, None, 0.0, None, False, 1)
QUIET = QueueState(0, 0, 0, 20.0, None, 0.0, 1000, 1.0)

PLACES = {"listen": "127.0.0.1:1", "url": "http://127.0.0.1:1", "upstream": "https://api"}


def a_report(state: TokenStatus = GOOD, now: float = NOW, account: str = "default") -> dict[str, Any]:
    report = report_running(replace(APP, account=account), state, now, "file:/state")
    return report | PLACES


def test_a_working_account_needs_one_word() -> None:
    """Without detail and command: there is nothing to do."""
    view = view_account(a_report())
    assert (view["tone"], view["headline"], view["detail"], view["command"]) == ("good", "Works", "", "")
    assert view["token_text"] == "valid for 50 min of 1 h"
    assert view["login_text"] == "expires in 29 d 23 h"
    assert (view["token_left"], view["token_life"]) == (3000, 3600)


@pytest.mark.parametrize(
    ("error", "check", "command"),
    [
        (LoginRequired("marker; run: cfproxy login"), "login", "cfproxy login"),
        (Misconfigured("marker"), "token", "cfproxy doctor"),
        (TokenEndpointUnavailable("marker"), "token", "cfproxy doctor"),
        (StoreUnavailable("marker"), "store", "cfproxy doctor"),
        (StoreUnusable("marker"), "store", "cfproxy doctor"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, CfproxyError) else "",
)
def test_a_failure_shows_its_cause_and_the_next_step(error: CfproxyError, check: str, command: str) -> None:
    """Page and readiness name the same cause; while the token lasts, the page only warns."""
    broken = a_report(replace(GOOD, usable_s=0.0, error=error))
    view = view_account(broken)
    assert (view["tone"], view["command"]) == ("bad", command)
    assert "marker" in str(view["detail"])
    (failed,) = (each for each in report_checks(broken) if each["state"] != "ok")
    assert (failed["check"], failed["detail"]) == (check, error.message)
    still = view_account(a_report(replace(GOOD, error=error)))
    assert still["tone"] == "warn"
    assert str(still["headline"]).startswith("Works")


def test_an_unreachable_api_is_reported() -> None:
    """With the message that the client got; readiness reports it, too."""
    report = report_running(APP, GOOD, NOW, "file:/state", UpstreamUnreachable("no route; check it"))
    view = view_account(report | PLACES)
    assert (view["tone"], view["detail"], view["command"]) == ("bad", "no route; check it", "cfproxy doctor")
    assert view["headline"] == "The API is unreachable"
    check = report_checks(report)[-1]
    assert (check["check"], check["state"], check["ok"]) == ("api", "upstream-unreachable", False)


def test_the_next_command_names_configuration_file_and_account() -> None:
    """Without them, the command would use another configuration."""
    app = replace(APP, account="acme", config_file="a b.yaml")
    errors = {"login": LoginRequired("no login"), "doctor": TokenEndpointUnavailable("down")}
    for verb, error in errors.items():
        report = report_running(app, replace(GOOD, usable_s=0.0, error=error), NOW, "file:/state")
        assert report["command"] == f"cfproxy {verb} -c 'a b.yaml' --account acme"
    failed = report_running(app, GOOD, NOW, "file:/state", UpstreamUnreachable("no route to it"))
    assert failed["command"] == "cfproxy doctor -c 'a b.yaml' --account acme"


def test_refusals_of_the_queue_show_for_a_minute() -> None:
    """Everything else works, so it is a warning."""
    view = view_account(a_report() | {"refused": 3})
    assert (view["tone"], view["headline"]) == ("warn", "Works, but the queue is full and refuses requests")
    assert str(view["detail"]).startswith("3 requests refused in the last minute; ")


def test_a_login_that_expires_soon_shows_a_warning() -> None:
    """With the same sentence as in log and status."""
    report = a_report(now=LOGIN_AT + 25 * DAY_S)
    view = view_account(report)
    assert (view["tone"], view["command"]) == ("warn", "cfproxy login")
    assert view["detail"] == report["warning"]
    assert "ends in 5 d" in str(view["detail"])
    assert report_checks(report)[0]["detail"] == report["warning"]


def test_an_unsaved_token_shows_a_warning() -> None:
    """It works, but a restart would lose the login."""
    view = view_account(a_report(replace(GOOD, store_error=StoreUnavailable("disk full"), unsaved=True)))
    assert (view["tone"], view["detail"], view["store_tone"]) == ("warn", "disk full", "warn")
    assert view["headline"] == "Works; the newest token is not saved yet"
    assert "in memory only" in str(view["store"])
    unread = view_account(a_report(replace(GOOD, store_error=StoreUnavailable("no route"))))
    assert (unread["tone"], unread["headline"]) == ("warn", "Works; the token store is unreachable")


def test_with_a_store_in_memory_no_command_is_suggested() -> None:
    """Another process can't store a login there; the page's own button can."""
    report = a_report(replace(GOOD, login=None, usable_s=0.0, error=LoginRequired("none")))
    report["store"]["location"] = "memory"
    view = view_account(report)
    assert (view["command"], view["login_helps"]) == ("", "yes")


def test_an_account_without_a_token_says_so() -> None:
    """The view invents nothing."""
    view = view_account(a_report(replace(GOOD, login=None, usable_s=0.0)))
    assert (view["token_text"], view["login_text"], view["token_at"]) == ("none yet", "none", "")
    app = report_running(
        replace(APP, grant="client_credentials"), replace(GOOD, login=a_login(None)), NOW, "memory"
    )
    own = view_account(app | PLACES)
    assert own["login_text"] == "not needed: the app logs in by itself"


def test_the_first_line_names_the_failing_accounts() -> None:
    """One account: its own headline; several: how many and which."""
    good, bad = a_report(), a_report(replace(GOOD, usable_s=0.0, error=Misconfigured("x")), account="acme")
    old = a_report(now=LOGIN_AT + 29 * DAY_S, account="old")
    assert view_summary([good], draining=False)["text"] == "Works"
    assert view_summary([good, old], draining=False)["text"] == "All 2 accounts work; check old"
    assert view_summary([good, good | {"account": "two"}], draining=False)["tone"] == "good"
    assert view_summary([good, old, bad], draining=False)["text"] == "1 of 3 accounts do not work: acme"
    assert view_summary([good], draining=True)["text"] == "Shutting down"


def test_the_plot_spans_its_width_and_stays_inside() -> None:
    """The limit is below the top; a rate above it still fits."""
    view = view_pacing(report_pacing(QUIET), [0.0, 10.0, 30.0], [0, 0, 3])
    assert str(view["rate_line"]).startswith("M0 100.0L300 ")
    heights = [float(point.split()[1]) for point in str(view["rate_line"])[1:].split("L")]
    assert 0 < min(heights) < max(heights) == 100
    assert view["rate_text"] == "20 of 20 per second"
    assert view["queue_text"] == "0 of 1\u202f000 waiting"
    assert (view["tone"], view["note"]) == ("good", "")


def test_a_full_queue_and_a_pause_are_shown() -> None:
    """They explain why requests are refused, or are not sent."""
    full = report_pacing(replace(QUIET, waiting=1000, oldest_wait_s=2.0))
    view = view_pacing(full, [], [])
    assert (full["state"], view["tone"]) == ("queue-full", "bad")
    assert "queue-full" in str(view["note"])
    assert view["queue_text"] == "1\u202f000 of 1\u202f000 waiting, the oldest for 2.0 s"
    paused = view_pacing(report_pacing(replace(QUIET, paused_until=5.0, rate=None)), [1.0], [0])
    assert (paused["tone"], paused["limit_line"]) == ("warn", "")


def test_a_shared_rate_shows_its_replicas() -> None:
    """And whether this replica uses only its part, because the store is unreachable."""
    shared = report_pacing(replace(QUIET, replicas=8))
    assert (shared["shared"], shared["replicas"]) == ("on", 8)
    assert view_pacing(shared, [], [])["note"] == "8 replicas share the rate"
    alone = report_pacing(replace(QUIET, replicas=8, alone=True, rate=2.5))
    assert alone["shared"] == "alone"
    view = view_pacing(alone, [], [])
    assert (view["tone"], view["note"]) == ("warn", "the store is unreachable: using 1/8 of the rate")
    assert report_pacing(QUIET)["shared"] == "off"


def test_a_cut_path_ends_with_an_ellipsis() -> None:
    """A complete path does not."""
    for length, shown in ((199, "p" * 199), (200, "p" * 199 + "…")):
        cut = Finished(NOW, "default", "GET", "p" * length, 200, "", 0.1, None, None, None, 1)
        assert view_request(cut)["path"] == shown


@pytest.mark.parametrize(
    ("count", "text"), [(0, "no refreshes"), (1, "1 refresh"), (1234, "1\u202f234 refreshes")]
)
def test_the_number_of_refreshes_has_a_unit(count: int, text: str) -> None:
    """A bare number next to a time would be unclear."""
    assert view_account(a_report(replace(GOOD, refreshes=count)))["refreshes"] == f"{text} since the start"


def test_a_missing_token_passes_readiness_with_a_detail() -> None:
    """The login check fails; the token check only mentions it."""
    error = LoginRequired("none; run: cfproxy login")
    checks = report_checks(a_report(replace(GOOD, login=None, usable_s=0.0, error=error)))
    assert [(each["check"], each["ok"], each["detail"]) for each in checks][:2] == [
        ("login", False, error.message),
        ("token", True, "none is valid"),
    ]
    (fresh,) = report_checks(a_report(replace(GOOD, login=None, usable_s=0.0)))[1:2]
    assert fresh["detail"] == "none yet; the next request fetches one"


def test_a_request_is_one_row() -> None:
    """With formatted durations, and a note only if something was unusual."""
    plain = Finished(NOW, "default", "GET", "/v1/jobs", 200, "", 0.012, 0.0, 0.0004, 0.0115, 1)
    view = view_request(plain)
    assert [view[key] for key in ("status", "total", "queue", "note", "tone")] == [
        "200",
        "12 ms",
        "0 ms",
        "",
        "good",
    ]
    slow = view_request(
        plain._replace(status=503, problem="queue-full", total_s=61.2, queued_s=None, tries=2)
    )
    assert (slow["total"], slow["queue"], slow["tone"]) == ("61 s", "-", "bad")
    assert slow["note"] == "sent twice, cfproxy: queue-full"
    assert view_request(plain._replace(tries=3, total_s=1.26))["note"] == "sent 3 times"
    assert view_request(plain._replace(tries=1, total_s=1.26))["total"] == "1.3 s"
    assert (
        view_request(plain._replace(status=499, problem="client-left"))["note"] == "the client disconnected"
    )


def test_a_view_holds_no_secret() -> None:
    """It is built from the report, which has none."""
    token = Token(Secret("marker-access"), LOGIN_AT, 3600.0)
    login = replace(a_login(), token=token, refresh_token=Secret("marker-refresh"))
    assert "marker" not in repr(view_account(a_report(replace(GOOD, login=login))))


@pytest.mark.parametrize("kind", error_kinds(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("usable_s", [0.0, 3000.0])
def test_every_error_has_a_headline(kind: type[CfproxyError], usable_s: float) -> None:
    """A state that the page could not name would break it."""
    error = kind("it failed; do this")
    report = a_report(replace(GOOD, usable_s=usable_s, error=error))
    if isinstance(error, UpstreamError):  # concerns the API, not the account's token
        report = report_running(APP, GOOD, NOW, "file:/state", error) | PLACES
    assert view_account(report)["headline"] not in {"", "Works"}
