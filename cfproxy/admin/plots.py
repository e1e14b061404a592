"""What the pages show of the pace: an upstream's texts, and the lines of its two plots.

Owns: the words for rate, queue and pauses, and the arithmetic from values to SVG paths.
Must not know: HTML, HTTP, where the values come from.
Invariants: pure; a plot spans its whole width, and no value leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cfproxy.admin.view import View, count_text, number_text

PLOT_WIDTH = 600
PLOT_HEIGHT = 100
_HEADROOM = 1.15


def view_pacing(pacing: dict[str, Any], rates: Sequence[float], waiting: Sequence[int]) -> View:
    """Return the texts and lines of one upstream's plots.

    Args:
        pacing: as in `/status.json`.
        rates: departures per second, oldest first.
        waiting: the longest queue of each step, likewise.
    """
    limit = None if pacing["rate"] is None else pacing["rate"] / pacing["per_s"]
    recent = sum(rates[-2:]) / 2 if len(rates) > 1 else 0.0
    top_rate = max([*rates, limit or 0.0, 1.0]) * _HEADROOM
    top_queue = max([*waiting, 5]) * _HEADROOM
    most, peak = max(rates, default=0.0), max(waiting, default=0)
    now = _rate(recent) + ("" if limit is None else f" of {limit:g}") + " per second"
    queue = f"{number_text(pacing['waiting'])} of {number_text(pacing['capacity'])} waiting"
    if pacing["waiting"]:
        queue += f", the first for {pacing['oldest_wait_s']:.1f} s"
    full = pacing["state"] == "queue-full"
    notes = ["paused: the API asked for it" if pacing["paused"] else ""]
    if pacing["shared"] == "alone":
        notes.append(f"the store is out of reach: one of {pacing['replicas']} parts of the rate")
    elif pacing["shared"] == "on" and pacing["replicas"] > 1:
        notes.append(f"{pacing['replicas']} replicas keep the rate together")
    notes.append("the queue is full: more requests get 503 queue-full" if full else "")
    return {
        "tone": "bad" if full else "warn" if pacing["paused"] or pacing["shared"] == "alone" else "good",
        "rate_text": now,
        "queue_text": queue,
        "note": "; ".join(filter(None, notes)),
        "refusals": f"{number_text(pacing['refusals'])} answered 429 (too many)",
        "departures": f"Since the start: {count_text(pacing['departures'], 'request')} sent",
        "rate_line": _line(rates, top_rate),
        "rate_area": _area(rates, top_rate),
        "limit_line": "" if limit is None else _line([limit, limit], top_rate),
        "queue_line": _line(waiting, top_queue),
        "queue_area": _area(waiting, top_queue),
        "rate_label": f"Requests sent in the last 10 minutes: now {now}, at most {_rate(most)}",
        "queue_label": f"Queue in the last 10 minutes: now {queue}, at most {number_text(peak)}",
        "rate_peak": f"at most {_rate(most)}",
        "queue_peak": f"at most {number_text(peak)}",
    }


def _rate(per_s: float) -> str:
    # Samples are a second apart, so that a decimal of a large rate would mean nothing.
    return f"{per_s:.0f}" if per_s >= 10 else f"{per_s:.1f}"


def _line(values: Sequence[float], top: float) -> str:
    """Return an SVG path through the values, from the left edge of the plot to its right one."""
    step = PLOT_WIDTH / max(1, len(values) - 1)
    points = (
        f"{index * step:.0f} {PLOT_HEIGHT * (1 - value / top):.1f}" for index, value in enumerate(values)
    )
    return "M" + "L".join(points)


def _area(values: Sequence[float], top: float) -> str:
    return f"{_line(values, top)}V{PLOT_HEIGHT}H0Z"
