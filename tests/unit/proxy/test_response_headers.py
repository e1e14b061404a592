"""What the API's response headers say about its own address is translated, or dropped."""

from __future__ import annotations

from urllib.parse import urljoin

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cfproxy.proxy.request_headers import Origin
from cfproxy.proxy.response_headers import build_response_headers

Header = tuple[bytes, bytes]

ORIGIN = Origin("https", b"gateway.example", b"", b"cfproxy-me")
BASED = Origin("https", b"gateway.example", b"/base", b"cfproxy-me")
DEEP = Origin("https", b"gateway.example", b"/a/b", b"cfproxy-me")
WITH_PORT = Origin("https", b"gateway.example:8443", b"", b"cfproxy-me")
PLAIN = Origin("http", b"[::1]:8080", b"", b"cfproxy-me")


def came_down(*headers: Header, origin: Origin = ORIGIN) -> list[Header]:
    return build_response_headers(headers, origin)


def location(value: bytes, origin: Origin = ORIGIN) -> bytes:
    [(_, given_value)] = came_down((b"Location", value), origin=origin)
    return given_value


def cookie(value: bytes, origin: Origin = ORIGIN) -> bytes | None:
    headers = came_down((b"Set-Cookie", value), origin=origin)
    return headers[0][1] if headers else None


def test_the_apis_cors_headers_are_dropped() -> None:
    """They are about its own address, and pages read ours."""
    assert (
        came_down((b"Access-Control-Allow-Origin", b"*"), (b"access_control_allow_credentials", b"true"))
        == []
    )


def test_response_headers_keep_order_case_duplicates_and_high_bytes() -> None:
    """The client gets them as the API sent them."""
    headers = [
        (b"dATE", b"now"),
        (b"X", b"\xff"),
        (b"Server", b"s"),
        (b"X", b""),
        (b"WWW-Authenticate", b"Bearer"),
    ]
    assert came_down(*headers) == headers


# --- URLs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        b"https://gateway.example/v1?a#b",
        b"HTTPS://Gateway.EXAMPLE/v1?a#b",
        b"https://gateway.example:443/v1?a#b",
        b"https://gateway.example:/v1?a#b",
        b"https://gateway.example.:0443/v1?a#b",
        b"//Gateway.example/v1?a#b",
        b"//gateway.example:443/v1?a#b",
        b"http://gateway.example/v1?a#b",
        b"HTTP://GATEWAY.example:80/v1?a#b",
        b"http://gateway.example:443/v1?a#b",
        b"https://gateway.example/v1\t?a#b",
        b"ht\ttps://gateway.example/v1?a#b",
    ],
)
def test_a_redirect_to_the_api_leads_through_the_proxy(value: bytes) -> None:
    """Whatever the spelling and the scheme: servers behind a TLS terminator say http.

    A path has no scheme that could be wrong for clients behind a TLS terminator of ours.
    """
    assert location(value) == b"/v1?a#b"


@pytest.mark.parametrize(
    ("value", "origin", "expected"),
    [
        (b"https://gateway.example", ORIGIN, b"/"),
        (b"https://gateway.example?x", ORIGIN, b"/?x"),
        (b"https://gateway.example#x", ORIGIN, b"/#x"),
        (b"https://gateway.example:8443/x", WITH_PORT, b"/x"),
        (b"http://gateway.example:8443/x", WITH_PORT, b"/x"),
        (b"//gateway.example:8443/x", WITH_PORT, b"/x"),
        (b"https://[::1]:8080/x", PLAIN, b"/x"),
        (b"http://[::1]:8080/x", PLAIN, b"/x"),
    ],
)
def test_redirects_of_other_forms(value: bytes, origin: Origin, expected: bytes) -> None:
    """Without a path, with a port, with an IPv6 address."""
    assert location(value, origin) == expected


@pytest.mark.parametrize(
    "value",
    [
        b"https://gateway.example.evil/",
        b"https://gateway.example:444/",
        b"https://gateway.example:80/",
        b"http://gateway.example:8080/",
        b"https://gateway.example:000000443/",
        b"https://gateway.example:" + b"4" * 5000 + b"/",
        b"https://user@gateway.example/",
        b"https://evil/?https://gateway.example/",
        b"https://gateway.example\\@evil/",
        b"wss://gateway.example/",
        b"//gateway.example:444/x",
        b"//evil.example/x",
        b"///gateway.example/x",
        b"/v1/x",
        b"/v1/\tx",
        b"relative",
        b"?x",
        b"",
        b"mailto:a@b",
    ],
)
def test_other_redirects_are_unchanged(value: bytes) -> None:
    """Locations on other origins and relative ones pass."""
    assert location(value) == value
    if not value.startswith(b"/v1"):
        assert location(value, BASED) == value


