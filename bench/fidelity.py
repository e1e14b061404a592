"""Plays the cases of tests/conformance against cfproxy, nginx and caddy and writes docs/fidelity.md.

    make fidelity

Needs nginx and caddy; takes about three minutes, since what a proxy never passes on must be waited for. With
`--only NAME` it plays one proxy and prints what that one does not keep, and why.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fidelity_page import Results, render  # noqa: E402
from fidelity_peers import PROXIES, versions  # noqa: E402

from tests.conformance.ends import NotKept  # noqa: E402
from tests.conformance.play import Stage, open_origin  # noqa: E402
from tests.conformance.script import Case  # noqa: E402
from tests.conformance.suite import GROUPS  # noqa: E402

ROUNDS = 3  # kept is what is kept each time
SETTLE_S = 0.3  # after a case that went wrong: what it still sets off is not the next one's
PATIENCE_S = 3.0  # on loopback what takes longer does not come


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("page", nargs="?", type=Path, help="the page to write")
    parser.add_argument("--only", choices=sorted(PROXIES), help="play one proxy, print its failures")
    options = parser.parse_args()
    if options.only:
        results = asyncio.run(play_all(options.only, verbose=True))
        print(f"{options.only}: {sum(not what for what in results.values())} of {len(results)} kept")
        return 0
    if options.page is None:
        parser.error("name the page to write, or a proxy with --only")
    table = {name: asyncio.run(play_all(name)) for name in PROXIES}
    today = datetime.datetime.now(datetime.UTC).date()
    options.page.write_text(render(table, versions(), today), encoding="utf-8")
    return 0


async def play_all(name: str, *, verbose: bool = False) -> Results:
    """Return for each case what was not kept, empty if all was."""
    results: Results = {}
    with tempfile.TemporaryDirectory() as folder:
        async with (
            open_origin() as origin,
            PROXIES[name](Path(folder), origin.authority.decode()) as proxy,
        ):
            stage = Stage(origin, proxy.port, proxy.token, PATIENCE_S)
            for group, case in [(group, case) for group in GROUPS for case in group.cases] * ROUNDS:
                if results.get((group.name, case.name)):
                    continue
                fault = await outcome(stage, case)
                results[group.name, case.name] = fault.what if fault else ""
                if fault and verbose:
                    print(
                        f"{group.name}: {case.name}: {fault} ({'; '.join(getattr(fault, '__notes__', []))})"
                    )
    return results


async def outcome(stage: Stage, case: Case) -> NotKept | None:
    try:
        await stage.play(case)
    except NotKept as fault:
        await asyncio.sleep(SETTLE_S)
        await stage.origin.hang_up()
        return fault
    except ConnectionError as error:
        return NotKept("connection", str(error))
    return None


if __name__ == "__main__":
    sys.exit(main())
