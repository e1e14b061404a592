"""Exit codes.

Owns: the numbers, which scripts rely on. Which error gets which is one table in `cli.py`.
"""

from __future__ import annotations

DONE = 0
FAILURE = 1
USAGE = 2
LOGIN_REQUIRED = 3
STORE = 4
ENDPOINT = 5
INTERRUPTED = 130
