"""The oracle itself is tested, because a check that can't fail would prove nothing."""

from __future__ import annotations

import base64

import pytest

from tests.security.case import KEY
from tests.security.oracle import check_downstream, check_upstream
from tests.security.strict import Violation, read_requests

HOST = b"api.example"
GOOD = (
    b"POST /base/a HTTP/1.1\r\nHost: api.example\r\nContent-Length: 3\r\n"
    b"Via: 1.1 cfproxy-test\r\nAuthorization: Bearer token-1\r\n\r\nabc"
)
CHUNKED = GOOD.replace(b"Content-Length: 3", b"Transfer-Encoding: chunked").replace(
    b"\r\n\r\nabc", b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
)


@pytest.mark.parametrize(
    "value", [KEY, b"bearer " + KEY, b"Token\t" + KEY, b"Basic " + base64.b64encode(b"a:" + KEY)]
)
def test_no_header_may_be_the_key_even_where_content_may_hold_it(value: bytes) -> None:
    """The weaker check for mutated requests still finds every form in which a header carries the key."""
    with_key = GOOD.replace(b"abc", KEY).replace(b"Length: 3", b"Length: %d" % len(KEY))
    check_upstream(with_key, host=HOST, base_path=b"/base", key_in_content=True)
    data = GOOD.replace(b"Via", b"X-A: " + value + b"\r\nVia", 1)
    with pytest.raises(Violation, match="access key"):
        check_upstream(data, host=HOST, base_path=b"/base", key_in_content=True)


def test_unambiguous_requests_pass() -> None:
    """Requests with one meaning are read in sequence, and the rest is returned."""
    requests = check_upstream(GOOD + CHUNKED + GOOD[:-1], host=HOST, base_path=b"/base")
    assert [one.body for one in requests] == [b"abc", b"abc"]
    assert read_requests(GOOD + GOOD[:-1])[1] == GOOD[:-1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Host: api.example\r\n", b""),
        (b"Host: api.example", b"Host: evil.example"),
        (b"Host: api.example", b"Host: api.example\r\nHost: api.example"),
        (b"Bearer token-1", b"Bearer client"),
        (b"Authorization: Bearer token-1\r\n", b""),
        (b"Authorization", b"Authorization: Bearer client\r\nAuthorization"),
        (b"Authorization", b"X-A: " + KEY + b"\r\nAuthorization"),
        (b"Via", b"Connection: close\r\nVia"),
        (b"Via", b"Keep_Alive: 5\r\nVia"),
        (b"Via", b"X-Forwarded-For: 1.2.3.4\r\nVia"),
        (b"Via", b"X_Real_IP: 1.2.3.4\r\nVia"),
        (b"Via", b"Content_Length: 3\r\nVia"),
        (b"Via", b"Content-Length: 3\r\nVia"),
        (b"Via", b"Transfer-Encoding: chunked\r\nVia"),
        (b"Length: 3", b"Length: +3"),
        (b"Length: 3", b"Length: 03"),
        (b"Content-Length: 3", b"Transfer-Encoding: Chunked"),
        (b"Via", b"X-A: a\r\n b\r\nVia"),
        (b"Via", b"X-A : a\r\nVia"),
        (b"Via", b"X-A: a\x00\r\nVia"),
        (b"Via", b"X-A: a\nVia"),
        (b"Via", b"X-A: a\rVia"),
        (b"POST /base/a", b"POST  /base/a"),
        (b"POST /base/a", b"POST /a"),
        (b"POST /base/a", b"POST http://api.example/base/a"),
        (b"POST /base/a", b"POST /base/a#b"),
        (b"POST", b"TRACE"),
        (b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
def test_every_violation_is_found(old: bytes, new: bytes) -> None:
    """Each invariant is checked, for a request with its body and for one without it yet."""
    bad = GOOD.replace(old, new, 1)
    assert bad != GOOD
    for data in (bad, GOOD + bad, bad[:-1]):
        with pytest.raises(Violation):
            check_upstream(data, host=HOST, base_path=b"/base")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"3\r\nabc", b"+3\r\nabc"),
        (b"3\r\nabc", b"03\r\nabc"),
        (b"3\r\nabc", b"3;a=b\r\nabc"),
        (b"3\r\nabc", b"2\r\nabc"),
        (b"0\r\n\r\n", b"0\r\nAuthorization: x\r\n\r\n"),
        (b"0\r\n\r\n", b"0\r\nContent-Length: 3\r\n\r\n"),
        (b"0\r\n\r\n", b"0\r\nX_Forwarded_For: x\r\n\r\n"),
        (b"0\r\n\r\n", b"0\r\nX-T : x\r\n\r\n"),
    ],
)
def test_every_violation_in_chunks_is_found(old: bytes, new: bytes) -> None:
    """The proxy writes chunks in exactly one form."""
    with pytest.raises(Violation):
        check_upstream(CHUNKED.replace(old, new, 1), host=HOST, base_path=b"/base")


OURS = (
    b'HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\nCache-Control: no-store\r\n'
    b'Proxy-Status: cfproxy; error=http_request_error; details="bad-target"\r\nContent-Length: %d\r\n\r\n%s'
)  # fmt: skip
DOCUMENT = (
    b'{"type": "urn:cfproxy:problem:bad-target", "title": "t", "status": 400, "detail": "d", "instance": "i"}'
)
UPSTREAMS = b"HTTP/1.1 200 OK\r\nX-Origin: GET\r\nContent-Length: 2\r\n\r\nok"


def test_responses_are_told_apart() -> None:
    """Ours by their slug, the origin's by its mark."""
    mine = OURS % (len(DOCUMENT), DOCUMENT)
    assert check_downstream(UPSTREAMS + mine)[1] == ["ok", "bad-target"]


@pytest.mark.parametrize(
    "bad",
    [
        UPSTREAMS[:-1],
        UPSTREAMS + b"x",
        UPSTREAMS.replace(b"X-Origin: GET\r\n", b""),
        OURS % (len(DOCUMENT) + 1, DOCUMENT),
        OURS.replace(b"cfproxy;", b"nginx;") % (len(DOCUMENT), DOCUMENT),
        OURS % (len(DOCUMENT), DOCUMENT.replace(b"400", b"403")),
        OURS % (len(DOCUMENT) + 5, DOCUMENT.replace(b"bad-target", b"not-found-at-all")[: len(DOCUMENT) + 5]),
    ],
)
def test_a_malformed_response_is_found(bad: bytes) -> None:
    """Cut short, unmarked, or with another status than its document says."""
    with pytest.raises((Violation, ValueError)):
        check_downstream(bad)
