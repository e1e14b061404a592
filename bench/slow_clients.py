"""What 2,000 slow clients cost the others and the process: latency as a ratio, memory in MiB.

Rounds with and without them alternate; everything runs on loopback, against the sandbox. Linux only.

    python bench/slow_clients.py [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cfproxy.runtime.os_limits import open_files_for
from tests.e2e.kit import open_world
from tests.e2e.processes import Proxy
from tests.e2e.test_slow_clients import ATTACKERS, ATTACKS, attack, resident_bytes

REQUESTS = 300
SETTLE_S = 1.0  # for the burst of connections to be over


async def ask(proxy: Proxy, times: list[float]) -> None:
    for _ in range(REQUESTS):
        began = time.perf_counter()
        assert await proxy.status() == 200
        times.append(time.perf_counter() - began)


def at(times: list[float], share: float) -> float:
    return sorted(times)[int(len(times) * share)] * 1000


async def measure(kind: str, rounds: int) -> None:
    alone: list[float] = []
    beset: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        async with open_world(Path(folder)) as world:
            await world.log_in()
            async with world.serve() as proxy:
                await ask(proxy, [])
                before = resident_bytes(proxy.process.pid)
                for _ in range(rounds):
                    await ask(proxy, alone)
                    with attack(proxy, ATTACKS[kind]):
                        await asyncio.sleep(SETTLE_S)
                        await ask(proxy, beset)
                        grown = resident_bytes(proxy.process.pid) - before
                    await asyncio.sleep(SETTLE_S)
    print(
        f"{kind:16} median {at(alone, 0.5):.2f} -> {at(beset, 0.5):.2f} ms (x{at(beset, 0.5) / at(alone, 0.5):.2f}), "
        f"p99 {at(alone, 0.99):.2f} -> {at(beset, 0.99):.2f} ms, memory +{grown / 2**20:.1f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    if open_files_for(2 * ATTACKERS + 500) < 2 * ATTACKERS + 500:
        sys.exit(f"{ATTACKERS} connections need more open files than this system allows")
    for kind in ATTACKS:
        asyncio.run(measure(kind, rounds))


if __name__ == "__main__":
    main()
