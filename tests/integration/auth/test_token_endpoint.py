"""The client for the token endpoint, against failing and hostile servers."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import time
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
import trustme
from oauthlib.oauth2 import BackendApplicationClient, WebApplicationClient

from cfproxy import __version__
from cfproxy.auth.token_response import HEAD_MAX_BYTES, REPLY_MAX_BYTES
from cfproxy.errors import CfproxyError, GrantRefused, Misconfigured
from cfproxy.secret import Secret
from tests.integration.auth.raw_server import (
    ACCESS_TOKEN,
    CLIENT_SECRET,
    GOOD,
    REFRESH_TOKEN,
    Handler,
    answer,
    assert_silent,
    endpoint_at,
    failed_refresh,
    listening,
)

# --- requests ----------------------------------------------------------------------------


async def test_forms_agree_with_oauthlib() -> None:
    """Another client library sends the same fields for an exchange, a refresh and client credentials."""
    app = {"client_id": "app 1", "client_secret": "s&1"}
    scope, redirect_uri = "cfgateway offline_access", "https://integration.example/cb?kind=cf&x=1"
    web = WebApplicationClient("app 1")
    bodies = [
        web.prepare_request_body(
            code="c/1", redirect_uri=redirect_uri, client_secret="s&1", code_verifier="v" * 43, scope=scope
        ),
        web.prepare_refresh_body(refresh_token="r=1", scope=scope, **app),
        BackendApplicationClient("app 1").prepare_request_body(
            scope=scope, client_secret="s&1", include_client_id=True
        ),
    ]
    async with listening(GOOD) as server:
        endpoint = endpoint_at(server.origin, client_id="app 1", client_secret=Secret("s&1"), scope=scope)
        await endpoint.exchange(Secret("c/1"), redirect_uri, Secret("v" * 43))
        await endpoint.refresh(Secret("r=1"))
        await endpoint.client_credentials()
    assert server.forms == [dict(parse_qsl(body)) for body in bodies]


async def test_app_without_a_secret_sends_none() -> None:
    """A public client's form has no client_secret field, and one without PKCE has no verifier."""
    async with listening(GOOD) as server:
        endpoint = endpoint_at(server.origin, client_secret=None)
        await endpoint.exchange(Secret("x"), "https://integration.example/cb", None)
    assert set(server.forms[0]) == {"grant_type", "client_id", "scope", "code", "redirect_uri"}


async def test_refresh_is_one_plain_form() -> None:
    """A refresh is one POST with the app and the token as form fields, and only our own headers."""
    async with listening(GOOD) as server:
        reply = await endpoint_at(server.origin).refresh(Secret(REFRESH_TOKEN))
    assert (reply.access_token, reply.lifetime_s) == (Secret(ACCESS_TOKEN), 60.0)
    assert server.forms == [
        {
            "grant_type": "refresh_token",
            "refresh_token": REFRESH_TOKEN,
            "client_id": "app-1",
            "client_secret": CLIENT_SECRET,
            "scope": "cfgateway offline_access",
        }
    ]
    request_line, *lines = server.heads[0].strip().split("\r\n")
    assert request_line == "POST /connect/token HTTP/1.1"
    headers = dict(line.split(": ", 1) for line in lines)
    assert headers.pop("Content-Length").isdigit()
    assert headers == {
        "Host": server.origin.removeprefix("http://"),
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "Content-Type": "application/x-www-form-urlencoded",
        "User-Agent": f"cfproxy/{__version__}",
    }


async def test_exchange_sends_redirect_uri_and_verifier() -> None:
    """An exchange carries the code, the redirect_uri it was issued for and PKCE's verifier."""
    async with listening(GOOD) as server:
        await endpoint_at(server.origin).exchange(Secret("c"), "https://r.example/cb", Secret("v"))
        await endpoint_at(server.origin, client_secret=None).client_credentials()
    assert server.forms[0]["code_verifier"] == "v"
    assert server.forms[0]["redirect_uri"] == "https://r.example/cb"
    assert server.forms[1] == {
        "grant_type": "client_credentials",
        "client_id": "app-1",
        "scope": "cfgateway offline_access",
    }


async def test_cookies_are_not_sent_back() -> None:
    """A cookie that the server sets is dropped."""
    async with listening(answer(200, {"access_token": "a"}, "Set-Cookie: session=1; Path=/")) as server:
        endpoint = endpoint_at(server.origin)
        for _ in range(2):
            await endpoint.client_credentials()
    assert "cookie" not in "".join(server.heads).lower()
    assert server.connections == 2


