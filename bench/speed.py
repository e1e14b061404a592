"""Compare cfproxy's speed and cost with other proxies': `python -m bench.speed [--results FILE]`.

Starts an origin, and in each round one proxy after another, each on one core. Reports medians of interleaved
rounds. Linux only. Needs nginx, haproxy, caddy, wrk and curl, and mitmproxy in `.venv-mitmproxy`; a missing peer
is named and left out. Exits 1 when a bound in `BOUNDS` is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource  # noqa: PLC0415 - not on Windows
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import speed_loads as loads
from bench.speed_peers import (
    PEERS,
    RUNTIME,
    Cores,
    Origin,
    Peer,
    Running,
    answers,
    running_origin,
    running_peer,
)

# User and system time of all processes of a proxy. Rates flatter the slower proxies when the load and the origin
# share the other core and hold the fast ones back; this measure does not depend on that.
CPU_PER_REQUEST = "CPU µs per request, 64 connections"

Figures = dict[str, dict[str, list[float]]]  # measure → proxy → one figure a round


def measure(
    running: Running, scheme: str, figures: Figures, seconds: float, cores: Cores, upload: Path
) -> None:
    """Put one running proxy under all loads, once."""

    def note(measure: str, value: float) -> None:
        figures[f"{scheme} {measure}"][running.name].append(value)

    note("ready, s", running.ready_s)
    slow_peer = running.name == "mitmproxy"
    for connections in (1, 16, 64, 256):
        cpu_before_s = None if running.name == "no proxy" else running.cpu_s()
        rate = loads.rate(running.url, connections, seconds, cores)
        note(f"requests/s, {connections} connections", rate.per_s)
        note(f"p99 ms, {connections} connections", rate.p99_ms)
        if connections == 64 and cpu_before_s is not None:
            note(CPU_PER_REQUEST, (running.cpu_s() - cpu_before_s) / rate.requests * 1e6)
    note("requests/s, new connections", loads.rate(running.url, 16, seconds, cores, close=True).per_s)
    p50_ms, p99_ms = loads.steady(running.url, 200, max(4.0, seconds))
    note("p50 ms at 200/s", p50_ms)
    note("p99 ms at 200/s", p99_ms)
    note("MB/s down", loads.transfer(running.url, cores))
    note("MB/s up", loads.transfer(running.url, cores, upload))
    note("1,000 slow answers, s", loads.many_slow(running.url, 100 if slow_peer else 1000))
    if running.name == "no proxy":
        return
    time.sleep(0.5)
    cpu_s, switches = running.cpu_s(), running.switches()
    time.sleep(2.0)
    note("idle CPU, ms/s", (running.cpu_s() - cpu_s) * 500)
    note("idle wake-ups/s", (running.switches() - switches) / 2.0)
    note("peak memory, MB", running.peak_bytes() / 1e6)


def direct(origin: Origin, scheme: str) -> Running:
    """Return the origin itself in the place of a proxy; its clients speak plain http as to the others."""
    process = subprocess.Popen(["true"])
    process.wait()
    return Running("no proxy", f"http://127.0.0.1:{origin.open_port}", process, 0.0)


# measure, proxy to compare with (None: an absolute bound), factor, whether more is better.
BOUNDS: list[tuple[str, str | None, float, bool]] = [
    ("http requests/s, 64 connections", "caddy", 1.2, True),
    ("http requests/s, 64 connections", "nginx", 0.28, True),
    ("http requests/s, 64 connections", "mitmproxy", 12.0, True),
    ("https requests/s, 64 connections", "caddy", 1.0, True),
    ("https requests/s, 64 connections", "nginx", 0.25, True),
    ("https requests/s, 64 connections", "mitmproxy", 12.0, True),
    (f"http {CPU_PER_REQUEST}", "caddy", 1.1, False),
    (f"https {CPU_PER_REQUEST}", "caddy", 1.1, False),
    ("http added p50 ms at 200/s", None, 0.45, False),
    ("http p99 ms at 200/s", "caddy", 1.0, False),
    ("http MB/s down", "caddy", 1.0, True),
    ("http MB/s down", "nginx", 1.0, True),
    ("http MB/s up", "caddy", 1.0, True),
    ("http MB/s up", "nginx", 1.0, True),
    ("http 1,000 slow answers, s", None, 3.0, False),
    ("http peak memory, MB", None, 80.0, False),
    ("https peak memory, MB", None, 130.0, False),
    ("http ready, s", None, 0.45, False),
]


def judge(medians: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Return each bound with what was measured and whether it is kept; one without its peer is left out."""
    for scheme in ("http", "https"):
        base = medians.get(f"{scheme} p50 ms at 200/s", {})
        if "no proxy" in base:
            medians[f"{scheme} added p50 ms at 200/s"] = {
                name: value - base["no proxy"] for name, value in base.items() if name != "no proxy"
            }
    judged = []
    for name, other, factor, more in BOUNDS:
        values = medians.get(name, {})
        if "cfproxy" not in values or (other is not None and other not in values):
            continue
        mine = values["cfproxy"]
        ratio = mine if other is None else mine / values[other]
        kept = ratio >= factor if more else ratio <= factor
        judged.append(
            {"measure": name, "beside": other, "value": ratio, "bound": factor, "more": more, "kept": kept}
        )
    return judged


