"""Cross-origin resource sharing: preflights and CORS headers."""

from __future__ import annotations

import pytest

from cfproxy.http1.headers import CORS_HEADERS
from cfproxy.proxy.cors import (
    listed_origin,
    preflight_origin,
    render_preflight,
    with_cors,
    without_page_headers,
)

PAGE = b"https://App.studio"
LISTED = ("https://app.studio",)
ASK = ((b"Origin", PAGE), (b"Access-Control-Request-Method", b"PUT"))


def test_a_listed_origin_is_returned_as_sent() -> None:
    """Any other origin, a second one, or none gives nothing."""
    assert listed_origin([(b"oRiGiN", PAGE)], LISTED) == PAGE
    for headers in ([], [(b"Origin", b"https://evil")], [(b"Origin", PAGE)] * 2, [(b"Origin", b"null")]):
        assert listed_origin(headers, LISTED) is None
    assert listed_origin([(b"Origin", PAGE)], ()) is None


def test_a_preflight_is_an_options_request_with_two_headers_from_a_listed_origin() -> None:
    """Any other OPTIONS request is forwarded to the API."""
    assert preflight_origin(b"OPTIONS", ASK, LISTED) == PAGE
    assert preflight_origin(b"PUT", ASK, LISTED) is None
    assert preflight_origin(b"OPTIONS", ASK[:1], LISTED) is None
    assert preflight_origin(b"OPTIONS", ASK[1:], LISTED) is None
    assert preflight_origin(b"OPTIONS", ASK, ()) is None


def test_a_preflight_gets_what_it_asks_for() -> None:
    """Its origin, method and headers are allowed, with credentials, and `Vary` names what it depends on."""
    wanted = (b"Access-Control-Request-Headers", b"content-type, x-cfproxy-key")
    answer = dict(render_preflight((*ASK, wanted), PAGE, ()))
    assert answer == {
        b"Access-Control-Allow-Origin": PAGE,
        b"Access-Control-Allow-Credentials": b"true",
        b"Access-Control-Max-Age": b"600",
        b"Access-Control-Allow-Methods": b"PUT",
        b"Access-Control-Allow-Headers": b"content-type, x-cfproxy-key",
        b"Proxy-Status": b'cfproxy; details="preflight"',
        b"Vary": b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
    }


def test_a_preflight_gets_the_allowed_methods() -> None:
    """With `access.methods` these are named, whichever was requested."""
    assert dict(render_preflight(ASK, PAGE, ("GET", "HEAD")))[b"Access-Control-Allow-Methods"] == b"GET, HEAD"


@pytest.mark.parametrize(
    "header",
    [
        (b"Access-Control-Request-Headers", b"a b"),
        (b"Access-Control-Request-Headers", b"a,,b"),
        (b"Access-Control-Request-Headers", b"\xff"),
        (b"Access-Control-Request-Private-Network", b"false"),
    ],
)
def test_malformed_lists_of_names_are_not_echoed(header: tuple[bytes, bytes]) -> None:
    """Nothing malformed is copied into a response."""
    answer = dict(render_preflight((*ASK, header), PAGE, ()))
    assert b"Access-Control-Allow-Headers" not in answer
    assert b"Access-Control-Allow-Private-Network" not in answer


def test_private_network_access_is_granted_to_a_listed_origin() -> None:
    """Its preflight carries one more request header, and gets the matching response header."""
    answer = dict(render_preflight((*ASK, (b"access-control-request-private-network", b"true")), PAGE, ()))
    assert answer[b"Access-Control-Allow-Private-Network"] == b"true"


def test_the_upstreams_cors_headers_are_replaced() -> None:
    """A response names one origin at most, and never one that the upstream chose."""
    upstream = [(name.title(), b"*") for name in sorted(CORS_HEADERS)]
    headers = [*upstream, (b"ETag", b"x"), (b"Set-Cookie", b"a=b"), (b"Vary", b"Accept")]
    assert with_cors(headers, None, ()) == [(b"ETag", b"x"), (b"Set-Cookie", b"a=b"), (b"Vary", b"Accept")]
    got = with_cors(headers, PAGE, LISTED)
    assert [value for name, value in got if name.lower() == b"access-control-allow-origin"] == [PAGE]
    assert (b"Access-Control-Allow-Credentials", b"true") in got
    assert (b"Access-Control-Expose-Headers", b"ETag, Vary") in got
    assert got[-1] == (b"Vary", b"Origin")


def test_responses_vary_by_origin_where_origins_are_listed() -> None:
    """A cached response for a program must not be used for a page, nor the other way round."""
    assert with_cors([], None, LISTED) == [(b"Vary", b"Origin")]
    assert with_cors([], None, ()) == []


@pytest.mark.parametrize(
    "header",
    [
        (b"Origin", PAGE),
        (b"oRIGIN", b"http://localhost:8080"),
        (b"Referer", b"https://app.studio/"),
        (b"Referer", b"https://APP.studio/editor?id=7"),
        (b"referer", b"https://app.studio"),
        (b"Referer", b"http://localhost:8080/docs"),
        (b"Referer", b"https://localhost:8080/docs"),  # behind a TLS terminator
        (b"Sec-Fetch-Site", b"cross-site"),
        (b"sec-fetch-site", b" Same-Site"),
    ],
)
def test_the_api_does_not_learn_of_the_page(header: tuple[bytes, bytes]) -> None:
    """An API compares these with its own address and answers 403; we have judged them by ours."""
    others = ((b"Accept", b"*/*"), (b"Cookie", b"a=1"))
    assert without_page_headers((others[0], header, others[1]), "localhost:8080", LISTED) == others


@pytest.mark.parametrize(
    "header",
    [
        (b"Referer", b"https://elsewhere.example/"),
        (b"Referer", b"https://app.studio.evil/"),
        (b"Referer", b"http://localhost:80801/"),
        (b"Referer", b"/docs"),
        (b"Referer", b""),
        (b"Sec-Fetch-Site", b"same-origin"),
        (b"Sec-Fetch-Site", b"none"),
        (b"Sec-Fetch-Mode", b"cors"),
        (b"Sec-Fetch-Dest", b"empty"),
        (b"X-Origin", PAGE),
        (b"Access-Control-Request-Method", b"PUT"),
    ],
)
def test_other_headers_are_forwarded(header: tuple[bytes, bytes]) -> None:
    """A program's own `Referer`, and what is as true of the API's address as of ours."""
    assert without_page_headers((header,), "localhost:8080", LISTED) == (header,)
