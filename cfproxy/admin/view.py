"""What the pages show, as short texts, numbers and SVG paths.

The server fills its HTML with these views, and the script puts later ones into the same places, so every
text is written in one place. A view is a pure function of a report, so a page shows no more than
`/status.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from cfproxy.auth.expiry import span_text
from cfproxy.auth.models import instant
from cfproxy.observability.request_stats import PATH_MAX_CHARS, Finished
from cfproxy.pacing.queue import FULL

View = dict[str, str | float]
Tone = Literal["good", "warn", "bad"]
JUST_NOW_S = 60
PLOT_WIDTH = 600
PLOT_HEIGHT = 100
_HEADROOM = 1.15

_TROUBLE = {
    "login-required": "Log in to continue",
    "misconfigured": "The token endpoint rejects this app",
    "store-unusable": "The token store is unusable",
    "store-unavailable": "The token store is unreachable",
    "token-endpoint-unavailable": "No token: the token endpoint is unavailable",
}
_TROUBLE_AHEAD = {
    "login-required": "Works for {left}, then needs a login",
    "misconfigured": "Works for {left}; the token endpoint rejects this app",
    "store-unusable": "Works; the token store is unusable",
    "store-unavailable": "Works; the token store is unreachable",
    "token-endpoint-unavailable": "Works for {left}; the token endpoint is unavailable",
}
_API = {
    "upstream-unreachable": "The API is unreachable",
    "upstream-tls": "The API's certificate is not trusted",
    "upstream-protocol": "The API's responses are invalid",
    "upstream-timeout": "The API does not respond in time",
}
_GRANTS = {"authorization_code": "on behalf of a user", "client_credentials": "on its own behalf"}


def view_account(report: dict[str, Any]) -> View:
    """Return the view of one account.

    Args:
        report: as in `/status.json`.
    """
    tone, headline = _judge(report)
    token, login, store = report["access_token"], report["login"], report["store"]
    usable_s = 0 if token is None else token["usable_s"]
    warning = store["detail"] or report["api"]["detail"] or report["warning"] or ""
    detail = report["detail"] if report["state"] != "ok" else warning or _refusals(report)
    command = report["command"] or ""
    login_left_s, login_life_s = _login_span_s(login)
    login_helps = command.startswith("cfproxy login")
    return {
        "tone": tone,
        "headline": headline,
        "detail": detail,
        # A login by another process would not reach a store in this process's memory; one by this page does.
        "command": "" if login_helps and store["location"] == "memory" else command,
        "login_helps": "yes" if login_helps else "",
        "app": report["client_id"],
        "grant": _GRANTS[report["grant"]],
        "listen": report["listen"],
        "upstream": report["upstream"],
        "token_text": _token_text(report, usable_s),
        "token_left": usable_s,
        "token_life": 1 if token is None else max(1, token["lifetime_s"]),
        "token_word": "until" if usable_s > 0 else "at",
        "token_at": "" if token is None else token["expires_at"],
        "login_text": _login_text(report),
        "login_left": login_left_s,
        "login_life": login_life_s,
        "login_at": "" if login is None else login["expires_at"] or "",
        "just_now": "yes" if login is not None and login["age_s"] < JUST_NOW_S else "",
        "refreshed_at": "" if token is None else token["obtained_at"],
        "refreshes": f"{count_text(report['refreshes'], 'refresh', 'es')} since the start",
        "retry": f"next attempt in {span_text(report['retry_in_s'])}" if report["retry_in_s"] >= 1 else "",
        "store": _store_text(store),
        "store_tone": "good" if store["state"] == "ok" and not store["unsaved"] else "warn",
    }


def view_summary(reports: Sequence[dict[str, Any]], *, draining: bool) -> View:
    """Return the first line of the page: whether everything works, or which accounts need attention."""
    if draining:
        return {"tone": "warn", "text": "Shutting down", "more": "", "title": "Shutting down · cfproxy"}
    judged = {report["account"]: _judge(report) for report in reports}
    bad = [name for name, (tone, _) in judged.items() if tone == "bad"]
    warn = [name for name, (tone, _) in judged.items() if tone == "warn"]
    tone: Tone = "bad" if bad else "warn" if warn else "good"
    more = ""
    if len(reports) == 1:
        (only,) = reports
        text = judged[only["account"]][1]
        if tone != "bad":
            more = f"Requests to {only['url']} go to {only['upstream']}"
    elif bad:
        text = f"{len(bad)} of {len(reports)} accounts do not work: {', '.join(bad)}"
    elif warn:
        text = f"All {len(reports)} accounts work; check {', '.join(warn)}"
    else:
        text = f"All {len(reports)} accounts work"
    return {"tone": tone, "text": text, "more": more, "title": f"{text} · cfproxy"}


def view_pacing(pacing: dict[str, Any], rates: Sequence[float], waiting: Sequence[int]) -> View:
    """Return the view of one upstream.

    Args:
        pacing: as in `/status.json`.
        rates: departures per second, oldest first.
        waiting: the longest queue of each step, oldest first.
    """
    limit = None if pacing["rate"] is None else pacing["rate"] / pacing["per_s"]
    recent = sum(rates[-2:]) / 2 if len(rates) > 1 else 0.0
    top_rate = max([*rates, limit or 0.0, 1.0]) * _HEADROOM
    top_queue = max([*waiting, 5]) * _HEADROOM
    most, peak = max(rates, default=0.0), max(waiting, default=0)
    now = _rate(recent) + ("" if limit is None else f" of {limit:g}") + " per second"
    queue = f"{number_text(pacing['waiting'])} of {number_text(pacing['capacity'])} waiting"
    if pacing["waiting"]:
        queue += f", the oldest for {pacing['oldest_wait_s']:.1f} s"
    full = pacing["state"] == "queue-full"
    notes = ["paused at the API's request" if pacing["paused"] else ""]
    if pacing["shared"] == "alone":
        notes.append(f"the store is unreachable: using 1/{pacing['replicas']} of the rate")
    elif pacing["shared"] == "on" and pacing["replicas"] > 1:
        notes.append(f"{pacing['replicas']} replicas share the rate")
    notes.append("the queue is full: further requests get 503 queue-full" if full else "")
    return {
        "tone": "bad" if full else "warn" if pacing["paused"] or pacing["shared"] == "alone" else "good",
        "rate_text": now,
        "queue_text": queue,
        "note": "; ".join(filter(None, notes)),
        "refusals": f"{number_text(pacing['refusals'])} answered 429 by the API",
        "departures": f"{count_text(pacing['departures'], 'request')} sent since the start",
        "rate_line": _line(rates, top_rate),
        "rate_area": _area(rates, top_rate),
        "limit_line": "" if limit is None else _line([limit, limit], top_rate),
        "queue_line": _line(waiting, top_queue),
        "queue_area": _area(waiting, top_queue),
        "rate_label": f"Requests sent in the last 10 minutes: now {now}, peak {_rate(most)}",
        "queue_label": f"Queue in the last 10 minutes: now {queue}, peak {number_text(peak)}",
        "rate_peak": f"peak {_rate(most)}",
        "queue_peak": f"peak {number_text(peak)}",
    }


def view_request(finished: Finished) -> View:
    """Return the view of one request."""
    note = []
    if finished.tries > 1:
        note.append("sent twice" if finished.tries == 2 else f"sent {finished.tries} times")
    if finished.status == 499:
        note.append("the client disconnected")
    elif finished.problem:
        note.append(f"cfproxy: {finished.problem}")
    bad, is_own = finished.status >= 500, bool(finished.problem)
    return {
        "at": instant(finished.at),
        "account": finished.account,
        "method": finished.method,
        "path": _shortened(finished.path),
        "status": str(finished.status),
        "queue": _milliseconds(finished.queued_s),
        "token": _milliseconds(finished.token_s),
        "upstream": _milliseconds(finished.upstream_s),
        "total": _milliseconds(finished.total_s),
        "note": ", ".join(note),
        "tone": "bad" if bad else "warn" if finished.status >= 400 or is_own else "good",
    }


def clock_text(at: str) -> str:
    """Return the time of day (UTC) of an instant; the script converts it to the reader's time zone."""
    return at[11:]


