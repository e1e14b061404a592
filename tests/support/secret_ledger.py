"""Finds secrets in texts.

1. No finding contains a whole secret.
2. A search is linear in the length of the texts, however many secrets there are.
3. No finding is dropped before it is reported.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

LENGTH_MIN = 16
VARIETY_MIN = 6
SECRETS_MAX = 5000
TEXTS_MAX_CHARS = 4_000_000
FINDINGS_MAX = 10
_GRAM = 12
_URL_SAFE = str.maketrans("+/", "-_")


def is_marker(value: str) -> bool:
    """Return whether a value is too long and varied to occur in a text by chance, and is no URL."""
    return len(value) >= LENGTH_MIN and "://" not in value and len(set(value)) >= VARIETY_MIN


def forms_of(value: str) -> set[str]:
    """Return the forms a value can take: plain, quoted for URL, JSON or Python, and base64."""
    data = value.encode("utf-8", "surrogatepass")
    forms = {value, json.dumps(value)[1:-1], repr(value)[1:-1]}
    forms |= {quote(data, safe=""), quote(data), quote_plus(data)}
    # Base64 has three forms, one for each offset; the outer characters contain bits of the neighbours.
    for offset, begin in enumerate((0, 2, 3)):
        encoded = base64.b64encode(bytes(offset) + data).decode()
        core = encoded[begin : (offset + len(data)) * 8 // 6]
        forms |= {core, core.translate(_URL_SAFE)}
    return forms


class SecretLedger:
    """The secrets and texts of one test."""

    def __init__(self) -> None:
        self._lasting: dict[str, str] = {}
        self._secrets: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._chars = 0
        self._findings: list[str] = []
        self._reported = 0

    def add_secret(self, value: object, kind: str, *, lasting: bool = False) -> None:
        """Add a secret; a `lasting` one outlives the test."""
        if isinstance(value, str) and value not in self._secrets and is_marker(value):
            (self._lasting if lasting else self._secrets)[value] = kind
            if len(self._secrets) >= SECRETS_MAX:
                self._search()
                self._secrets.clear()

    def add_text(self, where: str, text: str) -> None:
        """Add a text that must not contain a secret; `where` names it in findings."""
        if len(text) >= LENGTH_MIN and text not in self._texts:
            self._texts[text] = where
            self._chars += len(text)
            if self._chars >= TEXTS_MAX_CHARS:
                self._search()

    def findings(self) -> list[str]:
        """Search the texts added since the last call, and describe each secret found without showing it."""
        self._search()
        found = self._findings[self._reported : FINDINGS_MAX]
        self._reported = len(self._findings)
        return found

    def reset(self) -> None:
        """Start a new test."""
        self._secrets.clear()
        self._texts.clear()
        self._findings.clear()
        self._chars = self._reported = 0

    def _search(self) -> None:
        """Add what is found to the findings, and drop the texts.

        Looks up pieces of the texts among the beginnings of all secrets: one pass, not one per secret.
        """
        if self._texts:
            begins: dict[str, list[tuple[str, str]]] = {}
            for value in (*self._lasting, *self._secrets):
                for form in forms_of(value):
                    begins.setdefault(form[:_GRAM], []).append((form, value))
            for text, where in self._texts.items():
                for value, at in _matches(text, begins):
                    kind = self._secrets.get(value) or self._lasting[value]
                    line = text.count("\n", 0, at) + 1
                    finding = f"{where}, line {line}: {kind} {value[:4]!r}… ({len(value)} characters)"
                    if finding not in self._findings:
                        self._findings.append(finding)
        self._texts.clear()
        self._chars = 0


def _matches(text: str, begins: dict[str, list[tuple[str, str]]]) -> Iterator[tuple[str, int]]:
    pieces = {text[at : at + _GRAM] for at in range(len(text) - _GRAM + 1)}
    seen: set[str] = set()
    for begin in _common(begins, pieces):
        for form, value in begins[begin]:
            if value not in seen and (at := text.find(form)) >= 0:
                seen.add(value)
                yield value, at


def _common(begins: Iterable[str], pieces: set[str]) -> list[str]:
    return sorted(begin for begin in begins if begin in pieces)


LEDGER = SecretLedger()
