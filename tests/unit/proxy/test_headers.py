"""Request and response headers, trailers and targets, byte by byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.errors import BadTarget, LoopDetected, NotAllowed, UpgradeNotSupported
from cfproxy.http1.framing import Framing, read_framing
from cfproxy.http1.headers import HOP_BY_HOP, OWNED, normalise
from cfproxy.proxy.request_headers import (
    Origin,
    build_request_headers,
    build_request_target,
    check_fields,
    check_method,
    forwardable_trailers,
)
from cfproxy.proxy.response_headers import build_response_headers

Header = tuple[bytes, bytes]

ORIGIN = Origin("https", b"gateway.example", b"", b"cfproxy-me")
BASED = Origin("https", b"gateway.example", b"/base", b"cfproxy-me")
NO_BODY = Framing(None, chunked=False)
V11, V10 = (1, 1), (1, 0)


def sent_up(*headers: Header, framing: Framing = NO_BODY, expects: bool = False) -> list[Header]:
    """Return the forwarded header lines, except our own Host and Via."""
    lines = build_request_headers(headers, ORIGIN, framing, expects=expects).split(b"\r\n")
    assert lines[0] == b"Host: gateway.example"
    assert lines[-2:] == [b"Via: 1.1 cfproxy-me", b""]
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines[1:-2])]


def came_down(*headers: Header, origin: Origin = ORIGIN) -> list[Header]:
    return build_response_headers(headers, origin)


# --- request headers ----------------------------------------------------------------------


def test_request_headers_keep_order_case_duplicates_and_high_bytes() -> None:
    """The API gets them as they were sent."""
    headers = [(b"x-B", b"1"), (b"X-a", b"gr\xc3\xbc\xff"), (b"x-b", b"2"), (b"Accept", b""), (b"x-B", b"1")]
    assert sent_up(*headers) == headers


@pytest.mark.parametrize("name", sorted(OWNED - {b"via"} | {b"x-forwarded-for", b"x-forwarded-anything"}))
def test_no_spelling_of_a_reserved_header_is_forwarded(name: bytes) -> None:
    """Headers about identity, origin or access keys are ours to send, and underscores don't help."""
    for spelling in (name, name.title(), name.upper(), name.replace(b"-", b"_")):
        assert sent_up((spelling, b"forged")) == []


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_hop_by_hop_headers_are_dropped_in_both_directions(name: bytes) -> None:
    """They belong to one connection (RFC 9110 §7.6.1)."""
    assert sent_up((name.title(), b"x")) == []
    assert came_down((name.title(), b"x")) == []


def test_headers_listed_in_connection_are_dropped_in_both_directions() -> None:
    """`Connection: X-Mine` makes X-Mine hop-by-hop, in any spelling."""
    headers = [
        (b"Connection", b"close, x-mine"),
        (b"X-Mine", b"1"),
        (b"x-other", b"2"),
        (b"connection", b"X_THIRD"),
    ]
    headers += [(b"X_Third", b"3")]
    assert sent_up(*headers) == [(b"x-other", b"2")]
    assert came_down(*headers) == [(b"x-other", b"2")]


def test_connection_cannot_remove_the_framing() -> None:
    """A client that lists Content-Length as hop-by-hop does not get a body through without a length."""
    headers = [(b"Connection", b"content-length, authorization, host"), (b"Content-Length", b"3")]
    assert sent_up(*headers, framing=Framing(3, chunked=False)) == [(b"Content-Length", b"3")]


def test_content_length_is_forwarded_as_parsed_under_its_own_spelling() -> None:
    """Leading zeros are dropped, the letter case of the name is kept."""
    assert sent_up((b"content-LENGTH", b"007"), framing=Framing(7, chunked=False)) == [
        (b"content-LENGTH", b"7")
    ]


