"""One request and its answer: from the checks to the log line.

Owns: what is done with a request: checks, forwarding, the answer's way back, what is taken down of it.
Must not know: tokens, OAuth, how an upstream is reached; how requests are read (`connection.py`) and answers
written (`reply.py`).

Invariants:
1. After the first byte of an answer nothing but that answer follows; if it can't be completed the
   connection is cut, so that truncation shows.
2. One log line a request; no query value, header or body is in it.
3. It ends with the settings that it began with, whatever is reloaded meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from http import HTTPStatus
from typing import Any

from cfproxy.errors import (
    BadTarget,
    CfproxyError,
    ShuttingDown,
    UpgradeNotSupported,
    UpstreamError,
    without_traceback,
)
from cfproxy.http1.headers import RawHeaders, has_header
from cfproxy.proxy.admission import (
    FOLDED_REQUEST_ID,
    REQUEST_ID,
    Admission,
    ProxySettings,
    Server,
    admit,
    check_caller,
    verdict_on,
)
from cfproxy.proxy.cors import is_preflight, listed_origin, render_preflight, with_cors
from cfproxy.proxy.request_body import ReplayableBody
from cfproxy.proxy.request_headers import (
    build_request_head,
    build_request_target,
    check_fields,
    check_method,
    forwardable_trailers,
)
from cfproxy.proxy.request_id import RequestIds
from cfproxy.proxy.response_headers import build_response_headers
from cfproxy.proxy.retry import Begun, Outcome, Times
from cfproxy.server.connection import ClientConnection
from cfproxy.server.problem_details import render_problem
from cfproxy.server.request import Request
from cfproxy.server.response import Response
from cfproxy.upstream.client import HttpAnswer
from cfproxy.upstream.interfaces import Call

_TOO_LARGE = b'cfproxy; received-status=401; details="request body too large to replay after the 401"'


class Exchange:
    """One request and its answer.

    Args:
        server: whose listener the request came to.
        request: what came.
    """

    __slots__ = (
        "_admission",
        "_begun",
        "_body",
        "_by",
        "_call",
        "_ids",
        "_judged_by",
        "_outcome",
        "_request",
        "_response",
        "_server",
        "_started_at",
        "_times",
    )

    def __init__(self, server: Server, request: Request) -> None:
        self._started_at = time.perf_counter()
        self._server = self._by = server
        self._judged_by = server.settings
        self._request = request
        self._response = Response(request, server.settings.idle_s)
        marks = verdict_on(request.fields).marks
        self._ids = RequestIds(server.make_id(), True, marks.trace_id) if marks.made else marks
        self._admission: Admission | None = None
        self._body: ReplayableBody | None = None
        self._call: Call | None = None
        self._begun: Begun | None = None
        self._outcome: Outcome | None = None
        self._times: Times | None = None  # where the time went on the long way

    @property
    def connection(self) -> ClientConnection:
        """Where the request came from."""
        return self._request.connection

    def start_now(self) -> bool:
        """Have the request sent if nothing has to be waited for before: the short way, without a task.

        Returns:
            whether it is on its way, and `ClientConnection.request_finished` or `start_task` will be
            called. If not, `run` is to be called, which finds out anew what is in the way.
        """
        if self._request.body is not None or self._judged_by.rules.origins:
            return False
        try:
            call, admission = self._accept()
            self._begun = admission.by.forwarder.begin(call, self._on_arrival)
        except Exception:  # noqa: BLE001 - logged whole; the token in hand does not depend on it
            return False
        if self._begun is None:
            return False
        self._call = call
        self._note_beginning()
        return True

    def cancel(self) -> None:
        """End what `start_now` has begun: the client left, or has to."""
        if self._begun is not None:
            self._begun.answer.close()
            self._times = Times(upstream_s=time.perf_counter() - self._begun.began_at)
            self._end(None)

    async def run(self) -> bool:
        """Answer the request; return whether its connection may serve another one."""
        server, reply = self._server, self._response
        error: CfproxyError | None = None
        self._times = Times()
        if self._begun is None:  # what was found before holds no more if there was a reload since
            self._judged_by = server.settings
        server.begun(self)
        try:
            if not self._answer_preflight():
                if self._call is None or self._admission is None:
                    call, admission = self._accept()
                else:
                    call, admission = self._call, self._admission
                self._note_beginning()
                by, begun = admission.by, self._begun
                forwarder = by.forwarder if begun is None else begun.by
                outcome = await forwarder.forward(call, admission.flow, self._times, begun=begun)
                self._outcome = outcome
                if self._body is not None:
                    self._body.stop_copying()
                by.failure = None
                await self._relay(outcome, admission)
        except CfproxyError as caught:
            error = caught
            if isinstance(caught, UpstreamError):
                self._by.failure = without_traceback(caught)
            self._refuse(error)
        except ConnectionError:
            reply.cut()  # the client left
        except asyncio.CancelledError:
            if reply.begun:
                reply.cut()
            raise
        except Exception as fault:  # whatever it is, it is a fault of ours and the client must hear of it
            server.log.exception("request.crashed", request_id=self._ids.request_id, exc_info=fault)
            error = CfproxyError("an internal fault; the log has it under request.crashed")
            reply.close_after()
            self._refuse(error)
        finally:
            if self._body is not None:
                self._body.close()
            if self._outcome is not None:
                await self._outcome.answer.aclose()
            self._end(error)
            error = None  # it knows this frame
        return reply.goes_on and not server.draining

    def _note_beginning(self) -> None:
        self._server.begun(self)
        if self._by is not self._server:
            self._by.begun(self)

    def _end(self, error: CfproxyError | None) -> None:
        self._call = self._begun = None  # it knows this exchange: a cycle would be left for the collector
        # Nobody waits for it, and one after the other they take half as long as in between other work.
        self.connection.loop.call_soon(self._take_down, error, time.perf_counter() - self._started_at)
        self._server.ended(self)
        if self._by is not self._server:
            self._by.ended(self)

    def _on_arrival(self) -> None:
        """Answer with what came for `start_now`, or let `run` see to it."""
        admission, begun, reply = self._admission, self._begun, self._response
        assert admission is not None  # noqa: S101 - nothing was begun without
        assert begun is not None  # noqa: S101 - likewise
        connection = self.connection
        outcome = None if connection.writing_paused else admission.by.forwarder.settle(begun)
        if outcome is None:
            connection.start_task()
            return
        self._outcome = outcome
        admission.by.failure = None
        try:
            answer = self._begin_reply(outcome, admission)
            reply.end(forwardable_trailers(answer.trailers, answer.raw_headers))
        except ConnectionError:
            reply.cut()  # the client left
        except Exception as fault:
            if not reply.begun:
                connection.start_task()  # `run` meets it again, and answers it
                return
            reply.cut()
            self._server.log.exception("request.crashed", request_id=self._ids.request_id, exc_info=fault)
        goes_on = False
        try:
            begun.answer.close()
            self._end(None)
            goes_on = reply.goes_on and not self._server.draining
        finally:
            connection.request_finished(keep_alive=goes_on)

    # --- before it is sent ----------------------------------------------------------------

    def _accept(self) -> tuple[Call, Admission]:
        """Check the request and build what goes up; no await, so nothing changes in between."""
        request, server = self._request, self._server
        if request.error is not None:
            raise request.error
        if server.refusing:
            raise ShuttingDown("cfproxy is shutting down; send the request again in a moment")
        fields, settings = request.fields, self._judged_by
        verdict = verdict_on(fields)
        admission = verdict.admission
        if admission is None or admission.judged_by is not settings:
            admission = admit(server, fields, verdict.marks, request.connection)
            verdict.admission = admission
        self._admission = admission
        method = check_method(request.method)
        settings.rules.check_target(method, request.target, fields.raw)
        if admission.by is not server:
            settings = admission.settings
            settings.rules.check_target(method, request.target, fields.raw)
            self._by = admission.by
        head = build_request_head(
            request.method, build_request_target(request.target, settings.origin.base_path), admission.lines
        )
        if self._ids.made and settings.sends_id:
            head += b"%b: %b\r\n" % (REQUEST_ID, self._ids.request_id.encode("ascii"))
        if request.body is not None:
            self._response.client_waits = admission.expects
            self._body = ReplayableBody(
                request.body,
                memory_bytes=settings.body_memory_bytes,
                max_bytes=_worth_keeping(settings, fields.framing.length),
                before_read=self._response.go_on,
                filter_trailers=functools.partial(
                    forwardable_trailers, headers=fields.raw, carries_key=admission.carries_key
                ),
            )
        call = Call(
            method,
            head,
            self._body,
            fields.framing.chunked,
            admission.expects,
            admission.idempotency_key,
            self._tell,
        )
        return call, admission

    def _answer_preflight(self) -> bool:
        """Answer a browser that asks on behalf of a page of a listed origin; False when this is not that."""
        request, reply, rules = self._request, self._response, self._judged_by.rules
        headers = request.fields.raw
        if not (rules.origins and request.method == b"OPTIONS" and is_preflight("OPTIONS", headers)):
            return False
        check_caller(self._server, headers, request.connection)
        check_fields(request.fields.version, headers, self._judged_by.origin.via)
        origin = listed_origin(headers, rules.origins)
        if origin is None:
            return False
        if self._server.draining or not request.read_whole:
            reply.close_after()
        reply.begin(204, b"No Content", render_preflight(headers, origin, rules.methods), sized=False)
        reply.end([])
        return True

    # --- the answer -----------------------------------------------------------------------

    def _tell(self, status: int, reason: bytes, headers: RawHeaders) -> None:
        """Pass an interim answer on."""
        admission = self._admission
        assert admission is not None  # noqa: S101 - nothing was begun without
        with contextlib.suppress(ConnectionError):  # a client that left is noticed elsewhere
            self._response.tell(
                status, reason, build_response_headers(headers, admission.settings.origin, admission.caller)
            )

    async def _relay(self, outcome: Outcome, admission: Admission) -> None:
        answer, reply = self._begin_reply(outcome, admission), self._response
        await reply.drain()
        if not answer.exhausted:  # as most are by now
            while piece := await answer.read():
                await reply.write(piece)
        reply.end(forwardable_trailers(answer.trailers, answer.raw_headers))
        await answer.finish_upload()

    def _begin_reply(self, outcome: Outcome, admission: Admission) -> HttpAnswer:
        """Write the head of an answer, and what there is of its body."""
        answer, settings, reply = outcome.answer, admission.settings, self._response
        assert isinstance(answer, HttpAnswer)  # noqa: S101 - the one adapter there is
        head = answer.head
        headers = build_response_headers(
            head.raw_headers, settings.origin, admission.caller, trailers=head.chunked
        )
        if outcome.too_large:
            headers.append((b"Proxy-Status", _TOO_LARGE))
        # An id of the API's own is the API's answer, and passes like all of it.
        if settings.sends_id and not has_header(headers, FOLDED_REQUEST_ID):
            headers.append((REQUEST_ID, self._ids.request_id.encode("ascii")))
        if settings.server_timing:
            headers.append((b"Server-Timing", _render_times(outcome.times)))
        if admission.judged_by.rules.origins:
            headers = with_cors(headers, admission.origin, admission.judged_by.rules.origins)
        if self._server.draining:
            reply.close_after()
        reply.begin(head.status, head.reason, headers, answer.take(), sized=head.length is not None)
        return answer

    def _refuse(self, error: CfproxyError) -> None:
        """Answer in our own name, or cut an answer that can't be completed."""
        reply = self._response
        if reply.begun:
            reply.cut()
            return
        headers, document = render_problem(error, self._ids.request_id)
        headers.append((REQUEST_ID, self._ids.request_id.encode("ascii")))
        headers.append((b"Content-Length", b"%d" % len(document)))
        if origins := self._judged_by.rules.origins:
            headers = with_cors(headers, listed_origin(self._request.fields.raw, origins), origins)
        if (
            self._server.draining
            or isinstance(error, BadTarget | UpgradeNotSupported)
            or self._request.method == b"CONNECT"
        ):
            reply.close_after()  # what follows on this connection may be part of the attack, or of a tunnel
        with contextlib.suppress(ConnectionError):
            reply.begin(error.status, HTTPStatus(error.status).phrase.encode(), headers, document, sized=True)
            reply.end([])

    # --- what is taken down ---------------------------------------------------------------

    def _take_down(self, error: CfproxyError | None, seconds: float) -> None:
        request, reply, outcome = self._request, self._response, self._outcome
        method = request.method.decode("ascii", "backslashreplace")
        path = _shown(request.target)
        problem = error.slug if error is not None else "" if reply.complete else "client-left"
        waits: tuple[float | None, ...] = (None, None, None)
        if outcome is not None:
            waits = (outcome.times.queued_s, outcome.times.token_s, outcome.times.upstream_s)
        elif (spent := self._times) is not None:
            waits = (spent.queued_s or None, spent.token_s or None, spent.upstream_s or None)
        settings = self._judged_by
        if self._admission is not None and self._by is not self._server:
            settings = self._admission.settings
        settings.record(
            method,
            path,
            reply.status,
            problem,
            seconds,
            *waits,
            0 if self._body is None else self._body.received_bytes,
            reply.body_bytes,
            outcome is not None and outcome.retried,
            0 if outcome is None else outcome.postponed,
        )
        # Most lines are alike: whether this one is wanted is asked before it is built.
        if not problem and reply.status < 300 and not settings.keeps_line():
            return
        event: dict[str, Any] = {
            "ms": int(seconds * 10_000) / 10,
            "request_id": self._ids.request_id,
            "method": method,
            "path": path,
            "status": reply.status,
            "bytes": reply.body_bytes,
        }
        if self._ids.trace_id is not None:
            event["trace_id"] = self._ids.trace_id
        if outcome is not None:
            if outcome.times.queued_s:
                event["queued_ms"] = round(outcome.times.queued_s * 1000, 1)
            if outcome.retried:
                event["retried"] = True
            if outcome.postponed:
                event["postponed"] = outcome.postponed
        log = self._by.log
        if isinstance(error, UpstreamError):
            log.warning("request.failed", problem=problem, cut=reply.cut_off, **event)
        elif error is not None:
            log.info("request.refused", problem=problem, **event)
        elif not reply.complete:
            log.info("request.abandoned", **event)  # the client left before its answer was whole
        elif outcome is None:
            log.info("preflight.answered", **event)
        else:
            log.info("request.forwarded", **event)


def _shown(target: bytes) -> str:
    """Return what logs and pages say of a target: its path, or nothing of what is none."""
    if not target.startswith(b"/"):
        return "-"  # a whole URL, with a password in it perhaps
    return target.partition(b"?")[0].partition(b"#")[0].decode("ascii", "backslashreplace")


def _worth_keeping(settings: ProxySettings, length: int | None) -> int:
    """Return how much of a body is kept for a second try.

    One that is known to grow too large is kept in memory only: for a 401 that comes at its very beginning.
    """
    most = settings.body_max_bytes
    return min(most, settings.body_memory_bytes) if length is not None and length > most else most


def _render_times(times: Times) -> bytes:
    """Return the value of `Server-Timing` (W3C Server Timing §3), in milliseconds."""
    parts = (("queue", times.queued_s), ("token", times.token_s), ("upstream", times.upstream_s))
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts).encode()
