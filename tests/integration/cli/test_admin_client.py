"""The client of a running proxy's admin listener."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cfproxy.cli.admin_client import AdminClient, find_admin
from cfproxy.config import load_settings
from tests.integration.server.test_tcp_sockets import ipv6

APP = {"CFPROXY_CLIENT_ID": "a", "CFPROXY_GRANT": "client_credentials", "CFPROXY_CLIENT_SECRET": "s"}


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers every GET with an empty document."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@contextlib.contextmanager
def admin_listener(host: str) -> Iterator[int]:
    """Serve at one address; return the port."""

    class Server(http.server.HTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    with Server((host, 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_localhost_is_tried_at_both_loopbacks_and_never_looked_up(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """A name server could send the access key to another machine."""
    asked: list[object] = []
    look_up = socket.getaddrinfo

    def recording(name: Any, *rest: Any, **named: Any) -> object:
        asked.append(name)
        return look_up(name, *rest, **named)

    with admin_listener(host) as port:
        monkeypatch.setattr(socket, "getaddrinfo", recording)
        assert AdminClient(f"http://localhost:{port}", None).request("GET", "/livez") == (200, {})
    assert set(asked) <= {"127.0.0.1", "::1"}


def test_without_a_listener_the_connection_is_refused() -> None:
    """After both addresses were tried."""
    with socket.create_server(("127.0.0.1", 0)) as freed:
        port = freed.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        AdminClient(f"http://localhost:{port}", None).request("GET", "/livez")


@pytest.mark.parametrize(
    ("admin", "url"),
    [
        (None, "http://localhost:8081"),
        ("127.0.0.1:9", "http://127.0.0.1:9"),
        ("[::1]:9", "http://[::1]:9"),
        ("0.0.0.0:9", "http://127.0.0.1:9"),
        ("[::]:9", "http://localhost:9"),
    ],
)
def test_the_listener_is_found_by_the_configuration(admin: str | None, url: str) -> None:
    """A wildcard is reached at this machine's own addresses."""
    environ = APP | ({} if admin is None else {"CFPROXY_ADMIN": admin})
    assert find_admin(load_settings(None, environ | {"CFPROXY_ACCESS__ALLOW_REMOTE": "true"}))[0] == url
