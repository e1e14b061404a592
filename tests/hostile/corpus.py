"""The whole table."""

from __future__ import annotations

from tests.hostile.case import Case
from tests.hostile.cases import chunks, framing, hop, hosts, letters, pipelines, protocols, sizes, targets

CORPUS: tuple[Case, ...] = tuple(
    case
    for kind in (framing, chunks, letters, targets, hosts, hop, pipelines, protocols, sizes)
    for case in kind.CASES
)
BY_NAME = {case.name: case for case in CORPUS}

_RAW_LINE = "the parser does not show the request line as it came"
_ONE_SEGMENT = "a good request is dropped when what follows it in one segment is not"
_HEAD = "no bound to a head as a whole"
FLAWS = {
    "two spaces after the method": _RAW_LINE,
    "two spaces after the target": _RAW_LINE,
    "version RTSP": _RAW_LINE,
    "protocol: HTTP/0.9": _RAW_LINE,
    "target: bare UTF-8": "the parser refuses what is not ASCII",
    "target: no UTF-8 at all": "the parser refuses what is not ASCII",
    "a request, then rubbish": _ONE_SEGMENT,
    "a request, then NUL bytes": _ONE_SEGMENT,
    "a request, then a conflict": _ONE_SEGMENT,
    "a body longer than its length": _ONE_SEGMENT,
    "chunks, then rubbish": _ONE_SEGMENT,
    "nothing after Connection: close": _ONE_SEGMENT,
    "nothing after HTTP/1.0": _ONE_SEGMENT,
    "nothing after CONNECT": "Host is looked at first, and the connection goes on",
    "version 2.0": "the version is not looked at",
    "version 0.9 by name": "the version is not looked at",
    "protocol: HTTP/0.9 and an empty line": "the version is not looked at",
    "size: a hundred fields of 16 KiB": _HEAD,
    "size: empty lines of a megabyte": _HEAD,
    "size: white space of a megabyte": _HEAD,
}
