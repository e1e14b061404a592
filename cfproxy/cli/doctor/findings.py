"""Findings of the doctor's checks, and their rendering as text.

The finding of an error has the error's own message, so that the doctor, problem documents, status reports and
health checks agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from cfproxy.errors import CfproxyError

_CHECK_WIDTH = 14


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Args:
        check: name of the check.
        level: `ok`; `warn`: works but needs attention; `fail`: does not work.
        text: what was found.
        next: the exact next step; empty if there is none.
        account: name of the account; None if it concerns all.
        code: exit code of the command if this is the first failure.
    """

    check: str
    level: Literal["ok", "warn", "fail"]
    text: str
    next: str = ""
    account: str | None = None
    code: int = CfproxyError.exit_code

    def to_document(self) -> dict[str, Any]:
        """Return the finding for JSON output."""
        return {
            "check": self.check,
            "account": self.account,
            "level": self.level,
            "text": self.text,
            "next": self.next or None,
        }


def from_error(check: str, error: CfproxyError, account: str | None = None) -> Finding:
    """Return the finding of an error; the next step follows the last `; `, or else `: `, of its message."""
    separator = "; " if "; " in error.message else ": "
    text, found, step = error.message.rpartition(separator)
    if not found:
        text, step = error.message, ""
    return Finding(check, "fail", text, step.removeprefix("run: "), account, error.exit_code)


def render_findings(findings: Iterable[Finding]) -> str:
    """Return the findings as text, those of each account under its name."""
    lines = []
    accounts: set[str] = set()
    for finding in findings:
        if finding.account is not None and finding.account not in accounts:
            accounts.add(finding.account)
            lines.append(f"account {finding.account}")
        lines.append(f"  {finding.level:<4}  {finding.check:<{_CHECK_WIDTH}}  {finding.text}")
        if finding.next:
            lines.append(f"  {'':<4}  {'':<{_CHECK_WIDTH}}  next: {finding.next}")
    return "\n".join(lines)
