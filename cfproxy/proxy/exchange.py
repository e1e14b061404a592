"""Handles one request from the access checks to the log line.

Invariants:
1. Once a response has started, nothing else is sent to the client: one that can't be completed is cut.
2. Each request is logged once, without its query, headers or body.
3. A request that has been sent ends with the settings it was admitted with, whatever is reloaded meanwhile.
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
    UpgradeNotSupported,
    UpstreamError,
    without_traceback,
)
from cfproxy.http1.headers import RawHeaders
from cfproxy.proxy.account_server import AccountServer
from cfproxy.proxy.admission import Admission, admit, check_caller
from cfproxy.proxy.cors import listed_origin, preflight_origin, render_preflight, with_cors
from cfproxy.proxy.request_body import ReplayableBody
from cfproxy.proxy.request_headers import REQUEST_ID, check_fields, forwardable_trailers, parse_request_ids
from cfproxy.proxy.response_headers import build_response_headers
from cfproxy.proxy.retry import Forwarding
from cfproxy.server.connection import ClientConnection
from cfproxy.server.problem_details import render_problem
from cfproxy.server.request import Request
from cfproxy.server.response import Response
from cfproxy.upstream.request import Call

_NOT_KEPT = b'cfproxy; received-status=401; details="request body was not kept, so not sent again"'


def build_connection(listener: AccountServer) -> ClientConnection:
    """Return the protocol of a new client connection to `listener`, for `loop.create_server`."""
    return listener.build_connection(functools.partial(Exchange, listener))


class Exchange:
    """One request and its response (see `server.request.RequestHandler`).

    Args:
        listener: the server whose listener received the request.
        request: the request.
    """

    _admission: Admission  # set by `_admit`

    def __init__(self, listener: AccountServer, request: Request) -> None:
        self._started_at = time.perf_counter()
        # The listener's own account serves the request, unless the access key selects another one.
        self._listener = self._account = listener
        self._listener_settings = self._settings = listener.settings
        self._request = request
        self._response = Response(request, listener.settings.idle_s)
        admission: Admission | None = request.fields.cache
        self._ids = parse_request_ids(request.fields.raw) if admission is None else admission.request_ids
        self._request_id = self._ids.client_id or listener.make_request_id()
        self._body: ReplayableBody | None = None
        self._call: Call | None = None
        self._forwarding: Forwarding | None = None

    def start_now(self) -> bool:
        """Forward the request without a task, if nothing has to be awaited.

        Returns:
            whether it was sent; then the connection learns when the exchange ends or needs a task. If not,
            `run` must be called, which repeats the checks.
        """
        if self._request.body is not None or self._listener_settings.rules.origins:
            return False
        try:
            self._call = self._admit()
            self._forwarding = self._account.forwarder.send_now(self._call, self._on_response)
        except Exception:  # noqa: BLE001 - `run` meets it again and reports it
            return False
        if self._forwarding is not None:
            self._note_started()
        return self._forwarding is not None

    def cancel(self) -> None:
        """End what `start_now` has started, without a response."""
        if self._forwarding is not None:
            self._forwarding.response.close()
            self._forwarding.upstream_s = time.perf_counter() - self._forwarding.sent_at
            self._finish(None)

    async def run(self) -> bool:
        """Respond to the request, or go on from `start_now`; return whether the connection stays open."""
        listener, response = self._listener, self._response
        error: CfproxyError | None = None
        if self._forwarding is None:  # settings may have been reloaded since `start_now`
            self._account = listener
            self._listener_settings = self._settings = listener.settings
        listener.request_started(self._request.connection)
        try:
            await listener.local_names.learn(self._request)
            if not self._answer_preflight():
                await self._forward()
        except CfproxyError as caught:
            error = caught
            if isinstance(caught, UpstreamError):
                self._account.failure = without_traceback(caught)
            self._refuse(error)
        except ConnectionError:
            response.abort()  # the client left
        except asyncio.CancelledError:
            if response.started:
                response.abort()
            raise
        except Exception as fault:  # a bug; the client must still get a response
            self._listener.log.exception("request.crashed", request_id=self._request_id, exc_info=fault)
            error = CfproxyError("internal error; the log has the details under request.crashed")
            response.close_after()
            self._refuse(error)
        finally:
            if self._body is not None:
                self._body.close()
            if self._forwarding is not None and self._forwarding.done:
                await self._forwarding.response.aclose()
            self._finish(error)
            error = self._request.error = None  # a traceback refers to this frame
        return response.keep_alive and not listener.draining

    async def _forward(self) -> None:
        call, state = self._call, self._forwarding
        if call is None or state is None:
            call = self._admit()
            state = self._forwarding = Forwarding(self._account.forwarder)
            self._note_started()
        await state.forwarder.send(call, self._admission.flow, state)
        if self._body is not None:
            self._body.stop_copying()
        self._start_response(state)
        upstream, response = state.response, self._response
        if upstream.body.exhausted:  # most responses have arrived completely by now
            await response.drain()
        else:
            await response.drain(upstream.connection)
            while data := await upstream.body.read():
                await response.write(data, upstream.connection)
        response.finish(forwardable_trailers(upstream.body.trailers, upstream.head.raw_headers))
        await upstream.finish_upload()

    def _on_response(self) -> None:
        """Relay the response to what `start_now` has sent, or start a task that does."""
        state, response, connection = self._forwarding, self._response, self._request.connection
        assert state is not None  # noqa: S101 - set by `start_now`
        if connection.writing_paused or not state.try_finish():
            connection.start_task()
            return
        upstream = state.response
        try:
            self._start_response(state)
            response.finish(forwardable_trailers(upstream.body.trailers, upstream.head.raw_headers))
        except ConnectionError:
            response.abort()  # the client left
        except Exception as fault:
            if not response.started:
                connection.start_task()  # `run` raises it again and reports it
                return
            response.abort()
            self._listener.log.exception("request.crashed", request_id=self._request_id, exc_info=fault)
        keep_alive = False
        try:
            upstream.close()
            self._finish(None)
            keep_alive = response.keep_alive and not self._listener.draining
        finally:
            connection.request_finished(keep_alive=keep_alive)

    def _note_started(self) -> None:
        self._listener.request_started(self._request.connection)
        if self._account is not self._listener:
            self._account.request_started(self._request.connection)

    def _finish(self, error: CfproxyError | None) -> None:
        self._call = None  # it refers to this exchange: avoid a reference cycle
        connection = self._request.connection
        # Recording later, together with other requests', takes half the time that it takes in between.
        connection.loop.call_soon(self._record, error, time.perf_counter() - self._started_at)
        self._listener.request_finished(connection)
        if self._account is not self._listener:
            self._account.request_finished(connection)

    # --- the request ----------------------------------------------------------------------

    def _admit(self) -> Call:
        """Check the request and build what is sent to the upstream."""
        request = self._request
        admission = admit(self._listener, request, self._ids)
        self._admission, self._account, self._settings = admission, admission.account, admission.settings
        head = admission.build_head(request, self._request_id)
        if request.body is not None:
            self._response.client_waits = admission.expects_continue
            self._body = admission.build_body(request, request.body, self._response.send_continue)
        return Call(
            request.method.decode("ascii"),
            head,
            self._body,
            request.fields.framing.chunked,
            admission.expects_continue,
            admission.idempotency_key,
            self._relay_interim,
        )

    def _answer_preflight(self) -> bool:
        """Respond to a preflight from a listed origin; return whether the request is one."""
        request, settings = self._request, self._listener_settings
        headers, rules = request.fields.raw, settings.rules
        origin = preflight_origin(request.method, headers, rules.origins) if rules.origins else None
        if origin is None or request.error is not None:
            return False
        check_caller(self._listener, headers, request.connection)
        check_fields(request.fields.version, headers, settings.origin.via)
        if not request.read_whole:
            self._response.close_after()
        self._respond(204, render_preflight(headers, origin, rules.methods), b"", sized=False)
        return True

    # --- the response ---------------------------------------------------------------------

    def _relay_interim(self, status: int, reason: bytes, headers: RawHeaders) -> None:
        """Relay an interim response (1xx)."""
        headers = build_response_headers(headers, self._settings.origin)
        with contextlib.suppress(ConnectionError):  # the connection reports a client that left
            self._response.send_interim(status, reason, headers)

    def _start_response(self, state: Forwarding) -> None:
        """Write the head of the upstream's response, and as much of its body as has arrived."""
        upstream, settings, admission = state.response, self._settings, self._admission
        self._account.failure = None
        head = upstream.head
        headers = build_response_headers(
            head.raw_headers,
            settings.origin,
            trailers=head.chunked,
            request_id=self._request_id.encode("ascii") if settings.sends_id else None,
            to_page=admission.web_origin is not None,
        )
        if state.not_kept:
            headers.append((b"Proxy-Status", _NOT_KEPT))
        if settings.server_timing:
            headers.append((b"Server-Timing", state.render_timings()))
        if origins := self._listener_settings.rules.origins:
            headers = with_cors(headers, admission.web_origin, origins)
        if self._listener.draining:
            self._response.close_after()
        first = upstream.body.read_available()
        self._response.start(head.status, head.reason, headers, first, sized=head.length is not None)

    def _refuse(self, error: CfproxyError) -> None:
        """Send a problem document, or cut the connection if a response has started."""
        if self._response.started:
            self._response.abort()
            return
        headers, document = render_problem(error, self._request_id)
        headers.append((REQUEST_ID, self._request_id.encode("ascii")))
        headers.append((b"Content-Length", b"%d" % len(document)))
        if origins := self._listener_settings.rules.origins:
            headers = with_cors(headers, listed_origin(self._request.fields.raw, origins), origins)
        # What follows may be part of an attack, or of a tunnel.
        doubtful = isinstance(error, BadTarget | UpgradeNotSupported) or self._request.method == b"CONNECT"
        if doubtful or self._request.error is not None:
            self._response.close_after()
        with contextlib.suppress(ConnectionError):
            self._respond(error.status, headers, document, sized=True)

    def _respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, sized: bool) -> None:
        """Write a complete response of our own."""
        if self._listener.draining:
            self._response.close_after()
        self._response.start(status, HTTPStatus(status).phrase.encode(), headers, body, sized=sized)
        self._response.finish([])

    # --- metrics and log ------------------------------------------------------------------

    def _record(self, error: CfproxyError | None, total_s: float) -> None:
        request, response, state = self._request, self._response, self._forwarding
        result = state if state is not None and state.done else None
        method = request.method.decode("ascii", "backslashreplace")
        path = _loggable_path(request.target)
        problem = error.slug if error is not None else "" if response.complete else "client-left"
        self._settings.record(
            method,
            path,
            response.status,
            problem,
            total_s,
            *((None, None, None) if state is None else state.durations()),
            0 if self._body is None else self._body.received_bytes,
            response.body_bytes,
            result is not None and result.retried,
            0 if result is None else result.postponed,
        )
        # With sampling most lines are dropped, so ask before building one.
        if not problem and response.status < 300 and not self._settings.keeps_line():
            return
        event: dict[str, Any] = {
            "ms": int(total_s * 10_000) / 10,
            "request_id": self._request_id,
            "method": method,
            "path": path,
            "status": response.status,
            "bytes": response.body_bytes,
        }
        if (trace_id := self._ids.trace_id) is not None:
            event["trace_id"] = trace_id
        if result is not None:
            event |= result.log_fields()
        log = self._account.log
        if isinstance(error, UpstreamError):
            log.warning("request.failed", problem=problem, cut=response.aborted, **event)
        elif error is not None:
            log.info("request.refused", problem=problem, **event)
        elif not response.complete:
            log.info("request.abandoned", **event)  # the client left
        elif result is None:
            log.info("preflight.answered", **event)
        else:
            log.info("request.forwarded", **event)


def _loggable_path(target: bytes) -> str:
    """Return the path of a target without its query; "-" for other targets, such as URLs with passwords."""
    if not target.startswith(b"/"):
        return "-"
    return target.partition(b"?")[0].partition(b"#")[0].decode("ascii", "backslashreplace")
