"""Request targets that could lead elsewhere, and some that only look so."""

from __future__ import annotations

from cfproxy.proxy.access import AccessRules
from tests.security.case import AUTHORITY, HOST, Case, get, passes, refused, request

BASE = b"/base"
ONLY_V1 = AccessRules(paths=("/v1/**",))
NOT_ADMIN = AccessRules(paths=("/v1/**", "!/v1/admin/**"))

VERBATIM = {
    "two slashes and a host": b"//evil.example/p",
    "three slashes": b"///evil.example",
    "slash dot slash slash": b"/.//evil.example",
    "dot segments": b"/a/../../b/./c",
    "encoded dot segments": b"/a/%2e%2E/b",
    "a segment of a parameter": b"/a/..;/b",
    "an encoded slash": b"/a%2F..%2fb",
    "an encoded backslash": b"/a%5c..%5Cb",
    "encoded line ends": b"/a%0d%0aHost:%20evil.example",
    "an encoded NUL": b"/a%00b",
    "percent alone": b"/%/%z/%zz/%2",
    "doubly encoded": b"/a/%252e%252e/b",
    "overlong UTF-8": b"/a/%c0%ae%c0%ae/b",
    "an empty query": b"/a?",
    "two question marks": b"/a??b?c",
    "a URL as a query": b"/a?u=http://evil.example/../p",
    "an at sign": b"/@evil.example/p",
    "a colon": b"/:80/p",
    "an address as a path": b"/http://evil.example/p",
    "bare UTF-8": "/grün".encode(),
    "no UTF-8 at all": b"/\xff\xfe",
    "letters that URLs must not have": b'/[]|<>"{}^`',
    "as long as 8 KiB": b"/" + b"a" * 8191,
}

NOT_FORWARDED = {
    "absolute, ours": b"http://" + AUTHORITY + b"/a",
    "absolute": b"http://evil.example/a",
    "absolute with TLS": b"https://evil.example/a",
    "absolute in capitals": b"HTTP://EVIL.EXAMPLE/a",
    "absolute with a user": b"http://localhost@evil.example/a",
    "absolute without a path": b"http://evil.example",
    "absolute with a query alone": b"http://evil.example?a",
    "absolute with one slash": b"http:/evil.example",
    "absolute without a slash": b"http:evil.example",
    "another scheme": b"ftp://evil.example/a",
    "a file": b"file:///etc/passwd",
    "an authority": b"evil.example:443",
    "an authority with a user": b"@evil.example:443",
    "a port": b":443/a",
    "a name": b"evil.example",
    "a relative path": b"a/b",
    "a dot": b"./a",
    "a query": b"?a",
    "a fragment": b"#a",
    "a path with a fragment": b"/a#b",
    "a query with a fragment": b"/a?b#c",
    "an asterisk": b"*",
    "a backslash": b"\\evil.example\\a",
    "slash backslash": b"/\\evil.example",
    "a backslash within": b"/a\\..\\b",
    "a backslash in the query": b"/a?b\\c",
    "a space": b"/a b",
    "a tab": b"/a\tb",
    "NUL": b"/a\x00b",
    "SOH": b"/a\x01b",
    "CR": b"/a\rb",
    "LF": b"/a\nb",
    "vertical tab": b"/a\x0bb",
    "DEL": b"/a\x7fb",
    "an encoded slash alone": b"%2fa",
    "a semicolon": b";/a",
    "longer than a line may be": b"/" + b"a" * 40_000,
    "a query longer than a line may be": b"/a?" + b"b" * 40_000,
}

OUT_OF_BASE = {
    "..": b"/..",
    "../": b"/../admin",
    "a/..": b"/a/../../admin",
    ".": b"/./a",
    "%2e%2e": b"/%2e%2e/admin",
    "%2E.": b"/%2E./admin",
    "..;": b"/..;/admin",
    "..;a=b": b"/a/..;a=b/admin",
    "..%2f": b"/..%2fadmin",
    "%2f..": b"/a%2f..%2f..%2fadmin",
    "..%5c": b"/..%5cadmin",
    "..?": b"/..?a",
    "%252e%252e": b"/%252e%252e/admin",
    "%c0%ae": b"/%c0%ae%c0%ae/admin",
}

TWO_READINGS = {
    "dot segments": b"/v1/../admin",
    "encoded dot segments": b"/v1/%2e%2e/admin",
    "a dot": b"/v1/./admin/x",
    "an encoded slash": b"/v1/admin%2fx",
    "an encoded backslash": b"/v1/admin%5cx",
    "an encoded NUL": b"/v1/admin%00/x",
    "two slashes": b"/v1//admin/x",
    "two slashes first": b"//v1/admin/x",
    "a lone percent": b"/v1/%zadmin/x",
    "a doubly encoded slash": b"/v1/admin%252fx",
    "a parameter": b"/v1/admin;a/x",
    "overlong UTF-8": b"/v1/%c0%ae%c0%ae/admin",
}

CASES: tuple[Case, ...] = (
    *(
        passes(f"target: {name}", get(target=target), b"GET %s HTTP/1.1\r\n\r\n" % target)
        for name, target in VERBATIM.items()
    ),
    *(refused(f"target: {name}", get(target=target)) for name, target in NOT_FORWARDED.items()),
    refused("target: OPTIONS of everything", request(b"OPTIONS * HTTP/1.1", HOST)),
    refused("target: none", request(b"GET  HTTP/1.1", HOST)),
    refused("target: none and one space", request(b"GET HTTP/1.1", HOST)),
    refused("target: a method alone", request(b"GET", HOST)),
    *(
        refused(f"target: out of the base path by {name}", get(target=t), base_path=BASE)
        for name, t in OUT_OF_BASE.items()
    ),
    passes(
        "target: within a base path",
        get(target=b"/a?../b"),
        b"GET /base/a?../b HTTP/1.1\r\n\r\n",
        base_path=BASE,
    ),
    passes(
        "target: two slashes within a base path",
        get(target=b"//evil.example"),
        b"GET /base//evil.example HTTP/1.1\r\n\r\n",
        base_path=BASE,
    ),
    passes("target: a path that rules allow", get(target=b"/v1/jobs?a=/../b"), rules=ONLY_V1),
    refused("target: a path that rules do not allow", get(target=b"/v2/jobs"), "not-allowed", rules=ONLY_V1),
    refused("target: a path that rules deny", get(target=b"/v1/admin/x"), "not-allowed", rules=NOT_ADMIN),
    refused(
        "target: a path that rules deny in capitals",
        get(target=b"/v1/ADMIN/x"),
        "not-allowed",
        rules=NOT_ADMIN,
    ),
    refused(
        "target: an encoded path that rules deny",
        get(target=b"/v1/%61dmin/x"),
        "not-allowed",
        rules=NOT_ADMIN,
    ),
    *(
        refused(f"target: with rules, {name}", get(target=target), rules=NOT_ADMIN)
        for name, target in TWO_READINGS.items()
    ),
)
