"""Hop-by-hop headers, and headers that a client may not set in the proxy's name."""

from __future__ import annotations

from cfproxy.proxy.access import AccessRules
from tests.security.case import HOST, Case, get, passes, post, refused, request

BARE = b"GET /a HTTP/1.1\r\n\r\n"
WITH_B = b"GET /a HTTP/1.1\r\nX-B: 1\r\n\r\n"
BEARER = b"Authorization: Bearer client"

DROPPED = (
    b"Authorization: Bearer client",
    b"AUTHORIZATION: Basic Y2xpZW50",
    b"Authorization:",
    b"Proxy-Authorization: Basic Y2xpZW50",
    b"Proxy_Authorization: Basic Y2xpZW50",
    b"Proxy-Authenticate: Basic",
    b"Proxy-Connection: keep-alive",
    b"Keep-Alive: timeout=5",
    b"Keep_Alive: timeout=5",
    b"TE: trailers, deflate",
    b"Trailer: X-T",
    b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
    b"Connection: keep-alive",
    b"Connection:",
    b"Connection: ,, ,",
    b'Connection: @, "x", ;',
    b"X-Cfproxy-Key: abc",
    b"x_cfproxy_key: abc",
    b"Forwarded: for=1.2.3.4;host=evil.example",
    b"X-Forwarded-For: 1.2.3.4",
    b"X-Forwarded-Host: evil.example",
    b"X-Forwarded-Proto: https",
    b"X-Forwarded-Port: 443",
    b"X-Forwarded-Prefix: /evil",
    b"X-Forwarded-Method: DELETE",
    b"X-Forwarded-Uri: /evil",
    b"X-Forwarded-User: admin",
    b"X-Forwarded-Access-Token: abc",
    b"X-Forwarded: for=1.2.3.4",
    b"X_Forwarded_For: 1.2.3.4",
    b"X-Forwarded_For: 1.2.3.4",
    b"x_forwarded-host: evil.example",
    b"X-Original-Forwarded-For: 1.2.3.4",
    b"X-Real-IP: 1.2.3.4",
    b"X_Real_IP: 1.2.3.4",
    b"X-Client-IP: 1.2.3.4",
    b"X-Cluster-Client-IP: 1.2.3.4",
    b"True-Client-IP: 1.2.3.4",
    b"CF-Connecting-IP: 1.2.3.4",
    b"Fastly-Client-IP: 1.2.3.4",
    b"X-Original-URL: /admin",
    b"X-Original-Host: evil.example",
    b"X-Rewrite-URL: /admin",
    b"X_Rewrite_Url: /admin",
    b"X-HTTP-Host-Override: evil.example",
    b"X-Host: evil.example",
    b"Proxy: http://evil.example:8080",  # httpoxy (CVE-2016-5385)
)

LISTED = {
    "Authorization": (b"Connection: Authorization", b"X-B: 1"),
    "Authorization, with one": (b"Connection: close, authorization", BEARER, b"X-B: 1"),
    "Host": (b"Connection: Host", b"X-B: 1"),
    "Via": (b"Connection: Via", b"X-B: 1"),
    "Content-Type": (b"Connection: Content-Type", b"Content-Type: a/b", b"X-B: 1"),
    "a header": (b"Connection: X-A", b"X-A: 1", b"X-B: 1"),
    "a header in capitals": (b"CONNECTION: x-a", b"X-A: 1", b"X-B: 1"),
    "a header's twin": (b"Connection: x_a", b"X-A: 1", b"X_A: 2", b"X-B: 1"),
    "headers in two lines": (b"Connection: X-A", b"X-A: 1", b"Connection: X-C", b"X-C: 1", b"X-B: 1"),
    "a header later on": (b"X-A: 1", b"X-B: 1", b"Connection: keep-alive,X-A"),
    "a header after a tab": (b"Connection: close,\tX-A\t,", b"X-A: 1", b"X-B: 1"),
    "HTTP2-Settings": (b"Connection: HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA", b"X-B: 1"),
}

