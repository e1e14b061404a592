"""Which secrets there are, what was said, and whether one is in the other.

Owns: `SecretLedger`, and `LEDGER`, the one of this process.
Must not know: where secrets and texts come from (`leaks.py`, `e2e/kit.py`).
Invariants: no finding shows a whole secret; a search is linear in the texts, however many secrets
there are; what was found is never forgotten before it is told.
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
    """Whether a value is so long and so varied that it can't be in a text by chance, and no address."""
    return len(value) >= LENGTH_MIN and "://" not in value and len(set(value)) >= VARIETY_MIN


def forms_of(value: str) -> set[str]:
    """The forms in which a value may be met: plain, quoted for URL, JSON or Python, and in base64."""
    data = value.encode("utf-8", "surrogatepass")
    forms = {value, json.dumps(value)[1:-1], repr(value)[1:-1]}
    forms |= {quote(data, safe=""), quote(data), quote_plus(data)}
    # In base64 a text looks different at each of three offsets; the outer characters hold neighbours' bits.
    for offset, begin in enumerate((0, 2, 3)):
        encoded = base64.b64encode(bytes(offset) + data).decode()
        core = encoded[begin : (offset + len(data)) * 8 // 6]
        forms |= {core, core.translate(_URL_SAFE)}
    return forms


class SecretLedger:
    """The secrets and the texts of one test."""

    def __init__(self) -> None:
        self._lasting: dict[str, str] = {}
        self._secrets: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self._chars = 0
        self._findings: list[str] = []
        self._told = 0

    def note(self, value: object, kind: str, *, lasting: bool = False) -> None:
        """Remember a secret; `lasting` ones outlive the test."""
        if isinstance(value, str) and value not in self._secrets and is_marker(value):
            (self._lasting if lasting else self._secrets)[value] = kind
            if len(self._secrets) >= SECRETS_MAX:
                self._search()
                self._secrets.clear()

    def hear(self, where: str, text: str) -> None:
        """Remember a text that must not hold a secret; `where` names it in findings."""
        if len(text) >= LENGTH_MIN and text not in self._texts:
            self._texts[text] = where
            self._chars += len(text)
            if self._chars >= TEXTS_MAX_CHARS:
                self._search()

    def findings(self) -> list[str]:
        """Search what was heard since the last call; say which secret is where, without showing it."""
        self._search()
        found = self._findings[self._told : FINDINGS_MAX]
        self._told = len(self._findings)
        return found

    def forget(self) -> None:
        """Begin anew: another test."""
        self._secrets.clear()
        self._texts.clear()
        self._findings.clear()
        self._chars = self._told = 0

    def _search(self) -> None:
        """Move what is found to the findings; texts are done with afterwards.

        Pieces of texts are looked up among the beginnings of secrets: one pass, where looking for
        each secret in each text would take as many passes as there are secrets.
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
