"""Answers that a tolerant client can read. A refresh can't be repeated, so all of them must be used."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from cfproxy.auth import token_endpoint
from cfproxy.auth.models import TokenReply
from cfproxy.auth.token_response import HEAD_MAX_BYTES, REPLY_MAX_BYTES, EndpointResponse, read_response
from cfproxy.errors import GrantRefused
from cfproxy.secret import Secret
from cfproxy.upstream.connection import LIMITS
from tests.integration.auth.raw_server import (
    ACCESS_TOKEN,
    MARKER,
    REFRESH_TOKEN,
    Handler,
    endpoint_at,
    failed_refresh,
    listening,
)

NEXT_TOKEN = "MARKERnextMARKER"
DOCUMENT: dict[str, Any] = {
    "access_token": ACCESS_TOKEN,
    "expires_in": 3600,
    "token_type": "Bearer",
    "refresh_token": NEXT_TOKEN,
    "scope": "cfgateway offline_access",
}
TEXT = json.dumps(DOCUMENT)
BODY = TEXT.encode()
SIZE = b"%d" % len(BODY)


def raw_deflate(body: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(body) + engine.flush()


def http(*lines: bytes, body: bytes = BODY, start: bytes = b"HTTP/1.1 200 OK", eol: bytes = b"\r\n") -> bytes:
    return eol.join([start, *lines, b"", b""]) + body


def sized(*lines: bytes, body: bytes = BODY, **options: bytes) -> bytes:
    return http(*lines, b"Content-Length: %d" % len(body), body=body, **options)


def chunked(body: bytes, *lines: bytes) -> bytes:
    return http(*(lines or (b"Transfer-Encoding: chunked",)), body=body)


def coded(coding: bytes, body: bytes) -> bytes:
    return sized(b"Content-Encoding: " + coding, body=body)


def typed(kind: bytes, body: bytes = BODY) -> bytes:
    return sized(b"Content-Type: " + kind, body=body)


def said(text: str) -> bytes:
    return sized(body=text.encode())


HALF = len(BODY) // 2
CHUNKS = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (HALF, BODY[:HALF], len(BODY) - HALF, BODY[HALF:])
ONE_CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)

HEADS = {
    "a header of 9,000 bytes": sized(b"X-Policy: " + b"p" * 9000),
    "a header of 60,000 bytes": sized(b"X-Policy: " + b"p" * 60_000),
    "a head near the bound": sized(*(b"X-%d: %b" % (n, b"p" * 8000) for n in range(HEAD_MAX_BYTES // 8200))),
    "2,000 headers": sized(*(b"X-%d: 1" % number for number in range(2000))),
    "bare LF": sized(b"Content-Type: application/json", eol=b"\n"),
    "CR CR LF": sized(b"Content-Type: application/json", eol=b"\r\r\n"),
    "a blank line before": b"\r\n" + sized(),
    "no reason phrase": sized(start=b"HTTP/1.1 200"),
    "a space for a reason": sized(start=b"HTTP/1.1 200 "),
    "a reason in Latin-1": sized(start=b"HTTP/1.1 200 Tr\xe8s bien"),
    "a reason of 20,000 bytes": sized(start=b"HTTP/1.1 200 " + b"O" * 20_000),
    "two spaces before the status": sized(start=b"HTTP/1.1  200 OK"),
    "lower case": sized(start=b"http/1.1 200 ok"),
    "HTTP/1.0": sized(start=b"HTTP/1.0 200 OK"),
    "HTTP/2 in text": sized(start=b"HTTP/2 200"),
    "201": sized(start=b"HTTP/1.1 201 Created"),
    "203": sized(start=b"HTTP/1.1 203 Non-Authoritative Information"),
    "206": sized(start=b"HTTP/1.1 206 Partial Content"),
    "299": sized(start=b"HTTP/1.1 299 X"),
    "204 with a body": sized(start=b"HTTP/1.1 204 No Content"),
    "interim answers": http(b"Link: </x>", body=b"", start=b"HTTP/1.1 103 Early Hints") * 3 + sized(),
    "100 Continue": b"HTTP/1.1 100 Continue\r\n\r\n" + sized(),
    "a folded header": sized(b"X-Long: a\r\n b\r\n\tc"),
    "a folded Content-Length": http(b"Content-Length:\r\n %b" % SIZE),
    "a folded Transfer-Encoding": chunked(ONE_CHUNK, b"Transfer-Encoding:\r\n\tchunked"),
    "a space before a colon": http(b"Content-Length : " + SIZE),
    "a line without a colon": sized(b"garbage"),
    "no name": sized(b": x"),
    "a control byte": sized(b"X-A: a\x00\x01b"),
    "a bare CR": sized(b"X-A: a\rb"),
    "a header in UTF-8": sized("X-Näme: wért".encode()),
    "a bad Content-Type": typed(b";;=\xff"),
    "cookies": sized(*(b"Set-Cookie: session%d=%b; Path=/" % (n, b"c" * 4000) for n in range(12))),
}
LENGTHS = {
    "no length": http(),
    "the same length twice": http(b"Content-Length: " + SIZE, b"Content-Length: " + SIZE),
    "a list of equal lengths": http(b"Content-Length: %b, %b" % (SIZE, SIZE)),
    "two lengths": http(b"Content-Length: " + SIZE, b"Content-Length: 7"),
    "a length that is too long": http(b"Content-Length: 5000"),
    "a length that is too short": http(b"Content-Length: 40"),
    "a length of zero": http(b"Content-Length: 0"),
    "a negative length": http(b"Content-Length: -1"),
    "a signed length": http(b"Content-Length: +" + SIZE),
    "a length that is no number": http(b"Content-Length: many"),
    "a huge length": http(b"Content-Length: " + b"9" * 40),
    "an empty length": http(b"Content-Length:"),
    "trailing data": sized(body=BODY + b"\r\n\r\n<!-- 12 ms -->"),
    "data after the length": sized() + b"rubbish",
    "a second answer": sized() + sized(body=b"{}"),
}
CHUNKED = {
    "two chunks": chunked(CHUNKS),
    "chunks and a length": chunked(CHUNKS, b"Transfer-Encoding: chunked", b"Content-Length: " + SIZE),
    "chunks in HTTP/1.0": http(b"Transfer-Encoding: chunked", body=CHUNKS, start=b"HTTP/1.0 200 OK"),
    "CHUNKED": chunked(CHUNKS, b"Transfer-Encoding: CHUNKED"),
    "chunked twice": chunked(CHUNKS, b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "identity, chunked": chunked(CHUNKS, b"Transfer-Encoding: identity, chunked"),
    "gzip as a transfer coding": chunked(
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(gzip.compress(BODY)), gzip.compress(BODY)),
        b"Transfer-Encoding: gzip, chunked",
    ),
    "an extension": chunked(CHUNKS.replace(b"\r\n", b";a=b;c\r\n", 1)),
    "a padded size": chunked(CHUNKS.replace(b"\r\n", b"   \r\n", 1)),
    "leading zeros": chunked(b"00000000000000" + CHUNKS),
    "capital digits": chunked(b"%X\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)),
    "bare LF in chunks": chunked(CHUNKS.replace(b"\r\n", b"\n")),
    "no last chunk": chunked(CHUNKS.removesuffix(b"0\r\n\r\n")),
    "half a last chunk": chunked(CHUNKS.removesuffix(b"\r\n")),
    "a trailer": chunked(CHUNKS.removesuffix(b"\r\n") + b"X-Checksum: 1\r\n\r\n"),
    "a bad trailer": chunked(CHUNKS.removesuffix(b"\r\n") + b"\x00\x01\r\n\r\n"),
    "no line break behind the data": chunked(b"%x\r\n%b0\r\n\r\n" % (len(BODY), BODY)),
    "chunked but not in chunks": chunked(BODY),
    "chunks that nobody announced": http(b"Connection: close", body=ONE_CHUNK),
    "chunks under a length": sized(body=ONE_CHUNK),
}
CODINGS = {
    "gzip": coded(b"gzip", gzip.compress(BODY)),
    "x-gzip": coded(b"x-gzip", gzip.compress(BODY)),
    "GZIP": coded(b"GZIP", gzip.compress(BODY)),
    "gzip in two members": coded(b"gzip", gzip.compress(BODY[:9]) + gzip.compress(BODY[9:])),
    "gzip twice": coded(b"gzip, gzip", gzip.compress(gzip.compress(BODY))),
    "gzip without its end": coded(b"gzip", gzip.compress(BODY)[:-8]),
    "gzip with a wrong checksum": coded(b"gzip", gzip.compress(BODY)[:-8] + b"\0" * 8),
    "gzip with rubbish behind": coded(b"gzip", gzip.compress(BODY) + b"\0" * 20),
    "gzip without a label": sized(body=gzip.compress(BODY)),
    "gzip labelled identity": coded(b"identity", gzip.compress(BODY)),
    "gzip labelled deflate": coded(b"deflate", gzip.compress(BODY)),
    "gzip in chunks": chunked(
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(gzip.compress(BODY)), gzip.compress(BODY)),
        b"Transfer-Encoding: chunked",
        b"Content-Encoding: gzip",
    ),
    "gzip with the length of the text": http(
        b"Content-Encoding: gzip", b"Content-Length: " + SIZE, body=gzip.compress(BODY)
    ),
    "deflate": coded(b"deflate", zlib.compress(BODY)),
    "raw deflate": coded(b"deflate", raw_deflate(BODY)),
    "deflate labelled gzip": coded(b"gzip", zlib.compress(BODY)),
    "raw deflate labelled gzip": coded(b"gzip", raw_deflate(BODY)),
    "deflate without a label": sized(body=zlib.compress(BODY)),
    "text labelled gzip": coded(b"gzip", BODY),
    "text labelled deflate": coded(b"deflate", BODY),
    "text labelled br": coded(b"br", BODY),
    "an unknown coding": coded(b"rot26", BODY),
    "a charset as a coding": coded(b"utf-8", BODY),
    "an empty coding": coded(b"", BODY),
}
TEXTS = {
    "text/html": typed(b"text/html"),
    "text/plain": typed(b"text/plain; charset=utf-8"),
    "an unknown charset": typed(b"application/json; charset=x-none"),
    "a byte order mark": sized(body=b"\xef\xbb\xbf" + BODY),
    "UTF-16": typed(b"application/json; charset=utf-16", TEXT.encode("utf-16")),
    "UTF-16 without a mark": sized(body=TEXT.encode("utf-16-le")),
    "UTF-32": sized(body=TEXT.encode("utf-32")),
    "Latin-1": typed(
        b"application/json; charset=iso-8859-1", TEXT.replace("{", '{"note": "é", ').encode("latin-1")
    ),
    "spaces around": said(f"\r\n\t {TEXT} \r\n\0"),
    "a guard against scripts": said(f")]}}',\n{TEXT}"),
    "JSONP": said(f"callback({TEXT});"),
    "a list of one": said(f"[{TEXT}]"),
    "a string that holds JSON": said(json.dumps(TEXT)),
    "a line break in a string": said(TEXT.replace("{", '{"note": "a\nb", ')),
    "a comma at the end": said(TEXT.replace("}", ",}")),
    "no closing brace": said(TEXT.removesuffix("}")),
    "a key twice": said(TEXT.replace("{", '{"access_token": "first", ')),
    "a key twice, then null": said(TEXT.replace("}", ', "refresh_token": null}')),
    "NaN": said(TEXT.replace("3600", "NaN")),
    "a number of 5,000 digits": said(TEXT.replace("3600", "9" * 5000)),
    "a form": said(
        f"access_token={ACCESS_TOKEN}&token_type=bearer&expires_in=3600&refresh_token={NEXT_TOKEN}"
    ),
}
FIELDS: dict[str, dict[str, Any]] = {
    "a lifetime in a string": {"expires_in": "3600"},
    "a lifetime with a fraction": {"expires_in": 3600.25},
    "a negative lifetime": {"expires_in": -1},
    "a huge lifetime": {"expires_in": 10**30},
    "a lifetime in words": {"expires_in": "an hour"},
    "a lifetime of null": {"expires_in": None},
    "bearer": {"token_type": "bearer"},
    "BEARER": {"token_type": "BEARER"},
    "a space in the type": {"token_type": "Bearer "},
    "BearerToken": {"token_type": "BearerToken"},
    "a type of null": {"token_type": None},
    "a scope that is a list": {"scope": ["cfgateway"]},
    "no error": {"error": None},
    "an empty error": {"error": ""},
    "an id_token": {"id_token": "e30.e30.e30"},
}


async def refreshed(script: bytes | Handler, **options: Any) -> TokenReply:
    async with listening(script) as server:
        return await endpoint_at(server.origin, **options).refresh(Secret(REFRESH_TOKEN))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(answer, id=f"{kind}: {name}")
        for kind, answers in {
            "head": HEADS,
            "length": LENGTHS,
            "chunks": CHUNKED,
            "coding": CODINGS,
            "text": TEXTS,
            "field": {name: said(json.dumps(DOCUMENT | fields)) for name, fields in FIELDS.items()},
        }.items()
        for name, answer in answers.items()
    ],
)
async def test_odd_answer_is_read(answer: bytes) -> None:
    """Whatever is odd about it, both tokens are used, and the connection's end is not waited for in vain."""
    reply = await refreshed(answer)
    assert reply.access_token == Secret(ACCESS_TOKEN)
    assert reply.refresh_token == Secret(NEXT_TOKEN)
    assert reply.lifetime_s is None or 3600 <= reply.lifetime_s <= 3601


