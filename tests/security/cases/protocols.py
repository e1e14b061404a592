"""Other methods, versions and protocols, and Expect."""

from __future__ import annotations

from cfproxy.proxy.access import AccessRules
from tests.security.case import AUTHORITY, HOST, Case, get, passes, post, refused, request

UP = b"GET /a HTTP/1.1\r\n\r\n"
UP_POST = b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
CL3 = b"Content-Length: 3"
READ_ONLY = AccessRules(methods=("GET", "HEAD"))

NO_VERSIONS = {
    "1.2": b"HTTP/1.2",
    "1.9": b"HTTP/1.9",
    "2.0": b"HTTP/2.0",
    "2": b"HTTP/2",
    "3.0": b"HTTP/3.0",
    "0.9 by name": b"HTTP/0.9",
    "0.0": b"HTTP/0.0",
    "1": b"HTTP/1",
    "1 and a dot": b"HTTP/1.",
    "11": b"HTTP/11",
    "1.10": b"HTTP/1.10",
    "01.1": b"HTTP/01.1",
    "1.1x": b"HTTP/1.1x",
    "1,1": b"HTTP/1,1",
    "none": b"HTTP/",
    "lower case": b"http/1.1",
    "mixed case": b"Http/1.1",
    "TLS": b"HTTPS/1.1",
    "RTSP": b"RTSP/1.0",
    "ICE": b"ICE/1.0",
    "a space within": b"HTTP /1.1",
    "an arabic digit": "HTTP/1.١".encode(),
}

NO_METHODS = {
    "lower case": b"get",
    "mixed case": b"Get",
    "trace": b"trace",
    "a slash": b"G/T",
    "a colon": b"GET:",
    "NUL": b"G\x00ET",
    "DEL": b"GET\x7f",
    "a high byte": b"G\xcbT",
    "one that is a header": b"Host:",
    "a very long one": b"A" * 40_000,
}

OTHER_PROTOCOLS = {
    "HTTP/2 from the start": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "TLS": bytes.fromhex("16030100c8010000c40303") + b"\x00" * 200,
    "SSH": b"SSH-2.0-OpenSSH_9.9\r\n",
    "SMTP": b"EHLO evil.example\r\nMAIL FROM:<a@evil.example>\r\n",
    "Redis": b"*1\r\n$4\r\nPING\r\n",
    "the PROXY protocol": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + get(),
    "the PROXY protocol, binary": b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + b"\x01" * 12 + get(),
    "an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "SOCKS": b"\x05\x01\x00" + b"\x00" * 20,
    "HTTP/0.9": b"GET /a\r\n",
    "HTTP/0.9 and an empty line": b"GET /a\r\n\r\n",
}

