"""Render docs/fidelity.md. Don't edit the page by hand: change this text or the cases."""

from __future__ import annotations

import datetime

import yaml  # noqa: PLC0415 - see `trees.py`

from fidelity_peers import CADDY, CFPROXY, NGINX

from tests.conformance.suite import GROUPS  # noqa: E402

Results = dict[tuple[str, str], str]  # (group, case) to the first difference; empty if kept

INTRO = """\
# Fidelity

This page shows, case by case, what cfproxy passes on unchanged, beside nginx and caddy.

cfproxy forwards requests and responses byte for byte. The exceptions are whatever HTTP defines per connection, the token, `Via`
and `Host`, an `X-Request-Id` that can be switched off, and headers that name the API's own address (see
[below](#what-names-the-apis-own-address)).

Each case is a conversation over raw TCP between a client and an origin, with a proxy between them. It lists, in this order, what
the client sends, what must reach the origin, what the origin answers, and what must reach the client. The cases
are in `tests/conformance/` and run with every test run. `bench/fidelity.py` runs the same cases against nginx and caddy
as well, each configured to add the same kind of token in front of the same origin, and writes this page.

"Kept" means that the whole conversation went as written, in each of three rounds. Otherwise the table names the first
difference:

- "no: headers": a header was changed, added or lost.
- "no: request": the request did not reach the origin.
- "no: head": no response reached the client in time.
- "no: end": a truncated response looked complete, or a complete one truncated.

nginx and caddy are general servers, and many of their changes are deliberate. The table does not say which proxy is right; it
says what each passes on. The versions are those of Debian 12, and the settings are at the end; other ones give other results.
"""

ADDRESSES = """\
## What names the API's own address

A client reaches the API at another address, by plain HTTP and without the path of `upstream`. What names the API's address
is therefore translated, or dropped where there is no translation.

| from the API | to the client | why |
|---|---|---|
| `Location`, `Content-Location`, `Refresh`, the targets of `Link`, on the API's origin: any spelling, `//host`, the default port, the other scheme of the same host | the path alone, without the base path of `upstream` | a path is right whatever name, port and scheme the client uses, also behind a TLS terminator; APIs behind one often say `http:` |
| the same, outside the base path | the API's full address | it can't be reached through the proxy |
| the same, where the path would start with two slashes (browsers ignore tabs and take a backslash for a slash) | `/.` before the path | it would be taken for the name of another host |
| other hosts, relative references | byte for byte | they are not about our address |
| `Set-Cookie`: `Domain` | dropped | clients reject a cookie for another host |
| `Set-Cookie`: `Path` | without the base path; `/` if it covers the base path; byte for byte if it is elsewhere | clients know the API's paths without it |
| `Set-Cookie`: `Secure`, and with it `SameSite=None` and `Partitioned` | dropped | clients send it over https only, and browsers reject the other two without it |
| `Set-Cookie` of a name with `__Secure-`, `__Host-` or `__Http-`; `SameSite=None` for a page of `access.origins` | keeps all three | browsers reject them without `Secure`, and accept them on localhost with it |
| `Set-Cookie` of a name with `cfproxy`, or without a name and with such a value; `Set-Cookie2` | dropped | a browser would send it to the admin listener; obsolete |
| `Alt-Svc`, `Strict-Transport-Security`, `Clear-Site-Data`, `NEL` | dropped | a browser would apply them to our whole host, other programs on this machine included |
| `Access-Control-*` | replaced ([CORS](security.md#cors)) | they are about the API's address, and pages read ours |
| trailers of these names | dropped | a client that merges them into the headers would get them untranslated |
| other headers (`Content-Security-Policy`, `Timing-Allow-Origin`, `Report-To`, `SourceMap`, `WWW-Authenticate`, …), and every body | byte for byte | they don't tell clients where to send their next request; dot segments and percent-encoding aren't resolved anywhere |

| from the client | to the API | why |
|---|---|---|
| `Origin` (the proxy's own or one of `access.origins`; all others are refused) | dropped | many APIs answer 403 to an origin that is not theirs; cfproxy has judged it |
| `Referer` of the proxy's own pages or of a listed origin | dropped | the same |
| `Referer` of any other value | byte for byte | a program may send it |
| `Sec-Fetch-Site`, except `same-origin` and `none` | dropped | only pages of listed origins get that far, and it is about our address |
| cookies of a name with `cfproxy` | dropped | they are the admin listener's |
| `Destination` of WebDAV, and every body | byte for byte | the API's own clients don't use it |
"""

METHOD = """\
## Settings

cfproxy runs as a separate process with a login at the sandbox. Two features that the other proxies lack are off: retries, and
the `X-Request-Id` that goes in both directions unless `log.request_id` is false.
Cases that cfproxy does not keep are marked in `tests/conformance/` with the reason, and a test fails when one of them
starts to be kept.

config.yaml, beside the login and the addresses:

```
{cfproxy}```

nginx.conf:

```
{nginx}```

Caddyfile:

```
{caddy}```

With `flush_interval -1`, caddy 2.6.2 continues after a client has closed its side, so that half-closed clients get their
responses. Without it they don't, and the head of a response waits for the first bytes of the body.

To see all differences of one proxy: `python bench/fidelity.py --only nginx`.
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
    parts = [INTRO, f"Cases kept, {today}:\n", "\n".join(rows) + "\n", better(table), ADDRESSES]
    parts.append("## The cases\n")
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
    """Return the cases that another proxy keeps and cfproxy does not."""
    lines = []
    for (group, case), what in table["cfproxy"].items():
        peers = [name for name in table if not table[name][group, case]]
        if what and peers:
            lines.append(f"- {group}: {cell(case)} ({' and '.join(peers)})")
    if not lines:
        return "No case is kept by another proxy and not by cfproxy.\n"
    return "Kept by another proxy, but not by cfproxy:\n\n" + "\n".join(lines) + "\n"


def verdict(what: str) -> str:
    return f"no: {what}" if what else "kept"


def cell(text: str) -> str:
    return text.replace("|", "\\|")