async def test_environment_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Proxies and .netrc entries of the environment are ignored: secrets go to the endpoint alone."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login u password p\n")
    netrc.chmod(0o600)
    async with listening(GOOD) as thief, listening(GOOD) as server:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, thief.origin)
        monkeypatch.setenv("NETRC", str(netrc))
        await endpoint_at(server.origin).refresh(Secret(REFRESH_TOKEN))
    assert thief.connections == 0
    assert "authorization" not in server.heads[0].lower()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_never_followed(status: int) -> None:
    """The server that a redirect names receives nothing, whatever the status."""
    async with (
        listening(GOOD) as thief,
        listening(answer(status, {}, f"Location: {thief.origin}/connect/token")) as server,
    ):
        error = await failed_refresh(endpoint_at(server.origin))
    assert thief.connections == 0
    assert error.sent
    assert "redirects are never followed" in str(error)


# --- forms that were not sent ------------------------------------------------------------


async def test_refused_connection_sent_nothing() -> None:
    """If nobody listens, the refresh token is certainly unused; the message mentions the URL."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        error = await failed_refresh(endpoint_at(f"http://localhost:{port}"))
    assert not error.sent
    assert f"the token endpoint at localhost:{port} cannot be reached" in str(error)


async def test_unknown_name_sent_nothing() -> None:
    """The message tells an unknown name from a server that is down."""
    error = await failed_refresh(endpoint_at("https://accounts.invalid"))
    assert not error.sent
    assert "does not resolve" in str(error)


async def test_untrusted_server_receives_nothing() -> None:
    """A server whose certificate is not trusted receives no form."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    async with listening(GOOD, context) as server:
        error = await failed_refresh(endpoint_at(server.origin))
    assert not error.sent
    assert "certificate" in str(error)
    assert server.forms == []


async def test_trusted_server_receives_the_form() -> None:
    """With the right CA the same server is used."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    async with listening(GOOD, context) as server:
        reply = await endpoint_at(server.origin, ssl_context=trust).client_credentials()
    assert reply.access_token == Secret(ACCESS_TOKEN)


async def test_server_without_tls_receives_nothing() -> None:
    """Plain HTTP behind an https URL fails in the handshake, before the form is sent."""

    async def answer_in_clear(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(400, {}))
        writer.close()

    async with await asyncio.start_server(answer_in_clear, "127.0.0.1", 0) as plain:
        error = await failed_refresh(endpoint_at(f"https://localhost:{plain.sockets[0].getsockname()[1]}"))
    assert not error.sent
    assert "TLS handshake" in str(error)


async def test_stalled_handshake_sent_nothing() -> None:
    """Connecting has a time limit of its own, which includes TLS."""
    held: list[asyncio.StreamWriter] = []
    async with await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0) as silent:
        origin = f"https://localhost:{silent.sockets[0].getsockname()[1]}"
        error = await failed_refresh(endpoint_at(origin, connect_timeout_s=0.05))
        for writer in held:
            writer.close()
    assert not error.sent
    assert "in time" in str(error)


# --- forms that may have been sent -------------------------------------------------------


async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.005)


async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n")
    for piece in [b"\0" * 1000] * 2000:
        writer.write(piece)
        await writer.drain()


# With a 2xx the refresh token may be used up, whatever came with it.
ANSWERED = {"500", "400"}


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (hang, "in time"),
        (drip, "in time"),
        (reset, "closed the connection"),
        (flood, "more than 64 KiB"),
        (GOOD[:-5], "closed the connection"),
        (b"", "closed the connection"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "did not answer in HTTP"),
        (answer(200, {}, "X-Big: " + "x" * HEAD_MAX_BYTES), "head of more than"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", "closed the connection"),
        (answer(200, body=gzip.compress(b"{}", mtime=0)), "not a token"),
        (answer(200, None, "Content-Encoding: br", body=b"x"), "compressed"),
        (answer(500, {}), "500"),
        (answer(200, None, body=f"<html>{REFRESH_TOKEN}</html>".encode()), "not a token"),
        (answer(200, None, body=b""), "not a token"),
        (answer(400, {"error": "odd", "error_description": CLIENT_SECRET}), "400"),
        (answer(200, {"access_token": f"{ACCESS_TOKEN}\n"}), "usable"),
    ],
)
async def test_form_that_may_have_arrived_counts_as_sent(script: bytes | Handler, says: str) -> None:
    """Once the first byte was written the outcome is unknown, and the request is not repeated."""
    timeout_s = 0.1 if script in {hang, drip} else 10
    async with listening(script) as server:
        error = await failed_refresh(endpoint_at(server.origin, timeout_s=timeout_s))
    assert error.sent
    assert error.answered is (says in ANSWERED)
    assert says in str(error)
    assert server.connections == 1


async def test_response_that_came_during_a_suspend_is_read() -> None:
    """A suspended process can't read in time, but the server has used the refresh token up."""

    async def answer_and_stop_everything(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GOOD)
        time.sleep(0.6)  # blocks the event loop

    async with listening(answer_and_stop_everything) as server:
        endpoint = endpoint_at(server.origin, timeout_s=0.4, connect_timeout_s=0.4)
        reply = await endpoint.refresh(Secret(REFRESH_TOKEN))
    assert reply.access_token == Secret(ACCESS_TOKEN)