HANDSHAKES = {
    "a WebSocket": (
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ),
    "a WebSocket without Connection": (b"Upgrade: websocket",),
    "a WebSocket in another case": (b"connection: UPGRADE", b"upgrade: WebSocket"),
    "a WebSocket with a version": (b"Connection: upgrade", b"Upgrade: websocket/13"),
    "a WebSocket or HTTP/2": (b"Connection: upgrade", b"Upgrade: h2c, websocket"),
    "a WebSocket first": (b"Connection: upgrade", b"Upgrade: websocket,h2c"),
    "a WebSocket in a second line": (b"Connection: upgrade", b"Upgrade: h2c", b"Upgrade: \twebsocket"),
}
SETTINGS = b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"
# Whoever offers these goes on in HTTP/1.1 if the server does (RFC 9110 §7.8).
OFFERS = {
    "h2c": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", SETTINGS),
    "h2c, the options the other way": (b"Connection: http2-settings ,upgrade", b"Upgrade: h2c", SETTINGS),
    "h2c, the options in two lines": (
        b"Connection: HTTP2-Settings",
        b"upgrade: H2C",
        SETTINGS,
        b"connection: UPGRADE, keep-alive",
    ),
    "h2c without Connection": (b"Upgrade: h2c", SETTINGS),
    "h2c without settings": (b"Connection: Upgrade", b"Upgrade: h2c"),
    "h2c with two settings": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", SETTINGS, SETTINGS),
    "h2c with a twin of the settings": (b"Connection: Upgrade", b"Upgrade: h2c", b"HTTP2_Settings: AAM"),
    "h2c and its draft": (b"Connection: Upgrade", b"Upgrade: h2c, h2c-14"),
    "h2c in two lines": (b"Connection: Upgrade", b"Upgrade: h2c", b"Upgrade: h2c"),
    "HTTP/2.0": (b"Connection: upgrade", b"Upgrade: HTTP/2.0"),
    "TLS": (b"Connection: upgrade", b"Upgrade: TLS/1.0"),
    "TLS of several versions": (b"Connection: Upgrade", b"Upgrade: TLS/1.2, TLS/1.1,TLS/1.0"),
    "several protocols": (b"Connection: upgrade", b"Upgrade: HTTP/2.0, SHTTP/1.3, IRC/6.9, RTA/x11"),
    "what only sounds like a WebSocket": (b"Connection: upgrade", b"Upgrade: xwebsocket, websockets"),
    "nothing": (b"Connection: upgrade", b"Upgrade:"),
    "only commas": (b"Connection: upgrade", b"Upgrade: , ,"),
}

EXPECTED = {
    "100-continue": b"100-continue",
    "100-Continue": b"100-Continue",
    "200-ok": b"200-ok",
    "two": b"100-continue, x",
    "a parameter": b"100-continue;a=b",
    "nothing": b"",
}

