"""What a check found: how bad it is, what it means, what to do next.

Owns: the form of a finding, its lines for people, and which exit code findings mean.
Must not know: what is checked.
Invariant: an error's finding has the error's own words, so that the doctor, the problem documents, the
status and the health checks say the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from cfproxy.errors import CfproxyError

_CHECK_WIDTH = 14


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's.

    Args:
        check: what was looked at, in a word or two.
        level: `ok`; `warn`: works, but look at it; `fail`: does not work.
        text: what it means.
        next: the exact next step; empty when there is none to take.
        account: whose; None where all are concerned.
        code: the command's exit code if this is the first that fails.
    """

    check: str
    level: Literal["ok", "warn", "fail"]
    text: str
    next: str = ""
    account: str | None = None
    code: int = CfproxyError.exit_code

    def to_document(self) -> dict[str, Any]:
        """Return it for machines."""
        return {
            "check": self.check,
            "account": self.account,
            "level": self.level,
            "text": self.text,
            "next": self.next or None,
        }


def from_error(check: str, error: CfproxyError, account: str | None = None) -> Finding:
    """Return the finding of an error, whose message ends with the next step: after a semicolon or colon."""
    separator = "; " if "; " in error.message else ": "
    text, found, step = error.message.rpartition(separator)
    if not found:
        text, step = error.message, ""
    return Finding(check, "fail", text, step.removeprefix("run: "), account, error.exit_code)


def render_findings(findings: Iterable[Finding]) -> str:
    """Return the lines for people."""
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