async def test_response_may_be_as_large_as_the_limit() -> None:
    """64 KiB are read, one byte more is not."""
    document = b'{"access_token":"a"}'
    async with listening(answer(200, body=document.rjust(REPLY_MAX_BYTES))) as server:
        assert (await endpoint_at(server.origin).client_credentials()).access_token == Secret("a")
        server.script = answer(200, body=document.rjust(REPLY_MAX_BYTES + 1))
        await failed_refresh(endpoint_at(server.origin))


async def test_retry_after_is_passed_on() -> None:
    """The Retry-After of a 503 reaches the caller."""
    async with listening(answer(503, {}, "Retry-After: 17")) as server:
        error = await failed_refresh(endpoint_at(server.origin))
    assert error.retry_after_s == 17.0


@pytest.mark.parametrize(
    ("code", "kind"), [("invalid_grant", GrantRefused), ("invalid_client", Misconfigured)]
)
async def test_refusal_shows_no_secret(code: str, kind: type[CfproxyError]) -> None:
    """Neither message nor traceback nor locals hold what the server repeated."""
    echo = answer(400, {"error": code, "error_description": f"bad {REFRESH_TOKEN} {CLIENT_SECRET}"})
    async with listening(echo) as server:
        with pytest.raises(kind) as caught:
            await endpoint_at(server.origin).refresh(Secret(REFRESH_TOKEN))
    assert_silent(caught.value)


async def test_secret_that_cannot_be_encoded_shows_nowhere() -> None:
    """A client secret with stray bytes is sent as it is, rather than shown in an encoding error."""
    async with listening(GOOD) as server:
        await endpoint_at(server.origin, client_secret=Secret("s\udce4\ud800")).client_credentials()
    assert server.connections == 1


# --- a rotated secret -------------------------------------------------------------------------


async def test_a_refused_secret_is_read_once_more(tmp_path: Path) -> None:
    """A secret that was rotated in its file is used at once, for every kind of request."""
    place = tmp_path / "secret"
    place.write_text("old")
    async with listening(b"") as server:

        async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            good = server.forms[-1]["client_secret"] == "new"
            writer.write(GOOD if good else answer(401, {"error": "invalid_client"}))
            await writer.drain()

        server.script = script
        endpoint = endpoint_at(server.origin, client_secret=Secret("old", place.read_text))
        for _ in range(2):  # nothing has changed: one request each
            with pytest.raises(Misconfigured, match="invalid_client"):
                await endpoint.client_credentials()
        assert [form["client_secret"] for form in server.forms] == ["old", "old"]
        place.write_text("new")
        await endpoint.refresh(Secret(REFRESH_TOKEN))
        await endpoint.client_credentials()
        assert [form["client_secret"] for form in server.forms[2:]] == ["old", "new", "new"]
        assert {form.get("refresh_token") for form in server.forms[2:4]} == {REFRESH_TOKEN}


async def test_only_a_refused_app_is_tried_again(tmp_path: Path) -> None:
    """Any other answer may mean that the refresh token is used up."""
    place = tmp_path / "secret"
    place.write_text("new")
    for document in ({"error": "invalid_grant"}, {"error": "invalid_request"}, {"error": "server_error"}):
        async with listening(answer(400, document)) as server:
            endpoint = endpoint_at(server.origin, client_secret=Secret("old", place.read_text))
            with pytest.raises(CfproxyError):
                await endpoint.refresh(Secret(REFRESH_TOKEN))
            assert len(server.forms) == 1
