"""Calls for every endpoint of httpbin, and a server that runs it.

Owns: the table of calls, by httpbin's own route; the WSGI server.
Must not know: the proxy.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_FORM = (b"Content-Type: application/x-www-form-urlencoded", b"a=1&b=%20+&b=2")
_JSON = (b"Content-Type: application/json", b'{"a": [1, 2.50], "b": "\xc3\xbc"}')
_MULTIPART = (
    b"Content-Type: multipart/form-data; boundary=x",
    b'--x\r\nContent-Disposition: form-data; name="f"; filename="f.bin"\r\n\r\n\x00\xff\xfe\r\n--x--\r\n',
)
_BYTES = (b"Content-Type: application/octet-stream", bytes(range(256)))


@dataclass(frozen=True)
class Call:
    """One request.

    Args:
        method, target: of the request line.
        lines: further headers.
        body: sent with its length.
        coding: the answer's Content-Encoding; its bytes hold a time stamp, so that what is compared is what
            they unpack to.
        varies: whether the body is new each time.
    """

    method: bytes
    target: bytes
    lines: tuple[bytes, ...] = ()
    body: bytes | None = None
    coding: bytes = b""
    varies: bool = False

    def request(self, host: bytes, *added: bytes) -> bytes:
        """Return the bytes; `added` stands last."""
        lines = [b"%s %s HTTP/1.1" % (self.method, self.target), b"Host: " + host, *self.lines]
        if self.body is not None:
            lines.append(b"Content-Length: %d" % len(self.body))
        return b"\r\n".join([*lines, *added, b"", b""]) + (self.body or b"")


def _get(target: bytes, *lines: bytes, coding: bytes = b"", varies: bool = False) -> Call:
    return Call(b"GET", target, lines, coding=coding, varies=varies)


def _send(method: bytes, target: bytes, content: tuple[bytes, bytes]) -> Call:
    return Call(method, target, (content[0],), content[1])


def _all_bodies(method: bytes, target: bytes) -> tuple[Call, ...]:
    return (
        Call(method, target),
        *(_send(method, target, body) for body in (_FORM, _JSON, _MULTIPART, _BYTES)),
    )


_WRITING = (b"POST", b"PUT", b"PATCH", b"DELETE")
_STATUSES = (
    b"200 201 202 203 204 205 206 300 301 302 303 304 305 307 308 400 401 402 403 404 405 406 409 410 412 413"
)
_STATUSES += b" 414 415 416 418 422 428 429 431 451 500 501 502 503 504 505"
_DIGEST = (b"/digest-auth/auth/u/p", b"/digest-auth/auth/u/p/MD5", b"/digest-auth/auth-int/u/p/SHA-256/never")

# httpbin's route -> what is asked of it.
CALLS: dict[str, tuple[Call, ...]] = {
    "/": (_get(b"/"),),
    "/absolute-redirect/<int:n>": (_get(b"/absolute-redirect/1"), _get(b"/absolute-redirect/3")),
    "/anything": (
        _get(b"/anything?a=1&a=2&b=%C3%BC&c", b"X-Odd: \xc3\xbc", b"Accept: a/b", b"User-Agent: x"),
        *(call for method in _WRITING for call in _all_bodies(method, b"/anything")),
    ),
    "/anything/<path:anything>": (
        _get(b"/anything/a/b%2Fc//d;e=f?g=/../h"),
        _get(b"/anything/../anything/x"),
        _send(b"PUT", b"/anything/%E2%82%AC", _JSON),
    ),
    "/base64/<value>": (_get(b"/base64/SFRUUEJJTg=="), _get(b"/base64/-")),
    "/basic-auth/<user>/<passwd>": (_get(b"/basic-auth/u/p"),),
    "/bearer": (_get(b"/bearer"),),
    "/brotli": (_get(b"/brotli", b"Accept-Encoding: br", coding=b"br"),),
    "/bytes/<int:n>": (
        _get(b"/bytes/0?seed=1"),
        _get(b"/bytes/70000?seed=1"),
        _get(b"/bytes/5", varies=True),
    ),
    "/cache": (
        _get(b"/cache", varies=True),
        _get(b"/cache", b"If-None-Match: x"),
        _get(b"/cache", b"If-Modified-Since: Sat, 29 Oct 1994 19:43:31 GMT"),
    ),
    "/cache/<int:value>": (_get(b"/cache/60"),),
    "/cookies": (_get(b"/cookies", b"Cookie: a=1; b=2"), _get(b"/cookies", b"Cookie: a=1", b"Cookie: b=2")),
    "/cookies/delete": (_get(b"/cookies/delete?a=&b=", b"Cookie: a=1; b=2"),),
    "/cookies/set": (_get(b"/cookies/set?a=1&b=%20x"),),
    "/cookies/set/<name>/<value>": (_get(b"/cookies/set/a/1"),),
    "/deflate": (_get(b"/deflate", b"Accept-Encoding: deflate", coding=b"deflate"),),
    "/delay/<delay>": (_get(b"/delay/0"), _send(b"POST", b"/delay/0.01", _JSON)),
    "/delete": _all_bodies(b"DELETE", b"/delete"),
    "/deny": (_get(b"/deny"),),
    "/digest-auth/<qop>/<user>/<passwd>": (_get(_DIGEST[0], varies=True),),
    "/digest-auth/<qop>/<user>/<passwd>/<algorithm>": (_get(_DIGEST[1], varies=True),),
    "/digest-auth/<qop>/<user>/<passwd>/<algorithm>/<stale_after>": (_get(_DIGEST[2], varies=True),),
    "/drip": (
        _get(b"/drip?numbytes=5&duration=0.1"),
        _get(b"/drip?numbytes=3&duration=0&code=418"),
        _get(b"/drip?numbytes=0"),
    ),
    "/encoding/utf8": (_get(b"/encoding/utf8"),),
    "/etag/<etag>": (
        _get(b"/etag/x"),
        _get(b"/etag/x", b'If-None-Match: "x"'),
        _get(b"/etag/x", b'If-Match: "y"'),
    ),
    "/forms/post": (_get(b"/forms/post"),),
    "/get": (_get(b"/get?a=1&b=%2F"), _get(b"/get", b"Accept-Encoding: gzip, br", b"Range: bytes=0-1")),
    "/gzip": (_get(b"/gzip", coding=b"gzip"), _get(b"/gzip", b"Accept-Encoding: gzip", coding=b"gzip")),
    "/headers": (_get(b"/headers", b"x-lower: 1", b"X-Empty:", b"X-Twice: 1", b"X-Twice: 2", b"Referer: y"),),
    "/hidden-basic-auth/<user>/<passwd>": (_get(b"/hidden-basic-auth/u/p"),),
    "/html": (_get(b"/html"),),
    "/image": tuple(
        _get(b"/image", b"Accept: " + kind) for kind in (b"image/webp", b"image/svg+xml", b"image/*", b"a/b")
    ),
    "/image/jpeg": (_get(b"/image/jpeg"),),
    "/image/png": (_get(b"/image/png"),),
    "/image/svg": (_get(b"/image/svg"),),
    "/image/webp": (_get(b"/image/webp"),),
    "/ip": (_get(b"/ip"),),
    "/json": (_get(b"/json"),),
    "/links/<int:n>": (_get(b"/links/3"),),
    "/links/<int:n>/<int:offset>": (_get(b"/links/3/1"),),
    "/patch": _all_bodies(b"PATCH", b"/patch"),
    "/post": _all_bodies(b"POST", b"/post"),
    "/put": _all_bodies(b"PUT", b"/put"),
    "/range/<int:numbytes>": (
        _get(b"/range/1024"),
        _get(b"/range/1024", b"Range: bytes=10-19"),
        _get(b"/range/1024?chunk_size=100&duration=0", b"Range: bytes=-5"),
        _get(b"/range/1024", b"Range: bytes=2000-"),
    ),
    "/redirect-to": (
        _get(b"/redirect-to?url=https%3A%2F%2Felsewhere.example%2Fx&status_code=307"),
        _get(b"/redirect-to?url=%2Fget"),
        _send(b"PUT", b"/redirect-to?url=%2Fget", _JSON),
    ),
    "/redirect/<int:n>": (_get(b"/redirect/2"), _get(b"/redirect/2?absolute=true")),
    "/relative-redirect/<int:n>": (_get(b"/relative-redirect/2"),),
    "/response-headers": (
        _get(b"/response-headers?X-A=1&X-A=2&x-lower=%C3%BC&ETag=y"),
        Call(b"POST", b"/response-headers?Server=other&Date=never"),
    ),
    "/robots.txt": (_get(b"/robots.txt"),),
    "/static/<path:filename>": (_get(b"/static/favicon.ico"), _get(b"/static/none")),
    "/status/<codes>": (
        *(_get(b"/status/" + status) for status in _STATUSES.split()),
        *(Call(method, b"/status/" + status) for method in _WRITING for status in (b"204", b"401", b"500")),
    ),
    "/stream-bytes/<int:n>": (
        _get(b"/stream-bytes/70000?seed=2&chunk_size=1000"),
        _get(b"/stream-bytes/5", varies=True),
    ),
    "/stream/<int:n>": (_get(b"/stream/5"),),
    "/user-agent": (_get(b"/user-agent", b"User-Agent: a b (c; d)"), _get(b"/user-agent")),
    "/uuid": (_get(b"/uuid", varies=True),),
    "/xml": (_get(b"/xml"),),
}


@contextlib.contextmanager
def running_httpbin() -> Iterator[int]:
    """Run httpbin on loopback as Werkzeug serves it, in HTTP/1.1; give its port."""
    from httpbin import app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: object) -> None:
            """Say nothing."""

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def routes() -> set[str]:
    """Return the routes that httpbin has."""
    from httpbin import app

    return {str(rule) for rule in app.url_map.iter_rules()}
