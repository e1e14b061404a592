"""Cases about what reaches the client: status line, headers, answers without a body, redirects, cookies."""

from __future__ import annotations

from tests.conformance.script import Case, again, ask, case, client, down, group, head, origin, say

_STATUSES = [
    b"200 OK",
    b"201 Created",
    b"299 Odd",
    b"401 Unauthorized",
    b"403 Forbidden",
    b"404 Not Found",
    b"418 I'm a teapot",
    b"422 Unprocessable Content",
    b"429 Too Many Requests",
    b"500 Internal Server Error",
    b"502 Bad Gateway",
    b"503 Service Unavailable",
    b"599 Odd",
]

status_lines = group(
    "Status line",
    case("statuses of every kind", *(step for status in _STATUSES for step in (client.sends(ask()),
         origin.gets(), origin.sends(say(status, body=b"{}")),
         client.gets(status=int(status[:3]), body=b"{}")))),
    down("a reason of its own", say(b"429 Not so fast"), start=b"HTTP/1.1 429 Not so fast", body=b""),
    down("an odd reason", say(b"200 Fine, thanks: 100%"), start=b"HTTP/1.1 200 Fine, thanks: 100%", body=b""),
    down("a reason with bytes above 0x7F", say(b"200 Sch\xc3\xb6n \xff"),
         start=b"HTTP/1.1 200 Sch\xc3\xb6n \xff"),
    down("an empty reason", say(b"200 "), start=b"HTTP/1.1 200 ", body=b""),
    down("an error with a body", say(b"400 Bad Request", b"Content-Type: application/problem+json",
         body=b'{"a":1}'), status=400, lines=(b"Content-Type: application/problem+json",), body=b'{"a":1}'),
    down("a challenge", say(b"401 Unauthorized", b'WWW-Authenticate: Bearer error="invalid_token"',
         b"WWW-Authenticate: Basic"), status=401, lines=(b'WWW-Authenticate: Bearer error="invalid_token"',
         b"WWW-Authenticate: Basic")),
    down("Retry-After", say(b"429 Slow Down", b"Retry-After: 0"), status=429, lines=(b"Retry-After: 0",)),
    down("the version is the proxy's own", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
         start=b"HTTP/1.1 200 OK", body=b"ok"),
)  # fmt: skip


def _kept(what: str, *lines: bytes) -> Case:
    return down(what, say(b"200 OK", *lines, body=b"ok"), lines=lines, body=b"ok")


_SPELT = (b"x-lower: 1", b"X-UPPER: 2", b"eTaG: x", b"X_Under_Score: 3")
_ORDERED = (b"Zeta: 1", b"ETag: x", b"Alpha: 2", b"Content-Type: a/b", b"X-Beta: 3")
_DOUBLED = (b"X-A: 1", b"X-B: 2", b"X-A: 3", b"x-a: 4")

