"""Body framing: Content-Length and Transfer-Encoding that are repeated, malformed, or combined."""

from __future__ import annotations

from tests.security.case import HOST, Case, get, passes, post, refused, request

CL3 = b"Content-Length: 3"
TE = b"Transfer-Encoding: chunked"
ABC = b"3\r\nabc\r\n0\r\n\r\n"
PLAIN = b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
CHUNKED = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nabc"

BAD_LENGTHS = {
    "plus": b"+3",
    "minus": b"-3",
    "minus zero": b"-0",
    "inner space": b"3 3",
    "hexadecimal": b"0x3",
    "underscore": b"0_3",
    "fraction": b"3.0",
    "exponent": b"3e0",
    "quoted": b'"3"',
    "empty": b"",
    "letters": b"abc",
    "list of equals": b"3, 3",
    "list of others": b"3, 4",
    "empty member": b",3",
    "semicolon": b"3;x",
    "arabic digit": "٣".encode(),
    "superscript": "³".encode(),
    "over 64 bits": b"18446744073709551619",
    "over 63 bits": b"9223372036854775811",
    "a hundred digits": b"0" * 99 + b"3",
    "NUL": b"3\x00",
    "vertical tab": b"3\x0b",
    "form feed before": b"\x0c3",
    "no-break space": b"\xa03",
}

BAD_CODINGS = {
    "twice in one": b"chunked, chunked",
    "gzip before": b"gzip, chunked",
    "gzip after": b"chunked, gzip",
    "gzip": b"gzip",
    "identity": b"identity",
    "identity before": b"identity, chunked",
    "x before": b"xchunked",
    "x after": b"chunkedx",
    "parameter": b"chunked;x=1",
    "q": b"chunked;q=0.5",
    "quoted": b'"chunked"',
    "comma before": b",chunked",
    "comma after": b"chunked,",
    "in two words": b"chunk ed",
    "colon": b": chunked",
    "vertical tab before": b"\x0bchunked",
    "vertical tab after": b"chunked\x0b",
    "form feed": b"chunked\x0c",
    "NUL": b"chunked\x00",
    "DEL": b"chunked\x7f",
    "no-break space": b"\xa0chunked",
    "Kelvin sign": "chun\u212aed".encode(),  # its lower case is k
    "empty": b"",
    "null": b"null",
}

