"""Access rules: hosts, web origins, keys, users, methods and paths."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cfproxy.errors import BadTarget, CrossSite, HostNotAllowed, KeyRequired, NotAllowed
from cfproxy.proxy.access import AccessRules, carries_key, overrides_method
from cfproxy.secret import Secret

OWN = "http://localhost:8080"
KEY = Secret("s3cret:key-ü")


# --- Host ---------------------------------------------------------------------------------


def host_passes(
    host: str | None, *hosts: str, port: int | None = 8080, own: tuple[str, ...] = ("127.0.0.1",)
) -> bool:
    try:
        AccessRules(hosts=hosts).check_host(host, port, own)
    except HostNotAllowed:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    [
        "localhost:8080",
        "LOCALHOST.:8080",
        "127.0.0.1:8080",
        "127.9.9.9:8080",
        "[::1]:8080",
        "localhost",
        "localhost:9999",
        "localhost.:65535",
        "127.0.0.1",
        "127.9.9.9:80",
        "[::1]",
        "[::1]:9999",
    ],
)
def test_loopback_names_and_addresses_pass_with_any_port(host: str) -> None:
    """DNS can't make them name another machine, and a forwarded port is not the listener's."""
    assert host_passes(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8080",
        "a.localhost:8080",
        "localhost:65536",
        "localhost:99999",
        "localhost.evil.example:8080",
        "evil.example",
        "192.168.1.5:8080",
        "[::2]:8080",
        "localhost:8080@evil",
        "evil/localhost:8080",
        "localhost:",
        "a b",
        "٠",
    ],
)
def test_other_hosts_are_refused(host: str) -> None:
    """DNS rebinding, foreign names and malformed values are answered with 421."""
    assert not host_passes(host)


def test_the_connections_own_names_pass() -> None:
    """A client that connects to one of the machine's addresses may use it in Host, with any port."""
    for host in ("192.168.1.5:8080", "192.168.1.5", "App.localhost.:9"):
        assert host_passes(host, own=("192.168.1.5", "app.localhost"))
    assert not host_passes("192.168.1.6:8080", own=("192.168.1.5",))
    assert not host_passes("b.app.localhost", own=("192.168.1.5", "app.localhost"))
    assert not host_passes("none", own=())


def test_configured_hosts_pass_with_any_port_or_the_configured_one() -> None:
    """A name in `access.hosts` is accepted with every port, or only with the port it names."""
    assert host_passes("Proxy.Studio:9", "proxy.studio")
    assert host_passes("proxy.studio:9", "Proxy.studio:9")
    assert not host_passes("proxy.studio:8", "proxy.studio:9")
    assert not host_passes("x.proxy.studio", "proxy.studio")


def test_a_malformed_host_never_matches_a_malformed_setting() -> None:
    """Two values that can't be parsed are not equal."""
    assert not host_passes("a b", "http://proxy.studio/", "")


def test_a_missing_host_and_unix_sockets_pass() -> None:
    """Web pages can reach neither HTTP/1.0 without Host nor Unix sockets."""
    assert host_passes(None)
    assert host_passes("anything", port=None)


# --- web pages of other sites -------------------------------------------------------------


def origin_passes(*headers: tuple[bytes, bytes], origins: tuple[str, ...] = ()) -> bool:
    try:
        AccessRules(origins=origins).check_origin(headers, OWN)
    except CrossSite:
        return False
    return True


def test_programs_and_own_pages_pass() -> None:
    """No Origin, the listener's own Origin, and Fetch Metadata's `same-origin` and `none` pass."""
    assert origin_passes()
    assert origin_passes((b"Origin", b"HTTP://localhost:8080"), (b"Sec-Fetch-Site", b"same-origin"))
    assert origin_passes((b"sec-fetch-site", b"none"))


@pytest.mark.parametrize(
    "origin", [b"https://evil.example", b"null", b"", b"http://localhost:8081", b"http://localhost"]
)
def test_a_foreign_origin_is_refused(origin: bytes) -> None:
    """A page of another site, port or scheme can't use the proxy."""
    assert not origin_passes((b"oRiGiN", origin))


@pytest.mark.parametrize("site", [b"cross-site", b"Same-Site", b" cross-site "])
def test_cross_site_requests_without_origin_are_refused(site: bytes) -> None:
    """Images and links send no Origin, but Sec-Fetch-Site gives them away."""
    assert not origin_passes((b"Sec-Fetch-Site", site))