def _judge(report: dict[str, Any]) -> tuple[Tone, str]:
    state, token = report["state"], report["access_token"]
    left_s = 0 if token is None else token["usable_s"]
    if state != "ok":
        if left_s > 0:
            return "warn", _TROUBLE_AHEAD[state].format(left=span_text(left_s))
        return "bad", _TROUBLE[state]
    if report["api"]["state"] in _API:
        return "bad", _API[report["api"]["state"]]
    if report["store"]["unsaved"]:
        return "warn", "Works; the newest token is not saved yet"
    if report["store"]["state"] != "ok":
        return "warn", _TROUBLE_AHEAD[report["store"]["state"]]
    if report["warning"] is not None:
        return "warn", "Works; log in again soon"
    if report["refused"]:
        return "warn", "Works, but the queue is full and refuses requests"
    return "good", "Works"


def _refusals(report: dict[str, Any]) -> str:
    if not report["refused"]:
        return ""
    return f"{count_text(report['refused'], 'request')} refused in the last minute; {FULL}"


def _token_text(report: dict[str, Any], usable_s: int) -> str:
    if report["access_token"] is None:
        return "none yet"
    if usable_s <= 0:
        return "expired"
    return f"valid for {span_text(usable_s)} of {span_text(report['access_token']['lifetime_s'])}"


