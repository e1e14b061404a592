"""Cases about bodies: their bytes, their framing, trailers, streams, and answers that break off."""

from __future__ import annotations

import gzip

from tests.conformance.script import (
    Case,
    Step,
    again,
    ask,
    case,
    chunks,
    client,
    down,
    group,
    head,
    meanwhile,
    origin,
    other_client,
    other_origin,
    post,
    say,
    up,
)

EVERY_BYTE = bytes(range(256))
LARGE = EVERY_BYTE * 4096
_GZIP = gzip.compress(b"hello " * 100, mtime=0)
# One frame each of the two codings that the standard library lacks, and bytes that are none at all.
_BROTLI = b"\x0b\x02\x80hello\x03"
_ZSTD = b"\x28\xb5\x2f\xfd\x20\x05\x29\x00\x00hello"
_NOT_GZIP = b"this is no gzip at all"
_PARTS = (
    b'--x\r\nContent-Disposition: form-data; name="f"; filename="\xc3\xbc.bin"\r\n\r\n' + EVERY_BYTE + b"\r\n"
    b"--x\r\nContent-Disposition: form-data; name=g\r\n\r\n\r\n--x--\r\n"
)
_CHUNKED = b"Transfer-Encoding: chunked"


def _upload(what: str, body: bytes, *lines: bytes) -> Case:
    return up(what, post(*lines, body=body), lines=lines, body=body, framed="length")


def _download(what: str, body: bytes, *lines: bytes, status: bytes = b"200 OK") -> Case:
    return down(what, say(status, *lines, body=body), status=int(status[:3]), lines=lines, body=body,
                framed="length")  # fmt: skip


