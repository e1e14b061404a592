"""Misplaced bytes: white space, line ends and control bytes in names, values and lines."""

from __future__ import annotations

from tests.security.case import AUTHORITY, HOST, Case, get, passes, refused, request

START = b"GET /a HTTP/1.1\r\n"

CONTROLS = {
    "NUL": b"\x00",
    "SOH": b"\x01",
    "backspace": b"\x08",
    "vertical tab": b"\x0b",
    "form feed": b"\x0c",
    "CR": b"\r",
    "escape": b"\x1b",
    "US": b"\x1f",
    "DEL": b"\x7f",
}
OTHER_CONTROLS = tuple(
    code for code in range(0x20) if bytes([code]) not in {*CONTROLS.values(), b"\t", b"\n"}
)
NOT_IN_NAMES = {
    "space": b" ",
    "tab": b"\t",
    "quote": b'"',
    "parenthesis": b"(",
    "comma": b",",
    "slash": b"/",
    "semicolon": b";",
    "at": b"@",
    "bracket": b"[",
    "brace": b"{",
    "equals": b"=",
    "backslash": b"\\",
    "high byte": b"\xe4",
    "no-break space": b"\xa0",
}

CASES: tuple[Case, ...] = (
    *(refused(f"{name} in a value", get(b"X-A: a" + byte + b"b")) for name, byte in CONTROLS.items()),
    *(refused(f"{name} before a value", get(b"X-A: " + byte + b"b")) for name, byte in CONTROLS.items()),
    *(refused(f"{name} after a value", get(b"X-A: b" + byte)) for name, byte in CONTROLS.items()),
    *(
        refused(f"{name} in a name", get(b"X-" + byte + b"A: b"))
        for name, byte in (CONTROLS | NOT_IN_NAMES).items()
    ),
    *(
        refused(f"{name} before a colon", get(b"X-A" + byte + b": b"))
        for name, byte in (CONTROLS | NOT_IN_NAMES).items()
    ),
    *(
        refused(f"{name} before a name", get(byte + b"X-A: b"))
        for name, byte in (CONTROLS | NOT_IN_NAMES).items()
    ),
    *(refused(f"byte {code} in a value", get(b"X-A: a%cb" % code)) for code in OTHER_CONTROLS),
    *(refused(f"byte {code} in a target", get(target=b"/a%cb" % code)) for code in OTHER_CONTROLS),
    passes(
        "high bytes in a value",
        get(b"X-A: gr\xc3\xbcn \x80\xff"),
        START + b"X-A: gr\xc3\xbcn \x80\xff\r\n\r\n",
    ),
    passes("a tab in a value", get(b"X-A: a\tb"), START + b"X-A: a\tb\r\n\r\n"),
    passes("white space round a value", get(b"X-A: \t b \t "), START + b"X-A: b\r\n\r\n"),
    passes("no value", get(b"X-A:"), START + b"X-A: \r\n\r\n"),
    passes(
        "every letter of a name",
        get(b"!#$%&'*+-.^_`|~09AZaz: b"),
        START + b"!#$%&'*+-.^_`|~09AZaz: b\r\n\r\n",
    ),
    refused("a field without a name", get(b": b")),
    refused("a line without a colon", get(b"X-A")),
    refused("a folded line", get(b"X-A: a", b" b")),
    refused("a folded line after a tab", get(b"X-A: a", b"\tb")),
    refused("a folded line of nothing", get(b"X-A: a", b" ")),
    refused("a folded Host", request(b"GET /a HTTP/1.1", b"Host:", b" " + AUTHORITY)),
    refused("an indented first field", request(b"GET /a HTTP/1.1", b" X-A: b", HOST)),
    refused("an indented Host", request(b"GET /a HTTP/1.1", b" " + HOST)),
    refused("LF alone after every line", get(b"X-A: b").replace(b"\r\n", b"\n")),
    refused("CR alone after every line", get(b"X-A: b").replace(b"\r\n", b"\r")),
    refused("LF alone after the request line", get().replace(b"\r\n", b"\n", 1)),
    refused("LF alone after a field", request(b"GET /a HTTP/1.1", HOST + b"\nX-A: b")),
    refused("LF alone for the empty line", START + HOST + b"\r\n\n"),
    refused("LF LF in the middle", START + HOST + b"\n\nX-A: b\r\n\r\n"),
    refused("LF CR for the empty line", START + HOST + b"\n\r\n"),
    refused("CR CR LF after the request line", b"GET /a HTTP/1.1\r\r\n" + HOST + b"\r\n\r\n"),
    refused("CR CR LF after a field", START + HOST + b"\r\r\n\r\n"),
    passes("an empty line before the request", b"\r\n" + get(), START + b"\r\n"),
    refused("a space before the request", b" " + get()),
    refused("NUL before the request", b"\x00" + get()),
    refused("a byte order mark before the request", b"\xef\xbb\xbf" + get()),
    refused("two spaces after the method", request(b"GET  /a HTTP/1.1", HOST)),
    refused("two spaces after the target", request(b"GET /a  HTTP/1.1", HOST)),
    refused("a space after the version", request(b"GET /a HTTP/1.1 ", HOST)),
    refused("a tab after the method", request(b"GET\t/a HTTP/1.1", HOST)),
    refused("a tab after the target", request(b"GET /a\tHTTP/1.1", HOST)),
    refused("a tab after the version", request(b"GET /a HTTP/1.1\t", HOST)),
    refused("form feed for a space", request(b"GET\x0c/a\x0cHTTP/1.1", HOST)),
    refused("a third word", request(b"GET /a HTTP/1.1 x", HOST)),
    refused("two versions", request(b"GET /a HTTP/1.1 HTTP/1.1", HOST)),
    refused("an injected header in the version", request(b"GET /a HTTP/1.1\rX-A: b", HOST)),
)
