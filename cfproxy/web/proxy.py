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
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from cfproxy.access import AccessRules
from cfproxy.cors import is_preflight, listed_origin, render_preflight, with_cors
from cfproxy.errors import (
    BadTarget,
    CfproxyError,
    NotAllowed,
    ShuttingDown,
    UpgradeNotSupported,
    UpstreamError,
)
from cfproxy.forward import Forwarder, KeptBody, Outcome, Times
from cfproxy.marks import HEADER, Marks, id_maker, read_marks
from cfproxy.ports import Call
from cfproxy.sockets import peer_uid
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
        others: those of all accounts by name, for keys that lead to one of them; may change at any time.
    """

    def __init__(
        self,
        settings: ProxySettings,
        forwarder: Forwarder,
        log: FilteringBoundLogger,
        others: Mapping[str, ProxyListener] = MappingProxyType({}),
    ) -> None:
        self._settings = settings
        self._others = others
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
        # Among these may be some on connections of another listener, whose callers' keys lead here.
        for reply in list(self._replies):
            reply.cut()
        if self._server is not None:
            await self._server.shutdown(CUT_S)

    def build_server(self) -> web.Server:
        """Return the factory of protocols for `loop.create_server`."""
        self._server = ProxyServer(self.handle)
        return self._server

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request (the handler of aiohttp's low-level server)."""
        started_at = time.perf_counter()
        settings = judged_by = self._settings  # to the end, whatever is reloaded meanwhile
        by = self
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
            if not await self._answer_preflight(judged_by, request, reply):
                by = self._admit(judged_by, request)
                settings = self._settings_for(by, judged_by)
                by._replies.add(reply)  # noqa: SLF001 - of the same class
                call, flow, caller = self._accept(judged_by, settings, request, target, reply, marks)
                body = call.body if isinstance(call.body, KeptBody) else None
                outcome = await by._forwarder.forward(call, flow)  # noqa: SLF001 - of the same class
                if body is not None:
                    body.stop_keeping()
                by.failure = None
                origins = judged_by.rules.origins
                origin = listed_origin(_headers_of(request), origins) if origins else None
                await self._relay(settings, reply, outcome, caller, marks, origin, origins)
        except CfproxyError as caught:
            error = caught
            if isinstance(caught, UpstreamError):
                by.failure = caught
            if reply.begun:
                reply.cut()
            else:
                await self._refuse(judged_by, request, reply, error, marks)
        except ConnectionError:
            reply.cut()  # the client left
        except BaseException as fault:
            if isinstance(fault, Exception):
                reply.set_status(500)
            if reply.begun:
                reply.cut()  # or the server would write another answer into this one
            raise
        finally:
            for listener in {self, by}:
                listener._note_end(reply)  # noqa: SLF001 - of the same class
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
                by._log_request(  # noqa: SLF001 - of the same class
                    error, reply, outcome, ms=round(seconds * 1000, 1), **event
                )
        return reply

    def _note_end(self, reply: Reply) -> None:
        self._replies.discard(reply)
        if self.draining and not self.in_flight:
            self.idle.set()
        for replies, ended in self._earlier:
            replies.discard(reply)
            if not replies:
                ended.set()
        self._earlier = [entry for entry in self._earlier if entry[0]]

    def _check_caller(self, rules: AccessRules, request: web.BaseRequest) -> None:
        """Check who may call at all, keys apart."""
        host = request.headers.get("Host")
        transport = request.transport
        local = None if transport is None else transport.get_extra_info("sockname")
        rules.check_host(host, self.port, local[0] if isinstance(local, tuple) else None)
        rules.check_origin(_headers_of(request), f"http://{host or ''}")
        if rules.uids:
            rules.check_user(None if transport is None else peer_uid(transport.get_extra_info("socket")))

    def _admit(self, settings: ProxySettings, request: web.BaseRequest) -> ProxyListener:
        """Check who calls; return whose account serves it."""
        if self._refusing:
            raise ShuttingDown("cfproxy is shutting down; send the request again in a moment")
        rules = settings.rules
        self._check_caller(rules, request)
        key = rules.check_key(_headers_of(request))
        account = None if key is None else rules.bound.get(key)
        if account is None:
            return self
        if account not in self._others:
            raise NotAllowed("the account that this access key leads to is not served here")
        return self._others[account]

    def _settings_for(self, by: ProxyListener, judged_by: ProxySettings) -> ProxySettings:
        return judged_by if by is self else by._settings

    async def _answer_preflight(
        self, settings: ProxySettings, request: web.BaseRequest, reply: Reply
    ) -> bool:
        """Answer a browser that asks on behalf of a page of a listed origin; False when this is not that."""
        rules, headers = settings.rules, _headers_of(request)
        if not rules.origins or not is_preflight(request.method, headers):
            return False
        self._check_caller(rules, request)
        origin = listed_origin(headers, rules.origins)
        if origin is None:
            return False
        reply.begin(204, "No Content", render_preflight(headers, origin, rules.methods))
        await reply.end()
        return True

    def _accept(
        self,
        judged_by: ProxySettings,
        settings: ProxySettings,
        request: web.BaseRequest,
        target: bytes,
        reply: Reply,
        marks: Marks,
    ) -> tuple[Call, Hashable, bytes]:
        """Check the request and build what goes up; no await, so nothing changes in between."""
        headers = _headers_of(request)
        version = (request.version.major, request.version.minor)
        host = request.headers.get("Host", "")
        key = judged_by.rules.check_key(headers)
        if settings is not judged_by:
            judged_by.rules.check_target(request.method, target, headers)
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
        settings: ProxySettings,
        reply: Reply,
        outcome: Outcome,
        caller: bytes,
        marks: Marks,
        web_origin: bytes | None,
        web_origins: Collection[str],
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
        if web_origins:
            headers = with_cors(headers, web_origin, web_origins)
        reply.begin(answer.status, answer.reason, headers)
        while piece := await answer.read():
            await reply.write(piece)
        await reply.end()

    async def _refuse(
        self,
        settings: ProxySettings,
        request: web.BaseRequest,
        reply: Reply,
        error: CfproxyError,
        marks: Marks,
    ) -> None:
        row, headers, document = render_problem(error, marks.request_id)
        headers.append((_REQUEST_ID, marks.request_id.encode("ascii")))
        headers.append((b"Content-Length", b"%d" % len(document)))
        if origins := settings.rules.origins:
            headers = with_cors(headers, listed_origin(_headers_of(request), origins), origins)
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

    def _log_request(
        self, error: CfproxyError | None, reply: Reply, outcome: Outcome | None, **event: Any
    ) -> None:
        if isinstance(error, UpstreamError):
            self._log.warning("request.failed", problem=row_of(error).slug, cut=reply.cut_off, **event)
        elif error is not None:
            self._log.info("request.refused", problem=row_of(error).slug, **event)
        elif reply.complete and outcome is None:
            self._log.info("preflight.answered", **event)
        elif reply.complete:
            self._log.info("request.forwarded", **event)
        else:
            self._log.info("request.abandoned", **event)  # the client left before its answer was whole


def _headers_of(request: web.BaseRequest) -> tuple[tuple[bytes, bytes], ...]:
    return request._message.raw_headers  # noqa: SLF001 - names and values as they came


def _render_times(times: Times) -> bytes:
    """Return the value of `Server-Timing` (W3C Server Timing §3), in milliseconds."""
    parts = (("queue", times.queued_s), ("token", times.token_s), ("upstream", times.upstream_s))
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts).encode()