# Names from which some server takes the method.
OVERRIDES = (
    *(
        b"X-HTTP-Method-Override",
        b"X-HTTP-Method",
        b"X-Method-Override",
        b"HTTP-Method-Override",
        b"X-Method",
    ),
    *(b"X-REST-Method", b"X_Http_Method_Override", b"x-tunneled-method", b"X-HTTP-Verb", b"Method"),
)
POSTING = AccessRules(methods=("POST",))

CASES: tuple[Case, ...] = (
    *(
        refused(
            f"method override: {name.decode()}",
            post(name + b": DELETE", b"Content-Length: 0"),
            "not-allowed",
            rules=POSTING,
        )
        for name in OVERRIDES
    ),
    *(
        passes(
            f"method override in a trailer: {name.decode()}",
            post(
                b"Transfer-Encoding: chunked",
                body=b"3\r\nabc\r\n0\r\n%b: DELETE\r\nX-T: 1\r\n\r\n" % name,
            ),
            b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nabcx-t: 1\r\n",
            rules=POSTING,
        )
        for name in OVERRIDES
    ),
    refused(
        "method override in the query",
        request(b"POST /a?%5Fmethod=DELETE HTTP/1.1", HOST, b"Content-Length: 0"),
        "not-allowed",
        rules=POSTING,
    ),
    passes(
        "method override without rules",
        post(
            b"X-HTTP-Method-Override: DELETE",
            b"Transfer-Encoding: chunked",
            body=b"3\r\nabc\r\n0\r\nX-Method: DELETE\r\n\r\n",
        ),
        b"POST /a HTTP/1.1\r\nX-HTTP-Method-Override: DELETE\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"abcx-method: DELETE\r\n",
    ),
    *(passes(f"dropped: {header.decode()}", get(header, b"X-B: 1"), WITH_B) for header in DROPPED),
    *(passes(f"listed in Connection: {name}", get(*headers), WITH_B) for name, headers in LISTED.items()),
    passes(
        "listed in Connection: Content-Length",
        post(b"Connection: Content-Length", b"Content-Length: 3", body=b"abc"),
        b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
    ),
    passes(
        "listed in Connection: Transfer-Encoding",
        post(b"Connection: Transfer-Encoding", b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"),
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nabc",
    ),
    passes(
        "listed in Connection: trailers and what announces them",
        post(
            b"Connection: Trailer, x_t",
            b"Trailer: X-T, X-U",
            b"Transfer-Encoding: chunked",
            body=b"3\r\nabc\r\n0\r\nX-T: 1\r\nX-U: 2\r\n\r\n",
        ),
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nabcx-u: 2\r\n",
    ),
    passes(
        "listed in Connection: a thousand names",
        get(b"Connection: " + b", ".join(b"X-%d" % n for n in range(1000)), b"X-999: 1"),
        BARE,
    ),
    passes("two Authorizations", get(BEARER, b"Authorization: Basic x", b"X-B: 1"), WITH_B),
    passes(
        "an Authorization for a proxy and one for the API",
        get(BEARER, b"Proxy-Authorization: Bearer x"),
        BARE,
    ),
    passes("cookies of the API", get(b"Cookie: a=1; b=2"), b"GET /a HTTP/1.1\r\nCookie: a=1; b=2\r\n\r\n"),
    passes("another proxy's Via", get(b"Via: 1.0 other", b"via: 1.1 more"), BARE),
    refused("our own Via", get(b"Via: 1.1 cfproxy-test"), "loop"),
    refused("our own Via among others", get(b"Via: 1.0 other", b"Via: 1.1 more, 1.1 cfproxy-test"), "loop"),
    refused("our own Via in capitals", get(b"VIA: 1.1 cfproxy-test"), "loop"),
    refused("control byte in Connection", get(b"Connection: X-A\x00", b"X-A: 1")),
    refused("folded Connection", get(b"Connection: close,", b" Authorization")),
    refused("space before Authorization's colon", get(b"Authorization : Bearer client")),
    passes(
        "an HTTP/1.0 client that stays", request(b"GET /a HTTP/1.0", HOST, b"Connection: keep-alive"), BARE
    ),
)
