"""Text that must not be shown.

Owns: the one type that carries client secrets, codes, verifiers, keys and tokens.
Invariant: no `str`, `repr`, `format`, pickle or traceback of a `Secret` shows its value;
only an explicit `reveal()` does, so every place that uses a value can be found by name.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NoReturn

REDACTED = "[redacted]"


class Secret:
    """A text whose value shows only through `reveal()`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value itself: for a wire or a store, never for a message."""
        return self._value

    def fingerprint(self) -> str:
        """Return 16 hex digits of the value's SHA-256: tells two secrets apart, shows neither."""
        return hashlib.sha256(self._value.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        # Constant time: access keys are compared with this too.
        return hmac.compare_digest(
            self._value.encode("utf-8", "surrogatepass"),
            other._value.encode("utf-8", "surrogatepass"),
        )

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return f"Secret({REDACTED})"

    def __str__(self) -> str:
        return REDACTED

    def __format__(self, spec: str) -> str:
        return format(REDACTED, spec)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled or copied")