def _login_span_s(login: dict[str, Any] | None) -> tuple[int, int]:
    """Return the remaining and the whole lifetime of a login; 0 if it has no known expiry date."""
    if login is None or login["expires_in_s"] is None:
        return 0, 0
    return max(0, login["expires_in_s"]), max(1, login["expires_in_s"] + login["age_s"])


def _login_text(report: dict[str, Any]) -> str:
    login = report["login"]
    if report["grant"] == "client_credentials":
        return "not needed: the app logs in by itself"
    if login is None:
        return "none"
    if report["state"] == "login-required":
        return "ended"
    if login["expires_at"] is None:
        return "no known expiry date"
    left_s, _ = _login_span_s(login)
    return f"expires in {span_text(left_s)}" if left_s else "past its lifetime"


def _store_text(store: dict[str, Any]) -> str:
    if store["unsaved"]:
        return f"{store['location']}: the newest token is in memory only"
    return str(store["location"])


def number_text(number: int) -> str:
    """Return a number with narrow no-break spaces between thousands."""
    return f"{number:,}".replace(",", "\u202f")


def count_text(number: int, thing: str, plural: str = "s") -> str:
    """Return `no requests`, `1 request` or `2 requests`."""
    return f"{number_text(number) if number else 'no'} {thing}{'' if number == 1 else plural}"


def _shortened(path: str) -> str:
    """Return a path, with an ellipsis if it was cut."""
    return path if len(path) < PATH_MAX_CHARS else f"{path[: PATH_MAX_CHARS - 1]}…"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.{1 if seconds < 10 else 0}f} s"


def _rate(per_s: float) -> str:
    # Samples are a second apart, so decimals of a large rate would be meaningless.
    return f"{per_s:.0f}" if per_s >= 10 else f"{per_s:.1f}"


def _line(values: Sequence[float], top: float) -> str:
    """Return an SVG path through the values, from the left edge of the plot to the right edge."""
    step = PLOT_WIDTH / max(1, len(values) - 1)
    points = (
        f"{index * step:.0f} {PLOT_HEIGHT * (1 - value / top):.1f}" for index, value in enumerate(values)
    )
    return "M" + "L".join(points)


def _area(values: Sequence[float], top: float) -> str:
    return f"{_line(values, top)}V{PLOT_HEIGHT}H0Z"