def test_transfer_encoding_is_written_anew() -> None:
    """A chunked body gets exactly one Transfer-Encoding line."""
    headers = [(b"transfer-encoding", b"Chunked"), (b"X", b"1")]
    assert sent_up(*headers, framing=Framing(None, chunked=True)) == [
        (b"X", b"1"),
        (b"Transfer-Encoding", b"chunked"),
    ]


def test_a_repeated_expectation_is_forwarded_once() -> None:
    """Two would make some servers answer 417."""
    expect = (b"Expect", b"100-continue")
    assert sent_up(expect, expect, framing=Framing(3, chunked=False), expects=True).count(expect) == 1


def test_our_pseudonym_is_appended_to_via() -> None:
    """After those of the proxies before us (RFC 9110 §7.6.3)."""
    lines = build_request_headers([(b"Via", b"1.0 a"), (b"via", b"1.1 b")], ORIGIN, NO_BODY)
    assert lines.endswith(b"\r\nVia: 1.0 a, 1.1 b, 1.1 cfproxy-me\r\n")


_NAMES = st.text("ABCXYZabcxyz-_19", min_size=1, max_size=12).map(str.encode)
_VALUES = st.binary(max_size=12).map(lambda raw: bytes(b for b in raw if b >= 0x20 and b != 0x7F).strip())
_RESERVED = st.sampled_from(sorted(HOP_BY_HOP | OWNED | {b"x-forwarded-host"}))
_TWISTED = st.builds(
    lambda name, flags: (
        bytes(
            ord("_") if byte == ord("-") and flag else ord(chr(byte).upper()) if flag else byte
            for byte, flag in zip(name, flags, strict=False)
        )
        + name[len(flags) :]
    ),
    _RESERVED,
    st.lists(st.booleans(), max_size=24),
)
_LISTS = st.lists(_NAMES, max_size=2).map(b", ".join)
_HEADERS = st.lists(
    st.tuples(_NAMES, _VALUES) | st.tuples(_TWISTED, _VALUES) | st.tuples(st.just(b"Connection"), _LISTS),
    max_size=12,
)
_TARGETS = st.binary(max_size=40).map(lambda raw: b"/" + raw) | st.sampled_from(
    [b"//evil/p", b"/\\evil", b"/@evil", b"/..//evil", b"/http://evil/", b"/a?b#c"]
)


@given(_TARGETS, _HEADERS)
def test_no_request_changes_the_origin_or_smuggles_a_reserved_header(
    target: bytes, headers: list[Header]
) -> None:
    """Whatever the target and headers, the host stays the API's and no reserved header survives."""
    try:
        target_sent = build_request_target(target, b"/base")
    except BadTarget:
        return
    assert target_sent == b"/base" + target
    lines = build_request_headers(headers, BASED, NO_BODY).removesuffix(b"\r\n").split(b"\r\n")
    names = [normalise(line.partition(b":")[0]) for line in lines]
    assert lines[0] == b"Host: gateway.example"
    assert lines[-1].endswith(b"1.1 cfproxy-me")
    assert names.count(b"host") == names.count(b"via") == 1
    assert not (OWNED - {b"host", b"via"} | HOP_BY_HOP).intersection(names)
    assert not any(name.startswith(b"x-forwarded-") for name in names)


@given(
    st.lists(st.tuples(st.sampled_from([b"X-A", b"x-a", b"Accept", b"COOKIE", b"x_y"]), _VALUES)), _HEADERS
)
def test_end_to_end_headers_survive_among_any_others(free: list[Header], others: list[Header]) -> None:
    """End-to-end headers arrive in order, whatever hop-by-hop headers stand between them."""
    free = [(name, value) for name, value in free if b"cfproxy" not in value.lower()]  # our own cookies
    reserved = [h for h in others if normalise(h[0]) in HOP_BY_HOP - {b"connection"}]
    mixed = [header for pair in zip(free, reserved, strict=False) for header in pair] + free[len(reserved) :]
    assert sent_up(*mixed) == free
    assert came_down(*mixed) == free