async def test_answer_is_read_in_whatever_pieces_it_comes() -> None:
    """One byte at a time, nothing is lost, and nothing is taken before it is complete."""
    for said_so_far in (sized(), chunked(CHUNKS), coded(b"gzip", gzip.compress(BODY)), http(eol=b"\n")):

        async def drip(
            _: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes = said_so_far
        ) -> None:
            for code in answer:
                writer.write(bytes([code]))
                await writer.drain()

        reply = await refreshed(drip)
        assert (reply.access_token, reply.refresh_token) == (Secret(ACCESS_TOKEN), Secret(NEXT_TOKEN))


async def test_answer_in_tiny_pieces_is_not_read_again_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time it is read from its start, on the event loop: that would stop all others."""
    reads = []

    def counting(data: bytes, *, ended: bool) -> EndpointResponse | None:
        reads.append(len(data))
        return read_response(data, ended=ended)

    monkeypatch.setattr(token_endpoint, "read_response", counting)

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for code in sized(b"X-Policy: " + b"p" * 3000):
            writer.write(bytes([code]))
            await asyncio.sleep(0)

    reply = await refreshed(drip)
    assert (reply.access_token, reply.refresh_token) == (Secret(ACCESS_TOKEN), Secret(NEXT_TOKEN))
    assert len(reads) < 1500


@pytest.mark.parametrize(
    "answer",
    [
        http(b"X: " + b"\r" * 250_000, body=b"{}"),
        chunked(b"1;" + b"\r" * 500_000),
        http(*(b"X: %d" % number for number in range(30_000)), body=b"{}"),
        sized(body=b"{" + b'"a":1,' * 10_000 + b"}"),
        coded(b"gzip", gzip.compress(b"") * 3000),
    ],
    ids=["line ends", "an extension", "header lines", "members", "parts"],
)
async def test_no_answer_takes_long_to_read(answer: bytes) -> None:
    """Some took from seconds to minutes, in which nobody else was served."""
    async with listening(answer) as server:
        await failed_refresh(endpoint_at(server.origin))


async def keep_open(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
    writer.write(answer)
    await writer.drain()
    await reader.read()


@pytest.mark.parametrize(
    "answer",
    [
        sized(),
        chunked(CHUNKS),
        http(b"Content-Length: 5000"),
        http(),
        coded(b"gzip", gzip.compress(BODY)),
        chunked(CHUNKS.removesuffix(b"0\r\n\r\n")),
    ],
)
async def test_complete_document_ends_an_answer_on_an_open_connection(answer: bytes) -> None:
    """A server that ignores `Connection: close` is not waited for."""
    await refreshed(lambda reader, writer: keep_open(reader, writer, answer))


async def test_answer_of_a_silent_server_is_used_when_the_time_is_over() -> None:
    """What came counts, although the server neither completed the document nor closed the connection."""
    cut = http(b"Content-Length: 5000", body=BODY.removesuffix(b"}"))
    reply = await refreshed(lambda reader, writer: keep_open(reader, writer, cut), timeout_s=0.2)
    assert reply.refresh_token == Secret(NEXT_TOKEN)


async def test_reset_after_the_answer_does_not_lose_it() -> None:
    """A server that resets the connection right after its last byte has answered all the same."""

    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http(b"Content-Length: 5000"))
        await writer.drain()
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    assert (await refreshed(reset)).access_token == Secret(ACCESS_TOKEN)


# --- a part that must be kept ------------------------------------------------------------

AFTER_REFRESH_TOKEN = BODY.index(NEXT_TOKEN.encode()) + len(NEXT_TOKEN) + 1


@pytest.mark.parametrize(
    "answer",
    [
        http(b"Content-Length: " + SIZE, body=BODY[:AFTER_REFRESH_TOKEN]),
        http(b"Content-Length: " + SIZE, body=BODY[:-1]),
        http(body=BODY[:AFTER_REFRESH_TOKEN]),
        chunked(CHUNKS[: CHUNKS.index(NEXT_TOKEN.encode()) + len(NEXT_TOKEN) + 1]),
        coded(b"gzip", gzip.compress(BODY[:AFTER_REFRESH_TOKEN])),
    ],
)
async def test_answer_that_breaks_off_behind_both_tokens_is_used(answer: bytes) -> None:
    """What is missing is less important than the tokens, of which every byte has come."""
    reply = await refreshed(answer)
    assert (reply.access_token, reply.refresh_token) == (Secret(ACCESS_TOKEN), Secret(NEXT_TOKEN))


@pytest.mark.parametrize(
    "fields",
    [
        {"access_token": None},
        {"access_token": ""},
        {"access_token": "two words"},
        {"access_token": 7},
        {"token_type": "mac"},
        {"token_type": ["Bearer"]},
    ],
)
async def test_new_refresh_token_is_kept_even_if_the_rest_is_unusable(fields: dict[str, Any]) -> None:
    """The reply has no access token then, but the refresh token with which to ask for one."""
    reply = await refreshed(said(json.dumps(DOCUMENT | fields)))
    assert reply.access_token is None
    assert reply.refresh_token == Secret(NEXT_TOKEN)


@pytest.mark.parametrize("refresh_token", [7, ["x"], {}, True, "", None, "\ud800"])
async def test_unusable_refresh_token_does_not_cost_the_access_token(refresh_token: object) -> None:
    """RFC 6749 §6: the old one stays, as if none had come."""
    reply = await refreshed(said(json.dumps(DOCUMENT | {"refresh_token": refresh_token})))
    assert (reply.access_token, reply.refresh_token) == (Secret(ACCESS_TOKEN), None)


@pytest.mark.parametrize("at", range(1, len(BODY), 7))
async def test_half_a_token_is_never_taken_for_a_whole_one(at: int) -> None:
    """Wherever a body breaks off, a token is used as a whole or not at all."""
    async with listening(http(b"Content-Length: " + SIZE, body=BODY[:at])) as server:
        endpoint = endpoint_at(server.origin)
        if at < AFTER_REFRESH_TOKEN:
            error = await failed_refresh(endpoint)
            assert error.sent
            assert not error.answered
            assert "closed the connection before its response was complete" in str(error)
        else:
            assert (await endpoint.refresh(Secret(REFRESH_TOKEN))).refresh_token == Secret(NEXT_TOKEN)


# --- what is not read --------------------------------------------------------------------


def bomb(make: Callable[[bytes], bytes]) -> bytes:
    return make(BODY.ljust(REPLY_MAX_BYTES + 1))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (coded(b"gzip", bomb(gzip.compress)), "more than 64 KiB"),
        (coded(b"deflate", bomb(zlib.compress)), "more than 64 KiB"),
        (coded(b"deflate", bomb(raw_deflate)), "more than 64 KiB"),
        (coded(b"gzip", gzip.compress(gzip.compress(b"\0" * 50_000_000))), "more than 64 KiB"),
        (sized(b"X-Policy: " + b"p" * HEAD_MAX_BYTES), "head of more than"),
        (http(b"X-Policy: " + b"p" * HEAD_MAX_BYTES, body=b"")[:-4], "head of more than"),
        (coded(b"br", b"\x0b\x02\x80{}\x03"), "compressed"),
        (coded(b"zstd", b"\x28\xb5\x2f\xfd" + b"x" * 30), "compressed"),
        (typed(b"text/html", f"<html>{TEXT}</html>".encode()), "web page"),
        (said(f"<script>var session = {TEXT}</script>"), "not a token"),
        (said(""), "not a token"),
        (http(body=b"", start=b"HTTP/1.1 204 No Content"), "not a token"),
        (said("[]"), "not a token"),
        (said(json.dumps({"error": "server_error"})), "with an error"),
        (said(json.dumps(DOCUMENT | {"error": "server_error"})), "with an error"),
        (said(json.dumps({"expires_in": 3600})), "usable"),
        (said(json.dumps({"echo": {"refresh_token": NEXT_TOKEN}})), "usable"),
    ],
)
async def test_unusable_success_counts_as_spent_and_names_its_cause(answer: bytes, says: str) -> None:
    """With any 2xx the server may have replaced the refresh token, and the configuration is not to blame."""
    async with listening(answer) as server:
        error = await failed_refresh(endpoint_at(server.origin))
    assert says in str(error)
    assert "token_url" not in str(error)
    assert error.sent
    assert not error.answered


@pytest.mark.parametrize("status", [400, 403, 404, 500, 503])
async def test_other_statuses_used_nothing_up(status: int) -> None:
    """What is no 2xx is no token, whatever its body."""
    async with listening(sized(start=b"HTTP/1.1 %d X" % status)) as server:
        error = await failed_refresh(endpoint_at(server.origin))
    assert error.answered


async def test_refusals_are_read_as_tolerantly() -> None:
    """A refusal that is packed, in odd framing and of an odd type is still a refusal."""
    body = gzip.compress(json.dumps({"error": "invalid_grant", "error_description": MARKER}).encode())
    said_so = http(b"Content-Length: 9999", b"X: " + b"x" * 9000, body=body, start=b"HTTP/1.1 400")
    async with listening(said_so) as server:
        with pytest.raises(GrantRefused):
            await endpoint_at(server.origin).refresh(Secret(REFRESH_TOKEN))


def test_bound_of_a_head_is_no_lower_than_that_of_the_api() -> None:
    """What passes from the API must not cost a login here."""
    assert LIMITS.head_bytes <= HEAD_MAX_BYTES
