"""Decisions about a request concern the bytes that are sent, whatever they are."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from urllib.parse import unquote_to_bytes

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cfproxy.errors import Refusal
from cfproxy.http1.framing import Framing, read_framing
from cfproxy.http1.parser import RequestFields
from cfproxy.http1.request_line import resolve_target
from cfproxy.proxy.access import AccessRules
from cfproxy.proxy.request_headers import (
    Origin,
    build_request_head,
    build_request_headers,
    build_request_target,
    check_fields,
    check_method,
)
from tests.security.case import request
from tests.security.corpus import CORPUS
from tests.security.oracle import check_upstream
from tests.security.strict import Heard
from tests.support.examples import examples

Header = tuple[bytes, bytes]

# --- headers and targets ------------------------------------------------------------------

TABLE = sorted(
    {
        (name, value.strip(b" \t"))
        for case in CORPUS
        if len(case.sent) < 1000
        for name, colon, value in (
            line.partition(b":") for line in case.sent.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
        )
        if colon
    }
)
NAMES = st.text("ABab-_19", min_size=1, max_size=8).map(str.encode) | st.binary(max_size=6)
VALUES = st.binary(max_size=12) | st.sampled_from((b"chunked", b"3", b"0", b"", b"close", b"X-A, Host"))


@st.composite
def headers(draw: st.DrawFn) -> list[Header]:
    """Return fields as a lenient parser could produce them: of the corpus, modified, or arbitrary."""
    fields = []
    for _ in range(draw(st.integers(0, 8))):
        name, value = draw(st.sampled_from(TABLE) | st.tuples(NAMES, VALUES))
        twist = draw(st.sampled_from((0, 0, 0, 1, 2, 3)))
        if twist == 1:
            name = name.replace(b"-", b"_")
        elif twist == 2:
            name = name.swapcase()
        elif twist == 3:
            fields.append((b"Connection", name))
        fields.append((name, value.strip(b" \t")))  # which a parser does
    fields.insert(draw(st.integers(0, len(fields))), (b"Host", b"localhost"))
    return fields


PIECES = (
    *(b"/", b"/", b"v1", b"admin", b"ADMIN", b"..", b".", b"...", b"%2e", b"%2E%2e", b"%2f", b"%5C", b"\\"),
    *(
        b"%252f",
        b"%252e",
        b"%25",
        b"%",
        b"%zz",
        b";a=b",
        b"%3b",
        b"%00",
        b"\x00",
        b"%61dmin",
        b"%c0%ae",
        b"%20",
    ),
    *(
        b"?",
        b"#",
        b"@",
        b":80",
        b"http:",
        b"//evil.example",
        b"*",
        b" ",
        b"\t",
        b"\r\n",
        b"\xc3\xa4",
        b"%C3%84",
    ),
    *(b"%c5%bf", b"\xef\xbc\x8f", b"+", b"~", b"%7e", b",", b"&"),
)
TARGETS = st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join) | st.binary(max_size=20)
PATHS = TARGETS.map(lambda raw: b"/" + raw)


def sent_for(method: str, target: bytes, fields: list[Header], base_path: bytes) -> Heard | None:
    """Return what is forwarded, read by the strict parsers; None if it is refused."""
    origin = Origin("https", b"api.example", base_path, b"cfproxy-test")
    try:
        target, _ = resolve_target(
            method.encode(), target, RequestFields((1, 1), (), Framing(None, chunked=False), keep_alive=True)
        )
        check_method(method.encode())
        check_fields((1, 1), fields, origin.via)
        framing = read_framing((1, 1), fields)
        head = build_request_head(
            method.encode(),
            build_request_target(target, base_path),
            build_request_headers(fields, origin, framing),
        )
    except Refusal:
        return None
    body = b"0\r\n\r\n" if framing.chunked else b"x" * min(framing.length or 0, 1 << 16)
    if framing.length is not None and framing.length > len(body):
        return None  # a body that nobody sends
    data = head + b"Authorization: Bearer token-1\r\n\r\n" + body
    [one] = check_upstream(data, host=b"api.example", base_path=base_path)
    return one


@settings(max_examples=examples(300))
@given(
    method=st.sampled_from(("GET", "POST", "HEAD", "DELETE", "TRACE", "CONNECT")),
    target=PATHS | TARGETS,
    fields=headers(),
    base_path=st.sampled_from((b"", b"/base", b"/a/b")),
)
def test_what_is_forwarded_is_one_request_to_the_configured_origin(
    method: str, target: bytes, fields: list[Header], base_path: bytes
) -> None:
    """Two strict parsers read one request with our Host, our token, one framing and no forged headers."""
    sent = sent_for(method, target, fields, base_path)
    if sent is not None:
        path = target if target.startswith(b"/") else sent.target.removeprefix(base_path)
        assert sent.start == b"%s %s%s HTTP/1.1" % (method.encode(), base_path, path)


def test_valid_requests_of_the_corpus_are_forwarded() -> None:
    """Otherwise the test above might only see refusals."""
    fields = [(b"Host", b"localhost"), (b"X-A", b"1"), (b"Content-Length", b"3")]
    sent = sent_for("POST", b"/a?b", fields, b"/base")
    assert sent is not None
    assert sent.raw.startswith(request(b"POST /base/a?b HTTP/1.1", b"Host: api.example")[:-2])


# --- path rules ---------------------------------------------------------------------------

DENIED = re.compile(rb"/v1/admin/.*", re.IGNORECASE | re.DOTALL)
ALLOWED = re.compile(rb"/v1/.*", re.DOTALL)


def without_parameters(path: bytes) -> bytes:
    return re.sub(rb";[^/]*", b"", path)


def resolved(path: bytes) -> bytes:
    plain = posixpath.normpath(path.decode("latin-1")).encode("latin-1")
    return b"/" + plain.lstrip(b"/") + (b"/" if path.endswith(b"/") and plain != b"/" else b"")


# What servers do to a path before they use it, alone and in sequence.
READINGS: tuple[Callable[[bytes], bytes], ...] = (
    unquote_to_bytes,
    without_parameters,
    resolved,
    lambda path: path.replace(b"\\", b"/"),
    lambda path: re.sub(rb"/+", b"/", path),
    lambda path: path.partition(b"\x00")[0],
    lambda path: path.partition(b"#")[0],
    lambda path: path.replace(b"\xc0\xae", b".").replace(b"\xc0\xaf", b"/"),
    lambda path: path.rstrip(b" ."),
)


def readings(path: bytes) -> Iterator[bytes]:
    """Yield every path that some server could read from this one."""
    seen = {path}
    left = [path]
    while left:
        now = left.pop()
        yield now
        found = {read(now) for read in READINGS} - seen
        seen |= found
        left += found


@settings(max_examples=examples(300))
@given(target=PATHS, base_path=st.sampled_from((b"", b"/base")))
@example(target=b"/v1/x", base_path=b"")
def test_path_rules_agree_with_what_is_sent(target: bytes, base_path: bytes) -> None:
    """A forwarded path is allowed, and not denied, in every reading of its bytes."""
    rules = AccessRules(paths=("/v1/**", "!/v1/admin/**"))
    try:
        rules.check_target("GET", target)
    except Refusal:
        return
    sent = sent_for("GET", target, [(b"Host", b"localhost")], base_path)
    if sent is None:
        return
    path = sent.target.removeprefix(base_path).partition(b"?")[0]
    assert path == target.partition(b"?")[0]
    for reading in readings(path):
        assert ALLOWED.fullmatch(reading + b"/"), reading
        assert not DENIED.fullmatch(reading + b"/"), reading
