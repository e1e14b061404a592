"""Faults that somebody asked for: how a server or the way to it can misbehave.

Owns: `Fault`, its JSON form, the queue's rule (first in, first out, each `times` times) and what each
kind does to one request.
Must not know: which server the request was for.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, cast, get_args

from aiohttp import web

from cfproxy.sandbox.kinds import Seconds, Whole

FaultKind = Literal["status", "stall", "reset", "lost", "html", "garbage", "slow"]
FAULT_KINDS: tuple[str, ...] = get_args(FaultKind)
_CHUNK = b"\xff\x00garbage" * 8192
_HTML = "<!doctype html><title>Maintenance</title><h1>We will be right back</h1>"


@dataclass(frozen=True)
class Fault:
    """One fault, for the next `times` requests.

    Args:
        kind: `status` answers with `status`, `headers` and `body`; `stall` never answers; `reset`
            cuts the connection before anything is done; `lost` does what was asked and cuts the
            connection instead of answering; `html` answers a page with 200; `garbage` answers
            `size_bytes` of bytes that are no JSON with 200, as JSON; `slow` does what was asked at
            once and answers `delay_s` later.
        status: an HTTP status, 200 to 599.
        body: the text of a `status` answer.
        headers: headers of a `status` answer; `text/plain` where none names a type.
        size_bytes: the size of a `garbage` answer.
        delay_s: seconds that a `slow` answer is held back.
        times: how many requests it hits.
    """

    kind: FaultKind
    status: int = 500
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    size_bytes: int = 65536
    delay_s: float = 1.0
    times: int = 1

    @property
    def processes(self) -> bool:
        """Whether the request is carried out all the same."""
        return self.kind in ("lost", "slow")

    def __post_init__(self) -> None:
        _require(self.kind in FAULT_KINDS, f"kind: expected one of {', '.join(FAULT_KINDS)}")
        _require(type(self.status) is int and 200 <= self.status <= 599, "status: expected 200 to 599")
        _require(isinstance(self.body, str), "body: expected a text")
        _require(_are_headers(self.headers), "headers: expected names and texts")
        for name, kind in (("size_bytes", Whole(0)), ("delay_s", Seconds()), ("times", Whole(1))):
            try:
                kind.check(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


def parse_fault(document: object) -> Fault:
    """Read a fault's JSON form; raise ValueError that names what is wrong."""
    if not isinstance(document, dict):
        raise ValueError(  # noqa: TRY004 - callers are promised ValueError for any bad input
            "a fault is an object such as {'kind': 'status', 'status': 500}"
        )
    known = {each.name for each in fields(Fault)}
    if unknown := sorted(set(document) - known):
        raise ValueError(f"a fault has no {', '.join(map(repr, unknown))}; it has {', '.join(sorted(known))}")
    if "kind" not in document:
        raise ValueError("kind: missing")
    return Fault(**document)


@dataclass(frozen=True)
class Faults:
    """The kind of a setting that holds a queue of faults; JSON on a command line."""

    def check(self, value: object) -> object:
        """Accept a list of faults or of their JSON forms, kept as a new list of faults."""
        if not isinstance(value, list):
            raise ValueError("expected a list of faults")  # noqa: TRY004 - a kind promises ValueError
        return [item if isinstance(item, Fault) else parse_fault(item) for item in value]

    def parse(self, text: str) -> object:
        """Read a JSON list."""
        try:
            document = json.loads(text)
        except ValueError:
            raise ValueError('expected JSON such as [{"kind": "status", "status": 500}]') from None
        return self.check(document)

    def render(self, value: object) -> str:
        """Write a JSON list."""
        return json.dumps([vars(fault) for fault in cast("list[Fault]", value)])


def take(queue: list[Fault]) -> Fault | None:
    """Return the fault for the request at hand and count it down; None when there is none."""
    if not queue:
        return None
    fault = queue.pop(0)
    if fault.times > 1:
        queue.insert(0, replace(fault, times=fault.times - 1))
    return fault


async def inflict(
    fault: Fault | None, request: web.Request, process: Callable[[], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer `request` as `fault` wants it; `process` does what the request asks for."""
    match fault.kind if fault else None:
        case "status":
            return _canned(cast("Fault", fault))
        case "stall":
            await asyncio.Event().wait()
        case "reset":
            return cut(request)
        case "lost":
            await process()
            return cut(request)
        case "html":
            return web.Response(text=_HTML, content_type="text/html")
        case "garbage":
            return await _garbage(request, cast("Fault", fault).size_bytes)
        case "slow":
            response = await process()
            await asyncio.sleep(cast("Fault", fault).delay_s)
            return response
    return await process()


def cut(request: web.BaseRequest) -> web.StreamResponse:
    """Drop the connection; the answer that is returned reaches nobody, its status is for the journal."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=444)


def _canned(fault: Fault) -> web.Response:
    headers: dict[str, Any] = {"Content-Type": "text/plain; charset=utf-8", **fault.headers}
    return web.Response(status=fault.status, body=fault.body.encode(), headers=headers)


async def _garbage(request: web.Request, size_bytes: int) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = size_bytes
    await response.prepare(request)
    for start in range(0, size_bytes, len(_CHUNK)):
        await response.write(_CHUNK[: size_bytes - start])
    await response.write_eof()
    return response


def _are_headers(value: object) -> bool:
    """Whether `value`, which may come from JSON, maps names to texts that can stand in a header."""
    return isinstance(value, dict) and all(
        isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9-]+", name) and text.isprintable()
        for name, text in value.items()
    )


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)
