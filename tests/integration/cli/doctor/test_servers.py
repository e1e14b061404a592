"""The doctor's checks of servers, with real ones on loopback, each broken in one way."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from email.utils import formatdate

import pytest
import trustme
from yarl import URL

from cfproxy.cli.doctor.servers import Server, check_certificate, check_clock, check_server
from tests.support.names import resolve_by

DAY_S = 86_400


@contextlib.asynccontextmanager
async def serving(answer: bytes | None, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve one fixed answer; None: no answer."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended = asyncio.Event()
        handling.append(ended)
        with contextlib.suppress(OSError):
            if await reader.read(1024) and answer is not None:
                writer.write(answer)
                await writer.drain()
            await reader.read()
        writer.transport.abort()
        ended.set()

    handling: list[asyncio.Event] = []
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]
    for each in handling:
        await each.wait()


def dated(at: float) -> bytes:
    return b"HTTP/1.1 200 OK\r\nDate: %s\r\n\r\n" % formatdate(at, usegmt=True).encode()


def server_at(port: int, *, scheme: str = "http", tls: ssl.SSLContext | None = None) -> Server:
    return Server(URL(f"{scheme}://127.0.0.1:{port}"), tls, 2.0, "upstream")


async def levels(server: Server) -> list[tuple[str, str]]:
    return [(each.check, each.level) for each in await check_server(server)]


async def test_a_server_in_order() -> None:
    """Its name resolves, it is reachable, and its clock agrees."""
    async with serving(dated(time.time())) as port:
        assert await levels(server_at(port)) == [("dns", "ok"), ("tcp", "ok"), ("clock", "ok")]


async def test_a_name_that_does_not_resolve() -> None:
    """Nothing further is tried (RFC 6761 §6.4: `invalid` never resolves)."""
    (finding,) = await check_server(Server(URL("https://api.invalid"), None, 5.0, "upstream"))
    assert (finding.check, finding.level, finding.code) == ("dns", "fail", 5)
    assert "upstream" in finding.next


async def test_a_name_without_tls_that_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent there, so nothing further is tried."""
    resolve_by(monkeypatch, gw__localhost=["192.0.2.7"])
    (finding,) = await check_server(Server(URL("http://gw.localhost"), None, 5.0, "upstream"))
    assert (finding.check, finding.level) == ("dns", "fail")
    assert "https in upstream" in finding.next


async def test_a_refused_connection() -> None:
    """The finding names the setting to check."""
    async with serving(None) as port:
        pass
    findings = await check_server(server_at(port))
    assert (findings[-1].check, findings[-1].level) == ("tcp", "fail")
    assert "refused" in findings[-1].text


async def test_a_certificate_that_is_not_trusted() -> None:
    """The finding has OpenSSL's reason and both usual causes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with serving(dated(time.time()), context) as port:
        findings = await check_server(server_at(port, scheme="https"))
    assert (findings[-1].check, findings[-1].level) == ("tls", "fail")
    assert "tls.ca_file" in findings[-1].next


async def test_a_server_without_tls() -> None:
    """The handshake fails, which is not the certificate's fault."""
    async with serving(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        findings = await check_server(server_at(port, scheme="https"))
    assert (findings[-1].check, findings[-1].level) == ("tls", "fail")
    assert "handshake" in findings[-1].text


async def test_a_trusted_certificate_is_reported_with_its_expiry() -> None:
    """With issuer and date."""
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    ca.configure_trust(trusting)
    async with serving(dated(time.time()), context) as port:
        findings = await check_server(server_at(port, scheme="https", tls=trusting))
    assert [each.check for each in findings] == ["dns", "tcp", "tls", "clock"]
    assert findings[2].level == "ok"
    assert "valid until" in findings[2].text


def test_a_certificate_that_expires_soon() -> None:
    """Two weeks ahead, because nothing else may check it."""
    certificate = {"notAfter": "Jan  1 00:00:00 2030 GMT", "issuer": ((("commonName", "CA"),),)}
    end = ssl.cert_time_to_seconds("Jan  1 00:00:00 2030 GMT")
    server = server_at(443, scheme="https")
    assert check_certificate(server, certificate, end - 15 * DAY_S).level == "ok"
    assert check_certificate(server, certificate, end - 13 * DAY_S).level == "warn"


async def test_a_wrong_clock() -> None:
    """With a real answer: a minute is a warning, ten minutes are a failure."""
    for skew_s, level in ((60, "warn"), (600, "fail"), (-60, "warn"), (-600, "fail")):
        async with serving(dated(time.time() + skew_s)) as port:
            finding = (await check_server(server_at(port)))[-1]
        assert (finding.check, finding.level) == ("clock", level)
        assert ("behind" if skew_s > 0 else "ahead of") in finding.text


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nDate: soon\r\n\r\n"])
def test_an_answer_without_a_valid_date_is_a_warning(head: bytes) -> None:
    """The clock may be right."""
    assert check_clock(server_at(80), head, 0.0, 0.0).level == "warn"


@pytest.mark.slow
async def test_a_server_without_http() -> None:
    """It may be another service at the configured port."""
    async with serving(b"220 mail ready\r\n") as port:
        finding = (await check_server(server_at(port)))[-1]
    assert (finding.check, finding.level) == ("http", "fail")
