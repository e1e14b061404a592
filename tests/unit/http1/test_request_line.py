"""Request lines: methods, and the forms of a target."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.errors import BadTarget, HostNotAllowed, Refusal
from cfproxy.http1.parser import HeadLimits, MalformedHead, RequestFields, parse_fields
from cfproxy.http1.request_line import resolve_target

FIELDS = parse_fields(b"HTTP/1.1\r\nX-A: 1\r\nhOST: here:1\r\nX-B: 2\r\n\r\n", HeadLimits())


def hosts(fields: RequestFields) -> list[bytes]:
    return [value for name, value in fields.raw if name.lower() == b"host"]


@pytest.mark.parametrize(
    "target", [b"/", b"//evil/p", b"/a%2Fb%zz?c=/../d", b'/[]|<>"{}^`', b"/http://evil/", b"/\xff"]
)
def test_a_path_stays_as_it_is(target: bytes) -> None:
    """No byte is normalised, and the fields are the same object, with what was cached in them."""
    assert resolve_target(b"GET", target, FIELDS) == (target, FIELDS)
    assert resolve_target(b"GET", target, FIELDS)[1] is FIELDS


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"http://there:2/a?b", b"/a?b", b"there:2"),
        (b"HTTP://[::1]:2/", b"/", b"[::1]:2"),
        (b"http://there", b"/", b"there"),
        (b"http://there?a", b"/?a", b"there"),
        (b"http://there//evil/@x", b"//evil/@x", b"there"),
    ],
)
def test_a_url_is_its_path_and_its_host_replaces_the_header(target: bytes, path: bytes, host: bytes) -> None:
    """RFC 9112 §3.2.2; what was derived from the header as it was sent is not used."""
    FIELDS.cache = object()
    resolved, fields = resolve_target(b"GET", target, FIELDS)
    assert (resolved, hosts(fields), fields.cache) == (path, [host], None)
    assert {(b"X-A", b"1"), (b"X-B", b"2")} < set(fields.raw)


def test_a_url_of_http_1_0_needs_no_host() -> None:
    """The URL's host is judged nevertheless."""
    fields = parse_fields(b"HTTP/1.0\r\n\r\n", HeadLimits())
    assert hosts(resolve_target(b"GET", b"http://there/a", fields)[1]) == [b"there"]


def test_options_may_ask_about_the_whole_server() -> None:
    """As `*`, or as a URL without a path and query (RFC 9112 §3.2.4)."""
    for target in (b"*", b"http://there"):
        assert resolve_target(b"OPTIONS", target, FIELDS)[0] == b"*"
    assert resolve_target(b"OPTIONS", b"http://there?", FIELDS)[0] == b"/?"
    assert resolve_target(b"OPTIONS", b"http://there/", FIELDS)[0] == b"/"


def test_an_https_url_is_misdirected() -> None:
    """The connection is not encrypted (RFC 9110 §7.4)."""
    with pytest.raises(HostNotAllowed):
        resolve_target(b"GET", b"https://here:1/a", FIELDS)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        *((b"GET", target) for target in (b"", b"*", b"a", b"?x", b"h:443", b":1", b"ftp://h/", b"http:/")),
        *((b"GET", b"http://" + rest) for rest in (b"", b"/a", b"?a", b"@h:1/", b"u@h:1/", b"u:p@h:1")),
        *((b"GET", b"/a%bb" % byte) for byte in (b" ", b"\t", b"#", b"\\", b"\x00", b"\x7f", b"\r\nX: y")),
        *((b"GET", b"http://here:1%b" % rest) for rest in (b"#a", b"/a#b", b"\\@evil/", b" /", b"\x00/")),
        *((b"CONNECT", target) for target in (b"/a", b"here", b"u@here:1", b"http://here:1/", b"*", b":1")),
        *((method, b"/") for method in (b"get", b"G T", b"G\x00", b"G\xff", b"G(", b"")),
    ],
)  # fmt: skip
def test_a_malformed_request_line_is_refused(method: bytes, target: bytes) -> None:
    """Before anything else is looked at."""
    with pytest.raises(BadTarget):
        resolve_target(method, target, FIELDS)


@given(st.sampled_from((b"GET", b"OPTIONS", b"CONNECT", b"FOO")), st.binary(max_size=30), st.booleans())
def test_whatever_passes_is_a_path(method: bytes, target: bytes, is_url: bool) -> None:
    """Except for OPTIONS of a server and for CONNECT, which are refused later."""
    try:
        resolved, _ = resolve_target(method, (b"http://h" if is_url else b"") + target, FIELDS)
    except Refusal:
        return
    assert resolved.startswith(b"/") or (method, resolved) == (b"OPTIONS", b"*") or method == b"CONNECT"


@pytest.mark.parametrize(
    "lines", [b"1.1\r\n", b"1.1\r\nHost:\r\n", b"1.0\r\nHost: \r\n", b"1.1\r\nHost: a\r\nhost: a\r\n"]
)
def test_http_1_1_needs_one_host_and_http_1_0_at_most_one(lines: bytes) -> None:
    """A missing, empty or repeated Host is refused (RFC 9112 §3.2)."""
    with pytest.raises((BadTarget, MalformedHead)):
        parse_fields(b"HTTP/" + lines + b"\r\n", HeadLimits())