# --- targets ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"//evil/p",
        b"/a%2Fb%zz",
        b"/a//b/../c",
        b"/?",
        b"/a?b=%20&c+d?e",
        b'/[]|<>"{}^`',
        b"/a:80@b;c",
        b"/\xff",
    ],
)
def test_targets_are_forwarded_unchanged(target: bytes) -> None:
    """No byte of a path or query is normalised, decoded or encoded."""
    assert build_request_target(target, b"") == target


def test_the_asterisk_of_options_is_refused() -> None:
    """It asks about a server, and the API is not ours."""
    with pytest.raises(BadTarget):
        build_request_target(b"*", b"")


@pytest.mark.parametrize(
    "target",
    [
        b"/..",
        b"/../x",
        b"/a/..",
        b"/a/../b",
        b"/%2e%2E/b",
        b"/.%2e",
        b"/a/..%2fb",
        b"/a/..\\b",
        b"/./a",
        b"/..;/a",
        b"/%" + b"a" * 4096,  # it takes too long to find out
    ],
)
def test_no_target_leaves_the_base_path(target: bytes) -> None:
    """An upstream with a base path refuses dot segments, encoded or not, which would lead out of it."""
    with pytest.raises(BadTarget):
        build_request_target(target, b"/base")


@pytest.mark.parametrize("target", [b"/a..b", b"/...", b"/a.b/c.", b"/a?x=/../y", b"/.a", b"/a" * 5000])
def test_dots_that_are_no_segment_pass_below_a_base_path(target: bytes) -> None:
    """File names and queries with dots are not mistaken for dot segments."""
    assert build_request_target(target, b"/base") == b"/base" + target


# --- refusals -----------------------------------------------------------------------------


def check(method: str, *headers: Header) -> None:
    check_method(method.encode())
    check_fields(V11, [(b"Host", b"h"), *headers], b"cfproxy-me")


@pytest.mark.parametrize("byte", [*range(9), *range(10, 32), 127])
def test_control_bytes_in_a_header_are_refused(byte: int) -> None:
    """Some servers take a control byte for the end of the line."""
    with pytest.raises(BadTarget):
        check("GET", (b"X", b"a" + bytes([byte]) + b"b"))


def test_tabs_and_high_bytes_in_a_header_are_accepted() -> None:
    """Both are legal in a value."""
    check("GET", (b"X", b"a\tb\x80\xff"))


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a\xff", b"a\r\nb", b"(a)"])
def test_header_names_that_are_no_tokens_are_refused(name: bytes) -> None:
    """A header name is a token (RFC 9110 §5.1)."""
    with pytest.raises(BadTarget):
        check("GET", (name, b"x"))


def test_connect_trace_upgrade_and_loops_are_refused() -> None:
    """Tunnels, echoes of the token, protocol switches and forwarding loops."""
    for method, headers, refusal in (
        ("CONNECT", [], UpgradeNotSupported),
        ("TRACE", [], NotAllowed),
        ("GET", [(b"upgrade", b"websocket")], UpgradeNotSupported),
        ("GET", [(b"Via", b"1.1 a, 1.1 cfproxy-me")], LoopDetected),
    ):
        with pytest.raises(refusal):
            check(method, *headers)
    check("GET", (b"Via", b"1.1 cfproxy-other"))


# --- framing ------------------------------------------------------------------------------


def test_framing_is_read_from_one_header() -> None:
    """Either one Content-Length or one `Transfer-Encoding: chunked` delimits a body."""
    assert read_framing(V11, []) == NO_BODY
    assert read_framing(V11, [(b"content-length", b" 12 ")]) == Framing(12, chunked=False)
    assert read_framing(V11, [(b"TRANSFER-encoding", b"Chunked")]) == Framing(None, chunked=True)