CASES: tuple[Case, ...] = (
    passes("a length", post(CL3, body=b"abc"), PLAIN),
    passes(
        "a length in lower case",
        post(b"content-length: 3", body=b"abc"),
        PLAIN.replace(b"Content-L", b"content-l"),
    ),
    passes("a length between tabs", post(b"Content-Length:\t3\t", body=b"abc"), PLAIN),
    passes("a length with leading zeros", post(b"Content-Length: 0003", body=b"abc"), PLAIN),
    passes("length 0", post(b"Content-Length: 0"), b"POST /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n"),
    passes("a POST without framing", post(), b"POST /a HTTP/1.1\r\n\r\n"),
    passes("a GET with a body", get(CL3) + b"abc", PLAIN.replace(b"POST", b"GET")),
    Case("a body that is still to come", post(CL3, body=b"ab"), ()),
    Case("chunks that are still to come", post(TE, body=b"3\r\nab"), ()),
    Case("a head that is still to come", post(CL3)[:-2], ()),
    passes("chunked", post(TE, body=ABC), CHUNKED),
    passes("chunked in capitals", post(b"TRANSFER-ENCODING: CHUNKED", body=ABC), CHUNKED),
    passes("chunked after a tab", post(b"Transfer-Encoding:\tchunked", body=ABC), CHUNKED),
    passes("chunked before a space", post(b"Transfer-Encoding: chunked ", body=ABC), CHUNKED),
    passes(
        "a GET with empty chunks",
        get(TE) + b"0\r\n\r\n",
        b"GET /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    passes("a coding that is offered", post(b"X-Transfer-Encoding: chunked", CL3, body=b"abc")),
    *(
        refused(f"length: {name}", post(b"Content-Length: " + value, body=b"abc"))
        for name, value in BAD_LENGTHS.items()
    ),
    *(
        refused(f"coding: {name}", post(b"Transfer-Encoding: " + value, body=ABC))
        for name, value in BAD_CODINGS.items()
    ),
    *(
        refused(f"length beside a coding: {name}", post(CL3, b"Transfer-Encoding: " + value, body=b"abc"))
        for name, value in BAD_CODINGS.items()
        if name in {"empty", "identity", "x before", "NUL", "comma before", "null", "vertical tab before"}
    ),
    refused("length and chunked", post(b"Content-Length: 6", TE, body=b"0\r\n\r\nG")),
    refused("chunked and length", post(TE, b"Content-Length: 6", body=b"0\r\n\r\nG")),
    refused("length 0 and chunked", post(b"Content-Length: 0", TE, body=ABC)),
    refused("a bad length and chunked", post(b"Content-Length: x", TE, body=ABC)),
    refused("two lengths alike", post(CL3, CL3, body=b"abc")),
    refused("two lengths", post(CL3, b"Content-Length: 5", body=b"abcde")),
    refused("two lengths, one in lower case", post(CL3, b"content-length: 5", body=b"abcde")),
    refused("two lengths, one empty", post(CL3, b"Content-Length:", body=b"abc")),
    refused("chunked twice", post(TE, TE, body=ABC)),
    refused("chunked and gzip", post(TE, b"Transfer-Encoding: gzip", body=ABC)),
    refused("identity and chunked", post(b"Transfer-Encoding: identity", TE, body=ABC)),
    refused("chunked and nothing", post(TE, b"Transfer-Encoding:", body=ABC)),
    refused("chunked in HTTP/1.0", request(b"POST /a HTTP/1.0", HOST, TE, body=ABC)),
    refused("chunked and length in HTTP/1.0", request(b"POST /a HTTP/1.0", HOST, CL3, TE, body=ABC)),
    passes("length in HTTP/1.0", request(b"POST /a HTTP/1.0", HOST, CL3, body=b"abc"), PLAIN),
    refused("a length's twin", post(b"Content_Length: 3", body=b"abc")),
    refused("a coding's twin", post(b"Transfer_Encoding: chunked", body=ABC)),
    refused("a length and its twin", post(CL3, b"Content_Length: 5", body=b"abcde")),
    refused("a length and a coding's twin", post(CL3, b"Transfer_Encoding: chunked", body=b"abc")),
    refused("space before a length's colon", post(b"Content-Length : 3", body=b"abc")),
    refused("tab before a length's colon", post(b"Content-Length\t: 3", body=b"abc")),
    refused("space before a coding's colon", post(b"Transfer-Encoding : chunked", body=ABC)),
    refused("NUL before a coding's colon", post(b"Transfer-Encoding\x00: chunked", body=ABC)),
    refused("a coding on the next line", post(b"Transfer-Encoding:", b" chunked", body=ABC)),
    refused("a coding on the next line after a tab", post(b"Transfer-Encoding:", b"\tchunked", body=ABC)),
    refused(
        "a coding folded into another field",
        post(CL3, b"X-A: b", b" Transfer-Encoding: chunked", body=b"abc"),
    ),
    refused(
        "a coding after an indent",
        request(b"POST /a HTTP/1.1", b" Transfer-Encoding: chunked", HOST, body=ABC),
    ),
    refused("a coding behind a bare CR", post(CL3, b"X-A: b\rTransfer-Encoding: chunked", body=b"abc")),
    refused("a coding behind a bare LF", post(CL3, b"X-A: b\nTransfer-Encoding: chunked", body=b"abc")),
    refused("a length behind a bare LF", post(b"X-A: b\nContent-Length: 3", body=b"abc")),
    refused("a coding behind CR CR LF", post(CL3, b"X-A: b\r", TE, body=b"abc")),
    refused(
        "a conflict and a foreign Host",
        request(b"POST /a HTTP/1.1", b"Host: evil.example", CL3, TE, body=ABC),
    ),
)