@pytest.mark.parametrize("value", [b"https://gateway.example/x", b"http://gateway.example/x"])
def test_the_default_port_is_not_that_of_an_upstream_on_another(value: bytes) -> None:
    """There may be another server on it."""
    assert location(value, WITH_PORT) == value


def test_the_base_path_is_removed_from_redirects() -> None:
    """A Location outside the base path leads to the API itself."""
    for before in (b"https://gateway.example", b"http://gateway.example:80", b"//gateway.example", b""):
        assert location(before + b"/base/v1?x", BASED) == b"/v1?x"
        assert location(before + b"/base", BASED) == b"/"
        assert location(before + b"/base/", BASED) == b"/"
        assert location(before + b"/base?x", BASED) == b"/?x"
    for before in (b"https://gateway.example", b"//gateway.example", b""):
        assert location(before + b"/basement/x", BASED) == b"https://gateway.example/basement/x"
        assert location(before + b"/Base/x", BASED) == b"https://gateway.example/Base/x"
    assert location(b"//base/x", BASED) == b"//base/x"


@pytest.mark.parametrize(
    "before", [b"https://gateway.example", b"https://gateway.example/base", b"/base", b""]
)
@pytest.mark.parametrize(
    "path",
    [b"//evil.example/x", b"/\\evil.example/x", b"/\t/evil.example/x", b"/\t\\evil.example", b"/\t\t//evil"],
)
def test_a_redirect_to_the_api_never_leads_to_another_host(before: bytes, path: bytes) -> None:
    """`//evil` behind the address is a path. Browsers ignore a tab, and take a backslash for a slash."""
    value = before + path
    if value.startswith(b"//"):
        return  # that is the address of another host
    for origin in (ORIGIN, BASED):
        got = location(value, origin)
        assert not got.translate(None, b"\t").replace(b"\\", b"/").startswith(b"//")
        host = b"" if got.startswith(b"/") else b"https://gateway.example"
        assert got.startswith(host + b"/")


_PIECES = st.sampled_from(
    [b"/", b"\\", b"\t", b" ", b"evil.example", b"base", b".", b"%2f", b"?", b"#", b"@", b":", b"https:"]
)


@given(
    st.sampled_from([b"", b"https://gateway.example", b"http://gateway.example:80", b"//gateway.example"]),
    st.lists(_PIECES, max_size=8).map(lambda pieces: b"/" + b"".join(pieces)),
    st.sampled_from([ORIGIN, BASED]),
)
@example(b"https://gateway.example", b"/\t/evil.example", ORIGIN)
def test_what_is_translated_stays_on_the_proxy_or_the_api(before: bytes, path: bytes, origin: Origin) -> None:
    """Browsers and other clients resolve it to one of the two."""
    if not before and path.startswith(b"//"):
        return
    got = location(before + path, origin).translate(None, b"\t").replace(b"\\", b"/").decode()
    resolved = urljoin("http://localhost:8080/a", got)
    assert resolved.startswith(("http://localhost:8080/", "https://gateway.example/"))


def test_content_location_is_translated_like_location() -> None:
    """It names a resource of the API (RFC 9110 §8.7)."""
    assert came_down((b"Content-Location", b"https://gateway.example/v1/jobs/7")) == [
        (b"Content-Location", b"/v1/jobs/7")
    ]
    assert came_down((b"content-location", b"/base/x"), origin=BASED) == [(b"content-location", b"/x")]
    for value in (b"/v1/jobs/7", b"jobs.en.json", b"https://other.example/v1"):
        assert came_down((b"Content-Location", value)) == [(b"Content-Location", value)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"5; url=https://gateway.example/base/v1?a=b", b"5; url=/v1?a=b"),
        (b"0;URL=/base/v1", b"0;URL=/v1"),
        (b"0;url = '/base/v1'; x", b"0;url = '/v1'; x"),
        (b'0, url="http://gateway.example/base/v1"', b'0, url="/v1"'),
        (b"1.5 /base/v1", b"1.5 /v1"),
        (b"5", b"5"),
        (b"", b""),
        (b"5; url=https://evil.example/base", b"5; url=https://evil.example/base"),
        (b"5; url=v1/jobs", b"5; url=v1/jobs"),
    ],
)
def test_refresh_is_translated(value: bytes, expected: bytes) -> None:
    """In all forms that browsers read (HTML standard, "shared declarative refresh steps")."""
    assert came_down((b"Refresh", value), origin=BASED) == [(b"Refresh", expected)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            b'<https://gateway.example/base/v1/jobs?page=2>; rel="next", <HTTP://GATEWAY.example/base/v1/jobs>;rel=first',
            b'</v1/jobs?page=2>; rel="next", </v1/jobs>;rel=first',
        ),
        (b"</base/style.css>; rel=preload; as=style", b"</style.css>; rel=preload; as=style"),
        (b"</x>; rel=next", b"<https://gateway.example/x>; rel=next"),
        (b"<?page=2>; rel=next", b"<?page=2>; rel=next"),
        (b"<https://other.example/base>; rel=next", b"<https://other.example/base>; rel=next"),
        (b'</base/a>; title="a < b"', b'</a>; title="a < b"'),
        (b"", b""),
        (b"<</base/x", b"<</base/x"),
    ],
)
def test_links_are_translated(value: bytes, expected: bytes) -> None:
    """Clients that follow `rel=next` from page to page stay on the proxy (RFC 8288)."""
    assert came_down((b"Link", value), origin=BASED) == [(b"Link", expected)]
    assert came_down((b"link", value.replace(b"/base", b""))) == [
        (b"link", expected.replace(b"https://gateway.example/x", b"/x").replace(b"/base", b""))
    ]