def test_only_a_length_above_zero_or_chunks_make_a_body() -> None:
    """`Content-Length: 0` announces no body."""
    assert [Framing(0, chunked=False).has_body, NO_BODY.has_body] == [False, False]
    assert [Framing(1, chunked=False).has_body, Framing(None, chunked=True).has_body] == [True, True]


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Content-Length", b"1"), (b"Content-Length", b"1")],
        [(b"Content-Length", b"1, 1")],
        [(b"Content-Length", b"+1")],
        [(b"Content-Length", b"-1")],
        [(b"Content-Length", b"")],
        [(b"Content-Length", b"0x1")],
        [(b"Content-Length", b"1_0")],
        [(b"Content-Length", b"9" * 19)],
        [(b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked")],
        [(b"Content-Length", b"1"), (b"Transfer-Encoding", b"")],
        [(b"Transfer-Encoding", b"")],
        [(b"Transfer-Encoding", b"identity")],
        [(b"Transfer-Encoding", b"gzip, chunked")],
        [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
        [(b"Content_Length", b"1")],
        [(b"TRANSFER_ENCODING", b"chunked")],
    ],
)
def test_ambiguous_framing_is_refused(headers: list[Header]) -> None:
    """Two lengths, a length beside chunks, or look-alike names would allow request smuggling."""
    with pytest.raises(BadTarget):
        read_framing(V11, headers)


def test_http_1_0_has_no_chunks() -> None:
    """Chunked transfer coding does not exist in HTTP/1.0 (RFC 9112 §6.1)."""
    with pytest.raises(BadTarget):
        read_framing(V10, [(b"Transfer-Encoding", b"chunked")])


# --- cookies and trailers ------------------------------------------------------------------


def test_admin_cookies_are_not_forwarded() -> None:
    """Browsers send a host's cookies to every port; the API's own cookies pass unchanged."""
    ours = b"cfproxy-login-acme=x"
    for value, left in (
        (b"a=1; " + ours + b"; b=cfproxy", b"a=1; b=cfproxy"),
        (b"=" + ours + b"; a=1", b"a=1"),
        (b" CFPROXY_x=1;a=1", b"a=1"),
        (b"a=cfproxy;  b=2 ", b"a=cfproxy;  b=2"),
        (b"a=1; b=2 ", b"a=1; b=2 "),
    ):
        assert sent_up((b"cookie", value)) == [(b"cookie", left)]
    assert sent_up((b"Cookie", ours), (b"X", b"y")) == [(b"X", b"y")]


def test_trailers_listed_in_connection_are_dropped() -> None:
    """A trailer, and `Trailer` itself, can be hop-by-hop (RFC 9110 §7.6.1)."""
    named = [(b"Connection", b"x_sum, Trailer"), (b"Trailer", b"X-Sum, X-More")]
    trailers = [(b"X-Sum", b"1"), (b"X_SUM", b"2"), (b"X-More", b"3")]
    assert forwardable_trailers(trailers, named) == [(b"X-More", b"3")]
    assert forwardable_trailers(trailers, []) == trailers
    assert build_response_headers(named, ORIGIN, trailers=True) == []
    assert build_response_headers(named[1:], ORIGIN, trailers=True) == named[1:]


@pytest.mark.parametrize(
    "name",
    [
        *(
            b"Authorization",
            b"Content_Length",
            b"Set-Cookie",
            b"Location",
            b"Access-Control-Allow-Origin",
            b"TE",
        ),
        *(
            b"Content-Location",
            b"Refresh",
            b"Link",
            b"Alt-Svc",
            b"Strict-Transport-Security",
            b"Clear_Site_Data",
        ),
        b"Origin",
    ],
)
def test_no_trailer_bypasses_the_header_rules(name: bytes) -> None:
    """A server that merges trailers into the headers gets nothing that would have been dropped there."""
    assert forwardable_trailers([(name, b"x"), (b"X-Sum", b"1")], []) == [(b"X-Sum", b"1")]