headers = group(
    "Answer headers",
    down("names in the case they were written in", say(b"200 OK", *_SPELT), spelt=_SPELT, body=b""),
    down("their order", say(b"200 OK", *_ORDERED), ordered=_ORDERED, body=b""),
    down("duplicates, each in its place", say(b"200 OK", *_DOUBLED), ordered=_DOUBLED, body=b""),
    _kept("duplicates in their own order", *_DOUBLED),
    _kept("values with bytes above 0x7F", b"X-Utf8: gr\xc3\xbc\xc3\x9f", b"X-Latin: \xe4\xf6\xff\x80"),
    _kept("empty values", b"X-Empty:", b"X-Full: 1"),
    _kept("blanks and tabs inside of values", b"X-Blanks: a   b\tc",
          b'Content-Disposition: attachment; filename="a;  b"'),
    _kept("names with an underscore or any token bytes", b"X_Under_Score: 1", b"X!#$%&'*+.^`|~9: 1"),
    _kept("a value of 20,000 bytes", b"X-Long: " + b"v" * 20_000),
    _kept("a hundred headers", *(b"X-%d: %d" % (n, n) for n in range(100))),
    _kept("Date and Server of the origin", b"Date: Sat, 29 Oct 1994 19:43:31 GMT", b"Server: origin/1"),
    _kept("validators and caching", b'ETag: W/"x"', b"Cache-Control: no-store", b"Age: 7", b"Vary: *",
          b"Expires: 0"),
    _kept("Link and Accept-Ranges", b"Link: </b>; rel=next", b"Accept-Ranges: bytes"),
    down("nothing is added, no Date, Server or Content-Type", say(body=b"ok"), only=(b"Content-Length: 2",),
         body=b"ok"),
    down("what Connection lists stays here", say(b"200 OK", b"Connection: keep-alive, X-Mine", b"X-Mine: 1",
         b"X-Kept: 2", body=b"ok"), lines=(b"X-Kept: 2",), lacks=(b"X-Mine",), body=b"ok"),
    down("Keep-Alive of the origin stays here", say(b"200 OK", b"Keep-Alive: timeout=77, max=3", body=b"ok"),
         lacks=(b"Keep-Alive",), body=b"ok"),
    down("Proxy-Authenticate and Upgrade stay here",
         say(b"200 OK", b"Proxy-Authenticate: Basic", b"Upgrade: h2c", b"Connection: upgrade", body=b"ok"),
         lacks=(b"Proxy-Authenticate", b"Upgrade"), body=b"ok"),
)  # fmt: skip

bodiless = group(
    "Answers without a body",
    case("HEAD keeps its Content-Length", client.sends(ask(b"HEAD / HTTP/1.1")),
         origin.gets(start=b"HEAD / HTTP/1.1"),
         origin.sends(head(b"200 OK", b"Content-Length: 1000", b"ETag: x")),
         client.gets(status=200, lines=(b"Content-Length: 1000", b"ETag: x"), to_head=True, body=b""),
         *again()),
    case("HEAD of a chunked answer", client.sends(ask(b"HEAD / HTTP/1.1")), origin.gets(),
         origin.sends(head(b"200 OK", b"Transfer-Encoding: chunked")),
         client.gets(status=200, lacks=(b"Content-Length",), to_head=True, body=b""), *again()),
    case("HEAD without any framing", client.sends(ask(b"HEAD / HTTP/1.1")), origin.gets(),
         origin.sends(head(b"200 OK", b"X-A: 1")),
         client.gets(lines=(b"X-A: 1",), lacks=(b"Content-Length",), to_head=True, body=b""), *again()),
    case("HEAD answered by an error", client.sends(ask(b"HEAD / HTTP/1.1")), origin.gets(),
         origin.sends(head(b"404 Not Found", b"Content-Length: 9")),
         client.gets(status=404, lines=(b"Content-Length: 9",), to_head=True, body=b""), *again()),
    case("204", client.sends(ask(b"DELETE / HTTP/1.1")), origin.gets(),
         origin.sends(head(b"204 No Content", b"X-A: 1")),
         client.gets(status=204, lines=(b"X-A: 1",), lacks=(b"Content-Length", b"Transfer-Encoding"),
         body=b""), *again()),
    case("205 with its Content-Length: 0", client.sends(ask()), origin.gets(),
         origin.sends(say(b"205 Reset Content")),
         client.gets(status=205, lines=(b"Content-Length: 0",), body=b""), *again()),
    case("304 with a Content-Length", client.sends(ask(b"GET / HTTP/1.1", b"If-None-Match: x")),
         origin.gets(), origin.sends(head(b"304 Not Modified", b"ETag: x", b"Content-Length: 1000")),
         client.gets(status=304, lines=(b"ETag: x", b"Content-Length: 1000"), body=b""), *again()),
    case("304 without one", client.sends(ask()), origin.gets(),
         origin.sends(head(b"304 Not Modified", b"ETag: x")),
         client.gets(status=304, lacks=(b"Content-Length", b"Transfer-Encoding"), body=b""), *again()),
    case("200 with Content-Length: 0", client.sends(ask()), origin.gets(), origin.sends(say()),
         client.gets(status=200, lines=(b"Content-Length: 0",), body=b""), *again()),
)  # fmt: skip