def versions(peers: list[Peer]) -> dict[str, str]:
    told = {}
    for peer in peers:
        ran = subprocess.run(peer.version, capture_output=True, text=True, check=False)
        told[peer.name] = (ran.stdout + ran.stderr).strip().splitlines()[0]
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument("--only", help="names of proxies, with commas")
    parser.add_argument("--schemes", default="http,https")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    for tool in ("nginx", "wrk", "curl", "taskset"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing: apt-get install nginx wrk curl util-linux")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # 1,000 connections on either side of a proxy
    chosen = [peer for peer in PEERS if not options.only or peer.name in options.only.split(",")]
    peers = [peer for peer in chosen if peer.is_here()]
    for peer in chosen:
        if peer not in peers:
            print(f"{peer.name} is not here and left out", file=sys.stderr)
    cores, figures = Cores.here(), defaultdict(lambda: defaultdict(list))
    # Clients in this process take nothing of the proxy's core.
    os.sched_setaffinity(0, map(int, cores.load.split(",")))
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        origin = Origin(folder / "origin")
        origin.folder.mkdir()
        upload = loads.build_upload(folder)
        with running_origin(origin, cores):
            for number in range(options.rounds):
                for scheme in options.schemes.split(","):
                    measure(direct(origin, scheme), scheme, figures, options.seconds, cores, upload)
                    # Another one begins each round: none always runs on a machine that has just rested.
                    turn = number % len(peers)
                    for peer in peers[turn:] + peers[:turn]:
                        place = folder / f"{number}-{scheme}-{peer.name.replace(' ', '-')}"
                        with running_peer(peer, place, origin, scheme, cores) as running:
                            measure(running, scheme, figures, options.seconds, cores, upload)
                    print(f"round {number + 1}, {scheme}: done", file=sys.stderr)
    medians = {
        name: {who: statistics.median(values) for who, values in each.items()}
        for name, each in figures.items()
    }
    judged = judge(medians)
    document = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores of {_processor()}, {platform.system()}",
        "python": runtime_python(),
        "load_before": load_before,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "versions": versions(peers),
        "medians": medians,
        "judged": judged,
    }
    if options.results:
        options.results.write_text(json.dumps(document, indent=1))
    print(render(document))
    return 0 if all(each["kept"] for each in judged) else 1


def runtime_python() -> str:
    """Return the Python that cfproxy runs on, with its build."""
    command = [str(RUNTIME), "-c", "import sys; print(' '.join(sys.version.split()))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def render(document: dict[str, Any]) -> str:
    """Return the table of all measures, and the one of the bounds."""
    names = list(document["versions"]) + ["no proxy"]
    lines = ["| measure | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for measure, values in document["medians"].items():
        cells = [render_number(values.get(name)) for name in names]
        lines.append(f"| {measure} | " + " | ".join(cells) + " |")
    lines += ["", "| cfproxy's | beside | measured | bound | |", "|---|---|---|---|---|"]
    for each in document["judged"]:
        sign = "≥" if each["more"] else "≤"
        unit = " ×" if each["beside"] else ""
        told = "kept" if each["kept"] else "**broken**"
        lines.append(
            f"| {each['measure']} | {each['beside'] or '–'} | {render_number(each['value'])}{unit} | "
            f"{sign} {each['bound']:g}{unit} | {told} |"
        )
    return "\n".join(lines)


def render_number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