bytes_up = group(
    "Bytes of a request body",
    _upload("every byte there is", EVERY_BYTE),
    _upload("a megabyte", LARGE),
    _upload("gzip stays packed", _GZIP, b"Content-Encoding: gzip"),
    _upload("br stays packed", _BROTLI, b"Content-Encoding: br"),
    _upload("zstd stays packed", _ZSTD, b"Content-Encoding: zstd"),
    _upload("bytes that are not what Content-Encoding says", _NOT_GZIP, b"Content-Encoding: gzip"),
    _upload("multipart", _PARTS, b"Content-Type: multipart/form-data; boundary=x"),
    _upload("a part of a file", b"xyz", b"Content-Range: bytes 7-9/20"),
    _upload("what looks like a request", b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"),
)

bytes_down = group(
    "Bytes of an answer's body",
    _download("every byte there is", EVERY_BYTE),
    _download("a megabyte", LARGE),
    _download("gzip stays packed, though nobody asked for it", _GZIP, b"Content-Encoding: gzip",
              b"Vary: Accept-Encoding"),
    _download("br stays packed", _BROTLI, b"Content-Encoding: br"),
    _download("zstd stays packed", _ZSTD, b"Content-Encoding: zstd"),
    _download("bytes that are not what Content-Encoding says", _NOT_GZIP, b"Content-Encoding: gzip"),
    _download("multipart ranges", _PARTS, b"Content-Type: multipart/byteranges; boundary=x",
              status=b"206 Partial Content"),
    _download("a range", b"xyz", b"Content-Range: bytes 7-9/20", status=b"206 Partial Content"),
    _download("no range to be had", b"", b"Content-Range: bytes */20", status=b"416 Range Not Satisfiable"),
    down("gzip in chunks stays packed", head(b"200 OK", b"Content-Encoding: gzip",
         _CHUNKED) + chunks(_GZIP[:5], _GZIP[5:]), lines=(b"Content-Encoding: gzip",), body=_GZIP,
         framed="chunked"),
)  # fmt: skip


def _chunked_up(what: str, body: bytes, sent: bytes) -> Case:
    return up(
        what,
        ask(b"PUT / HTTP/1.1", _CHUNKED, body=sent),
        lacks=(b"Content-Length",),
        framed="chunked",
        body=body,
    )


def _chunked_down(what: str, body: bytes, sent: bytes) -> Case:
    return case(what, client.sends(ask()), origin.gets(), origin.sends(head(b"200 OK", _CHUNKED), sent),
                client.gets(lacks=(b"Content-Length",), framed="chunked", body=body), *again())  # fmt: skip


framing = group(
    "Framing",
    up("an upload with a length keeps its length", post(body=b"abc"), framed="length",
       lines=(b"Content-Length: 3",), body=b"abc"),
    up("Content-Length: 0 is kept", post(), framed="length", lines=(b"Content-Length: 0",), body=b""),
    up("a POST without a body stays without framing", ask(b"POST / HTTP/1.1"), framed="none",
       lacks=(b"Content-Length", b"Transfer-Encoding")),
    _chunked_up("a chunked upload stays chunked", b"abcdefg", chunks(b"abc", b"defg")),
    _chunked_up("an empty chunked upload", b"", chunks()),
    _chunked_up("an upload with chunk extensions", b"abc",
                b'2;x=y;z="1;2"\r\nab\r\n1;q\r\nc\r\n0;end\r\n\r\n'),
    _chunked_up("chunk sizes in capitals and with zeros", b"x" * 26,
                b"0001A\r\n" + b"x" * 26 + b"\r\n000\r\n\r\n"),
    _chunked_up("a chunk of a megabyte up", LARGE, chunks(LARGE)),
    down("an answer with a length keeps its length", say(body=b"abc"), framed="length",
         lines=(b"Content-Length: 3",), body=b"abc"),
    _chunked_down("a chunked answer stays chunked", b"abcdefg", chunks(b"abc", b"defg")),
    _chunked_down("an empty chunked answer", b"", chunks()),
    _chunked_down("an answer with chunk extensions", b"abc",
                  b'2;x=y;z="1;2"\r\nab\r\n1;q\r\nc\r\n0;end\r\n\r\n'),
    _chunked_down("a chunk of a megabyte down", LARGE, chunks(LARGE)),
    case("an answer that ends with its connection is whole", client.sends(ask()), origin.gets(),
         origin.sends(head(b"200 OK"), b"abc"), origin.closes(), client.gets(body=b"abc")),
    case("an HTTP/1.0 answer that ends with its connection", client.sends(ask()), origin.gets(),
         origin.sends(b"HTTP/1.0 200 OK\r\nX-A: 1\r\n\r\nabc"), origin.closes(),
         client.gets(lines=(b"X-A: 1",), body=b"abc")),
)  # fmt: skip


trailers = group(
    "Trailers",
    case("of an upload", client.sends(ask(b"PUT / HTTP/1.1", _CHUNKED, b"Trailer: X-Sum, X-Too")),
         origin.gets(framed="chunked"), client.sends(chunks(b"abc",
         last=b"0\r\nX-Sum: 1\r\nx-too: \xc3\xbc\r\n\r\n")), origin.gets_end(body=b"abc",
         trailers=(b"X-Sum: 1", b"x-too: \xc3\xbc")), origin.sends(say(body=b"ok")), client.gets(body=b"ok")),
    case("of an answer", client.sends(ask(b"GET / HTTP/1.1", b"Connection: TE", b"TE: trailers")),
         origin.gets(), origin.sends(head(b"200 OK", _CHUNKED, b"Trailer: X-Sum, X-Too"),
         chunks(b"abc", last=b"0\r\nX-Sum: 1\r\nx-too: \xc3\xbc\r\n\r\n")), client.gets(framed="chunked",
         body=b"abc", trailers=(b"X-Sum: 1", b"x-too: \xc3\xbc")), *again()),
    case("of an answer that did not announce them",
         client.sends(ask(b"GET / HTTP/1.1", b"Connection: TE", b"TE: trailers")), origin.gets(),
         origin.sends(head(b"200 OK", _CHUNKED), chunks(b"abc", last=b"0\r\nX-Sum: 1\r\n\r\n")),
         client.gets(framed="chunked", body=b"abc", trailers=(b"X-Sum: 1",)), *again()),
    up("announced in a request", ask(b"PUT / HTTP/1.1", _CHUNKED, b"Trailer: X-Sum",
       body=chunks(b"a", last=b"0\r\nX-Sum: 1\r\n\r\n")), lines=(b"Trailer: X-Sum",)),
    case("announced in an answer", client.sends(ask(b"GET / HTTP/1.1", b"Connection: TE", b"TE: trailers")),
         origin.gets(), origin.sends(head(b"200 OK", _CHUNKED, b"Trailer: X-Sum"),
         chunks(b"a", last=b"0\r\nX-Sum: 1\r\n\r\n")), client.gets(lines=(b"Trailer: X-Sum",))),
    case("that hold credentials go nowhere",
         client.sends(ask(b"PUT / HTTP/1.1", _CHUNKED),
                      chunks(b"abc", last=b"0\r\nAuthorization: Bearer x\r\nForwarded: for=1.2.3.4\r\n\r\n")),
         origin.gets(body=b"abc"), origin.sends(say(body=b"ok")), client.gets(body=b"ok"), *again()),
    case("are left out for an HTTP/1.0 client", client.sends(b"GET / HTTP/1.0\r\nHost: HOST\r\n\r\n"),
         origin.gets(), origin.sends(head(b"200 OK", _CHUNKED),
         chunks(b"abc", last=b"0\r\nX-Sum: 1\r\n\r\n")), client.gets(framed="close", body=b"abc")),
)  # fmt: skip

_EVENTS: tuple[Step, ...] = tuple(
    step
    for n in range(3)
    for step in (origin.sends(chunks(b"data: %d\n\n" % n, last=b"")), client.gets_more(b"data: %d\n\n" % n))
)

streams = group(
    "Streams, piece by piece",
    case("the head comes before any of the body", client.sends(ask()), origin.gets(),
         origin.sends(head(b"200 OK", b"Content-Length: 2")), client.gets(lines=(b"Content-Length: 2",)),
         origin.sends(b"ok"), client.gets_end(body=b"ok")),
    case("server-sent events, each as it happens",
         client.sends(ask(b"GET / HTTP/1.1", b"Accept: text/event-stream")), origin.gets(),
         origin.sends(head(b"200 OK", b"Content-Type: text/event-stream", _CHUNKED)), client.gets(),
         *_EVENTS, origin.sends(b"0\r\n\r\n"), client.gets_end(body=b"data: 0\n\ndata: 1\n\ndata: 2\n\n")),
    case("a stream that ends with its connection", client.sends(ask()), origin.gets(),
         origin.sends(head(b"200 OK")), client.gets(), origin.sends(b"one"), client.gets_more(b"one"),
         origin.sends(b"two"), client.gets_more(b"two"), origin.closes(), client.gets_end(body=b"onetwo")),
    case("a download with a length, byte by byte", client.sends(ask()), origin.gets(),
         origin.sends(head(b"200 OK", b"Content-Length: 3")), client.gets(),
         *(step for byte in (b"a", b"b", b"c") for step in (origin.sends(byte), client.gets_more(byte)))),
    case("a chunked upload, as it is sent", client.sends(ask(b"PUT / HTTP/1.1", _CHUNKED),
         chunks(b"one", last=b"")), origin.gets(framed="chunked"), origin.gets_more(b"one"),
         client.sends(chunks(b"two", last=b"")), origin.gets_more(b"two"), client.sends(chunks()),
         origin.gets_end(body=b"onetwo"), origin.sends(say(body=b"ok")), client.gets(body=b"ok")),
    case("an upload with a length, as it is sent",
         client.sends(ask(b"PUT / HTTP/1.1", b"Content-Length: 6")), origin.gets(framed="length"),
         client.sends(b"one"), origin.gets_more(b"one"), client.sends(b"two"),
         origin.gets_end(body=b"onetwo"), origin.sends(say(body=b"ok")), client.gets(body=b"ok")),
    case("a long poll that another request answers", client.sends(ask(b"GET /poll HTTP/1.1")),
         origin.gets(start=b"GET /poll HTTP/1.1"),
         other_client.sends(ask(b"POST /push HTTP/1.1", b"Content-Length: 2", body=b"hi")),
         other_origin.gets(start=b"POST /push HTTP/1.1", body=b"hi"),
         other_origin.sends(head(b"204 No Content")), other_client.gets(status=204),
         origin.sends(say(body=b"hi")), client.gets(body=b"hi")),
)  # fmt: skip

cuts_up = group(
    "A cut upload is seen to be cut",
    case("with a length, closed", client.sends(ask(b"POST / HTTP/1.1", b"Content-Length: 9"), b"abc"),
         origin.gets(), origin.gets_more(b"abc"), client.closes(), origin.gets_end(cut=True)),
    case("with a length, reset", client.sends(ask(b"POST / HTTP/1.1", b"Content-Length: 9"), b"abc"),
         origin.gets(), origin.gets_more(b"abc"), client.resets(), origin.gets_end(cut=True)),
    case("chunked, closed between two chunks", client.sends(ask(b"POST / HTTP/1.1", _CHUNKED),
         chunks(b"abc", last=b"")),
         origin.gets(), origin.gets_more(b"abc"), client.closes(), origin.gets_end(cut=True)),
    case("chunked, reset inside a chunk", client.sends(ask(b"POST / HTTP/1.1", _CHUNKED), b"9\r\nabc"),
         origin.gets(), *meanwhile(), client.resets(), origin.gets_end(cut=True)),
    case("chunked, a broken chunk size", client.sends(ask(b"POST / HTTP/1.1", _CHUNKED), chunks(b"abc",
         last=b"")),
         origin.gets(), origin.gets_more(b"abc"), client.sends(b"zz\r\nabc\r\n0\r\n\r\n"),
         origin.gets_end(cut=True), client.gets()),
    case("a client that resets its connection while the origin thinks", client.sends(ask()), origin.gets(),
         client.resets(), origin.sees_close()),
)  # fmt: skip

cuts = group(
    "A cut answer is seen to be cut",
    case("with a length, closed", client.sends(ask()), origin.gets(),
         origin.sends(head(b"200 OK", b"Content-Length: 9"), b"abc"), client.gets(),
         client.gets_more(b"abc"), origin.closes(), client.gets_end(cut=True)),
    case("with a length, reset", client.sends(ask()), origin.gets(),
         origin.sends(head(b"200 OK", b"Content-Length: 9"), b"abc"), client.gets(),
         client.gets_more(b"abc"), origin.resets(), client.gets_end(cut=True)),
    case("chunked, closed between two chunks", client.sends(ask()), origin.gets(),
         origin.sends(head(b"200 OK", _CHUNKED), chunks(b"abc", last=b"")), client.gets(),
         client.gets_more(b"abc"), origin.closes(), client.gets_end(cut=True)),
    case("chunked, closed inside a chunk", client.sends(ask()), origin.gets(),
         origin.sends(head(b"200 OK", _CHUNKED), b"9\r\nabc"), client.gets(), *meanwhile(),
         origin.closes(), client.gets_end(cut=True)),
    case("chunked, a broken chunk size", client.sends(ask()), origin.gets(),
         origin.sends(head(b"200 OK", _CHUNKED), chunks(b"abc", last=b"")), client.gets(),
         client.gets_more(b"abc"), origin.sends(b"zz\r\nabc\r\n0\r\n\r\n"), client.gets_end(cut=True)),
    case("ended by its connection, reset", client.sends(ask()), origin.gets(),
         origin.sends(head(b"200 OK"), b"abc"), client.gets(), client.gets_more(b"abc"), origin.resets(),
         client.gets_end(cut=True)),
    case("chunked, to an HTTP/1.0 client", client.sends(b"GET / HTTP/1.0\r\nHost: HOST\r\n\r\n"),
         origin.gets(), origin.sends(head(b"200 OK", _CHUNKED), chunks(b"abc", last=b"")), client.gets(),
         client.gets_more(b"abc"), origin.closes(), client.gets_end(cut=True)),
)  # fmt: skip
