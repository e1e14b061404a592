"""Chunked bodies: sizes, extensions, line ends, trailers."""

from __future__ import annotations

from tests.security.case import Case, passes, post, refused

TE = b"Transfer-Encoding: chunked"
END = b"0\r\n\r\n"


def up(body: bytes) -> bytes:
    return b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + body


GOOD = {
    "capital hexadecimal": (b"A\r\n0123456789\r\n" + END, b"0123456789"),
    "leading zeros": (b"0003\r\nabc\r\n" + END, b"abc"),
    "many zeros last": (b"3\r\nabc\r\n0000\r\n\r\n", b"abc"),
    "two": (b"1\r\na\r\n2\r\nbc\r\n" + END, b"abc"),
    "an extension": (b"3;a=b\r\nabc\r\n" + END, b"abc"),
    "a quoted extension": (b'3;a="b;c"\r\nabc\r\n' + END, b"abc"),
    "an extension without a value": (b"3;a\r\nabc\r\n" + END, b"abc"),
    "an extension of the last": (b"3\r\nabc\r\n0;a=b\r\n\r\n", b"abc"),
    "line ends as data": (b"4\r\n\r\n\r\n\r\n" + END, b"\r\n\r\n"),
    "a request as data": (b"11\r\nGET /x HTTP/1.1\r\n\r\n" + END, b"GET /x HTTP/1.1\r\n"),
    "a trailer": (b"3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n", b"abcx-t: 1\r\n"),
    "an Authorization trailer": (b"3\r\nabc\r\n0\r\nAuthorization: Bearer evil\r\n\r\n", b"abc"),
    "a Host trailer": (b"3\r\nabc\r\n0\r\nHost: evil.example\r\n\r\n", b"abc"),
    "a hop-by-hop trailer": (b"3\r\nabc\r\n0\r\nConnection: X-A\r\nTE: x\r\nX-Real_IP: 1\r\n\r\n", b"abc"),
    "a twin of a framing trailer": (b"3\r\nabc\r\n0\r\nContent_Length: 9\r\n\r\n", b"abc"),
    "a Cookie trailer": (b"3\r\nabc\r\n0\r\nCookie: cfproxy-login-default=a\r\n\r\n", b"abc"),
}

BAD = {
    "more zeros than anybody needs": b"0" * 200_000 + b"3\r\nabc\r\n" + END,
    "an extension without end": b"3;" + b"x" * 200_000,
    "LF after the size": b"3\nabc\r\n" + END,
    "CR after the size": b"3\rabc\r\n" + END,
    "CR CR LF after the size": b"3\r\r\nabc\r\n" + END,
    "LF after the data": b"3\r\nabc\n" + END,
    "CR after the data": b"3\r\nabc\r" + END,
    "nothing after the data": b"3\r\nabc" + END,
    "data longer than its size": b"3\r\nabcd\r\n" + END,
    "data shorter than its size": b"5\r\nabc\r\n" + END,
    "LF in an extension": b"3;x\nabc\r\n" + END,
    "CR in an extension": b"3;x\ry\r\nabc\r\n" + END,
    "NUL in an extension": b"3;x\x00\r\nabc\r\n" + END,
    "a size over 64 bits": b"10000000000000003\r\nabc\r\n" + END,
    "a minus": b"-3\r\nabc\r\n" + END,
    "a plus": b"+3\r\nabc\r\n" + END,
    "0x": b"0x3\r\nabc\r\n" + END,
    "an underscore": b"0_3\r\nabc\r\n" + END,
    "a space before the size": b" 3\r\nabc\r\n" + END,
    "a space after the size": b"3 \r\nabc\r\n" + END,
    "a tab after the size": b"3\t\r\nabc\r\n" + END,
    "a space before an extension": b"3 ;a\r\nabc\r\n" + END,
    "a tab before an extension": b"3\t;a\r\nabc\r\n" + END,
    "DEL in an extension": b"3;\x7f\r\nabc\r\n" + END,
    "a size in other digits": "３\r\nabc\r\n".encode() + END,
    "no size": b"\r\nabc\r\n" + END,
    "no size but an extension": b";a=b\r\nabc\r\n" + END,
    "a size that is no number": b"G\r\nabc\r\n" + END,
    "quoted": b'"3"\r\nabc\r\n' + END,
    "a comma": b"3,3\r\nabc\r\n" + END,
    "an empty line between": b"1\r\na\r\n\r\n1\r\nb\r\n" + END,
    "an end of LF LF": b"3\r\nabc\r\n0\n\n",
    "an end of CR LF LF": b"3\r\nabc\r\n0\r\n\n",
    "an end of CR": b"3\r\nabc\r\n0\r\r\n",
    "a trailer without a colon": b"3\r\nabc\r\n0\r\nX-T\r\n\r\n",
    "a trailer with space before its colon": b"3\r\nabc\r\n0\r\nX-T : 1\r\n\r\n",
    "a folded trailer": b"3\r\nabc\r\n0\r\nX-T: 1\r\n 2\r\n\r\n",
    "NUL in a trailer": b"3\r\nabc\r\n0\r\nX-T: \x00\r\n\r\n",
    "LF in a trailer": b"3\r\nabc\r\n0\r\nX-T: 1\nX-U: 2\r\n\r\n",
    "framing trailers": b"3\r\nabc\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a request line as a trailer": b"3\r\nabc\r\n0\r\nGET /smuggled HTTP/1.1\r\n\r\n",
    "a trailer without end": b"3\r\nabc\r\n0\r\nX-T: " + b"x" * 40_000,
    "trailers without end": b"3\r\nabc\r\n0\r\n" + b"X-T: 1\r\n" * 1_000,
}

CASES: tuple[Case, ...] = (
    *(passes(f"chunks: {name}", post(TE, body=body), up(read)) for name, (body, read) in GOOD.items()),
    *(refused(f"chunks: {name}", post(TE, body=body)) for name, body in BAD.items()),
    # These are not buffered, and a client that stops is disconnected after `timeouts.idle`.
    Case("chunks: more data than anybody has", post(TE, body=b"ffffffffffffffff\r\nabc\r\n" + END), ()),
    Case("chunks: an end that is still to come", post(TE, body=b"3\r\nabc\r\n0\r\n"), ()),
)
