"""Request targets that could lead elsewhere, and some that only look so."""

from __future__ import annotations

from cfproxy.proxy.access import AccessRules
from tests.security.case import AUTHORITY, HOST, PORT, Case, get, passes, refused, request

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
    "absolute with a user": b"http://localhost@evil.example/a",
    "absolute with a user before ours": b"http://user@" + AUTHORITY + b"/a",
    "absolute with a password before ours": b"http://user:pass@" + AUTHORITY + b"/a",
    "absolute with ours as a user": b"http://" + AUTHORITY + b"@evil.example/a",
    "absolute with nobody as a user": b"http://@" + AUTHORITY + b"/a",
    "absolute with a user and TLS": b"https://user@" + AUTHORITY + b"/a",
    "absolute with one slash": b"http:/evil.example",
    "absolute with three slashes": b"http:///a",
    "absolute without an authority": b"http://",
    "absolute with a query for an authority": b"http://?a",
    "absolute without a slash": b"http:evil.example",
    "absolute without a scheme": b"://" + AUTHORITY + b"/a",
    "absolute behind a space": b" http://" + AUTHORITY + b"/a",
    "absolute with a space": b"http://" + AUTHORITY + b"/a b",
    "absolute with a fragment": b"http://" + AUTHORITY + b"/a#b",
    "absolute with a fragment alone": b"http://" + AUTHORITY + b"#b",
    "absolute with a backslash": b"http://" + AUTHORITY + b"\\@evil.example/a",
    "absolute with backslashes": b"http:\\\\" + AUTHORITY + b"/a",
    "absolute with NUL": b"http://" + AUTHORITY + b"\x00/a",
    "absolute with a tab": b"http://" + AUTHORITY + b"\t/a",
    "another scheme": b"ftp://evil.example/a",
    "another scheme of ours": b"ftp://" + AUTHORITY + b"/a",
    "a WebSocket's scheme": b"ws://" + AUTHORITY + b"/a",
    "a scheme that begins like ours": b"httpx://" + AUTHORITY + b"/a",
    "a Unix socket": b"http+unix://%2Frun%2Fa.sock/a",
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

OURS = b"http://" + AUTHORITY

ABSOLUTE = {
    "ours": (OURS + b"/a", b"/a"),
    "in capitals": (b"HTTP://LOCALHOST:" + PORT + b"/A", b"/A"),
    "with a forwarded port": (b"http://localhost:9999/a", b"/a"),
    "without a port": (b"http://localhost/a", b"/a"),
    "an address": (b"http://127.0.0.1:" + PORT + b"/a", b"/a"),
    "an IPv6 address": (b"http://[::1]:" + PORT + b"/a", b"/a"),
    "with a query": (OURS + b"/a?b=http://evil.example/@", b"/a?b=http://evil.example/@"),
    "with an at sign in its path": (OURS + b"/@evil.example", b"/@evil.example"),
    "with an at sign in its query": (OURS + b"?@evil.example", b"/?@evil.example"),
    "with a URL as its path": (OURS + b"/http://evil.example/", b"/http://evil.example/"),
    "with two slashes": (OURS + b"//evil.example/a", b"//evil.example/a"),
    "with dot segments": (OURS + b"/a/../%2e/b", b"/a/../%2e/b"),
    "with a slash alone": (OURS + b"/", b"/"),
    "without a path": (OURS, b"/"),
    "with a query alone": (OURS + b"?a=b", b"/?a=b"),
    "with an empty query alone": (OURS + b"?", b"/?"),
    "with bytes above ASCII": (OURS + b"/\xff", b"/\xff"),
}

ELSEWHERE = {
    "another host": b"http://evil.example/a",
    "another host with our port": b"http://evil.example:" + PORT + b"/a",
    "another host in capitals": b"HTTP://EVIL.EXAMPLE/a",
    "another host without a path": b"http://evil.example",
    "another host with a query alone": b"http://evil.example?a",
    "another host with TLS": b"https://evil.example/a",
    "ours with TLS": b"https://" + AUTHORITY + b"/a",
    "ours with TLS in capitals": b"HTTPS://" + AUTHORITY + b"/a",
    "ours and more": OURS + b".evil.example/a",
    "ours as a name below another": b"http://localhost.evil.example:" + PORT + b"/a",
    "an encoded name": b"http://%6cocalhost:" + PORT + b"/a",
    "two ports": OURS + b":80/a",
    "a port without a name": b"http://:" + PORT + b"/a",
    "a semicolon": OURS + b";/a",
    "a mapped address": b"http://[::ffff:127.0.0.1]:" + PORT + b"/a",
    "all addresses": b"http://0.0.0.0:" + PORT + b"/a",
}
FOREIGN = b"Host: evil.example"
UP_A = b"GET /a HTTP/1.1\r\n\r\n"

