"""Checks of the servers that cfproxy talks to: name, connection, certificate and clock.

They use one connection of their own, without any token.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from yarl import URL

from cfproxy.auth.models import instant
from cfproxy.cli.doctor.findings import Finding
from cfproxy.errors import UpstreamError
from cfproxy.hosts import are_loopback, look_up, render_authority

EXPIRY_WARN_S = 14 * 86_400
# Tokens and certificates depend on the clock; servers tolerate about a minute.
SKEW_WARN_S = 30.0
SKEW_FAIL_S = 300.0
_HEAD_MAX_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class Server:
    """One server to check.

    Args:
        url: any URL of the server.
        tls: for https; None uses the system's certificate authorities.
        timeout_s: seconds for each step.
        setting: the setting that has its URL.
    """

    url: URL
    tls: ssl.SSLContext | None
    timeout_s: float
    setting: str

    @property
    def host(self) -> str:
        """Host name or IP address."""
        return self.url.raw_host or ""

    @property
    def where(self) -> str:
        """`host:port`."""
        return render_authority(self.host, self.url.port)


async def check_server(server: Server, wall_clock: Callable[[], float] = time.time) -> list[Finding]:
    """Check name, connection, certificate and clock of a server, up to the first failure."""
    findings = [await check_dns(server)]
    if findings[-1].level == "fail":
        return findings
    async with contextlib.AsyncExitStack() as stack:
        finding, streams = await connect(server)
        findings.append(finding)
        if streams is None:
            return findings
        reader, writer = streams
        stack.callback(writer.transport.abort)
        certificate = writer.get_extra_info("peercert")
        if certificate:
            findings.append(check_certificate(server, certificate, wall_clock()))
        findings.append(await _check_clock(server, reader, writer, wall_clock))
    return findings


def _failed(check: str, text: str, step: str) -> Finding:
    return Finding(check, "fail", text, step, code=UpstreamError.exit_code)


async def check_dns(server: Server) -> Finding:
    """Check that the host name resolves."""
    try:
        async with asyncio.timeout(server.timeout_s):
            found = await look_up(server.host, server.url.port)
    except TimeoutError:
        text, step = f"{server.host}: no response from the name server", "check the network's DNS"
        return _failed("dns", text, step)
    except OSError:
        text = f"{server.host} does not resolve"
        return _failed("dns", text, f"check the network's DNS and {server.setting}")
    if server.url.scheme == "http" and not are_loopback(found):
        text = f"{server.host} is not this machine, and plain http is sent to no other"
        return _failed("dns", text, f"use https in {server.setting}, or correct the name's address")
    addresses = ", ".join(dict.fromkeys(str(each[4][0]) for each in found))
    return Finding("dns", "ok", f"{server.host}: {addresses}")


async def connect(server: Server) -> tuple[Finding, tuple[asyncio.StreamReader, asyncio.StreamWriter] | None]:
    """Connect, TLS included; return the finding and, if it is good, the streams."""
    tls: Any = None
    if server.url.scheme == "https":
        tls = server.tls or ssl.create_default_context()
    try:
        async with asyncio.timeout(server.timeout_s):
            streams = await asyncio.open_connection(
                server.host, server.url.port, ssl=tls, limit=_HEAD_MAX_BYTES
            )
    except ssl.SSLCertVerificationError as error:
        return _untrusted(server, error), None
    except ssl.SSLError as error:
        text = f"{server.where} does not complete the TLS handshake ({error.reason or 'no reason given'})"
        return _failed("tls", text, f"check {server.setting}, and whether TLS is intercepted"), None
    except TimeoutError:
        text = f"{server.where} accepts no connection within timeouts.connect"
        return _failed("tcp", text, "check the network and the firewall"), None
    except OSError as error:
        text = f"no connection to {server.where}: {os.strerror(error.errno) if error.errno else 'refused'}"
        return _failed("tcp", text, f"check the network and {server.setting}"), None
    return Finding("tcp", "ok", f"connected to {server.where}"), streams


def _untrusted(server: Server, error: ssl.SSLCertVerificationError) -> Finding:
    text = f"the certificate of {server.where} is not trusted: {error.verify_message}"
    step = "check this machine's clock; if TLS is intercepted, set tls.ca_file to the interceptor's authority"
    return _failed("tls", text, step)


def check_certificate(server: Server, certificate: dict[str, Any], now: float) -> Finding:
    """Check when a verified certificate, as `getpeercert` returns it, expires."""
    ends_at = ssl.cert_time_to_seconds(certificate["notAfter"])
    issuer = dict(part[0] for part in certificate.get("issuer", ()))
    by = issuer.get("organizationName") or issuer.get("commonName") or "an unnamed authority"
    text = f"{server.host}: trusted, issued by {by}, valid until {instant(ends_at)}"
    if ends_at - now < EXPIRY_WARN_S:
        return Finding("tls", "warn", text, "the operator of that server has to renew it before then")
    return Finding("tls", "ok", text)


async def _check_clock(
    server: Server,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    wall_clock: Callable[[], float],
) -> Finding:
    request = f"HEAD / HTTP/1.1\r\nHost: {server.where}\r\nConnection: close\r\n\r\n"
    before = wall_clock()
    try:
        async with asyncio.timeout(server.timeout_s):
            writer.write(request.encode("ascii"))
            head = await reader.readuntil(b"\r\n\r\n")
    except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        text = f"{server.where} does not respond in HTTP"
        return _failed("http", text, f"check {server.setting}")
    # The server set the date at some time between the two readings.
    return check_clock(server, head, before, wall_clock())


def check_clock(server: Server, head: bytes, before: float, after: float) -> Finding:
    """Compare this machine's clock with the `Date` of a response (RFC 9110 §6.6.1).

    Args:
        server: the server.
        head: head of its response.
        before: wall clock before the request was sent, seconds.
        after: wall clock after the response arrived, seconds.
    """
    lines = head.decode("latin-1").split("\r\n")
    dates = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("date:")]
    try:
        server_time = parsedate_to_datetime(dates[0]).timestamp()
    except (IndexError, ValueError, OverflowError):
        return Finding("clock", "warn", f"{server.where} sends no Date header, so the clock is not checked")
    # The header has a resolution of one second.
    skew_s = max(0.0, before - server_time - 1.0) or min(0.0, after - server_time)
    if abs(skew_s) <= SKEW_WARN_S:
        return Finding("clock", "ok", f"agrees with {server.where}")
    way = "ahead of" if skew_s > 0 else "behind"
    text = f"this machine's clock is {abs(skew_s):.0f} s {way} that of {server.where}"
    step = "set the clock: timedatectl set-ntp true (Linux), w32tm /resync (Windows)"
    return Finding("clock", "warn" if abs(skew_s) <= SKEW_FAIL_S else "fail", text, step)
