"""Messages over the limits: lines, fields, number of fields, total size."""

from __future__ import annotations

from tests.security.case import HOST, Case, get, passes, refused, request

KIB = 1024

CASES: tuple[Case, ...] = (
    passes("size: a field of 30 KiB", get(b"X-A: " + b"a" * 30 * KIB)),
    passes("size: a target of 30 KiB", get(target=b"/a?" + b"b" * 30 * KIB)),
    passes("size: a field of 16 KiB", get(b"X-A: " + b"a" * 16 * KIB)),
    passes("size: a hundred fields", get(*(b"X-%d: a" % n for n in range(100)))),
    refused("size: a field of 40 KiB", get(b"X-A: " + b"a" * 40 * KIB)),
    refused("size: a name of 40 KiB", get(b"X" * 40 * KIB + b": a")),
    refused("size: a name of 40 KiB without a colon", request(b"GET /a HTTP/1.1", HOST, b"X" * 40 * KIB)),
    refused("size: a field without end", get()[:-2] + b"X-A: " + b"a" * 400 * KIB),
    refused("size: a request line without end", b"GET /" + b"a" * 400 * KIB),
    refused("size: a method without end", b"G" * 400 * KIB),
    refused("size: a thousand fields", get(*(b"X-%d: a" % n for n in range(1000)))),
    refused("size: twenty thousand fields", get(*(b"X: a" for _ in range(20_000)))),
    refused("size: fields without end", get()[:-2] + b"X: a\r\n" * 50_000),
    refused(
        "size: a hundred fields of 16 KiB", get(*(b"X-%d: %s" % (n, b"a" * 16 * KIB) for n in range(100)))
    ),
    refused("size: cookies of a megabyte", get(b"Cookie: " + b"a=b; " * 200 * KIB)),
    refused("size: Hosts of a megabyte", request(b"GET /a HTTP/1.1", *(HOST for _ in range(30_000)))),
    refused("size: empty lines of a megabyte", b"\r\n" * 512 * KIB + get()),
    refused("size: white space of a megabyte", get(b"X-A:" + b" " * KIB * KIB + b"a")),
)
