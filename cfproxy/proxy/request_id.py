"""How one request is found again: its id, and the trace that it belongs to.

Owns: which `X-Request-Id` is taken over, the ids that we make, what of `traceparent` is logged.
Must not know: sockets, logs.
Invariant: what gets out of here is of a bounded length and of letters, digits and a few marks, whatever a
client sends, so that it can stand in a log line, a header and a URN.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

HEADER = "X-Request-Id"
_SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:@+=/-]{0,127}")
# W3C Trace Context §3.2: version, trace-id, parent-id, flags; an all-zero trace-id is none.
_TRACE = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


class RequestIds(NamedTuple):
    """What a request is known by.

    Args:
        request_id: the client's or ours.
        made: whether it is ours, so that the upstream has to be told.
        trace_id: of the client's `traceparent`; None without a readable one.
    """

    request_id: str
    made: bool
    trace_id: str | None


def request_id_factory() -> Callable[[], str]:
    """Return what makes ids: a prefix that no other process has, and a count."""
    # Far cheaper than a random id for each, and it tells the order of requests.
    prefix, count = secrets.token_hex(4), itertools.count(1)
    return lambda: f"{prefix}-{next(count):x}"


def read_request_ids(ids: Sequence[str], traceparent: str | None, make_id: Callable[[], str]) -> RequestIds:
    """Return what the request is known by.

    Args:
        ids: the values of every `X-Request-Id` that came; exactly one sane one is taken over.
        traceparent: the header's value; it is passed on as it came, whatever it is.
        make_id: see `request_id_factory`.
    """
    trace = None if traceparent is None else _TRACE.fullmatch(traceparent)
    trace_id = None if trace is None else trace[1]
    if len(ids) == 1 and _SANE.fullmatch(ids[0]):
        return RequestIds(ids[0], False, trace_id)
    return RequestIds(make_id(), True, trace_id)
