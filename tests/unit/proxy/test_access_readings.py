"""Path rules against servers that interpret paths in unusual ways: none can be led past a denial."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from itertools import combinations
from urllib.parse import unquote_to_bytes

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cfproxy.errors import BadTarget, NotAllowed
from cfproxy.proxy.access import AccessRules
from cfproxy.proxy.request_headers import build_request_target
from tests.support.examples import examples

DENIED = AccessRules(paths=("!/v1/secret", "!/v1/secret/**"))
ALLOWED = AccessRules(paths=("/v1/jobs", "/v1/jobs/**"))

Step = Callable[[str], str]

# What servers, frameworks and gateways are known to do with a path before they decide what it names.
STEPS: dict[str, Step] = {
    "collapse slashes": lambda path: re.sub(r"/+", "/", path),
    "take backslashes for slashes": lambda path: path.replace("\\", "/"),
    "drop path parameters": lambda path: re.sub(r";[^/]*", "", path),
    "end at NUL": lambda path: path.partition("\0")[0],
    "resolve dots": posixpath.normpath,
    "ignore case": lambda path: path.upper().lower(),
    "ignore a final slash": lambda path: path.rstrip("/") or "/",
    "drop control characters": lambda path: re.sub(r"[\x00-\x1f\x7f]", "", path),
}


def decoded(path: str) -> str:
    return unquote_to_bytes(path).decode("utf-8", "replace")


def readings(target: bytes) -> set[str]:
    """Return every path that a server might read: decoded once or twice, dots resolved before or after."""
    raw = target.partition(b"?")[0].decode("utf-8", "replace")
    found = set()
    for count in range(len(STEPS) + 1):
        for chosen in combinations(STEPS.values(), count):
            path = decoded(raw)
            for step in chosen:
                path = step(path)
            found |= {path, decoded(path)}
    before = raw
    for step in STEPS.values():
        before = step(before)
    return found | {decoded(before)}


def sent(target: bytes, rules: AccessRules) -> bytes | None:
    try:
        rules.check_target("GET", target)
        return build_request_target(target, b"")
    except (BadTarget, NotAllowed):
        return None


_SEGMENTS = ("v1", "V1", "secret", "Secret", "%73ecret", "\u017fecret", "jobs", "%6aobs", "a", "2e")
_TRICKS = (
    "/",
    "//",
    ".",
    "..",
    "%2e",
    "%2E%2e",
    "%2f",
    "%2F",
    "%5c",
    "\\",
    ";",
    "%3b",
    ";a=b",
    "%25",
    "%252f",
)
_MORE = ("%252f", "%252e", "%00", "%0a", "%", "%u002f", "%c0%af", "%ef%bc%8f", "?", "%20", "\x7f")
_PIECE = st.sampled_from(_SEGMENTS + _TRICKS + _MORE)
_TARGET = st.lists(_PIECE, max_size=8).map(lambda parts: ("/v1/" + "".join(parts)).encode())


@settings(max_examples=examples(300))
@given(_TARGET)
@example(b"/v1/jobs/..;/secret")
@example(b"/v1/jobs%2f..%2fsecret")
@example(b"/v1/%252e%252e/v1/secret")
@example(b"/v1/secret%00")
@example("/v1/\u017fecret".encode())
def test_no_server_can_read_a_denied_path_from_a_forwarded_target(target: bytes) -> None:
    """A target that passes a denial is forwarded unchanged and reads as no denied path in any server."""
    out = sent(target, DENIED)
    if out is not None:
        assert out == target
        for path in readings(out):
            assert path != "/v1/secret"
            assert not path.startswith("/v1/secret/"), path


@settings(max_examples=examples(300))
@given(_TARGET)
@example(b"/v1/jobs/../secret")
def test_no_server_can_read_a_path_outside_the_allowed_ones(target: bytes) -> None:
    """An allowed target never reads as a path that is not allowed."""
    out = sent(target, ALLOWED)
    if out is not None:
        for path in readings(out):
            assert path == "/v1/jobs" or path.startswith("/v1/jobs/"), path
