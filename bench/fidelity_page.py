"""Renders docs/fidelity.md. The page is never edited by hand: change this text or the cases."""

from __future__ import annotations

import datetime

import yaml  # noqa: PLC0415 - see `trees.py`

from fidelity_peers import CADDY, CFPROXY, NGINX

from tests.conformance.suite import GROUPS  # noqa: E402

Results = dict[tuple[str, str], str]  # group and case; what was not kept, empty if all was

INTRO = """\
# Fidelity

What a client sends is what the API gets, and what the API answers is what the client gets: byte for byte, but for what
HTTP itself gives to each connection, for the token, for `Via` and `Host`, and for an `X-Request-Id` that can be
switched off. This page shows how far that holds.

Each case is a conversation between a client and an origin that speak raw TCP, with a proxy between them: what the
client sends, what must reach the origin, what the origin answers, what must reach the client, in this order. The cases
are in `tests/conformance/` and run with every test run. `bench/fidelity.py` plays the same cases against nginx and caddy
as well, each of them set up to add the same kind of token in front of the same origin, and writes this page.

"Kept" means that the whole conversation went as written, in each of three rounds. Otherwise the table says what was
the first thing to differ: "no: headers" that a header was changed, added or lost, "no: request" that the request did
not reach the origin, "no: head" that no answer reached the client in time, "no: end" that a cut answer looked whole
or a whole one cut.

nginx and caddy are general servers, and much of what they change they change on purpose: the table does not say who is
right, it says who passes on what. Their versions are those of Debian 12, the settings are at the end; other ones give
other results.
"""

METHOD = """\
## Settings

cfproxy runs as a process of its own with a login at the sandbox, and with two things off that the peers don't do
either: trying again, and the `X-Request-Id` that goes both ways unless `log.request_id` is false.
The cases that it does not keep are marked in `tests/conformance/` with the reason, and a test fails when one of them
begins to be kept.

config.yaml, beside the login and the addresses:

```
{cfproxy}```

nginx.conf:

```
{nginx}```

Caddyfile:

```
{caddy}```

With `flush_interval -1` caddy 2.6.2 goes on for a client that has hung up, so that half-closed clients get their
answers. Without it they don't, and the head of an answer waits for the first bytes of the body.

To see every difference of one proxy in full: `python bench/fidelity.py --only nginx`.
"""


def render(table: dict[str, Results], versions: dict[str, str], today: datetime.date) -> str:
    """Return the page."""
    names = list(table)
    titles = [f"{name} {versions[name]}" for name in names]
    rows = [f"| | cases | {' | '.join(titles)} |", "|---|---|" + "---|" * len(names)]
    for group in GROUPS:
        counts = [sum(not table[name][group.name, case.name] for case in group.cases) for name in names]
        rows.append(f"| {group.name} | {len(group.cases)} | {' | '.join(map(str, counts))} |")
    totals = [sum(not what for what in table[name].values()) for name in names]
    rows.append(
        f"| **all** | {len(next(iter(table.values())))} | {' | '.join(f'**{total}**' for total in totals)} |"
    )
    parts = [INTRO, f"Cases kept, {today}:\n", "\n".join(rows) + "\n", better(table), "## The cases\n"]
    for group in GROUPS:
        lines = [f"### {group.name}\n", f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
        for case in group.cases:
            cells = [verdict(table[name][group.name, case.name]) for name in names]
            lines.append(f"| {cell(case.name)} | {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    settings = yaml.safe_dump(CFPROXY, sort_keys=False)
    parts.append(METHOD.format(cfproxy=settings, nginx=NGINX, caddy=CADDY))
    return "\n".join(parts)


def better(table: dict[str, Results]) -> str:
    """Return what a peer keeps and cfproxy does not."""
    lines = []
    for (group, case), what in table["cfproxy"].items():
        peers = [name for name in table if not table[name][group, case]]
        if what and peers:
            lines.append(f"- {group}: {cell(case)} ({' and '.join(peers)})")
    if not lines:
        return "There is no case that a peer keeps and cfproxy does not.\n"
    return "Kept by a peer, but not by cfproxy:\n\n" + "\n".join(lines) + "\n"


def verdict(what: str) -> str:
    return f"no: {what}" if what else "kept"


def cell(text: str) -> str:
    return text.replace("|", "\\|")
