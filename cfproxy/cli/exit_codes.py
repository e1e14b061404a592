"""Exit codes.

Owns: the numbers, which scripts rely on, and the one table of which error gets which.
"""

from __future__ import annotations

from cfproxy import errors as e

DONE = 0
FAILURE = 1
USAGE = 2
LOGIN_REQUIRED = 3
STORE = 4
ENDPOINT = 5
INTERRUPTED = 130

_CODES: tuple[tuple[type[e.CfproxyError], int], ...] = (
    (e.ConfigError, USAGE),
    (e.UsageError, USAGE),
    (e.LoginRequired, LOGIN_REQUIRED),
    (e.StoreUnavailable, STORE),
    (e.StoreUnusable, STORE),
    (e.TokenEndpointUnavailable, ENDPOINT),
    (e.Misconfigured, ENDPOINT),
    (e.GrantRefused, ENDPOINT),
    (e.UpstreamError, ENDPOINT),
    (e.CfproxyError, FAILURE),
)


def code_of(error: e.CfproxyError) -> int:
    """Return the exit code of a command that ended with `error`."""
    return next(code for kind, code in _CODES if isinstance(error, kind))
