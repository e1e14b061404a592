"""When people are told that a login is going to die, and in which words.

Owns: the steps at which a warning is due, its sentence, and that each is told once.
Must not know: who tells it (log, page, metric and `status` share it), which clock is asked.
Invariants: pure, on wall-clock instants handed in; a warning is due from its step on until the next
one, so that whoever looks late still learns of it; only a new login begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from cfproxy.auth.models import App, Login, instant

DAY_S = 86_400.0
STEPS_S = (7 * DAY_S, 2 * DAY_S, DAY_S, 0.0)
# A login that lasts less is warned of in proportion: one of an hour has 15 min where others have 7 days.
FULL_LIFE_S = 28 * DAY_S


@dataclass(frozen=True, slots=True)
class ExpiryWarning:
    """That a login dies soon.

    Args:
        step: which of `STEPS_S` is reached, counted from 1; the last one: its time is over.
        left_s: seconds until then; negative when it is over.
        message: one line: what dies when, and the command that prevents it.
    """

    step: int
    left_s: float
    message: str


def expiry_warning(login: Login | None, app: App, now: float) -> ExpiryWarning | None:
    """Return the warning that is due at wall-clock `now`; None while there is time enough.

    None, too, where nothing dies by itself (client credentials), and where somebody has to log in
    already (see `login_problem`): that is said louder elsewhere.
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
        text = f"{who} has been past its life time since {at} and may end with any refresh"
    else:
        text = f"{who} ends in {span_text(left_s)}, at {at}, whatever is refreshed until then"
    return ExpiryWarning(step, left_s, f"{text}; renew it without a pause: {app.login_command}")


class WarnOnce:
    """Which warnings of one account were told: each step of each login once.

    A step that was slept through is left out: only the one that is reached is told.
    """

    def __init__(self) -> None:
        self._told: tuple[float, int] | None = None

    def due(self, login: Login | None, app: App, now: float) -> ExpiryWarning | None:
        """Return the warning to tell at wall-clock `now`, and take it for told."""
        warning = expiry_warning(login, app, now)
        if warning is None or login is None:
            return None
        told = self._told
        # The step may seem to go back when the clock is set back; that is no reason to say it twice.
        if told is not None and told[0] == login.login_at and told[1] >= warning.step:
            return None
        self._told = (login.login_at, warning.step)
        return warning


def span_text(seconds: float) -> str:
    """Return a span of time in its two largest units: `6 d 23 h`; `0 s` when nothing is left."""
    left = max(0, int(seconds))
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"