PURPOSES = [
    (b"Sec-Purpose", b"prefetch"),
    (b"Sec-Purpose", b"prefetch;prerender"),
    (b"sec-purpose", b"prefetch;anonymous-client-ip"),
    (b"Sec-Purpose", b"Prefetch; Prerender"),
    (b"SEC-PURPOSE", b"prefetch;prerender;preview"),
    (b"Sec-Purpose", b'"prefetch"'),
    (b"Sec-Purpose", b"something-new, prefetch"),
    (b"Sec-Purpose", b"a-purpose-of-tomorrow"),
    (b"Sec-Purpose", b""),
    (b"Sec_Purpose", b"prefetch"),
    (b"Purpose", b"prefetch"),
    (b"purpose", b"PRERENDER"),
    (b"Purpose", b"preview"),
    (b"X-Purpose", b"preview"),
    (b"X-Purpose", b": preview"),
    (b"X-Purpose", b"prefetch"),
    (b"X-Moz", b"prefetch"),
    (b"x-MOZ", b" Prefetch "),
]
SITE_NONE = (b"Sec-Fetch-Site", b"none")
NAVIGATION = ((b"Sec-Fetch-Mode", b"navigate"), (b"Sec-Fetch-Dest", b"document"))


@pytest.mark.parametrize("purpose", PURPOSES)
def test_what_a_browser_fetches_ahead_is_refused(purpose: tuple[bytes, bytes]) -> None:
    """Speculation rules of any page make Chromium prefetch with `Sec-Fetch-Site: none` and no `Origin`."""
    assert not origin_passes(purpose, SITE_NONE, *NAVIGATION)
    assert not origin_passes(*NAVIGATION, SITE_NONE, purpose)
    assert not origin_passes(purpose)  # to an address where browsers send no Sec-Fetch-Site
    assert not origin_passes(purpose, SITE_NONE, origins=("https://app.studio",))
    for site in (b"cross-site", b"same-site", b"same-origin, none"):
        assert not origin_passes(purpose, (b"Sec-Fetch-Site", site))
    assert not origin_passes(purpose, SITE_NONE, (b"Sec-Fetch-Site", b"same-origin"))


@pytest.mark.parametrize("purpose", PURPOSES)
def test_pages_that_may_call_may_fetch_ahead(purpose: tuple[bytes, bytes]) -> None:
    """A page of this listener's own origin, and one of a listed origin that says so."""
    assert origin_passes(purpose, (b"Sec-Fetch-Site", b"same-origin"))
    listed = (b"Origin", b"https://app.studio")
    site = (b"Sec-Fetch-Site", b"cross-site")
    assert origin_passes(purpose, listed, site, origins=("https://app.studio",))


@pytest.mark.parametrize(
    "header",
    [
        (b"Purpose", b"billing"),
        (b"X-Purpose", b"prefetching-jobs"),
        (b"X-Moz", b"1"),
        (b"X-Sec", b"prefetch"),
    ],
)
def test_a_programs_own_purpose_passes(header: tuple[bytes, bytes]) -> None:
    """Only `Sec-Purpose` is reserved for browsers; other names can mean anything."""
    assert origin_passes(header)


def test_listed_origins_pass_and_none_beside_them() -> None:
    """`access.origins` allows exactly the origins it lists, even if a request carries two."""
    listed = ("https://app.studio",)
    site = (b"Sec-Fetch-Site", b"cross-site")
    assert origin_passes((b"Origin", b"https://APP.studio"), site, origins=listed)
    assert not origin_passes((b"Origin", b"https://app.studio.evil"), site, origins=listed)
    both = ((b"Origin", b"https://app.studio"), (b"Origin", b"https://evil"))
    assert not origin_passes(*both, origins=listed)


# --- keys ---------------------------------------------------------------------------------


def key_in(*headers: tuple[bytes, bytes], keys: tuple[Secret, ...] = (Secret("other"), KEY)) -> Secret | None:
    return AccessRules(keys=keys).check_key(headers)


def basic(pair: str) -> bytes:
    return b"basic " + base64.b64encode(pair.encode())


def test_without_configured_keys_none_is_required() -> None:
    """A loopback listener needs no key by default."""
    assert key_in(keys=()) is None


def test_a_key_is_accepted_in_three_places() -> None:
    """As X-Cfproxy-Key, as Basic password with any user, and as Bearer token."""
    value = KEY.reveal().encode()
    for header in (
        (b"x-CFPROXY-key", b" " + value),
        (b"Authorization", b"Bearer  " + value),
        (b"authorization", basic(f"anyone:{KEY.reveal()}")),
    ):
        assert key_in((b"X", b"y"), header) == KEY


