"""Target and origin of a request: Host, Origin, Fetch Metadata, access keys."""

from __future__ import annotations

from base64 import b64encode

from cfproxy.proxy.access import AccessRules
from cfproxy.secret import Secret
from tests.security.case import AUTHORITY, HOST, KEY, PORT, Case, get, passes, post, refused, request

LISTED = AccessRules(hosts=("proxy.example",))
# Nothing is added after this line.
UNKEYED = b"host: " + AUTHORITY
KEYED = AccessRules(keys=(Secret(KEY.decode()),))

OURS = {
    "capitals": b"LOCALHOST:" + PORT,
    "a final dot": b"localhost.:" + PORT,
    "no port": b"localhost",
    "another port": b"localhost:1",
    "a forwarded port": b"localhost:9999",
    "port 80": b"localhost:80",
    "port 443": b"localhost:443",
    "port 0": b"localhost:0",
    "the last port": b"localhost:65535",
    "a dot and another port": b"LocalHost.:9999",
    "an address without a port": b"127.0.0.1",
    "an address with another port": b"127.0.0.1:9999",
    "another loopback address with another port": b"127.8.8.8:1",
    "IPv6 without a port": b"[::1]",
    "IPv6 with another port": b"[::1]:9999",
    "an address": b"127.0.0.1:" + PORT,
    "another loopback address": b"127.8.8.8:" + PORT,
    "IPv6": b"[::1]:" + PORT,
    "IPv6 at length": b"[0:0:0:0:0:0:0:1]:" + PORT,
}

FOREIGN = {
    "a name": b"evil.example",
    "a name with our port": b"evil.example:" + PORT,
    "a name with port 80": b"evil.example:80",
    "a name below localhost that is not one": b"-.localhost:" + PORT,
    "a name below localhost with an empty label": b"a..localhost:" + PORT,
    "a name below localhost that nobody can look up": b"a" * 64 + b".localhost:" + PORT,
    "a name below localhost, too long": b"a." * 130 + b"localhost:" + PORT,
    "an empty port": b"localhost:",
    "a signed port": b"localhost:+" + PORT,
    "a port with a zero before": b"localhost:000" + PORT,
    "a port in other digits": "localhost:٨٠٨٠".encode(),
    "a no-break space before": b"\xc2\xa0localhost:" + PORT,
    "a port that is no number": b"localhost:http",
    "two ports": b"localhost:80:" + PORT,
    "a port and more": b"localhost:" + PORT + b".evil.example",
    "a path": b"localhost:" + PORT + b"/a",
    "a query": b"localhost:" + PORT + b"?a",
    "a fragment": b"evil.example#@localhost:" + PORT,
    "a user": b"user@localhost:" + PORT,
    "a user that looks like us": b"localhost:" + PORT + b"@evil.example",
    "two names": b"localhost:" + PORT + b", evil.example",
    "two words": b"localhost:" + PORT + b" evil.example",
    "our name first": b"localhost.evil.example:" + PORT,
    "our address first": b"127.0.0.1.evil.example:" + PORT,
    "a rebinding service": b"127.0.0.1.nip.io:" + PORT,
    "a rebinding pair": b"7f000001.c0a80001.rbndr.us:" + PORT,
    "a name that ends like ours": b"evillocalhost:" + PORT,
    "localhost.localdomain": b"localhost.localdomain:" + PORT,
    "two final dots": b"localhost..:" + PORT,
    "a dot first": b".localhost:" + PORT,
    "a dot": b".:" + PORT,
    "a short address": b"127.1:" + PORT,
    "a decimal address": b"2130706433:" + PORT,
    "a hexadecimal address": b"0x7f000001:" + PORT,
    "an octal address": b"0177.0.0.1:" + PORT,
    "all addresses": b"0.0.0.0:" + PORT,
    "zero": b"0:" + PORT,
    "all IPv6 addresses": b"[::]:" + PORT,
    "a mapped address": b"[::ffff:127.0.0.1]:" + PORT,
    "a zone": b"[::1%25lo]:" + PORT,
    "a bare zone": b"[::1%lo]:" + PORT,
    "a letter behind the bracket": b"[::1]x:" + PORT,
    "a port over 16 bits": b"localhost:99999",
    "a port just over 16 bits": b"localhost:65536",
    "a port of six digits": b"localhost:008080",
    "the port of an address over 16 bits": b"127.0.0.1:70000",
    "another address of the machine's network": b"10.1.2.3:" + PORT,
    "a soft hyphen": b"local\xc2\xadhost:" + PORT,
    "leading zeros": b"127.000.000.001:" + PORT,
    "IPv6 without brackets": b"::1:" + PORT,
    "a bracket": b"[::1:" + PORT,
    "an address in brackets": b"[127.0.0.1]:" + PORT,
    "a name in brackets": b"[localhost]:" + PORT,
    "the unspecified": b"*:" + PORT,
    "encoded": b"%6cocalhost:" + PORT,
    "a scheme": b"http://localhost:" + PORT,
    "a high byte": b"localhost\xe3\x80\x82:" + PORT,
    "a full-width name": "ｌｏｃａｌｈｏｓｔ:".encode() + PORT,
    "a quote": b'"localhost":' + PORT,
    "a backslash": b"localhost\\.evil.example:" + PORT,
}


