"""Responses that a broken or malicious upstream could send."""

from __future__ import annotations

END = b"0\r\n\r\n"


def head(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([start, *lines, b"", b""])


def sized(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return head(*lines, b"Content-Length: 2", start=start) + b"ok"


# Beyond `LIMITS` of `upstream.connection`.
TOO_LONG = {
    "a header of 129 KiB": sized(b"X-A: " + b"a" * 129 * 1024),
    "a name of 129 KiB": sized(b"X" * 129 * 1024 + b": a"),
    "a reason of 129 KiB": sized(start=b"HTTP/1.1 200 " + b"a" * 129 * 1024),
    "a head of 257 KiB": sized(*(b"X-A: " + b"a" * 1019 for _ in range(257))),
    "a head of 257 KiB, in three lines": sized(*(b"X-A: " + b"a" * 86 * 1024 for _ in range(3))),
    "a head that does not end": head(*(b"X-A: " + b"a" * 1019 for _ in range(257)))[:-2],
    "a line that does not end": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 257 * 1024,
    "a thousand headers and one": sized(*(b"X-%d: a" % n for n in range(1000))),
    "a redirect of 129 KiB": sized(b"Location: /" + b"a" * 129 * 1024, start=b"HTTP/1.1 302 Found"),
    "a long interim response": head(b"Link: <" + b"a" * 129 * 1024 + b">", start=b"HTTP/1.1 103 X") + sized(),
}

# Not HTTP/1.1, or ambiguous: nothing of it may be forwarded.
NO_ANSWERS = {
    "SSH": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
    "a page without a head": b"<html><body>hello</body></html>\r\n\r\n",
    "TLS": bytes.fromhex("150301000202") + b"F" + b"\x00" * 40,
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80\x00\x04\x00\x01\x00\x00",
    "zeros": b"\x00" * 100,
    "a status of four digits": sized(start=b"HTTP/1.1 2000 OK"),
    "a status of two digits": sized(start=b"HTTP/1.1 20 OK"),
    "a negative status": sized(start=b"HTTP/1.1 -20 OK"),
    "a status that is no number": sized(start=b"HTTP/1.1 OK"),
    "no status": sized(start=b"HTTP/1.1"),
    "status 000": sized(start=b"HTTP/1.1 000 X"),
    "status 099": sized(start=b"HTTP/1.1 099 X"),
    "no space": sized(start=b"HTTP/1.1200 OK"),
    "lower case": sized(start=b"http/1.1 200 OK"),
    "another protocol": sized(start=b"ICY 200 OK"),
    "a version that is none": sized(start=b"HTTP/9.9 200 OK"),
    "another protocol that nobody asked for": head(
        b"Connection: upgrade", b"Upgrade: x", start=b"HTTP/1.1 101 Switching Protocols"
    ),
    "NUL in the reason": sized(start=b"HTTP/1.1 200 O\x00K"),
    "an escape in the reason": sized(start=b"HTTP/1.1 200 \x1b[2J"),
    "a header in the reason": sized(start=b"HTTP/1.1 200 OK\rSet-Cookie: evil=1"),
    "NUL in a value": sized(b"X-A: a\x00b"),
    "NUL in a name": sized(b"X-\x00A: b"),
    "CR in a value": sized(b"X-A: a\rb"),
    "a header in a value": sized(b"X-A: a\rSet-Cookie: evil=1"),
    "a space before a colon": sized(b"X-A : b"),
    "a space behind Content-Length": head(b"Content-Length : 2") + b"ok",
    "a space behind Transfer-Encoding": head(b"Transfer-Encoding : chunked") + b"2\r\nok\r\n" + END,
    "a space behind Connection": sized(b"Connection : X-A"),
    "chunks in chunks": head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")
    + b"2\r\nok\r\n"
    + END,
    "interim answers without end": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 7000,
    "no colon": sized(b"X-A"),
    "no name": sized(b": b"),
    "a high byte in a name": sized(b"X-\xc3\xa4: b"),
    "two lengths": sized(b"Content-Length: 3"),
    "a list of lengths": head(b"Content-Length: 2, 3") + b"ok",
    "a length and chunks": head(b"Content-Length: 2", b"Transfer-Encoding: chunked") + b"2\r\nok\r\n" + END,
    "a signed length": head(b"Content-Length: +2") + b"ok",
    "a negative length": head(b"Content-Length: -2") + b"ok",
    "a length that is no number": head(b"Content-Length: 2x") + b"ok",
    "no length behind its name": head(b"Content-Length:") + b"ok",
    "a length over 64 bits": head(b"Content-Length: 18446744073709551618") + b"ok",
    **TOO_LONG,
}

# A valid head with an invalid body: a 502, or a response that is visibly cut off.
BROKEN_BODIES = {
    "a short body": head(b"Content-Length: 20") + b"ok",
    "a chunk's size that is none": b"G\r\nok\r\n" + END,
    "a chunk's size with a sign": b"-2\r\nok\r\n" + END,
    "a chunk's size over 64 bits": b"10000000000000002\r\nok\r\n" + END,
    "a chunk's size as 0x2": b"0x2\r\nok\r\n" + END,
    "a chunk that is too short": b"5\r\nok\r\n" + END,
    "a chunk that is too long": b"1\r\nok\r\n" + END,
    "a chunk without its end": b"2\r\nok" + END,
    "no last chunk": b"2\r\nok\r\n",
    "half a last chunk": b"2\r\nok\r\n0\r\n",
    "NUL in an extension": b"2;\x00\r\nok\r\n" + END,
    "rubbish for a trailer": b"2\r\nok\r\n0\r\n\x00\x01\r\n\r\n",
}

# Valid responses, as seeds for random changes.
GOOD = (
    sized(b"Content-Type: text/plain"),
    head(b"Transfer-Encoding: chunked") + b"2\r\nok\r\n" + END,
    head() + b"until the end",
    sized(b"Set-Cookie: a=1; Domain=x; Path=/", b"Location: http://a/b", b"Connection: X-A", b"X-A: 1"),
    head(start=b"HTTP/1.1 204 No Content"),
    head(b"ETag: x", start=b"HTTP/1.1 304 Not Modified"),
    head(b"Link: </a>", start=b"HTTP/1.1 103 Early Hints") + sized(),
    sized(b"WWW-Authenticate: Bearer", start=b"HTTP/1.1 401 Unauthorized"),
    sized(b"Retry-After: 1", start=b"HTTP/1.1 429 Too Many Requests"),
    sized(b"Retry-After: Fri, 31 Dec 1999 23:59:59 GMT", start=b"HTTP/1.1 503 Service Unavailable"),
    sized(start=b"HTTP/1.0 200 OK"),
)
SPICES = (
    *(bytes([code]) for code in range(256)),
    *(
        b"\r\n",
        b"\n\n",
        b"\r\n\r\n",
        b"\r\n ",
        b": ",
        b" :",
        END,
        b"HTTP/1.1 200 OK\r\n",
        b"ffffffffffffffff",
    ),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"\xc3\xa4"),
    *(b"Retry-After: 99999999999999999999\r\n", b"Location: http://[\r\n", b"Set-Cookie: ;domain=;\r\n"),
    *(b"101", b"401", b"429", b"503", b"304", b"a" * 40_000),
)
