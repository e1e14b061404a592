"""Request IDs and W3C trace context.

An ID that leaves this module has a bounded length and consists of letters, digits and a few punctuation
marks, whatever the client sends: it is safe in a log line, a header and a URN.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable
from typing import NamedTuple

from cfproxy.http1.headers import RawHeaders

REQUEST_ID = b"X-Request-Id"
_VALID_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._~:@+=/-]{0,127}")
# W3C Trace Context §3.2: version, trace-id, parent-id, flags; an all-zero trace-id is invalid.
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


class RequestIds(NamedTuple):
    """The IDs that a client sent with its request.

    Args:
        client_id: from `X-Request-Id`; None unless exactly one valid ID was sent.
        trace_id: from `traceparent`; None unless that is valid.
    """

    client_id: str | None
    trace_id: str | None


def request_id_factory() -> Callable[[], str]:
    """Return a function that makes IDs: a random prefix per process, and a counter.

    That is far cheaper than a random ID for each request, and shows the order of requests.
    """
    render = f"{secrets.token_hex(4)}-{{:x}}".format
    return map(render, itertools.count(1)).__next__  # runs without a Python frame


def parse_request_ids(headers: RawHeaders) -> RequestIds:
    """Return the IDs that a request's headers carry."""
    ids = [value for name, value in headers if name.lower() == b"x-request-id"]
    client_id = ids[0].decode("ascii") if len(ids) == 1 and _VALID_ID.fullmatch(ids[0]) else None
    traceparent = next((value for name, value in headers if name.lower() == b"traceparent"), b"")
    trace = _TRACEPARENT.fullmatch(traceparent)
    return RequestIds(client_id, None if trace is None else trace[1].decode("ascii"))
