"""Cases about what reaches the origin: target, method, headers, the token and what must not pass."""

from __future__ import annotations

from tests.conformance.script import Case, ask, case, client, group, origin, post, say, up

TARGETS = {
    "the root": b"/",
    "an encoded slash, %2F": b"/a%2Fb",
    "encoded bytes in the case they were written in": b"/%e2%82%AC",
    "empty segments, //": b"//a//b/",
    "dot segments": b"/a/../b/./c/..",
    "encoded dot segments": b"/a/%2e%2e/b",
    "an empty query": b"/a?",
    "a query of odd bytes": b"/a?b=1&b=2&=&c=%20+&d=a=b&e=/../",
    "question marks in the query": b"/a??b?c",
    "a URL in the query": b"/a?next=http://x.example//y",
    "an encoded NUL": b"/a%00b",
    "raw UTF-8": b"/caf\xc3\xa9?q=\xc3\xbc",
    "unusual printable bytes": b'/[]|<>"{}^`~',
    "sub-delimiters": b"/a;b=c,d:@!$&'()*+=",
    "percent signs that encode nothing": b"/100%/%zz",
    "a target of 7,000 bytes": b"/" + b"x" * 6_999,
}

_URL = b"http://HOST"
_FOREIGN = b"\r\nHost: other.example\r\n\r\n"

targets = group(
    "Request target",
    *(
        up(
            what,
            ask(b"GET %s HTTP/1.1" % target),
            start=b"GET %s HTTP/1.1" % target,
        )
        for what, target in TARGETS.items()
    ),
    up("a URL of the proxy is its path and query", ask(b"GET %s/a?b=c HTTP/1.1" % _URL),
       start=b"GET /a?b=c HTTP/1.1"),
    up("a URL without a path is the root", ask(b"GET %s?b HTTP/1.1" % _URL), start=b"GET /?b HTTP/1.1"),
    up("a URL counts for more than Host", b"GET %s/a HTTP/1.1" % _URL + _FOREIGN, start=b"GET /a HTTP/1.1",
       lines=(b"Host: ORIGIN",)),
)  # fmt: skip

methods = group(
    "Methods",
    up("PUT with a body", ask(b"PUT /p HTTP/1.1", b"Content-Length: 2", body=b"ab"),
       start=b"PUT /p HTTP/1.1", body=b"ab"),
    up("PATCH with a body", ask(b"PATCH /p HTTP/1.1", b"Content-Length: 2", body=b"ab"),
       start=b"PATCH /p HTTP/1.1", body=b"ab"),
    up("DELETE with a body", ask(b"DELETE /p HTTP/1.1", b"Content-Length: 2", body=b"ab"),
       start=b"DELETE /p HTTP/1.1", body=b"ab"),
    up("DELETE without a body", ask(b"DELETE /p HTTP/1.1"), start=b"DELETE /p HTTP/1.1", framed="none"),
    up("GET with a body", ask(b"GET /p HTTP/1.1", b"Content-Length: 2", body=b"ab"),
       start=b"GET /p HTTP/1.1", body=b"ab"),
    up("OPTIONS", ask(b"OPTIONS /p HTTP/1.1"), start=b"OPTIONS /p HTTP/1.1"),
    up("PROPFIND, of another RFC", ask(b"PROPFIND /p HTTP/1.1"), start=b"PROPFIND /p HTTP/1.1"),
    up("a method that nobody has registered", ask(b"FROB /p HTTP/1.1"), start=b"FROB /p HTTP/1.1"),
)  # fmt: skip


def _kept(what: str, *lines: bytes) -> Case:
    return up(what, ask(b"GET / HTTP/1.1", *lines), lines=lines)


_SPELT = (b"x-lower: 1", b"X-UPPER: 2", b"X-miXed: 3", b"X_Under_Score: 4")
_ORDERED = (b"Zeta: 1", b"Alpha: 2", b"Accept: */*", b"X-Beta: 3")
_DOUBLED = (b"X-A: 1", b"X-B: 2", b"X-A: 3", b"x-a: 4")