@pytest.mark.parametrize("name", [b"Location", b"Content-Location", b"Refresh", b"Link", b"Set-Cookie"])
@pytest.mark.parametrize(
    "unit", [b"<", b"</base", b";", b" ", b"/", b"\t", b"9", b"url=", b";path=", b"://", b"'"]
)
def test_no_value_is_slow_to_translate(name: bytes, unit: bytes) -> None:
    """Each value is read a fixed number of times: the longest takes no more than a fraction of a second."""
    value = unit * (128 * 1024 // len(unit))
    assert len(came_down((name, value), origin=BASED)) == 1


# --- cookies --------------------------------------------------------------------------------


def test_a_cookie_loses_what_is_no_attribute_of_an_honest_one() -> None:
    """None of very many attributes passes unseen; there are about ten."""
    assert cookie(b"a=b" + b"; x" * 64 + b"; Domain=gateway.example" * 5000) == b"a=b" + b"; x" * 64


def test_a_cookie_loses_the_apis_domain() -> None:
    """The client would reject a cookie for the API's `Domain`."""
    assert cookie(b"a=1; Domain=gateway.example; Path=/") == b"a=1; Path=/"
    assert cookie(b"a=1;domain=.gateway.example;HttpOnly") == b"a=1;HttpOnly"
    assert cookie(b"domain=x;DOMAIN = .example") == b"domain=x"
    assert cookie(b'a=1; Domain="gateway.example"; Domain=other.example') == b"a=1"
    assert cookie(b"b=Domain=y; HttpOnly") == b"b=Domain=y; HttpOnly"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"a=1; Secure", b"a=1"),
        (b"a=1; secure; HttpOnly", b"a=1; HttpOnly"),
        (b"a=1;SECURE=;Path=/", b"a=1;Path=/"),
        (b"a=1; Secure; SameSite=None", b"a=1"),
        (b"a=1; samesite = NONE ; Secure; Partitioned", b"a=1"),
        (b"a=1; SameSite=Lax; Secure", b"a=1; SameSite=Lax"),
        (b"a=1; SameSite=Strict; Secure; Max-Age=60", b"a=1; SameSite=Strict; Max-Age=60"),
        (b"secure=1; Path=/", b"secure=1; Path=/"),
        (b"a=secure; Path=/", b"a=secure; Path=/"),
        (b"a=1; Insecure", b"a=1; Insecure"),
        (b"a=1; SameSite=None", b"a=1; SameSite=None"),
        (b"a=1; Partitioned", b"a=1; Partitioned"),
        (b"__secure=1; Secure", b"__secure=1"),
        (b"x__Host-a=1; Secure", b"x__Host-a=1"),
    ],
)
def test_a_cookie_works_over_plain_http(value: bytes, expected: bytes) -> None:
    """Clients send `Secure` ones over https only, and browsers reject what needs it."""
    assert cookie(value) == expected


