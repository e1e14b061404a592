"""The type of client secrets, codes, verifiers, keys and tokens.

Invariant: only `reveal()` returns the value, so its uses can be found by name. `str`, `repr`, `format`,
pickle and tracebacks do not show it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import NoReturn

REDACTED = "[redacted]"


class Secret:
    """A text that only `reveal()` shows.

    Args:
        value: the text.
        read: reads it again at its source; raises ValueError if that is not possible now.
    """

    __slots__ = ("_read", "_value")

    def __init__(self, value: str, read: Callable[[], str] | None = None) -> None:
        self._value = value
        self._read = read

    def reveal(self) -> str:
        """Return the value, for a request or a store, never for a message."""
        return self._value

    def reread(self) -> Secret:
        """Return the secret as its source has it now; itself without a source, or if that can't be read."""
        if self._read is None:
            return self
        try:
            return Secret(self._read(), self._read)
        except ValueError:
            return self

    def fingerprint(self) -> str:
        """Return 16 hex digits of the value's SHA-256, to tell secrets apart without showing them."""
        return hashlib.sha256(self._value.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        # In constant time, because access keys are compared with it.
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