headers = group(
    "Request headers",
    up("names in the case they were written in", ask(b"GET / HTTP/1.1", *_SPELT), spelt=_SPELT),
    up("their order", ask(b"GET / HTTP/1.1", *_ORDERED), ordered=_ORDERED),
    up("duplicates, each in its place", ask(b"GET / HTTP/1.1", *_DOUBLED), ordered=_DOUBLED),
    _kept("duplicates in their own order", *_DOUBLED),
    _kept("values with bytes above 0x7F", b"X-Utf8: gr\xc3\xbc\xc3\x9f", b"X-Latin: \xe4\xf6\xff\x80"),
    _kept("empty values", b"X-Empty:", b"X-Blank:   ", b"X-Full: 1"),
    _kept("blanks and tabs inside of values", b"X-Blanks: a   b\tc", b'X-Quoted: "a, b" ; c'),
    _kept("names with an underscore", b"X_Under_Score: 1", b"api_version: 2"),
    _kept("names of any token bytes", b"X!#$%&'*+.^`|~9: 1"),
    _kept("a value of 20,000 bytes", b"X-Long: " + b"v" * 20_000),
    _kept("a hundred headers", *(b"X-%d: %d" % (n, n) for n in range(100))),
    _kept("two Cookie lines", b"Cookie: a=1; b=2", b"Cookie: c=3"),
    _kept("conditions", b'If-None-Match: W/"a", "b"', b"If-Modified-Since: Sat, 29 Oct 1994 19:43:31 GMT"),
    _kept("Range and If-Range", b"Range: bytes=0-1,5-", b'If-Range: "x"'),
    _kept("Accept-Encoding as it was asked", b"Accept-Encoding: br;q=1.0, gzip;q=0.8, *;q=0.1"),
    _kept("User-Agent", b"User-Agent: FileMaker/21 (x; y)"),
    up("nothing is added to a GET but Via and the token", ask(b"GET / HTTP/1.1"), only=()),
    up("nothing is added to a POST either", post(b"X-A: 1", body=b"ab"),
       only=(b"X-A: 1", b"Content-Length: 2"), body=b"ab"),
)  # fmt: skip

_OFFER = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAI")

credentials = group(
    "Token and hop-by-hop headers of a request",
    up("the client's Authorization is replaced", ask(b"GET / HTTP/1.1", b"Authorization: Bearer other")),
    up("in any case", ask(b"GET / HTTP/1.1", b"authORIZATION: Basic eDp5")),
    up("two of them are replaced by one", ask(b"GET / HTTP/1.1", b"Authorization: Basic eDp5",
       b"Authorization: Bearer other")),
    up("the token survives Connection: Authorization", ask(b"GET / HTTP/1.1", b"Connection: Authorization")),
    up("Host is the upstream's", ask(b"GET / HTTP/1.1"), lines=(b"Host: ORIGIN",)),
    up("what Connection lists stays here", ask(b"GET / HTTP/1.1", b"Connection: keep-alive, X-Mine, x-too",
       b"X-Mine: 1", b"X-Too: 2", b"X-Kept: 3"), lines=(b"X-Kept: 3",), lacks=(b"X-Mine", b"X-Too")),
    up("Keep-Alive stays here", ask(b"GET / HTTP/1.1", b"Keep-Alive: timeout=5"), lacks=(b"Keep-Alive",)),
    up("an offer of HTTP/2 is declined", ask(b"GET / HTTP/1.1", *_OFFER), only=()),
    up("likewise with a body", post(*_OFFER, body=b"ab"), only=(b"Content-Length: 2",), body=b"ab"),
    up("an offer of TLS is declined", ask(b"GET / HTTP/1.1", b"Connection: Upgrade", b"Upgrade: TLS/1.0"),
       only=()),
    up("Proxy-Connection stays here", ask(b"GET / HTTP/1.1", b"Proxy-Connection: keep-alive"),
       lacks=(b"Proxy-Connection",)),
    up("Proxy-Authorization stays here", ask(b"GET / HTTP/1.1", b"Proxy-Authorization: Basic eDp5"),
       lacks=(b"Proxy-Authorization",)),
    up("what a client claims about forwarding is not passed on",
       ask(b"GET / HTTP/1.1", b"X-Forwarded-For: 1.2.3.4", b"Forwarded: for=1.2.3.4"), hides=b"1.2.3.4"),
    up("Via tells of the proxy", ask(), via=(b"1.1",)),
    up("Via tells of the proxy after those before it",
       ask(b"GET / HTTP/1.1", b"Via: 1.0 fred, 1.1 p.example"),
       via=(b"1.0 fred", b"1.1 p.example", b"1.1")),
    up("Via tells the version that an HTTP/1.0 client speaks", b"GET / HTTP/1.0\r\nHost: HOST\r\n\r\n",
       via=(b"1.0",)),
    case("every request of a connection gets the token", client.sends(ask(b"GET /1 HTTP/1.1")),
         origin.gets(start=b"GET /1 HTTP/1.1"), origin.sends(say(body=b"1")), client.gets(body=b"1"),
         client.sends(ask(b"GET /2 HTTP/1.1", b"Authorization: x")), origin.gets(start=b"GET /2 HTTP/1.1"),
         origin.sends(say(body=b"2")), client.gets(body=b"2")),
)  # fmt: skip