# Each is refused as malformed, whatever `Host` says, and ends the connection.
MALFORMED = {
    "a lower-case method": b"get /a HTTP/1.1",
    "a method that is no token": b"G@T /a HTTP/1.1",
    "a method with a control byte": b"G\x01T /a HTTP/1.1",
    "a method with a high byte": b"G\xcbT /a HTTP/1.1",
    "no method": b" /a HTTP/1.1",
    "no target": b"GET HTTP/1.1",
    "no target but its spaces": b"GET  HTTP/1.1",
    "no version": b"GET /a",
    "a space at the end": b"GET /a HTTP/1.1 ",
    "two spaces": b"GET  /a HTTP/1.1",
    "two spaces before the version": b"GET /a  HTTP/1.1",
    "a tab for a space": b"GET\t/a HTTP/1.1",
    "a tab before the version": b"GET /a\tHTTP/1.1",
    "a space in the target": b"GET /a b HTTP/1.1",
    "a space first": b" GET /a HTTP/1.1",
    "another version": b"GET /a HTTP/1.2",
    "a newer version": b"GET /a HTTP/2.0",
    "a version in lower case": b"GET /a http/1.1",
    "another protocol": b"GET /a RTSP/1.0",
    "a fragment": b"GET /a#b HTTP/1.1",
    "a backslash": b"GET /a\\b HTTP/1.1",
    "a control byte": b"GET /a\x01b HTTP/1.1",
    "NUL": b"GET /a\x00b HTTP/1.1",
    "DEL": b"GET /a\x7fb HTTP/1.1",
    "CR": b"GET /a\rb HTTP/1.1",
    "LF": b"GET /a\nb HTTP/1.1",
    "a relative path": b"GET a HTTP/1.1",
    "a query": b"GET ?a HTTP/1.1",
    "an authority": b"GET evil.example:80 HTTP/1.1",
    "an asterisk": b"GET * HTTP/1.1",
    "another scheme": b"GET ftp://evil.example/a HTTP/1.1",
    "a user": b"GET http://user@evil.example/a HTTP/1.1",
    "an empty authority": b"GET http:///a HTTP/1.1",
    "a path to CONNECT to": b"CONNECT /a HTTP/1.1",
    "a URL to CONNECT to": b"CONNECT http://evil.example/ HTTP/1.1",
    "no port to CONNECT to": b"CONNECT evil.example HTTP/1.1",
    "a user to CONNECT to": b"CONNECT user@evil.example:443 HTTP/1.1",
    "too many bytes": b"GET /" + b"a" * 40_000 + b" HTTP/1.1",
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
    "%25%32%65": b"/%25%32%65%25%32%65/admin",
    "..%25%32%66": b"/..%25%32%66admin",
    "..%20": b"/..%20/admin",
    "..%00": b"/..%00/admin",
    "..%3f": b"/..%3f/admin",
    "%u002e": b"/%u002e%u002e/admin",
    "%e0%80%ae": b"/%e0%80%ae%e0%80%ae/admin",
    "full-width dots": b"/%ef%bc%8e%ef%bc%8e/admin",
    "a full-width slash": b"/..%ef%bc%8fadmin",
    "a two dot leader": b"/%e2%80%a5/admin",
}