@pytest.mark.parametrize(
    "header",
    [
        (b"X-Cfproxy-Key", b""),
        (b"X-Cfproxy-Key", b"s3cret"),
        (b"X_Cfproxy_Key", "s3cret:key-ü".encode()),
        (b"Authorization", b"Basic !!!"),
        (b"Authorization", b"Basic /w=="),
        (b"Authorization", basic("s3cret:key-ü")),
        (b"Authorization", b"s3cret:key-\xc3\xbc"),
        (b"Authorization", b"Digest s3cret:key-\xc3\xbc"),
        (b"X-Cfproxy-Key", b"\xff\xfe"),
    ],
)
def test_a_missing_or_wrong_key_is_refused(header: tuple[bytes, bytes]) -> None:
    """Wrong, empty, misplaced and undecodable keys get the same answer."""
    with pytest.raises(KeyRequired) as caught:
        key_in(header)
    assert "s3cret" not in str(caught.value)


def test_two_different_keys_are_refused_but_one_may_be_sent_twice() -> None:
    """Two keys may select two accounts, and the proxy chooses neither."""
    other, twice = (b"X-Cfproxy-Key", b"other"), (b"Authorization", basic(f"u:{KEY.reveal()}"))
    mine = (b"X-Cfproxy-Key", KEY.reveal().encode())
    assert key_in(mine, twice) == KEY
    assert key_in(mine, (b"Authorization", b"Bearer wrong")) == KEY
    with pytest.raises(KeyRequired, match="two different access keys"):
        key_in(other, twice)


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each candidate is compared with each key by `hmac.compare_digest`, as digests of equal length."""
    seen = []

    def compare(one: bytes, other: bytes) -> bool:
        seen.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    rules = AccessRules(keys=(Secret("a"), Secret("b" * 99)))
    rules.check_key([(b"X-Cfproxy-Key", b"a"), (b"Authorization", b"Bearer zzz")])
    assert seen == [(32, 32)] * 4


@pytest.mark.parametrize(
    "value",
    [
        KEY.reveal().encode(),
        b" " + KEY.reveal().encode() + b"\t",
        b"Bearer " + KEY.reveal().encode(),
        b"token\t  " + KEY.reveal().encode(),
        b"ApiKey " + KEY.reveal().encode(),
        basic(f"anyone:{KEY.reveal()}"),
    ],
)
def test_a_header_value_that_is_an_access_key_is_recognised(value: bytes) -> None:
    """Alone, behind any scheme word, and as the password of Basic credentials."""
    digests = frozenset(AccessRules(keys=(Secret("other"), KEY)).key_digests)
    assert carries_key(value, digests)
    assert not carries_key(value, frozenset())


@given(st.binary(max_size=40))
@example(KEY.reveal().encode() + b"x")
@example(b"Bearer Bearer " + KEY.reveal().encode())
@example(b"Basic /w==")
def test_no_other_value_is_taken_for_an_access_key(value: bytes) -> None:
    """Ordinary headers pass, whatever bytes they contain."""
    assert not carries_key(value, frozenset(AccessRules(keys=(KEY,)).key_digests))


# --- users --------------------------------------------------------------------------------


def test_only_listed_users_pass() -> None:
    """Without a list every user passes; with one, an unknown user does not."""
    AccessRules().check_user(None)
    rules = AccessRules(uids=frozenset({7}))
    rules.check_user(7)
    for uid in (None, 0, 8):
        with pytest.raises(NotAllowed):
            rules.check_user(uid)


# --- methods and paths --------------------------------------------------------------------


def path_passes(target: bytes, *paths: str) -> bool:
    try:
        AccessRules(paths=paths).check_target("GET", target)
    except NotAllowed:
        return False
    return True


def test_only_listed_methods_are_allowed() -> None:
    """An empty `access.methods` allows all methods."""
    AccessRules().check_target("FOO", b"/")
    AccessRules(methods=("GET",)).check_target("GET", b"/")
    for method in ("POST", "get"):
        with pytest.raises(NotAllowed):
            AccessRules(methods=("GET",)).check_target(method, b"/")


def test_patterns_match_whole_paths() -> None:
    """`*` stays within a segment, `**` crosses segments, and the query is ignored."""
    assert path_passes(b"/v1/jobs/7?x=/..", "/v1/jobs/*")
    assert path_passes(b"/v1/a/b/c", "/v1/**")
    for target in (b"/v1/jobs", b"/v1/jobs/7/steps", b"/x/v1/jobs/7", b"/v1/jobsX7", b"/V1/jobs/7"):
        assert not path_passes(target, "/v1/jobs/*")


@given(
    st.lists(st.sampled_from(["a", "b", "/", "ab", "/a", "*", "**"]), max_size=9).map("".join),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=5).map("/".join).map("/".__add__),
)
@example("*a*b", "/ab/aab")
@example("**/a*b/**/a", "/b/a/ab/b/a")
@example("**a*", "/a/b/aa")
def test_a_pattern_matches_exactly_what_its_wildcards_say(pattern: str, path: str) -> None:
    """Compared with an expression that tries every way in which the wildcards could match."""
    literals = {"**": ".*", "*": "[^/]*"}
    plain = "".join(literals.get(part) or re.escape(part) for part in re.split(r"(\*\*|\*)", pattern))
    assert path_passes(path.encode(), f"/{pattern}") == (re.fullmatch(f"/{plain}", path) is not None)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/v1/*-*-*-*-*-*-*-*", "/v1/" + "-" * 4000 + "/x"),
        ("/v1/*a*b*c*d*e*f", "/v1/" + "abcde" * 800),
        ("/v1/**/a/**/b/**/c/**/d/**/e", "/v1" + "/a/b/c/d" * 500),
        ("/**/*a*a*a*a/**/b", "/v1" + "/aaaaaaaaaaaaaaa" * 250),
        ("/**a**a**a**a**a**b", "/v1/" + "a" * 4000),
    ],
)
def test_no_path_takes_long_to_judge(pattern: str, path: str) -> None:
    """Trying every way in which these wildcards could match would take from minutes to years."""
    assert not path_passes(path.encode(), pattern)
    assert path_passes(path.encode(), f"!{pattern}")


@pytest.mark.parametrize("path", [b"/v1/" + b"a" * 4093, b"/v1/" + b"%" * 32_000, b"/v1/" + b"%CC%A7" * 5000])
def test_a_very_long_path_is_refused_while_there_are_path_rules(path: bytes) -> None:
    """Comparing all its forms would take a tenth of a second."""
    with pytest.raises(BadTarget, match="4096"):
        AccessRules(paths=("/v1/**",)).check_target("GET", path)
    AccessRules(methods=("GET",)).check_target("GET", path)
    AccessRules(paths=("/v1/**",)).check_target("GET", b"/v1/" + b"a" * 4092 + b"?" + path)


def test_a_denial_matches_the_whole_path() -> None:
    """A path that only starts like a denied one is allowed."""
    for path in (b"/v1/adminx", b"/v1/admin/x", b"/xv1/admin", b"/v1"):
        AccessRules(paths=("!/v1/admin",)).check_target("GET", path)


def test_a_denial_overrides_permissions_and_works_alone() -> None:
    """With denials only, everything else is allowed."""
    rules = ("/v1/**", "!/v1/secret/**")
    assert [path_passes(t, *rules) for t in (b"/v1/x", b"/v1/secret/x", b"/v2/x")] == [True, False, False]
    assert [path_passes(t, "!/v1/secret/**") for t in (b"/v2", b"/v1/secret/x")] == [True, False]


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/%73ecret",
        b"/V1/Secret",
        b"/v1/s%45cret",
        b"/v1/secret/",
        b"/v1/secret?a",
        "/v1/\u017fecret".encode(),  # a long s, which is an S in capitals
    ],
)
def test_no_spelling_circumvents_a_denial(target: bytes) -> None:
    """Percent-encoding, letter case and a final slash make no difference."""
    assert not path_passes(target, "!/v1/secret")


def test_permitted_paths_are_compared_decoded() -> None:
    """Encoding a letter makes no difference."""
    assert path_passes(b"/v1/%6aobs", "/v1/jobs")
    assert path_passes(b"/v1/a%20b", "/v1/a b")
    assert path_passes(b"/v1/a%20b", "/v1/a%20b")
    assert path_passes("/v1/ü".encode(), "/v1/ü")


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/../x",
        b"/v1/%2e%2E/x",
        b"/v1//x",
        b"/v1%2Fx",
        b"/v1%5cx",
        b"/v1/x%00",
        b"//evil/v1",
        b"/v1/.",
        b"/v1/%u0061",
        b"/v1/x;a=b",
        b"/v1/x%3Ba",
        b"/v1/%252e%252e/x",
        b"/v1/%2561",
        b"/v1/x%0a",
        b"/v1/x%7F",
        b"/v1/%c0%af",
        b"/v1/\xff",
    ],
)
def test_ambiguous_paths_are_refused_while_there_are_path_rules(target: bytes) -> None:
    """The rules must see the path as the API reads it; without rules, ambiguous paths pass."""
    with pytest.raises(BadTarget):
        path_passes(target, "/**")
    assert path_passes(target)


_SEGMENT = st.text("ab.*", min_size=1, max_size=3)
_PATTERN = st.lists(_SEGMENT, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
_PATH = st.lists(st.text("abAé%", min_size=1, max_size=3), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(part.replace("%", "%61") for part in parts)
)


@given(_PATTERN, _PATH)
def test_no_further_rule_allows_a_denied_path(pattern: str, path: str) -> None:
    """A `!` rule always wins, and `/**` alone allows everything."""
    target = path.encode()
    assert path_passes(target, "/**")
    if not path_passes(target, f"!{pattern}"):
        assert not path_passes(target, pattern, "/**", f"!{pattern}")


@given(_PATH, st.data())
def test_encoding_letters_never_changes_the_decision(path: str, data: st.DataObject) -> None:
    """However much of a path is percent-encoded."""
    raw = re.sub(rb"%61", b"a", path.encode())
    encoded = b"".join(
        b"%%%02x" % byte if byte != ord("/") and data.draw(st.booleans()) else bytes([byte]) for byte in raw
    )
    for rules in (("/a*",), ("!/*a",), ("/*/**", "!/é/*")):
        assert path_passes(raw, *rules) == path_passes(encoded, *rules)


OVERRIDES = [
    b"X-HTTP-Method-Override",
    b"x_http_method_override",
    b"X-HTTP-Method-Overrides",
    b"X-HTTP-Method",
    b"X-Method-Override",
    b"X-Method",
    b"Method",
    b"HTTP-Method-Override",
    b"HTTP_METHOD",
    b"Method-Override",
    b"X-Override-Method",
    b"X-REST-Method",
    b"X-Tunneled-Method",
    b"X-Original-Method",
    b"X-Original-HTTP-Method",
    b"X-Request-Method",
    b"X-HTTP-Verb",
    b"X-HTTP-Verb-Override",
    b"XMethodOverride",
]


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_header_cannot_override_the_allowed_methods(name: bytes) -> None:
    """Some servers take the method from a header; while methods are restricted, such headers are refused."""
    for value in (b"DELETE", b"GET", b""):
        with pytest.raises(NotAllowed):
            AccessRules(methods=("GET",)).check_target("GET", b"/", [(b"X-A", b"b"), (name, value)])
    AccessRules().check_target("GET", b"/", [(name, b"DELETE")])
    assert overrides_method(name.lower())


@pytest.mark.parametrize(
    "name",
    [
        b"Access-Control-Request-Method",
        b"X-Payment-Method",
        b"X-Shipping-Methods",
        b"X-Methodology",
        b"Accept",
    ],
)
def test_other_methods_pass(name: bytes) -> None:
    """Headers about methods of something else."""
    AccessRules(methods=("GET",)).check_target("GET", b"/", [(name, b"DELETE")])


@pytest.mark.parametrize(
    "query",
    [
        b"_method=DELETE",
        b"a=b&_METHOD=delete",
        b"a=b;_method=DELETE",
        b"_method",
        b"%5fmethod=DELETE",
        b"%5F%6dethod=DELETE",
        b".method=DELETE",  # PHP reads `_method`
        b"+_method=DELETE",
        b"_method%00=DELETE",
        b"_method[]=DELETE",
        b"_HttpMethod=PATCH",
        b"$method=DELETE",
        b"$httpMethod=DELETE",
        b"httpMethod=DELETE",
        b"_method_override=DELETE",
        b"X-HTTP-Method-Override=DELETE",
        b"x_http_method=DELETE",
        b"a?_method=1&x-method-override=DELETE",
    ],
)
def test_a_query_cannot_override_the_allowed_methods(query: bytes) -> None:
    """Some servers take the method from a parameter."""
    with pytest.raises(NotAllowed):
        AccessRules(methods=("POST",)).check_target("POST", b"/v1/jobs?" + query)
    AccessRules().check_target("POST", b"/v1/jobs?" + query)


def test_very_many_parameters_that_might_override_the_method_are_refused() -> None:
    """Decoding all of their names would take longer than any honest query is worth."""
    few = b"&".join(b"payment%d%%5fmethod=card" % number for number in range(100))
    AccessRules(methods=("GET",)).check_target("GET", b"/v1?" + few + b"&a=b" * 5000)
    with pytest.raises(NotAllowed):
        AccessRules(methods=("GET",)).check_target("GET", b"/v1?" + few + b"&one_more_method=x")


@pytest.mark.parametrize(
    "query",
    [b"", b"method=jobs.list", b"verb=GetRecord", b"payment_method=card", b"q=_method", b"a=b&&c", b"%"],
)
def test_other_parameters_pass(query: bytes) -> None:
    """A parameter `method` alone names an operation in many APIs."""
    AccessRules(methods=("GET",)).check_target("GET", b"/v1/_method?" + query)
