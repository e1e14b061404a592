"""Loaded by each Python process that `e2e/kit.py` starts: reports the secrets it creates to the test.

Appends a line of JSON for each `Secret` to the file that `SECRETS_FILE` names. The process is unaffected:
a secret that can't be written is skipped.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable

with contextlib.suppress(ImportError):  # another Python's process may lack cfproxy
    from cfproxy.secret import Secret

    def _recording(init: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(init)
        def init_and_record(secret: Secret, value: str, *source: object) -> None:
            init(secret, value, *source)
            with contextlib.suppress(OSError, KeyError):
                descriptor = os.open(
                    os.environ["SECRETS_FILE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
                )
                with os.fdopen(descriptor, "w", encoding="ascii") as file:
                    file.write(json.dumps(value) + "\n")

        return init_and_record

    setattr(Secret, "__init__", _recording(Secret.__init__))  # noqa: B010 - mypy rejects the assignment