# Refused by a rule that denies /v1/admin/**.
ADMIN = {
    "doubly encoded digits": (b"/v1/adm%25%36%39n/x", "bad-target"),
    "an encoded question mark": (b"/v1/admin/%3f", "not-allowed"),
    "an encoded number sign": (b"/v1/admin/%23", "not-allowed"),
    "a trailing space": (b"/v1/admin%20/x", "not-allowed"),
    "a trailing dot": (b"/v1/admin./x", "not-allowed"),
    "%u": (b"/v1/%u0061dmin/x", "bad-target"),
    "overlong letters": (b"/v1/%c1%a1dmin/x", "bad-target"),
    "full-width letters": (b"/v1/%ef%bd%81dmin/x", "not-allowed"),
    "an invisible character": (b"/v1/ad%c2%admin/x", "not-allowed"),
}
HONEST = (b"/v1/na%C3%AFve%20name", b"/v1/100%25", b"/v1/C%23", b"/v1/admins", b"/v1/rock+roll")

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
    *(
        passes(f"target: absolute, {name}", get(target=target), b"GET %s HTTP/1.1\r\n\r\n" % path)
        for name, (target, path) in ABSOLUTE.items()
    ),
    *(
        refused(f"target: absolute, {name}", get(target=target), "host-not-allowed")
        for name, target in ELSEWHERE.items()
    ),
    passes("target: absolute, another Host", request(b"GET %s/a HTTP/1.1" % OURS, FOREIGN), UP_A),
    passes("target: absolute, no Host in HTTP/1.0", request(b"GET %s/a HTTP/1.0" % OURS, b"X-A: b")),
    refused(
        "target: absolute, another host without Host in HTTP/1.0",
        request(b"GET http://evil.example/a HTTP/1.0", b"X-A: b"),
        "host-not-allowed",
    ),
    *(
        refused(f"target: absolute, Host {name}", request(b"GET %s/a HTTP/1.1" % OURS, *lines))
        for name, lines in {
            "missing": (b"X-A: b",),
            "empty": (b"Host:",),
            "twice": (HOST, HOST),
            "and another": (HOST, FOREIGN),
        }.items()
    ),
    passes("target: absolute, the origin is the target's", get(b"Origin: " + OURS, target=OURS + b"/a")),
    refused(
        "target: absolute, the origin is the Host's",
        request(b"GET %s/a HTTP/1.1" % OURS, FOREIGN, b"Origin: http://evil.example"),
        "cross-site",
    ),
    passes(
        "target: absolute, one of the list",
        request(b"GET http://proxy.example/a HTTP/1.1", FOREIGN),
        UP_A,
        rules=AccessRules(hosts=("proxy.example",)),
    ),
    Case(
        "target: absolute, then others with the same fields",
        get(target=OURS + b"/a") + get() + get(target=b"http://evil.example/a") + get(),
        ("ok", "ok", "host-not-allowed", "ok"),
        (UP_A, UP_A, UP_A),
    ),
    refused("target: absolute, out of the base path", get(target=OURS + b"/../admin"), base_path=BASE),
    passes(
        "target: absolute, within a base path",
        get(target=OURS + b"/a"),
        b"GET /base/a HTTP/1.1\r\n\r\n",
        base_path=BASE,
    ),
    refused(
        "target: absolute, a path that rules deny",
        get(target=OURS + b"/v1/admin/x"),
        "not-allowed",
        rules=NOT_ADMIN,
    ),
    refused("target: absolute, OPTIONS of everything", request(b"OPTIONS %s HTTP/1.1" % OURS, HOST)),
    passes(
        "target: absolute, OPTIONS of the root",
        request(b"OPTIONS %s/ HTTP/1.1" % OURS, HOST),
        b"OPTIONS / HTTP/1.1\r\n\r\n",
    ),
    passes(
        "target: absolute, OPTIONS of a query",
        request(b"OPTIONS %s?a HTTP/1.1" % OURS, HOST),
        b"OPTIONS /?a HTTP/1.1\r\n\r\n",
    ),
    *(
        Case(f"request line: {name}", request(line, host) + get(), ("bad-target",), ())
        for what, host in {"": HOST, " of a foreign Host": FOREIGN, " without Host": b"X-A: b"}.items()
        for name, line in ((f"{name}{what}", line) for name, line in MALFORMED.items())
    ),
    refused("target: OPTIONS of everything", request(b"OPTIONS * HTTP/1.1", HOST)),
    refused(
        "target: OPTIONS of everything of a foreign Host",
        request(b"OPTIONS * HTTP/1.1", FOREIGN),
        "host-not-allowed",
    ),
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
        refused(f"target: denied with {name}", get(target=target), slug, rules=NOT_ADMIN)
        for name, (target, slug) in ADMIN.items()
    ),
    *(
        passes(
            f"target: honest, {target!r}",
            get(target=target),
            b"GET %s HTTP/1.1\r\n\r\n" % target,
            rules=NOT_ADMIN,
        )
        for target in HONEST
    ),
    *(
        refused(f"target: with rules, {name}", get(target=target), rules=NOT_ADMIN)
        for name, target in TWO_READINGS.items()
    ),
)
