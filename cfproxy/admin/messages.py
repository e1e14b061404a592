"""Requests and responses as the handlers of the admin listener see them.

`server.py` translates between these and the connection's own `Request` and `Response`.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from cfproxy.errors import BadTarget, CfproxyError
from cfproxy.http1.headers import RawHeaders
from cfproxy.server.problem_details import render_problem
from cfproxy.server.request import Request
from cfproxy.server.response import Response

BODY_MAX_BYTES = 64 * 1024
BODY_S = 30.0
FIELDS_MAX = 100  # of a query or a form; reading tens of thousands would block the event loop
_TARGET = re.compile(rb"/[!-~]*")
# A script can put text into a page, but cannot turn text into markup (Trusted Types).
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
# Every response has these, unless its handler sets others.
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "cfproxy",
    "X-Content-Type-Options": "nosniff",
}


class HttpError(Exception):
    """A response that consists of an HTTP status only.

    Args:
        status: 4xx or 5xx.
        title: shown instead of the status's own phrase.
        headers: sent with it.
    """

    def __init__(self, status: int, title: str = "", headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.title = title or HTTPStatus(status).phrase
        self.headers = dict(headers or {})
        super().__init__(self.title)


class AdminRequest:
    """One request.

    Args:
        request: as the connection parsed it.
        response: where its response goes, and "100 Continue" before that.

    Raises:
        BadTarget: the target is not a path of printable ASCII.
    """

    def __init__(self, request: Request, response: Response) -> None:
        self.method = request.method.decode("latin-1")
        self.raw_headers: RawHeaders = request.fields.raw
        if not _TARGET.fullmatch(request.target):
            raise BadTarget("the request target is not a path; send 'GET /status.json', for example")
        target = request.target.decode("ascii")
        self.path, _, self.query_string = target.partition("?")
        self.connection = request.connection
        self._body = request.body
        self._response = response
        self._form: dict[str, str] | None = None
        response.client_waits = (self.header("Expect") or "").lower() == "100-continue"

    @property
    def query(self) -> dict[str, str]:
        """The first value of each query parameter."""
        return _first_values(self.query_string)

    def header(self, name: str) -> str | None:
        """Return the first header of that name."""
        lower_name = name.lower().encode()
        return next(
            (value.decode("latin-1") for key, value in self.raw_headers if key.lower() == lower_name), None
        )

    def cookie(self, name: str) -> str:
        """Return the value of a cookie; empty without it."""
        # One search, because a header may have thousands of them.
        cookie = re.search(rf"(?:^|;)[ \t]*{re.escape(name)}=([^;]*)", self.header("Cookie") or "")
        return "" if cookie is None else cookie[1].strip()

    async def form(self) -> dict[str, str]:
        """Return the first value of each field of a urlencoded body; empty for any other body.

        Raises:
            HttpError: the body is larger than `BODY_MAX_BYTES`.
            BadTarget: it is malformed, or takes longer than `BODY_S` to arrive.
        """
        kind = (self.header("Content-Type") or "").partition(";")[0].strip().lower()
        if self._form is None and kind == "application/x-www-form-urlencoded":
            self._form = _first_values((await self._read_body()).decode("utf-8", "replace"))
        return self._form or {}

    async def _read_body(self) -> bytes:
        data = b""
        if self._body is None:
            return data
        self._response.send_continue()
        try:
            async with asyncio.timeout(BODY_S):
                while piece := await self._body.read():
                    data += piece
                    if len(data) > BODY_MAX_BYTES:
                        raise HttpError(413)
        except TimeoutError:
            raise BadTarget(f"the request body did not arrive within {BODY_S:g} s") from None
        return data


@dataclass(slots=True)
class AdminResponse:
    """One response.

    Args:
        body: all of it, or a generator of its parts, which `server.py` closes.
        status: 2xx to 5xx.
        headers: besides framing and `SECURITY_HEADERS`, which they override.
    """

    body: bytes | AsyncGenerator[bytes, None] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def json_response(
    document: Any, *, status: int = 200, content_type: str = "application/json; charset=utf-8"
) -> AdminResponse:
    """Return a response whose body is a JSON document."""
    return AdminResponse(json.dumps(document).encode(), status, {"Content-Type": content_type})


def problem_response(error: CfproxyError) -> AdminResponse:
    """Return the problem document of an error (RFC 9457)."""
    headers, document = render_problem(error, "admin")
    texts = {name.decode(): value.decode() for name, value in headers}
    return AdminResponse(document, error.status, texts | SECURITY_HEADERS)


def _first_values(urlencoded: str) -> dict[str, str]:
    try:
        fields = parse_qsl(urlencoded, keep_blank_values=True, max_num_fields=FIELDS_MAX)
    except ValueError:
        raise BadTarget(
            f"the request has more than {FIELDS_MAX} fields; send those that are needed"
        ) from None
    return dict(reversed(fields))