def _location(what: str, sent: bytes, got: bytes) -> Case:
    return down(what, say(b"307 Temporary Redirect", b"Location: " + sent),
                status=307,
                leads=(b"Location: " + got,), body=b"")  # fmt: skip


redirects = group(
    "Redirects and cookies",
    _location("a Location on the upstream leads back to the proxy", b"http://ORIGIN/v2?a=b#c",
              b"http://HOST/v2?a=b#c"),
    _location("its path keeps every byte", b"http://ORIGIN/a%2Fb//../c?x=%zz",
              b"http://HOST/a%2Fb//../c?x=%zz"),
    _location("one with the other scheme leads back, too", b"https://ORIGIN/v2", b"http://HOST/v2"),
    _location("a path stays as it is", b"/v2/a%2Fb?x=1", b"/v2/a%2Fb?x=1"),
    _location("a relative one stays as it is", b"../b?x", b"../b?x"),
    _location("another origin stays as it is", b"https://elsewhere.example:8443/ORIGIN?x",
              b"https://elsewhere.example:8443/ORIGIN?x"),
    _location("one that only begins like the upstream stays as it is", b"http://ORIGIN@evil.example/x",
              b"http://ORIGIN@evil.example/x"),
    down("Content-Location is not touched", say(b"200 OK", b"Content-Location: /v2/x", body=b"ok"),
         lines=(b"Content-Location: /v2/x",), body=b"ok"),
    down("Content-Location, Link and Refresh lead back to the proxy",
         say(b"200 OK", b"Content-Location: http://ORIGIN/v2/x",
         b'Link: <http://ORIGIN/v2?page=2>; rel="next"', b"Refresh: 5; url=http://ORIGIN/v2", body=b"ok"),
         leads=(b"Content-Location: http://HOST/v2/x",
         b'Link: <http://HOST/v2?page=2>; rel="next"', b"Refresh: 5; url=http://HOST/v2"), body=b"ok"),
    down("what is about the upstream's whole origin stays here",
         say(b"200 OK", b'Alt-Svc: h3=":443"', b"Strict-Transport-Security: max-age=1",
         b'Clear-Site-Data: "cookies"', body=b"ok"),
         lacks=(b"Alt-Svc", b"Strict-Transport-Security", b"Clear-Site-Data"), body=b"ok"),
    down("a cookie loses the upstream's domain, and nothing else",
         say(b"200 OK", b"Set-Cookie: a=1; Domain=gateway.example; Path=/; HttpOnly; SameSite=Lax",
         body=b"ok"), lines=(b"Set-Cookie: a=1; Path=/; HttpOnly; SameSite=Lax",), body=b"ok"),
    down("a cookie loses what needs https",
         say(b"200 OK", b"Set-Cookie: a=1; Path=/; Secure; SameSite=None",
         b"Set-Cookie: __Host-b=2; Path=/; Secure", body=b"ok"),
         lines=(b"Set-Cookie: a=1; Path=/", b"Set-Cookie: __Host-b=2; Path=/; Secure"), body=b"ok"),
    down("cookies without one stay as they are, each on its line",
         say(b"200 OK", b"Set-Cookie: a=b,c; Expires=Wed, 21 Oct 2026 07:28:00 GMT", b'set-cookie: d="e f"',
         body=b"ok"), lines=(b"Set-Cookie: a=b,c; Expires=Wed, 21 Oct 2026 07:28:00 GMT",
         b'set-cookie: d="e f"'), body=b"ok"),
)  # fmt: skip