OWN = b"http://" + AUTHORITY

# What Chromium sends for the speculation rules of any page.
SPECULATIVE = (b"Sec-Fetch-Site: none", b"Sec-Fetch-Mode: navigate", b"Sec-Fetch-Dest: document")

FOREIGN_PAGES = {
    "another origin": (b"Origin: http://evil.example",),
    "another origin with our port": (b"Origin: http://evil.example:" + PORT,),
    "no origin to tell": (b"Origin: null",),
    "an empty origin": (b"Origin:",),
    "our name with TLS": (b"Origin: https://" + AUTHORITY,),
    "our name without a port": (b"Origin: http://localhost",),
    "our name with another port": (b"Origin: http://localhost:1",),
    "our address for our name": (b"Origin: http://127.0.0.1:" + PORT,),
    "our name and a dot": (b"Origin: http://localhost.:" + PORT,),
    "our name with a zero before its port": (b"Origin: http://localhost:0" + PORT,),
    "our name without a scheme": (b"Origin: //" + AUTHORITY,),
    "our name and more": (b"Origin: " + OWN + b".evil.example",),
    "our name as a user": (b"Origin: " + OWN + b"@evil.example",),
    "our name and a path": (b"Origin: " + OWN + b"/",),
    "two origins in one": (b"Origin: " + OWN + b" http://evil.example",),
    "a list": (b"Origin: " + OWN + b", http://evil.example",),
    "two origins": (b"Origin: " + OWN, b"Origin: http://evil.example"),
    "two origins the other way": (b"Origin: http://evil.example", b"Origin: " + OWN),
    "file": (b"Origin: file://",),
    "an extension": (b"Origin: chrome-extension://abcdefghijklmnop",),
    "an image tag": (b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Mode: no-cors", b"Sec-Fetch-Dest: image"),
    "a link": (b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Mode: navigate", b"Sec-Fetch-Dest: document"),
    "an iframe": (b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Mode: navigate", b"Sec-Fetch-Dest: iframe"),
    "another port of ours": (b"Sec-Fetch-Site: same-site", b"Sec-Fetch-Mode: no-cors"),
    "capitals": (b"SEC-FETCH-SITE: Cross-Site",),
    "cross-site from our own origin": (b"Sec-Fetch-Site: cross-site", b"Origin: " + OWN),
    "same-origin from a foreign one": (b"Sec-Fetch-Site: same-origin", b"Origin: http://evil.example"),
    "none from a foreign one": (b"Sec-Fetch-Site: none", b"Origin: http://evil.example"),
    "same-origin and cross-site": (b"Sec-Fetch-Site: same-origin", b"Sec-Fetch-Site: cross-site"),
    "cross-site in a list": (b"Sec-Fetch-Site: same-origin, cross-site",),
    "a word that nobody knows": (b"Sec-Fetch-Site: same-planet",),
    "speculation rules": (*SPECULATIVE, b"Sec-Purpose: prefetch"),
    "speculation rules, to render": (*SPECULATIVE, b"Sec-Purpose: prefetch;prerender"),
    "speculation rules, through a relay": (*SPECULATIVE, b"Sec-Purpose: prefetch;anonymous-client-ip"),
    "speculation rules of another port": (
        *SPECULATIVE,
        b"Sec-Purpose: prefetch",
        b"Sec-Speculation-Tags: null",
    ),
    "an older prefetch": (*SPECULATIVE, b"Purpose: prefetch"),
    "an older prerender": (*SPECULATIVE, b"Purpose: prerender"),
    "Firefox's prefetch": (b"X-Moz: prefetch",),
    "Safari's preview": (b"X-Purpose: preview",),
    "a prefetch to an address without Fetch Metadata": (b"Sec-Purpose: prefetch",),
    "a prefetch, spelled in capitals": (*SPECULATIVE, b"SEC-PURPOSE: PREFETCH"),
    "a prefetch, with our origin missing": (b"Sec-Purpose: prefetch", b"Sec-Fetch-Site: none, same-origin"),
}

OUR_PAGES = {
    "a page of ours": (b"Origin: " + OWN, b"Sec-Fetch-Site: same-origin"),
    "the address bar": (b"Sec-Fetch-Site: none", b"Sec-Fetch-Mode: navigate"),
    "our origin in capitals": (b"Origin: HTTP://LOCALHOST:" + PORT,),
    "a prefetch of our own page": (b"Sec-Fetch-Site: same-origin", b"Sec-Purpose: prefetch"),
    "a purpose that is none of a browser": (b"Purpose: billing",),
}

PREFLIGHT = (b"Origin: http://evil.example", b"Access-Control-Request-Method: DELETE")

CASES: tuple[Case, ...] = (
    *(passes(f"Host: {name}", request(b"GET /a HTTP/1.1", b"Host: " + host)) for name, host in OURS.items()),
    *(
        refused(f"Host: {name}", request(b"GET /a HTTP/1.1", b"Host: " + host), "host-not-allowed")
        for name, host in FOREIGN.items()
    ),
    refused("Host: none", request(b"GET /a HTTP/1.1", b"X-A: b")),
    refused("Host: empty", request(b"GET /a HTTP/1.1", b"Host:")),
    refused("Host: white space", request(b"GET /a HTTP/1.1", b"Host: \t ")),
    refused("Host: twice", request(b"GET /a HTTP/1.1", HOST, HOST)),
    refused("Host: ours and another", request(b"GET /a HTTP/1.1", HOST, b"Host: evil.example")),
    refused("Host: another and ours", request(b"GET /a HTTP/1.1", b"Host: evil.example", HOST)),
    refused("Host: ours and none", request(b"GET /a HTTP/1.1", HOST, b"Host:")),
    refused("Host: space before its colon", request(b"GET /a HTTP/1.1", b"Host : " + AUTHORITY)),
    refused("Host: a twin alone", request(b"GET /a HTTP/1.1", b"H_ost: " + AUTHORITY)),
    passes(
        "Host: none in HTTP/1.0", request(b"GET /a HTTP/1.0", b"X-A: b"), b"GET /a HTTP/1.1\r\nX-A: b\r\n\r\n"
    ),
    refused(
        "Host: another in HTTP/1.0", request(b"GET /a HTTP/1.0", b"Host: evil.example"), "host-not-allowed"
    ),
    refused("Host: twice in HTTP/1.0", request(b"GET /a HTTP/1.0", HOST, HOST)),
    passes("Host: one of the list", request(b"GET /a HTTP/1.1", b"Host: Proxy.Example:8443"), rules=LISTED),
    refused(
        "Host: below one of the list",
        request(b"GET /a HTTP/1.1", b"Host: a.proxy.example"),
        "host-not-allowed",
        rules=LISTED,
    ),
    *(refused(f"page: {name}", get(*headers), "cross-site") for name, headers in FOREIGN_PAGES.items()),
    *(passes(f"page: {name}", get(*headers)) for name, headers in OUR_PAGES.items()),
    refused("page: a preflight", request(b"OPTIONS /a HTTP/1.1", HOST, *PREFLIGHT), "cross-site"),
    refused(
        "page: a form", post(b"Origin: http://evil.example", b"Content-Length: 3", body=b"a=b"), "cross-site"
    ),
    refused("key: none", request(b"GET /a HTTP/1.1", UNKEYED), "key-required", rules=KEYED),
    refused(
        "key: a wrong one",
        request(b"GET /a HTTP/1.1", UNKEYED, b"X-Cfproxy-Key: x"),
        "key-required",
        rules=KEYED,
    ),
    refused(
        "key: half of it",
        request(b"GET /a HTTP/1.1", UNKEYED, b"X-Cfproxy-Key: " + KEY[:-1]),
        "key-required",
        rules=KEYED,
    ),
    refused(
        "key: an empty one",
        request(b"GET /a HTTP/1.1", UNKEYED, b"X-Cfproxy-Key:"),
        "key-required",
        rules=KEYED,
    ),
    refused("key: in the query", request(b"GET /a?key=x HTTP/1.1", UNKEYED), "key-required", rules=KEYED),
    Case(
        "key: not with the second request",
        request(b"GET /a HTTP/1.1", UNKEYED, b"X-Cfproxy-Key: " + KEY) + request(b"GET /b HTTP/1.1", UNKEYED),
        ("ok", "key-required"),
        (b"GET /a HTTP/1.1\r\n\r\n",),
        rules=KEYED,
    ),
    *(
        refused(f"key: {name}", request(b"GET /a HTTP/1.1", UNKEYED, line), "key-required", rules=KEYED)
        for name, line in {
            "as a twin": b"X_Cfproxy_Key: " + KEY,
            "for another proxy": b"Proxy-Authorization: Bearer " + KEY,
            "as the user of Basic": b"Authorization: Basic " + b64encode(KEY + b":x"),
            "as no base64": b"Authorization: Basic " + KEY + b"#",
            "in a cookie": b"Cookie: X-Cfproxy-Key=" + KEY,
        }.items()
    ),
    refused(
        "key: none, and a client that waits to go on",
        request(b"POST /a HTTP/1.1", UNKEYED, b"Content-Length: 3", b"Expect: 100-continue"),
        "key-required",
        rules=KEYED,
    ),
    passes(
        "key: as the password of Basic",
        request(b"GET /a HTTP/1.1", UNKEYED, b"Authorization: Basic " + b64encode(b"any:" + KEY)),
        b"GET /a HTTP/1.1\r\n\r\n",
        rules=KEYED,
    ),
    *(
        passes(
            f"key: {name}, beside a right one",
            request(b"GET /a HTTP/1.1", UNKEYED, b"X-Cfproxy-Key: " + KEY, line),
            b"GET /a HTTP/1.1\r\n\r\n",
            rules=KEYED,
        )
        for name, line in {
            "under a misspelt name": b"uthorization: bearer " + KEY,
            "under another name": b"X-Api-Key: " + KEY,
            "behind another scheme": b"X-Auth: Token \t" + KEY,
            "as a whole cookie": b"Cookie: " + KEY,
        }.items()
    ),
    passes(
        "key: in a trailer",
        request(
            b"POST /a HTTP/1.1",
            UNKEYED,
            b"X-Cfproxy-Key: " + KEY,
            b"Transfer-Encoding: chunked",
            body=b"3\r\nabc\r\n0\r\nX-Key: bearer " + KEY + b"\r\nX-T: 1\r\n\r\n",
        ),
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nabcx-t: 1\r\n",
        rules=KEYED,
    ),
    passes(
        "key: in front of a body, and behind it",
        request(
            b"POST /a HTTP/1.1",
            UNKEYED,
            b"X-Cfproxy-Key: " + KEY,
            b"Transfer-Encoding: chunked",
            body=b"1\r\nx\r\n0\r\nX-Cfproxy-Key: " + KEY + b"\r\nAuthorization: Bearer " + KEY + b"\r\n\r\n",
        ),
        b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx",
        rules=KEYED,
    ),
    passes(
        "key: as Bearer",
        request(b"GET /a HTTP/1.1", UNKEYED, b"Authorization: bearer " + KEY),
        b"GET /a HTTP/1.1\r\n\r\n",
        rules=KEYED,
    ),
    passes(
        "key: listed in Connection",
        request(b"GET /a HTTP/1.1", UNKEYED, b"Connection: X-Cfproxy-Key", b"X-Cfproxy-Key: " + KEY),
        b"GET /a HTTP/1.1\r\n\r\n",
        rules=KEYED,
    ),
)