@pytest.mark.parametrize(
    "prefix", [b"__Secure-", b"__Host-", b"__HOST-", b"__secure-", b"__Http-", b"__Host-Http-"]
)
def test_a_cookie_whose_name_needs_secure_keeps_it(prefix: bytes) -> None:
    """Browsers reject such a name without `Secure`, and accept it on localhost with it."""
    value = prefix + b"a=1; Path=/; Secure; SameSite=None; Partitioned"
    assert cookie(value) == value
    assert cookie(b" " + value.replace(b"; Path", b"; Domain=gateway.example; Path")) == b" " + value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"a=1; Domain=x; SameSite=None; Secure; Partitioned", b"a=1; SameSite=None; Secure; Partitioned"),
        (b"a=1; samesite=none;secure", b"a=1; samesite=none;secure"),
        (b"a=1; SameSite=Lax; Secure", b"a=1; SameSite=Lax"),
        (b"a=1; Secure", b"a=1"),
    ],
)
def test_a_cookie_for_pages_of_other_sites_keeps_what_these_need(value: bytes, expected: bytes) -> None:
    """A browser sets `SameSite=None` only with `Secure`, and takes localhost for secure."""
    assert build_response_headers([(b"Set-Cookie", value)], ORIGIN, to_page=True) == [
        (b"Set-Cookie", expected)
    ]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/base", b"/"),
        (b"/base/", b"/"),
        (b"/base/x", b"/x"),
        (b"/base/x/", b"/x/"),
        (b"/base/base", b"/base"),
        (b"/base//x", b"//x"),
        (b'"/base"', b'"/"'),
        (b'"/base/x"', b'"/x"'),
        (b"/", b"/"),
        (b"/basement", b"/basement"),
        (b"/Base", b"/Base"),
        (b"/BASE/x", b"/BASE/x"),
        (b"/other", b"/other"),
        (b"base", b"base"),
        (b"", b""),
    ],
)
@pytest.mark.parametrize(
    "spelling", [b"a=1; Path=%b", b"a=1;path=%b; HttpOnly", b"a=1; PATH = %b ;Max-Age=1"]
)
def test_the_path_of_a_cookie_loses_the_base_path(path: bytes, expected: bytes, spelling: bytes) -> None:
    """Clients know the API's paths without it."""
    got = cookie(spelling % path, BASED)
    assert got is not None
    assert got.replace(b" = ", b"=").replace(b" ;", b";") == (spelling % expected).replace(
        b" = ", b"="
    ).replace(b" ;", b";")
    assert cookie(spelling % path) == spelling % path  # without a base path nothing changes


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/a", b"/"),
        (b"/a/", b"/"),
        (b"/a/b", b"/"),
        (b"/a/b/c", b"/c"),
        (b"/a/bc", b"/a/bc"),
        (b"/a/c", b"/a/c"),
    ],
)
def test_the_path_of_a_cookie_may_end_within_the_base_path(path: bytes, expected: bytes) -> None:
    """It includes the whole base path then."""
    assert cookie(b"a=1; Path=" + path, DEEP) == b"a=1; Path=" + expected


def test_a_path_inside_of_a_value_is_none() -> None:
    """The first part of a cookie is its name and value."""
    assert cookie(b"path=/base/x; Path=/base", BASED) == b"path=/base/x; Path=/"


@pytest.mark.parametrize(
    "value",
    [
        b"Cfproxy-login=1",
        b"cfproxy-login-default=x; Path=/",
        b" \tcfproxy-login=1",
        b"=cfproxy-login-default=x",
        b" = cfproxy-login-default=x",
        b"=\tCFPROXY-login=1",
        b"==cfproxy-login=1",
        b"cfproxy",
    ],
)
def test_the_api_cannot_set_an_admin_cookie(value: bytes) -> None:
    """Browsers send the value of a nameless cookie alone, which then looks like a name and a value."""
    assert cookie(value) is None


@pytest.mark.parametrize("value", [b"a=cfproxy", b"a=cfproxy-login=1", b"=a", b"xcfproxy=1", b"=", b""])
def test_other_cookies_may_contain_our_name(value: bytes) -> None:
    """Only the beginning counts."""
    assert cookie(value) == value


# --- what is said about the whole origin ----------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        (b"Alt-Svc", b'h3=":443"; ma=86400'),
        (b"alt-svc", b"clear"),
        (b"Alt_Svc", b'h2="other.example:443"'),
        (b"Strict-Transport-Security", b"max-age=31536000; includeSubDomains; preload"),
        (b"Clear-Site-Data", b'"cookies", "storage"'),
        (b"NEL", b'{"report_to":"a","max_age":1}'),
        (b"Set-Cookie2", b'a=1; Domain="gateway.example"'),
    ],
)
def test_what_is_about_the_apis_whole_origin_is_dropped(header: Header) -> None:
    """A browser would apply it to our host, which other programs on this machine share."""
    assert came_down(header, (b"X-A", b"1")) == [(b"X-A", b"1")]


@pytest.mark.parametrize(
    "header",
    [
        (b"Timing-Allow-Origin", b"https://gateway.example"),
        (b"Content-Security-Policy", b"connect-src https://gateway.example"),
        (b"Cross-Origin-Resource-Policy", b"same-origin"),
        (b"Report-To", b'{"endpoints":[{"url":"https://gateway.example/r"}]}'),
        (b"WWW-Authenticate", b'Bearer resource_metadata="https://gateway.example/.well-known/x"'),
        (b"X-Base", b"https://gateway.example/base"),
        (b"SourceMap", b"/base/app.js.map"),
    ],
)
def test_other_headers_pass_whatever_they_name(header: Header) -> None:
    """They are not about where a client sends its next request."""
    assert came_down(header, origin=BASED) == [header]
