"""Show where the time of one request goes: `python -m bench.speed_profile`. Needs py-spy and the tools of bench/speed.py.

Loads cfproxy with wrk over 64 connections, samples it 500 times a second for eight seconds, and prints each part's
share by the innermost Python frame. C code counts for the frame that called it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from bench import speed_loads as loads
from bench.speed_peers import PEERS, Cores, Origin, running_origin, running_peer

PARTS = [
    ("event loop and reading from sockets (uvloop)", r"asyncio/|uvloop"),
    ("writing to sockets", r"StreamProtocol\.write(_soon)? |http1/turns\.py"),
    (
        "the request's log line",
        r"structlog/|json/|logging/|cfproxy/observability/logs\.py|Exchange\._record |keeps_request",
    ),
    ("aiohttp's parser (llhttp)", r"_only_message "),
    (
        "heads: parsing, header rules and rendering",
        r"cfproxy/(http1/(parser|headers)|proxy/(request_headers|response_headers|access|request_id|cors))\.py",
    ),
    ("connections and bodies", r"cfproxy/(http1|server)/|cfproxy/upstream/(connection|pool)\.py"),
    ("the exchange: token, slot, retry", r"cfproxy/(proxy|auth|pacing|upstream)/"),
    ("metrics and the status page's records", r"cfproxy/observability/"),
]


def main() -> None:
    scheme = sys.argv[1] if len(sys.argv) > 1 else "http"
    cores = Cores.here()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        origin = Origin(folder / "origin")
        origin.folder.mkdir()
        raw = folder / "samples"
        with (
            running_origin(origin, cores),
            running_peer(PEERS[0], folder / "proxy", origin, scheme, cores) as running,
        ):
            load = threading.Thread(target=loads.rate, args=(running.url, 64, 11, cores))
            load.start()
            time.sleep(1.5)
            command = [
                str(Path(sys.executable).parent / "py-spy"),
                "record",
                "--pid",
                str(running.process.pid),
            ]
            command += ["--duration", "8", "--rate", "500", "--format", "raw", "--output", str(raw)]
            subprocess.run(command, check=True, capture_output=True)
            load.join()
        shares(raw.read_text())


def shares(samples: str) -> None:
    counted: Counter[str] = Counter()
    for line in samples.splitlines():
        stack, _, number = line.rpartition(" ")
        if "concurrent/futures/thread.py" in stack:
            continue  # a pool's thread that waits for work
        innermost = re.sub(r":\d+\)$", ")", stack.split(";")[-1])
        part = next((part for part, pattern in PARTS if re.search(pattern, innermost)), "the rest")
        counted[part] += int(number)
    total = sum(counted.values())
    print("| part | share |\n|---|---|")
    for part, number in counted.most_common():
        print(f"| {part} | {100 * number / total:.0f} % |")


if __name__ == "__main__":
    main()
