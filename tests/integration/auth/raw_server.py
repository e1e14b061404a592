"""A server that sends given bytes, and a client for it whose errors are searched for secrets."""

from __future__ import annotations

import asyncio
import json
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl

import pytest

from cfproxy.auth.interfaces import TokenEndpoint
from cfproxy.auth.token_endpoint import HttpTokenEndpoint
from cfproxy.errors import CfproxyError, TokenEndpointUnavailable
from cfproxy.secret import Secret

CLIENT_SECRET = "MARKERclientMARKER"
REFRESH_TOKEN = "MARKERrefreshMARKER"
ACCESS_TOKEN = "MARKERaccessMARKER"
MARKER = "MARKER"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answer(status: int, document: Any = None, *headers: str, body: bytes | None = None) -> bytes:
    content = json.dumps(document).encode() if body is None else body
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}", "Content-Type: application/json"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + content


GOOD = answer(200, {"access_token": ACCESS_TOKEN, "token_type": "Bearer", "expires_in": 60})


class RawServer:
    """A server that records every request and sends given bytes, or runs a given handler."""

    def __init__(self, script: bytes | Handler) -> None:
        self.script = script
        self.heads: list[str] = []
        self.forms: list[dict[str, str]] = []
        self.connections = 0
        self.origin = ""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.lower().split("content-length:")[1].split("\r\n")[0])
            self.heads.append(head)
            self.forms.append(dict(parse_qsl((await reader.readexactly(length)).decode())))
            if isinstance(self.script, bytes):
                writer.write(self.script)
                await writer.drain()
            else:
                await self.script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def listening(
    script: bytes | Handler, context: ssl.SSLContext | None = None
) -> AsyncIterator[RawServer]:
    ours = RawServer(script)
    async with await asyncio.start_server(ours, "127.0.0.1", 0, ssl=context) as server:
        scheme = "http" if context is None else "https"
        ours.origin = f"{scheme}://localhost:{server.sockets[0].getsockname()[1]}"
        yield ours


def endpoint_at(origin: str, **options: Any) -> HttpTokenEndpoint:
    settings: dict[str, Any] = {
        "client_id": "app-1",
        "client_secret": Secret(CLIENT_SECRET),
        "token_url": f"{origin}/connect/token",
        "revocation_url": f"{origin}/connect/revocation",
        "scope": "cfgateway offline_access",
        "timeout_s": 10,
        "connect_timeout_s": 5,
    }
    return HttpTokenEndpoint(**settings | options)


async def failed_refresh(endpoint: TokenEndpoint) -> TokenEndpointUnavailable:
    """Return the error of a refresh, after checking everything that a debugger or log could print of it."""
    with pytest.raises(TokenEndpointUnavailable) as caught:
        await endpoint.refresh(Secret(REFRESH_TOKEN))
    assert_silent(caught.value)
    assert "localhost" in str(caught.value) or ".invalid" in str(caught.value)
    return caught.value


def assert_silent(error: CfproxyError) -> None:
    assert error.__cause__ is None
    assert error.__context__ is None
    # Only frames of the package: those of the tests hold the markers.
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [frame for frame in frames if "cfproxy" in frame.f_globals["__name__"]]
    assert ours
    shown = [str(error), repr(error), *(repr(frame.f_locals) for frame in ours)]
    assert not [text for text in shown if MARKER in text]
    assert "\n" not in str(error)
