"""Put the figures of `speed.py --results FILE` into docs/performance.md: `python -m bench.speed_page FILE docs`.

Replaces what stands between the page's two marks, and draws docs/performance.svg. The same results make the
same files.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from bench.speed import CPU_PER_REQUEST, render, render_number

BEGIN, END = "<!-- figures: written by bench/speed_page.py -->", "<!-- end of figures -->"
COLORS = {"cfproxy": "#0072b2", "no proxy": "#cccccc"}
PLOTS = [
    ("requests/s, 64 connections", "requests/s over 64 connections"),
    (CPU_PER_REQUEST, "CPU per request over 64 connections, µs"),
    ("added p50 ms at 200/s", "added p50 at 200 requests/s, ms"),
    ("peak memory, MB", "peak memory after all loads, MB"),
]


def main() -> None:
    document = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2])
    page = folder / "performance.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{figures(document)}\n{END}{after}", encoding="utf-8")
    (folder / "performance.svg").write_text(draw(document["medians"]), encoding="utf-8")


def figures(document: dict[str, Any]) -> str:
    told = "; ".join(
        version if name in version.lower() else f"{name} {version}"
        for name, version in document["versions"].items()
    )
    return (
        f"\nMeasured on {document['date']}: {document['machine']}, Python {document['python']}, load "
        f"{document['load_before']:.1f} when it began; medians of {document['rounds']} interleaved rounds, "
        f"{document['seconds']:g} s each load. Versions: {told}.\n\n{render(document)}\n"
    )


def draw(medians: dict[str, dict[str, float]]) -> str:
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "performance", "font.family": "sans-serif"})
    figure, axes = plt.subplots(1, len(PLOTS), figsize=(15, 3.6), layout="constrained")
    for axis, (measure, title) in zip(axes, PLOTS, strict=True):
        names = [name for name in medians[f"http {measure}"] if name != "no proxy"]
        for offset, scheme in ((0.2, "http"), (-0.2, "https")):
            values = medians.get(f"{scheme} {measure}", {})
            bars = axis.barh(
                [len(names) - 1 - at + offset for at in range(len(names))],
                [values.get(name, 0.0) for name in names],
                height=0.36,
                color=[COLORS.get(name, "#999999") for name in names],
                alpha=1.0 if scheme == "http" else 0.55,
                label=scheme,
            )
            labels = [render_number(bar.get_width()) for bar in bars]
            axis.bar_label(bars, labels=labels, fontsize=7, padding=2)
        axis.set_yticks(range(len(names)), names[::-1])
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.18)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("upper bars: http upstream; lower bars: https upstream", fontsize=8)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return "\n".join(line.rstrip() for line in drawing.getvalue().splitlines()) + "\n"


if __name__ == "__main__":
    main()
