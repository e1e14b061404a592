"""The proxy listener: from a client's connection to `forward`, and the answer back.

Owns: reading requests from aiohttp's low-level server, writing answers byte for byte.
Must not know: tokens, OAuth, how an upstream is reached.

There is no router and no reserved path: every target belongs to the upstream. Invariants:
1. After the first byte of an answer nothing but that answer follows; if it can't be completed the
   connection is cut, so that truncation shows.
2. One log line a request; no query value, header or body is in it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from cfproxy.access import AccessRules
from cfproxy.errors import BadTarget, CfproxyError, ShuttingDown, UpgradeNotSupported, UpstreamError
from cfproxy.forward import Forwarder, KeptBody, Outcome, Times
from cfproxy.marks import HEADER, Marks, id_maker, read_marks
from cfproxy.ports import Call
from cfproxy.upstream import HttpAnswer
from cfproxy.web.problems import render_problem, row_of
from cfproxy.web.reply import BodyReader, Reply
from cfproxy.web.server import ProxyServer
from cfproxy.wire import (
    Origin,
    check_head,
    folded,
    incoming_headers,
    outgoing_head,
    outgoing_target,
    read_framing,
)

PROGRAMS_MAX = 128
_REQUEST_ID = HEADER.encode()
CUT_S = 0.1  # for handlers to end after they were cancelled; to aiohttp 0 means for ever
_TOO_LARGE = b'cfproxy; received-status=401; details="request body too large to replay after the 401"'


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """What a listener needs to know.

    Args:
        account: whose token it adds.
        origin: the upstream.
        rules: who may call.
        body_memory_bytes, body_max_bytes: bounds of what is kept of a body for a second try.
        idle_s: seconds that a client may leave an answer unread.
        server_timing: whether answers tell where the time went (`Server-Timing`).
        record: called after every request (see `traffic.Traffic.record`).
        keeps_line: asked before each ordinary request's log line is built.
        sends_id: whether the upstream and the client are told the request's id.
    """

    account: str
    origin: Origin
    rules: AccessRules
    body_memory_bytes: int
    body_max_bytes: int
    idle_s: float
    server_timing: bool
    record: Callable[..., None]
    keeps_line: Callable[[], bool] = lambda: True
    sends_id: bool = False


class ProxyListener:
    """Handles the requests of one account's listener.

    Args:
        settings: see there.
        forwarder: sends what was accepted.
        log: where the request lines go.
    """

    def __init__(self, settings: ProxySettings, forwarder: Forwarder, log: FilteringBoundLogger) -> None:
        self._settings = settings
        self._forwarder = forwarder
        self._log = log.bind(account=settings.account)
        self._make_id = id_maker()
        self._server: web.Server | None = None
        self.port: int | None = None  # set once it listens; None for a Unix socket
        self.draining = False
        self._refusing = False
        self.failure: UpstreamError | None = None  # why the API did not answer the latest request
        self._replies: set[Reply] = set()
        self._earlier: list[tuple[set[Reply], asyncio.Event]] = []  # who began before a switch
        self.idle = asyncio.Event()  # set when nothing is in flight any more after `drain`

    @property
    def in_flight(self) -> int:
        """How many requests are being worked at."""
        return len(self._replies)

    def switch(self, settings: ProxySettings, forwarder: Forwarder) -> asyncio.Event:
        """Serve requests that come from now on with these, whatever connection they come on.

        Returns:
            what is set once every earlier request has its answer.
        """
        self._settings, self._forwarder = settings, forwarder
        ended = asyncio.Event()
        if self._replies:
            self._earlier.append((set(self._replies), ended))
        else:
            ended.set()
        return ended

    def drain(self, *, refuse: bool = True) -> None:
        """Let each connection end with the request it is at, and refuse requests that still come."""
        self.draining = True
        self._refusing = refuse
        if not self.in_flight:
            self.idle.set()

    async def aclose(self) -> None:
        """Cut what is still open."""
        if self._server is not None:
            await self._server.shutdown(CUT_S)

    def build_server(self) -> web.Server:
        """Return the factory of protocols for `loop.create_server`."""
        self._server = ProxyServer(self.handle)
        return self._server

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request (the handler of aiohttp's low-level server)."""
        started_at = time.perf_counter()
        settings, forwarder = self._settings, self._forwarder  # to the end, whatever is reloaded meanwhile
        reply = Reply(request, lambda: self.draining, settings.idle_s)
        marks = read_marks(
            request.headers.getall(HEADER, ()), request.headers.get("traceparent"), self._make_id
        )
        target = request._message.path.encode("utf-8", "surrogateescape")  # noqa: SLF001 - the bytes as they came
        body: KeptBody | None = None
        outcome: Outcome | None = None
        error: CfproxyError | None = None
        self._replies.add(reply)
        try:
            call, flow, caller = self._accept(settings, request, target, reply, marks)
            body = call.body if isinstance(call.body, KeptBody) else None
            outcome = await forwarder.forward(call, flow)
            if body is not None:
                body.stop_keeping()
            self.failure = None
            await self._relay(settings, reply, outcome, caller, marks)
        except CfproxyError as caught:
            error = caught
            if isinstance(caught, UpstreamError):
                self.failure = caught
            if reply.begun:
                reply.cut()
            else:
                await self._refuse(reply, error, marks)
        except ConnectionError:
            reply.cut()  # the client left
        except BaseException as fault:
            if isinstance(fault, Exception):
                reply.set_status(500)
            if reply.begun:
                reply.cut()  # or the server would write another answer into this one
            raise
        finally:
            self._replies.discard(reply)
            if self._earlier:
                self._note_end(reply)
            if self.draining and not self.in_flight:
                self.idle.set()
            if body is not None:
                body.close()
            if outcome is not None:
                await outcome.answer.aclose()
            seconds = time.perf_counter() - started_at
            path = target.partition(b"?")[0].decode("ascii", "backslashreplace")
            times, reached = (Times(), False) if outcome is None else (outcome.times, True)
            settings.record(
                request.method,
                path,
                reply.status,
                row_of(error).slug if error is not None else "client-left" if not reply.complete else "",
                total_s=seconds,
                queued_s=times.queued_s if reached else None,
                token_s=times.token_s if reached else None,
                upstream_s=times.upstream_s if reached else None,
                received_bytes=0 if body is None else body.received_bytes,
                sent_bytes=reply.body_bytes,
                retried=outcome is not None and outcome.retried,
                postponed=0 if outcome is None else outcome.postponed,
            )
            # Most lines are alike: whether this one is wanted is asked before it is built.
            if error is not None or not reply.complete or reply.status >= 300 or settings.keeps_line():
                event = self._describe(request, path, reply, outcome, marks)
                self._log_request(error, reply, ms=round(seconds * 1000, 1), **event)
        return reply

    def _note_end(self, reply: Reply) -> None:
        for replies, ended in self._earlier:
            replies.discard(reply)
            if not replies:
                ended.set()
        self._earlier = [entry for entry in self._earlier if entry[0]]

    def _accept(
        self, settings: ProxySettings, request: web.BaseRequest, target: bytes, reply: Reply, marks: Marks
    ) -> tuple[Call, Hashable, bytes]:
        """Check the request and build what goes up; no await, so nothing changes in between."""
        headers = request._message.raw_headers  # noqa: SLF001 - names and values as they came
        version = (request.version.major, request.version.minor)
        if self._refusing:
            raise ShuttingDown("cfproxy is shutting down; send the request again in a moment")
        host = request.headers.get("Host", "")
        local = None if request.transport is None else request.transport.get_extra_info("sockname")
        address = local[0] if isinstance(local, tuple) else None
        settings.rules.check_host(host, self.port, address)
        settings.rules.check_origin(headers, f"http://{host}")
        key = settings.rules.check_key(headers)
        check_head(request.method, version, headers, settings.origin.via)
        framing = read_framing(version, headers)
        settings.rules.check_target(request.method, target, headers)
        outgoing = outgoing_target(target, settings.origin.base_path)
        if marks.made and settings.sends_id:  # what came instead, if anything, is no id
            headers = tuple(each for each in headers if folded(each[0]) != _REQUEST_ID.lower())
        head = outgoing_head(request.method, outgoing, headers, settings.origin, framing)
        if marks.made and settings.sends_id:
            head += b"%s: %s\r\n" % (_REQUEST_ID, marks.request_id.encode("ascii"))
        body = None
        if framing.has_body:
            reader = BodyReader(
                request.content, reply if "Expect" in request.headers else None, settings.idle_s
            )
            body = KeptBody(
                reader.read,
                memory_bytes=settings.body_memory_bytes,
                max_bytes=settings.body_max_bytes,
            )
        # Who shares one turn in the queue: a program of a caller, not one of its many connections. The
        # program's name is the caller's invention, so that there must be a bound to how many it can be.
        program = hash(request.headers.get("User-Agent")) % PROGRAMS_MAX
        flow = (settings.account, key or request.remote, program)
        call = Call(request.method, head, body, framing.chunked)
        return call, flow, b"http://%s" % host.encode("utf-8", "surrogateescape") if host else b""

    @staticmethod
    async def _relay(
        settings: ProxySettings, reply: Reply, outcome: Outcome, caller: bytes, marks: Marks
    ) -> None:
        answer = outcome.answer
        assert isinstance(answer, HttpAnswer)  # noqa: S101 - the one adapter there is
        headers = incoming_headers(answer.raw_headers, settings.origin, caller)
        if outcome.too_large:
            headers.append((b"Proxy-Status", _TOO_LARGE))
        # An id of the API's own is the API's answer, and passes like all of it.
        if settings.sends_id and not any(folded(name) == _REQUEST_ID.lower() for name, _ in headers):
            headers.append((_REQUEST_ID, marks.request_id.encode("ascii")))
        if settings.server_timing:
            headers.append((b"Server-Timing", _render_times(outcome.times)))
        reply.begin(answer.status, answer.reason, headers)
        while piece := await answer.read():
            await reply.write(piece)
        await reply.end()

    async def _refuse(self, reply: Reply, error: CfproxyError, marks: Marks) -> None:
        row, headers, document = render_problem(error, marks.request_id)
        headers.append((_REQUEST_ID, marks.request_id.encode("ascii")))
        headers.append((b"Content-Length", b"%d" % len(document)))
        if isinstance(error, BadTarget | UpgradeNotSupported):
            reply.close_after()  # what follows on this connection may be part of the attack
        reply.begin(row.status, HTTPStatus(row.status).phrase, headers)
        await reply.write(document)
        await reply.end()

    @staticmethod
    def _describe(
        request: web.BaseRequest, path: str, reply: Reply, outcome: Outcome | None, marks: Marks
    ) -> dict[str, Any]:
        event: dict[str, Any] = {
            "request_id": marks.request_id,
            "method": request.method,
            "path": path,
            "status": reply.status,
            "bytes": reply.body_bytes,
        }
        if marks.trace_id is not None:
            event["trace_id"] = marks.trace_id
        if outcome is not None and outcome.times.queued_s:
            event["queued_ms"] = round(outcome.times.queued_s * 1000, 1)
        if outcome is not None and outcome.retried:
            event["retried"] = True
        if outcome is not None and outcome.postponed:
            event["postponed"] = outcome.postponed
        return event

    def _log_request(self, error: CfproxyError | None, reply: Reply, **event: Any) -> None:
        if isinstance(error, UpstreamError):
            self._log.warning("request.failed", problem=row_of(error).slug, cut=reply.cut_off, **event)
        elif error is not None:
            self._log.info("request.refused", problem=row_of(error).slug, **event)
        elif reply.complete:
            self._log.info("request.forwarded", **event)
        else:
            self._log.info("request.abandoned", **event)  # the client left before its answer was whole


def _render_times(times: Times) -> bytes:
    """Return the value of `Server-Timing` (W3C Server Timing §3), in milliseconds."""
    parts = (("queue", times.queued_s), ("token", times.token_s), ("upstream", times.upstream_s))
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts).encode()
