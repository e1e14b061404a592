"""Several requests on a connection: the second must be the client's, not part of a body."""

from __future__ import annotations

from tests.security.case import AUTHORITY, HOST, Case, get, post, request

SMUGGLED = get(target=b"/smuggled")
TE = b"Transfer-Encoding: chunked"
UP_A = b"GET /a HTTP/1.1\r\n\r\n"
UP_SMUGGLED = b"GET /smuggled HTTP/1.1\r\n\r\n"
UP_POST = b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
UP_CHUNKED = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nabc"

BODY = request(b"GET /smuggled HTTP/1.1", b"Host: localhost")
UP_BODY = b"POST /a HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)

# With each, a lenient parser reads SMUGGLED as a separate request, or as a body.
CONFLICTS = {
    "length and chunked": post(b"Content-Length: 4", TE, body=b"0\r\n\r\n"),
    "chunked and length": post(TE, b"Content-Length: %d" % (5 + len(SMUGGLED)), body=b"0\r\n\r\n"),
    "empty coding beside a length": post(b"Content-Length: 5", b"Transfer-Encoding:", body=b"0\r\n\r\n"),
    "identity beside a length": post(b"Content-Length: 5", b"Transfer-Encoding: identity", body=b"0\r\n\r\n"),
    "two lengths": post(b"Content-Length: 0", b"Content-Length: %d" % len(SMUGGLED)),
    "list of lengths": post(b"Content-Length: 0, %d" % len(SMUGGLED)),
    "a signed length": post(b"Content-Length: +0"),
    "a length that is none": post(b"Content-Length: 0x0"),
    "a length's twin": post(b"Content_Length: %d" % len(SMUGGLED)),
    "a coding's twin": post(b"Content-Length: 5", b"Transfer_Encoding: chunked", body=b"0\r\n\r\n"),
    "two codings": post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    "x before chunked": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "vertical tab before chunked": post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "space before a coding's colon": post(
        b"Content-Length: 5", b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"
    ),
    "folded coding": post(b"Content-Length: 5", b"Transfer-Encoding:", b" chunked", body=b"0\r\n\r\n"),
    "chunked in HTTP/1.0": request(
        b"POST /a HTTP/1.0", HOST, b"Connection: keep-alive", TE, body=b"0\r\n\r\n"
    ),
    "a chunk's size over 64 bits": post(TE, body=b"10000000000000000\r\n"),
    "LF for the last chunk's end": post(TE, body=b"0\n\n"),
    "LF in an extension": post(TE, body=b"3;\nabc\r\n0\r\n\r\n"),
    "a trailer that is a request": post(TE, body=b"0\r\nGET /smuggled HTTP/1.1\r\n\r\n"),
    "LF for a field's end": get(b"X-A: b\nContent-Length: %d" % len(SMUGGLED)),
    "a foreign Host and a conflict": request(
        b"POST /a HTTP/1.1", b"Host: evil.example", b"Content-Length: 4", TE, body=b"0\r\n\r\n"
    ),
    "a foreign Origin and a conflict": post(
        b"Origin: http://evil.example", b"Content-Length: 4", TE, body=b"0\r\n\r\n"
    ),
    "a foreign Host and an empty coding": request(
        b"POST /a HTTP/1.1",
        b"Host: evil.example",
        b"Content-Length: 5",
        b"Transfer-Encoding:",
        body=b"0\r\n\r\n",
    ),
    "a bad target": get(target=b"/a#b"),
    "a bad header": get(b"X-A : b"),
}

