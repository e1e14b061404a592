"""A client of the admin listener of a running proxy.

It uses the standard library and no event loop, because health checks run it often (see `wait.py`).
"""

from __future__ import annotations

import contextlib
import http.client
import json
from urllib.parse import urlsplit

from cfproxy.config import Settings, TcpAddress
from cfproxy.errors import UsageError
from cfproxy.hosts import render_authority
from cfproxy.secret import Secret

ANSWER_S = 5.0
ANSWER_MAX_BYTES = 1024 * 1024
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "localhost"}  # noqa: S104 - recognised here, not listened on


def find_admin(settings: Settings) -> tuple[str, Secret | None]:
    """Return the URL of the admin listener, and an access key for it if it has one.

    Raises:
        UsageError: it is off, or its port is not known.
    """
    if settings.admin is None:
        raise UsageError("the admin listener reports whether the proxy is ready, and it is off; set admin")
    keys = [key.secret for key in next(iter(settings.accounts.values())).access.keys if key.account is None]
    return f"http://{_reachable(settings.admin)}", keys[0] if keys else None


def _reachable(address: TcpAddress) -> str:
    if address.port == 0:
        raise UsageError("admin has port 0, so its port changes with each start; set a port")
    return render_authority(_ANYWHERE.get(address.host, address.host), address.port)


class AdminClient:
    """The admin listener of a running proxy.

    Args:
        url: its URL; may have a path.
        key: access key; a listener that other machines can reach requires one for GET as well.

    Raises:
        UsageError: the URL is not valid.
    """

    def __init__(self, url: str, key: Secret | None) -> None:
        self.url = url.rstrip("/")
        try:
            parts = urlsplit(self.url)
            self._host, self._port = parts.hostname or "", parts.port
            is_valid = bool(self._host.encode("idna")) and parts.scheme in {"http", "https"}
        except ValueError:
            is_valid = False
        if not is_valid:
            raise UsageError("--url must be the admin listener's URL, such as http://localhost:8081")
        self._is_tls = parts.scheme == "https"
        self._path = parts.path
        self._headers = {"X-Cfproxy-Admin": "1"} | ({} if key is None else {"X-Cfproxy-Key": key.reveal()})

    def request(self, method: str, path: str, timeout_s: float = ANSWER_S) -> tuple[int, object]:
        """Return status and JSON document of the response; None for a document that is not JSON.

        Raises:
            OSError, http.client.HTTPException: there was no response.
        """
        with contextlib.closing(self._connect(timeout_s)) as connection:
            connection.request(method, self._path + path, headers=self._headers)
            answer = connection.getresponse()
            try:
                return answer.status, json.loads(answer.read(ANSWER_MAX_BYTES))
            except ValueError:
                return answer.status, None

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """Return a connection; localhost is not looked up, because a key must not leave this machine."""
        hosts = (self._host,) if self._is_tls else TcpAddress(self._host, 0).hosts
        for host in hosts:
            kind = http.client.HTTPSConnection if self._is_tls else http.client.HTTPConnection
            connection = kind(host, self._port, timeout=timeout_s)
            try:
                connection.connect()
            except OSError:
                if host == hosts[-1]:
                    raise
            else:
                break
        return connection
