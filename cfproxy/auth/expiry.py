"""Warnings before a login ends: when they are due, and their text.

Pure functions of wall-clock instants; log, status page, metrics and `status` share them. A warning stays due
until the next step is reached, so that it is seen however late someone looks.
"""

from __future__ import annotations

from dataclasses import dataclass

from cfproxy.auth.models import App, Login, instant

DAY_S = 86_400.0
STEPS_S = (7 * DAY_S, 2 * DAY_S, DAY_S, 0.0)
# For shorter logins the steps shrink in proportion: 7 days become 15 min for a login of an hour.
FULL_LIFE_S = 28 * DAY_S


@dataclass(frozen=True, slots=True)
class ExpiryWarning:
    """A login ends soon, or should have ended.

    Args:
        step: which of `STEPS_S` is reached, counted from 1; the last one means past its lifetime.
        left_s: seconds until the end; negative after it.
        message: one line: what ends when, and the command that prevents it.
    """

    step: int
    left_s: float
    message: str


def expiry_warning(login: Login | None, app: App, now: float) -> ExpiryWarning | None:
    """Return the warning that is due at wall-clock `now`, None if there is none.

    There is none for client credentials, which do not end, and none if someone has to log in already (see
    `login_problem`): that is an error.
    """
    if login is None or login.login_expires_at is None or login.refused_at is not None:
        return None
    if app.grant == "client_credentials" or not login.belongs_to(app):
        return None
    left_s = login.login_expires_at - now
    scale = min(1.0, max(0.0, login.login_expires_at - login.login_at) / FULL_LIFE_S)
    step = sum(left_s <= step_s * scale for step_s in STEPS_S)
    if step == 0:
        return None
    who, at = f"the login of account '{app.account}'", instant(login.login_expires_at)
    if left_s <= 0:
        text = f"{who} has been past its lifetime since {at} and may end with any refresh"
    else:
        text = f"{who} ends in {span_text(left_s)}, at {at}, whatever is refreshed until then"
    return ExpiryWarning(step, left_s, f"{text}; renew it without a pause: {app.login_command}")


class WarnOnce:
    """Gives each warning of an account once per step and login.

    Only the current step is given; earlier ones that were missed are skipped.
    """

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None

    def due(self, login: Login | None, app: App, now: float) -> ExpiryWarning | None:
        """Return the warning to give at wall-clock `now`, and count it as given."""
        warning = expiry_warning(login, app, now)
        if warning is None or login is None:
            return None
        # The step may go back if the clock is set back; that is no reason to warn twice.
        if self._last is not None and self._last[0] == login.login_at and self._last[1] >= warning.step:
            return None
        self._last = (login.login_at, warning.step)
        return warning


def span_text(seconds: float) -> str:
    """Return a duration in its two largest units, such as `6 d 23 h`; `0 s` if nothing is left."""
    left = max(0, int(seconds))
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"
