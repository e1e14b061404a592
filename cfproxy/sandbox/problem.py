"""The API's error responses, in the format of ASP.NET's ProblemDetails, and input checks that raise them.

Every error body has `type`, `title`, `status` and a unique `traceId`.
"""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

JSON_MAX_BYTES = 1024 * 1024
_INVALID = "One or more validation errors occurred."
_PAGE_SIZE_MAX = 1000
# RFC 9110 defines 4xx statuses in the subsections of 15.5, in order from 400.
_TYPE = "https://tools.ietf.org/html/rfc9110#section-15.5.{}"


@dataclass(eq=False)
class ApiProblem(Exception):
    """An API error.

    Args:
        status: HTTP status, 400 to 431.
        title: one sentence.
        errors: for a 400, the problems of each field.
        headers: further headers of the response.
    """

    status: int
    title: str
    errors: Mapping[str, list[str]] | None = None
    headers: Mapping[str, str] | None = None

    def render(self) -> web.Response:
        """Return the response."""
        body: dict[str, Any] = {} if self.errors is None else {"errors": self.errors}
        body |= {"type": _TYPE.format(self.status - 399), "title": self.title, "status": self.status}
        body["traceId"] = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"
        return web.json_response(
            body, status=self.status, headers=self.headers, content_type="application/problem+json"
        )


def invalid(field: str, text: str) -> ApiProblem:
    """Return the 400 for one field."""
    return ApiProblem(400, _INVALID, {field: [text]})


def find(table: Mapping[str, dict[str, Any]], record_id: str) -> dict[str, Any]:
    """Return a record; raise 400 if the id is not a UUID and 404 if it is unknown."""
    record = table.get(check_id("id", record_id))
    if record is None:
        raise ApiProblem(404, "Not Found")
    return record


def check_id(field: str, text: str) -> str:
    """Return an id in canonical form; raise 400 if it is not a UUID."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise invalid(field, f"The value '{text}' is not valid.") from None


def paginate(records: list[dict[str, Any]], query: Mapping[str, str]) -> web.Response:
    """Return the page of `records` selected by `pageNumber` (from 1) and `pageSize` (default 10)."""
    number = _count(query, "pageNumber", 1, 2**31 - 1)
    size = _count(query, "pageSize", 10, _PAGE_SIZE_MAX)
    page = records[(number - 1) * size : number * size]
    return web.json_response({"pageInfo": {"pageNumber": number, "pageSize": size}, "pageData": page})


def _count(query: Mapping[str, str], field: str, default: int, most: int) -> int:
    text = query.get(field, str(default))
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(most)) else 0
    if not 1 <= number <= most:
        raise invalid(field, f"The field {field} must be between 1 and {most}.")
    return number


async def read_json(request: web.Request) -> dict[str, Any]:
    """Read a JSON object; raise 415 for another type, 413 beyond 1 MiB, 400 if it is not a JSON object."""
    if request.content_type != "application/json":
        raise ApiProblem(415, "Unsupported Media Type")
    body = await read_body(request, JSON_MAX_BYTES)
    if body is None:
        raise ApiProblem(413, "Content Too Large")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise invalid("$", "The body is not a JSON object.")
    return document


async def read_body(request: web.Request, max_bytes: int) -> bytes | None:
    """Read a whole body; return None if it has more than `max_bytes`."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > max_bytes:
            return None
    return bytes(body)