CASES: tuple[Case, ...] = (
    *(
        refused(f"version {name}", request(b"GET /a " + version, HOST))
        for name, version in NO_VERSIONS.items()
    ),
    *(
        refused(f"method: {name}", request(method + b" /a HTTP/1.1", HOST))
        for name, method in NO_METHODS.items()
    ),
    passes("method: unknown", request(b"FOO /a HTTP/1.1", HOST), request(b"FOO /a HTTP/1.1")),
    refused("method: TRACK", request(b"TRACK /a HTTP/1.1", HOST), "not-allowed"),
    refused("method: none", request(b" /a HTTP/1.1", HOST)),
    refused("method: TRACE", request(b"TRACE /a HTTP/1.1", HOST), "not-allowed"),
    refused("method: TRACE of a hop", request(b"TRACE /a HTTP/1.1", HOST, b"Max-Forwards: 0"), "not-allowed"),
    refused(
        "method: CONNECT",
        request(b"CONNECT evil.example:443 HTTP/1.1", b"Host: " + AUTHORITY),
        "upgrade-not-supported",
    ),
    refused(
        "method: CONNECT to us",
        request(b"CONNECT " + AUTHORITY + b" HTTP/1.1", HOST),
        "upgrade-not-supported",
    ),
    refused(
        "method: CONNECT of a foreign Host",
        request(b"CONNECT evil.example:443 HTTP/1.1", b"Host: evil.example:443"),
        "host-not-allowed",
    ),
    refused("method: CONNECT to a path", request(b"CONNECT /a HTTP/1.1", HOST)),
    *(
        passes(
            f"method: {name.decode()}", request(name + b" /a HTTP/1.1", HOST), name + b" /a HTTP/1.1\r\n\r\n"
        )
        for name in (b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PROPFIND", b"M-SEARCH")
    ),
    passes("method: HEAD", request(b"HEAD /a HTTP/1.1", HOST), b"HEAD /a HTTP/1.1\r\n\r\n"),
    passes("method: another in a header", get(b"X-HTTP-Method-Override: DELETE")),
    *(
        refused(
            f"method: another by {name.decode()} against the rules",
            get(name + b": DELETE"),
            "not-allowed",
            rules=READ_ONLY,
        )
        for name in (
            b"X-HTTP-Method-Override",
            b"x_http_method_override",
            b"X-Method-Override",
            b"X-HTTP-Method",
        )
    ),
    refused(
        "method: one against the rules", request(b"DELETE /a HTTP/1.1", HOST), "not-allowed", rules=READ_ONLY
    ),
    *(refused(f"protocol: {name}", sent) for name, sent in OTHER_PROTOCOLS.items()),
    *(
        refused(f"upgrade to {name}", get(*headers), "upgrade-not-supported")
        for name, headers in HANDSHAKES.items()
    ),
    *(passes(f"upgrade offered: {name}", get(*headers), UP) for name, headers in OFFERS.items()),
    *(
        passes(f"upgrade offered with a body: {name}", post(*headers, CL3, body=b"abc"), UP_POST)
        for name, headers in OFFERS.items()
    ),
    passes(
        "upgrade offered with chunks",
        post(*OFFERS["h2c"], b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"),
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nabc",
    ),
    Case(
        "upgrade offered, then another request",
        get(*OFFERS["h2c"]) + post(*OFFERS["h2c"], CL3, body=b"abc") + get(),
        ("ok", "ok", "ok"),
        (UP, UP_POST, UP),
    ),
    Case(
        "upgrade offered with an expectation",
        post(*OFFERS["h2c"], CL3, b"Expect: 100-continue", body=b"abc"),
        ("100", "ok"),
        (UP_POST,),
    ),
    refused(
        "upgrade offered by a foreign Host",
        request(b"GET /a HTTP/1.1", b"Host: evil.example", *OFFERS["h2c"]),
        "host-not-allowed",
    ),
    Case(
        "upgrade offered, and frames sent at once",
        get(*OFFERS["h2c"]) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ("ok", "bad-target"),
        (UP,),
    ),
    *(
        passes(f"upgrade in HTTP/1.0: {name}", request(b"GET /a HTTP/1.0", HOST, *headers))
        for name, headers in (HANDSHAKES | OFFERS).items()
    ),
    refused(
        "upgrade to a WebSocket with a body",
        post(*HANDSHAKES["a WebSocket"], CL3, body=b"abc"),
        "upgrade-not-supported",
    ),
    passes("upgrade in Connection alone", get(b"Connection: Upgrade"), UP),
    passes("HTTP/1.0", request(b"GET /a HTTP/1.0", HOST), UP),
    Case(
        "expecting 100-continue",
        post(CL3, b"Expect: 100-continue", body=b"abc"),
        ("100", "ok"),
        (UP_POST,),
    ),
    Case(
        "expecting 100-continue, in capitals",
        post(CL3, b"EXPECT: 100-CONTINUE", body=b"abc"),
        ("100", "ok"),
        (UP_POST,),
    ),
    Case("expecting 100-continue, the body still to come", post(CL3, b"Expect: 100-continue"), ("100",), ()),
    Case(
        "expecting 100-continue for chunks",
        post(b"Transfer-Encoding: chunked", b"Expect: 100-continue", body=b"3\r\nabc\r\n0\r\n\r\n"),
        ("100", "ok"),
    ),
    passes("expecting without a body", get(b"Expect: 100-continue"), UP),
    passes(
        "expecting in HTTP/1.0",
        request(b"POST /a HTTP/1.0", HOST, CL3, b"Expect: 100-continue", body=b"abc"),
        UP_POST,
    ),
    *(
        passes(f"expecting {name}, nothing to send", get(b"Expect: " + value), UP)
        for name, value in EXPECTED.items()
        if name[0] != "1"
    ),
    refused(
        "expecting and a conflict",
        post(CL3, b"Transfer-Encoding: chunked", b"Expect: 100-continue", body=b"abc"),
    ),
    refused(
        "expecting of a foreign Host",
        request(b"POST /a HTTP/1.1", b"Host: evil.example", CL3, b"Expect: 100-continue"),
        "host-not-allowed",
    ),
)