CASES: tuple[Case, ...] = (
    *(
        Case(f"smuggled behind {name}", first + SMUGGLED, ("bad-target",), ())
        for name, first in CONFLICTS.items()
    ),
    Case("two requests", get() + SMUGGLED, ("ok", "ok"), (UP_A, UP_SMUGGLED)),
    Case("an empty line between two", get() + b"\r\n" + SMUGGLED, ("ok", "ok"), (UP_A, UP_SMUGGLED)),
    Case(
        "a body with a length, then another",
        post(b"Content-Length: 3", body=b"abc") + SMUGGLED,
        ("ok", "ok"),
        (UP_POST, UP_SMUGGLED),
    ),
    Case(
        "a body in chunks, then another",
        post(TE, body=b"3\r\nabc\r\n0\r\n\r\n") + SMUGGLED,
        ("ok", "ok"),
        (UP_CHUNKED, UP_SMUGGLED),
    ),
    Case("a body that is a request", post(b"Content-Length: %d" % len(BODY), body=BODY), ("ok",), (UP_BODY,)),
    Case(
        "a body that is a request behind a foreign Host",
        request(b"POST /a HTTP/1.1", b"Host: evil.example", b"Content-Length: %d" % len(BODY), body=BODY),
        ("host-not-allowed",),
        (),
    ),
    Case(
        "a body that is a request behind TRACE",
        request(b"TRACE /a HTTP/1.1", HOST, b"Content-Length: %d" % len(BODY), body=BODY),
        ("not-allowed",),
        (),
    ),
    Case(
        "two requests of an HTTP/1.0 client that stays",
        request(b"GET /a HTTP/1.0", HOST, b"Connection: keep-alive") + SMUGGLED,
        ("ok", "ok"),
        (UP_A, UP_SMUGGLED),
    ),
    Case(
        "HEAD, then another",
        request(b"HEAD /a HTTP/1.1", HOST) + SMUGGLED,
        ("ok", "ok"),
        (b"HEAD /a HTTP/1.1\r\n\r\n", UP_SMUGGLED),
    ),
    Case("thirty requests", get() * 30, ("ok",) * 30, (UP_A,) * 30),
    Case("a request, then rubbish", get() + b"rubbish\r\n\r\n", ("ok", "bad-target"), (UP_A,)),
    Case("a request, then NUL bytes", get() + b"\x00" * 50, ("ok", "bad-target"), (UP_A,)),
    Case(
        "a request, then a conflict", get() + CONFLICTS["length and chunked"], ("ok", "bad-target"), (UP_A,)
    ),
    Case(
        "a body longer than its length",
        post(b"Content-Length: 3", body=b"abcd") + SMUGGLED,
        ("ok", "bad-target"),
        (UP_POST,),
    ),
    Case(
        "chunks, then rubbish",
        post(TE, body=b"3\r\nabc\r\n0\r\n\r\n?") + SMUGGLED,
        ("ok", "bad-target"),
        (UP_CHUNKED,),
    ),
    Case("nothing after Connection: close", get(b"Connection: close") + SMUGGLED, ("ok",), (UP_A,)),
    Case("nothing after HTTP/1.0", request(b"GET /a HTTP/1.0", HOST) + SMUGGLED, ("ok",), (UP_A,)),
    Case(
        "a foreign Host, then a good one",
        request(b"GET /a HTTP/1.1", b"Host: evil.example") + SMUGGLED,
        ("host-not-allowed", "ok"),
        (UP_SMUGGLED,),
    ),
    Case(
        "a good Host, then a foreign one",
        get() + request(b"GET /a HTTP/1.1", b"Host: evil.example"),
        ("ok", "host-not-allowed"),
        (UP_A,),
    ),
    Case(
        "nothing after CONNECT",
        request(b"CONNECT evil.example:443 HTTP/1.1", b"Host: evil.example:443") + SMUGGLED,
        ("host-not-allowed",),
        (),
    ),
    Case(
        "nothing after CONNECT to us",
        request(b"CONNECT " + AUTHORITY + b" HTTP/1.1", HOST) + SMUGGLED,
        ("upgrade-not-supported",),
        (),
    ),
    Case(
        "nothing after a TLS terminator's URL",
        get(target=b"https://" + AUTHORITY + b"/a") + SMUGGLED,
        ("host-not-allowed",),
        (),
    ),
    Case(
        "nothing after Upgrade",
        get(b"Connection: Upgrade", b"Upgrade: websocket") + SMUGGLED,
        ("upgrade-not-supported",),
        (),
    ),
)
