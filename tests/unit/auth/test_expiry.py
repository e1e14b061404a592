"""Warnings before a login ends: in time, and not too often."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.auth.expiry import DAY_S, ExpiryWarning, WarnOnce, expiry_warning, span_text
from cfproxy.auth.models import App, Login, Token
from cfproxy.secret import Secret

APP = App("default", "app", "https://t/token", "https://api:443", "cfgateway", "authorization_code")
LOGIN_AT = 1_700_000_000.0
HOUR_S = 3600.0


def a_login(life_s: float | None = 30 * DAY_S) -> Login:
    return Login(
        account="default",
        client_id="app",
        token_url="https://t/token",
        upstream="https://api:443",
        scope="cfgateway",
        token=Token(Secret("access"), LOGIN_AT, HOUR_S),
        refresh_token=Secret("refresh"),
        serial=1,
        login_at=LOGIN_AT,
        login_expires_at=None if life_s is None else LOGIN_AT + life_s,
    )


def days_of_warnings(login: Login, *, days: int) -> list[tuple[float, int]]:
    """Check every hour, and refresh the token as a running proxy does; return when each step was given."""
    once, warned = WarnOnce(), []
    for hour in range(days * 24 + 1):
        now = LOGIN_AT + hour * HOUR_S
        refreshed = login.next(token=Token(Secret(f"access-{hour}"), now, HOUR_S))
        if (warning := once.due(refreshed, APP, now)) is not None:
            warned.append((hour / 24, warning.step))
    return warned


def test_login_of_thirty_days_gets_four_warnings() -> None:
    """Once each at 7 days, 2 days, 1 day and at its end, whatever is refreshed meanwhile."""
    assert days_of_warnings(a_login(), days=40) == [(23, 1), (28, 2), (29, 3), (30, 4)]


def test_warnings_of_a_short_login_are_in_proportion() -> None:
    """A login of 14 days is not warned of from its first day."""
    assert [step for _, step in days_of_warnings(a_login(14 * DAY_S), days=20)] == [1, 2, 3, 4]
    assert days_of_warnings(a_login(14 * DAY_S), days=20)[0] == (10.5, 1)


def test_warning_names_the_end_and_the_command() -> None:
    """The message says how much time is left and what to run."""
    warning = expiry_warning(a_login(), APP, LOGIN_AT + 23 * DAY_S + HOUR_S)
    assert warning is not None
    assert warning.message == (
        "the login of account 'default' ends in 6 d 23 h, at 2023-12-14T22:13:20Z, whatever is refreshed "
        "until then; renew it without a pause: cfproxy login"
    )
    over = expiry_warning(a_login(), replace(APP, account="acme"), LOGIN_AT + 30 * DAY_S)
    assert over is not None
    assert "may end with any refresh; renew it without a pause: cfproxy login --account acme" in over.message


@pytest.mark.parametrize(
    ("login", "app"),
    [
        (None, APP),
        (a_login(None), APP),
        (replace(a_login(), refused_at=LOGIN_AT), APP),
        (a_login(), replace(APP, client_id="another")),
        (a_login(), replace(APP, grant="client_credentials")),
    ],
    ids=["none", "no end known", "ended already", "another app's", "client credentials"],
)
def test_no_warning_without_an_approaching_end(login: Login | None, app: App) -> None:
    """A missing or refused login is an error instead; client credentials do not end."""
    assert expiry_warning(login, app, LOGIN_AT + 29.5 * DAY_S) is None


def test_new_login_ends_the_warnings_and_gets_its_own() -> None:
    """The steps count from each login's own end."""
    once, old = WarnOnce(), a_login()
    assert once.due(old, APP, LOGIN_AT + 29 * DAY_S) is not None
    new = replace(old, login_at=LOGIN_AT + 29 * DAY_S, login_expires_at=LOGIN_AT + 59 * DAY_S)
    assert once.due(new, APP, LOGIN_AT + 29 * DAY_S) is None
    assert once.due(new, APP, LOGIN_AT + 53 * DAY_S) is not None


def test_only_the_current_step_is_given_after_a_suspend() -> None:
    """Steps that passed unnoticed are skipped, and a clock set back repeats nothing."""
    once, login = WarnOnce(), a_login()
    warning = once.due(login, APP, LOGIN_AT + 29.5 * DAY_S)
    assert isinstance(warning, ExpiryWarning)
    assert warning.step == 3
    assert once.due(login, APP, LOGIN_AT + 24 * DAY_S) is None


@given(st.floats(min_value=1.0, max_value=400 * DAY_S), st.floats(min_value=-10.0, max_value=500 * DAY_S))
def test_step_only_grows_with_time(life_s: float, later_s: float) -> None:
    """For any login and instant: later never means a lower step, and three quarters of the time have none."""
    login = a_login(life_s)
    steps = [
        0 if (warning := expiry_warning(login, APP, LOGIN_AT + at)) is None else warning.step
        for at in (later_s, later_s + 1, later_s + HOUR_S, later_s + 7 * DAY_S)
    ]
    assert steps == sorted(steps)
    if life_s - later_s > life_s / 4 + 1:
        assert steps[0] == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-5, "0 s"),
        (59, "59 s"),
        (61, "1 min 1 s"),
        (7200, "2 h"),
        (90061, "1 d 1 h"),
        (86_460, "1 d"),
    ],
)
def test_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    """A week is not shown with seconds."""
    assert span_text(seconds) == text
