"""Loaded by each Python process that `e2e/kit.py` starts: the secrets that it makes are told to the test.

Owns: a line of JSON for each `Secret`, in the file that `TOLD_SECRETS` names.
Must not know: who reads it.
Invariant: the process behaves as ever; what can't be told is not told.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable

with contextlib.suppress(ImportError):  # a process of another Python has no cfproxy, and no secret of it
    from cfproxy.secret import Secret

    def _telling(begin: Callable[[Secret, str], None]) -> Callable[[Secret, str], None]:
        @functools.wraps(begin)
        def begin_and_tell(secret: Secret, value: str) -> None:
            begin(secret, value)
            with contextlib.suppress(OSError, KeyError):
                place = os.open(os.environ["TOLD_SECRETS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                with os.fdopen(place, "w", encoding="ascii") as told:
                    told.write(json.dumps(value) + "\n")

        return begin_and_tell

    setattr(Secret, "__init__", _telling(Secret.__init__))  # noqa: B010 - mypy wants it so
