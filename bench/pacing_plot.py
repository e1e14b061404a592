"""Draw what `pacing.py --results FILE` kept: `python bench/pacing_plot.py FILE docs/pacing.svg`.

Two rows: calls that came to the API in the second before, and answers that clients have got. One column
for each way in which the sandbox counts. The line without delay.
"""

from __future__ import annotations

import io
import json
import sys
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

LIMIT = 20
END_S = 65.0
STEP_S = 0.2
STYLES = {
    "retrying": ("without cfproxy, retry on 429", "#d55e00", 1.0),
    "plain": ("without cfproxy", "#999999", 1.5),
    "paced": ("through cfproxy", "#0072b2", 2.0),
}


def main() -> None:
    results = json.loads(Path(sys.argv[1]).read_text())
    # Text stays text, and the same results make the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pacing", "font.family": "sans-serif"})
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.2), sharex=True, sharey="row", layout="constrained")
    for column, limiter in enumerate(("fixed", "sliding")):
        for result in results:
            if result["limiter"] == limiter and not result["delay_s"] and result["load"] in STYLES:
                draw(result, axes[0][column], axes[1][column])
        axes[0][column].set_title(f"the API counts in {limiter} windows")
        axes[0][column].axhline(LIMIT, color="black", linewidth=0.8, linestyle="--")
        axes[0][column].text(END_S, LIMIT * 1.12, "limit", ha="right", va="bottom", fontsize=8)
        axes[1][column].set_xlabel("seconds since 1,000 requests at once")
    axes[0][0].set_ylabel("calls in the last 1.0 s")
    axes[0][0].set_yscale("symlog", linthresh=10)
    axes[0][0].set_yticks([0, 5, 10, 20, 50, 100, 200, 500, 1000])
    axes[0][0].yaxis.set_major_formatter("{x:.0f}")
    axes[0][0].set_ylim(0, 1500)
    axes[1][0].set_ylabel("requests answered with 200")
    axes[1][0].legend(loc="upper left", frameon=False, fontsize=9)
    for axis in axes.flat:
        axis.set_xlim(0, END_S)
        axis.grid(alpha=0.25)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None})
    lines = (line.rstrip() for line in drawing.getvalue().splitlines())
    Path(sys.argv[2]).write_text("\n".join(lines) + "\n", encoding="utf-8")


def draw(result: dict[str, Any], above: Any, below: Any) -> None:
    label, color, width = STYLES[result["load"]]
    arrivals_at, answered_at = sorted(result["arrivals_at"]), sorted(result["answered_at"])
    grid = [n * STEP_S for n in range(int(END_S / STEP_S) + 1)]
    calls = [bisect_right(arrivals_at, at) - bisect_left(arrivals_at, at - 1.0) for at in grid]
    answers = [bisect_right(answered_at, at) for at in grid]
    above.step(grid, calls, where="post", color=color, linewidth=width, label=label)
    below.plot(grid, answers, color=color, linewidth=width, label=label)


if __name__ == "__main__":
    main()
