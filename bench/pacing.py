"""Does cfproxy use the whole limit and never break it? Prints tables; exits 1 when a bound is broken.

Starts the sandbox and the real `cfproxy serve` as processes, for each way in which the sandbox counts and with and
without a line that delays each piece by 0-30 ms, and puts the loads of `pacing_loads` on them: through cfproxy,
without it, and by clients that retry. Then measures what waiting costs (`pacing_queue`). Takes about four minutes.
Linux only, for the memory. `--results FILE` keeps everything for `pacing_plot`.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from pacing_loads import CONNECTIONS, IDLE_BURST, IDLE_ROUNDS, REQUESTS, Case, Figures, measure, worst_window
from pacing_queue import WaitingCost, measure_line, measure_memory

from cfproxy.cli.run import run_loop

RATE = 20
WORLDS = [(limiter, delay_s) for limiter in ("fixed", "sliding") for delay_s in (0.0, 0.03)]
# Loads that disturb each other, by the work that they make, follow one another.
PHASES = (("paced",), ("lone", "idle"), ("plain",), ("retrying",))
NAMES = {
    "paced": "through cfproxy",
    "plain": "without cfproxy",
    "retrying": "without cfproxy, retry on 429",
}
WAITING = 10_000
UPLOADS = 1_000  # waiting as well; how much of their bodies is read ahead is told, no bound is set
UPLOAD_BYTES = 1024**2
MEMORY_MAX_BYTES = 100 * 1024**2
LENGTHS = (100, 1_000, 10_000, 100_000)
GROWTH_MAX = 2.0  # for a thousand times the length; what is left is the processor's cache

KEPT = {True: "kept", False: "**broken**", None: ""}

Results = list[tuple[Case, Figures]]
Verdict = tuple[str, str, str, bool | None]  # what, measured, bound, kept (None where no bound is set)


def main() -> int:
    print_machine()
    results = run_loads()
    print_loads(results)
    verdicts = [*judge_loads(results), *judge_waiting()]
    print("\n| what | measured | bound | |\n|---|---|---|---|")
    for what, measured, bound, kept in verdicts:
        print(f"| {what} | {measured} | {bound} | {KEPT[kept]} |")
    if "--results" in sys.argv:
        path = Path(sys.argv[sys.argv.index("--results") + 1])
        path.write_text(json.dumps([{**vars(case), **vars(figures)} for case, figures in results]))
    return int(any(kept is False for *_, kept in verdicts))


def run_loads() -> Results:
    """Run all cases, those of a phase at once, each with client, cfproxy and sandbox of its own."""
    results: Results = []
    context = multiprocessing.get_context("spawn")
    for loads in PHASES:
        pairs = [(load, world) for load in loads for world in WORLDS]
        cases = [Case(load, *world, start_after_s=0.2 * n) for n, (load, world) in enumerate(pairs)]
        with ProcessPoolExecutor(len(cases), mp_context=context) as pool:
            results += zip(cases, pool.map(run_case, cases), strict=True)
    return results


def run_case(case: Case) -> Figures:
    return run_loop(measure(case))


def judge_loads(results: Results) -> list[Verdict]:
    verdicts: list[Verdict] = []
    shortest_s = REQUESTS / RATE
    for case, figures in results:
        statuses, where = dict(figures.statuses), place(case)
        if case.load == "paced":
            all_200 = statuses == {200: REQUESTS}
            verdicts.append(
                (f"{REQUESTS:,} at once, {where}: answers", text_of(statuses), "all 200", all_200)
            )
            share = abs(figures.seconds / shortest_s - 1)
            took, bound = f"{figures.seconds:.2f} s", f"{shortest_s:.0f} s ± 3 %"
            verdicts.append((f"{REQUESTS:,} at once, {where}: time", took, bound, share <= 0.03))
            if not case.delay_s:
                most = worst_window(figures.arrivals_at)
                what = f"{REQUESTS:,} at once, {where}: most arrivals in 1.0 s"
                verdicts.append((what, str(most), f"≤ {RATE}", most <= RATE))
        elif case.load == "lone":
            # The slow line's own time, there and back, is no waiting for a turn.
            waits_ms = figures.queued_ms if case.delay_s else [wait_s * 1000 for wait_s in figures.waits_s]
            p50, p95 = (percentile(waits_ms, share) for share in (50, 95))
            kept = p95 <= 150 and set(statuses) == {200}
            what = (
                f"lone client beside that, {where}: {'queue time' if case.delay_s else 'time to the answer'}"
            )
            verdicts.append((what, f"p50 {p50:.0f} ms, p95 {p95:.0f} ms", "p95 ≤ 150 ms", kept))
        elif case.load == "idle":
            p99 = percentile(figures.queued_ms, 99)
            whole = len(figures.queued_ms) == IDLE_BURST * IDLE_ROUNDS and set(statuses) == {200}
            what = f"{IDLE_BURST} at once from idle, {IDLE_ROUNDS} times, {where}: queue time"
            verdicts.append((what, f"p99 {p99:.1f} ms", "p99 < 5 ms", whole and p99 < 5))
    return verdicts


def judge_waiting() -> list[Verdict]:
    cost = asyncio.run(measure_memory(WAITING, 0))
    kept = cost.requests_bytes < MEMORY_MAX_BYTES
    verdicts: list[Verdict] = [
        (f"memory of {WAITING:,} waiting requests", text_of_cost(cost), "< 100 MiB", kept)
    ]
    cost = asyncio.run(measure_memory(UPLOADS, UPLOAD_BYTES))
    verdicts.append((f"memory of {UPLOADS:,} waiting uploads of 1 MiB", text_of_cost(cost), "–", None))
    lengths = ", ".join(f"{length:,}" for length in LENGTHS)
    for name, flows in (("one flow", 1), ("50 flows", 50), ("a flow each", max(LENGTHS))):
        costs = [asyncio.run(measure_line(length, min(length, flows))) for length in LENGTHS]
        for what, costs_us in (
            ("joining a queue", [cost.join_us for cost in costs]),
            ("from one departure to the next in a queue", [cost.leave_us for cost in costs]),
        ):
            took = ", ".join(f"{cost_us:.0f}" for cost_us in costs_us) + " µs"
            kept = costs_us[-1] <= GROWTH_MAX * costs_us[0]
            verdicts.append((f"{what} of {lengths}, {name}", took, "no growth", kept))
    return verdicts


def print_machine() -> None:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown processor",
    )
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores of {cpu}, Python {platform.python_version()}, load {load:.1f} before\n")


def print_loads(results: Results) -> None:
    print(f"{REQUESTS:,} requests at once over {CONNECTIONS} connections:\n")
    print(
        "| the sandbox counts | line | load | time | the clients got | calls sent | of them 429 | most in 1.0 s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for limiter, delay_s in WORLDS:
        for load, name in NAMES.items():
            case, figures = next(
                pair
                for pair in results
                if (pair[0].load, pair[0].limiter, pair[0].delay_s) == (load, limiter, delay_s)
            )
            print(
                f"| {limiter} windows | {line_of(case)} | {name} | {figures.seconds:.2f} s | "
                f"{text_of(dict(figures.statuses))} | {figures.sent:,} | {figures.refused:,} | "
                f"{worst_window(figures.arrivals_at):,} |"
            )


def place(case: Case) -> str:
    return f"{case.limiter}, {line_of(case)}"


def line_of(case: Case) -> str:
    return f"0–{case.delay_s * 1000:.0f} ms" if case.delay_s else "loopback"


def text_of(statuses: dict[int, int]) -> str:
    return ", ".join(f"{count:,} × {status}" for status, count in sorted(statuses.items()))


def text_of_cost(cost: WaitingCost) -> str:
    mib = 2**20
    return f"{cost.requests_bytes / mib:.0f} MiB, and {cost.connections_bytes / mib:.0f} MiB for their connections"


def percentile(values: list[float], share: int) -> float:
    """Return the smallest value that `share` percent of all do not exceed; nothing measured breaks a bound."""
    return (
        statistics.quantiles(values, n=100, method="inclusive")[share - 1]
        if len(values) > 1
        else float("inf")
    )


if __name__ == "__main__":
    sys.exit(main())
