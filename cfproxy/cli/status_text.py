"""A status report for people, a few lines an account: what `cfproxy status` prints.

Owns: the lines, whose columns are parted by two spaces or more.
Must not know: where a report comes from (`report.py`), colours and the terminal's width (`terminal.py`).
"""

from __future__ import annotations

from typing import Any

from cfproxy.auth.expiry import span_text


def render_text(reports: list[dict[str, Any]]) -> str:
    """Return the reports for people, a few lines an account."""
    lines: list[str] = []
    for report in reports:
        lines.append(f"{report['account']}: {report['state']}: {report['detail']}")
        if (
            report["command"] is not None
        ):  # the first line may be wrapped, and a command that is can't be copied
            lines.append(f"  next          {report['command']}")
        if report["warning"] is not None and report["state"] == "ok":
            lines.append(f"  warning       {report['warning']}")
        lines.append(f"  app           {report['client_id']} ({report['grant']})")
        if report["login"] is not None:
            lines.append(f"  logged in     {report['login']['logged_in_at']}")
            if report["login"]["ended_at"] is not None:
                lines.append(f"  login ended   {report['login']['ended_at']}")
            elif report["login"]["expires_at"] is not None:
                left_s = report["login"]["expires_in_s"]
                left = "overdue" if left_s <= 0 else f"in {span_text(left_s)}"
                lines.append(f"  login dies    {report['login']['expires_at']} ({left})")
        if report["access_token"] is not None:
            at, left_s = report["access_token"]["expires_at"], report["access_token"]["usable_s"]
            expiry = f"expires {at} (in {span_text(left_s)})" if left_s > 0 else f"expired {at}"
            lines.append(f"  access token  {expiry}")
        lines += _lines_beside(report)
        pacing = report["pacing"]
        pace = "off" if pacing["rate"] is None else f"{pacing['rate']:g} requests in {pacing['per_s']:g} s"
        pace += ", all replicas together" if pacing.get("shared") else ""
        lines.append(f"  pacing        {pace} (a running proxy's queue: /status.json of its admin listener)")
        store = report["store"]
        problem = "" if store["detail"] is None else f": {store['state']}"  # the first line says more
        lines.append(f"  store         {store['location']}{problem}")
    return "\n".join(lines)


def _lines_beside(report: dict[str, Any]) -> list[str]:
    beside = report.get("running")
    if beside is None:
        return []
    if beside["state"] == "ok" or beside["detail"] == report["detail"]:
        return ["  proxy         runs"]
    lines = [f"  proxy         runs, but {': '.join(filter(None, (beside['state'], beside['detail'])))}"]
    known = beside["command"] in {None, report["command"]}
    return lines if known else [*lines, f"  next          {beside['command']}"]
