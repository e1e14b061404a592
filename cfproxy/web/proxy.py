"""The proxy listener: from a client's connection to `forward`, and the answer back.

Owns: what is done with each request: checks, forwarding, the answer's way back, its log line.
Must not know: tokens, OAuth, how an upstream is reached; how requests are read (`connection.py`) and answers
written (`reply.py`).

There is no router and no reserved path: every target belongs to the upstream. Invariants:
1. After the first byte of an answer nothing but that answer follows; if it can't be completed the
   connection is cut, so that truncation shows.
2. One log line a request; no query value, header or body is in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

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
from cfproxy.flow import Inflow
from cfproxy.forward import Forwarder, KeptBody, Outcome, Times
from cfproxy.hangups import HangupWatch
from cfproxy.heads import Fields
from cfproxy.marks import HEADER, Marks, id_maker, read_marks
from cfproxy.ports import Call
from cfproxy.secret import Secret
from cfproxy.upstream import HttpAnswer
from cfproxy.web.connection import ClientConnection, Limits, Request
from cfproxy.web.connections import ConnectionLimits, Connections
from cfproxy.web.problems import render_problem, row_of
from cfproxy.web.reply import Reply
from cfproxy.wire import (
    IDEMPOTENCY_KEYS,
    Origin,
    RawHeaders,
    check_fields,
    check_method,
    folded,
    incoming_headers,
    outgoing_fields,
    outgoing_head,
    outgoing_target,
    passing_trailers,
    waits_to_go_on,
)

PROGRAMS_MAX = 128
_REQUEST_ID = HEADER.encode()
_FOLDED_REQUEST_ID = folded(_REQUEST_ID)
CUT_S = 0.1  # for a request that is on its way on a kept connection
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
        limits: what a client may take up.
        room: how many clients there may be.
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
    limits: Limits
    room: ConnectionLimits
    server_timing: bool
    record: Callable[..., None]
    keeps_line: Callable[[], bool] = lambda: True
    sends_id: bool = False


@dataclass(slots=True)
class Admission:
    """What follows from a request's fields alone, whatever its method and target.

    It is built once for as long as a client repeats the same fields on its connection.

    Args:
        judged_by: the settings of the listener.
        by: who serves it: the listener, or the account that the caller's key leads to.
        settings: of that account.
        origin: the web origin that may read the answer; None for everybody else.
        lines: the header lines that go up.
        flow: whose turn it takes in the queue.
        caller: `scheme://authority` under which the client knows us; empty when it named none.
        expects: whether the client waits for 100 Continue.
        idempotency_key: whether it brought one.
    """

    judged_by: ProxySettings
    by: ProxyListener
    settings: ProxySettings
    origin: bytes | None
    lines: bytes = field(repr=False)
    flow: Hashable = field(repr=False)
    caller: bytes
    expects: bool
    idempotency_key: bool


@dataclass(slots=True)
class Verdict:
    """What is remembered of a request's fields while a client repeats them.

    Args:
        marks: what they say of the request's id and trace; `made` where they name no id.
        admission: None until they were let in.
    """

    marks: Marks
    admission: Admission | None = None


class IncomingBody:
    """A client's body, asked for when the first piece is wanted.

    Args:
        inflow: the body.
        reply: tells a client that waits for 100 Continue to go on.
    """

    __slots__ = ("_inflow", "_reply")

    def __init__(self, inflow: Inflow, reply: Reply) -> None:
        self._inflow = inflow
        self._reply = reply

    async def read(self) -> bytes:
        """Return the next piece, b"" after the last one.

        Raises:
            BadTarget: the body is not well-formed, or nothing of it came for too long.
            ConnectionError: the client left.
        """
        self._reply.go_on()
        return await self._inflow.read()

    def whole(self) -> bytes | None:
        """Return all of it if it is there already, None otherwise."""
        return self._inflow.take() if self._inflow.complete else None

    def trailers(self) -> list[tuple[bytes, bytes]]:
        """Return what goes behind it, once it was read to its end."""
        return passing_trailers(self._inflow.trailers)


class ProxyListener:
    """Handles the requests of one account's listener (see `connection.Listener`).

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
        self._forwarder = forwarder
        self._others = others
        self._log = log.bind(account=settings.account)
        self._make_id = id_maker()
        self._watch: HangupWatch | None = None
        loop = asyncio.get_running_loop()
        self._room = Connections(settings.room, loop.time, loop.call_later, self._note_ended)
        self.connections: set[ClientConnection] = set()
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
        self._room.limits = settings.room
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
        self.drain(refuse=self._refusing)
        # Among the replies may be some on connections of another listener, whose callers' keys lead here.
        busy = {connection for connection in self.connections if connection.busy}
        await _cut(list(busy | {reply.connection for reply in self._replies}))
        if self.connections:
            await asyncio.sleep(CUT_S)
        await _cut(list(self.connections))
        self._room.aclose()
        if self._watch is not None:
            self._watch.aclose()

    # --- connections ----------------------------------------------------------------------

    def build_connection(self) -> ClientConnection:
        """Return the protocol of one more connection, for `loop.create_server`."""
        if self._watch is None:
            self._watch = HangupWatch()
        return ClientConnection(self, self._settings.limits, self._watch)

    def opened(self, connection: ClientConnection) -> None:
        """Take note of a new connection."""
        self.connections.add(connection)
        self._room.opened(connection)

    def closed(self, connection: ClientConnection) -> None:
        """Take note of its end."""
        self.connections.discard(connection)
        self._room.closed(connection)

    def began(self, connection: ClientConnection) -> None:
        """Take note that a part of a head is there."""
        self._room.began(connection)

    def working(self, connection: ClientConnection) -> None:
        """Take note that a whole head is there."""
        self._room.working(connection)

    def waiting(self, connection: ClientConnection) -> None:
        """Take note that nothing is there to be worked at."""
        self._room.waiting(connection)

    def _note_ended(self, causes: dict[str, int]) -> None:
        self._log.warning("connections.ended", **causes)

    # --- requests -------------------------------------------------------------------------

    async def handle(self, request: Request) -> bool:
        """Answer one request; return whether its connection may serve another one."""
        started_at = time.perf_counter()
        method = request.method.decode("ascii", "backslashreplace")
        settings = judged_by = self._settings  # to the end, whatever is reloaded meanwhile
        by = self
        reply = Reply(request, settings.idle_s)
        marks = self._mark(request.fields)
        body: KeptBody | None = None
        outcome: Outcome | None = None
        error: CfproxyError | None = None
        self._replies.add(reply)
        try:
            if not self._answer_preflight(judged_by, request, reply):
                admission, call = self._accept(judged_by, request, reply, marks)
                by, settings = admission.by, admission.settings
                by._replies.add(reply)  # noqa: SLF001 - of the same class
                body = call.body if isinstance(call.body, KeptBody) else None
                outcome = await by._forwarder.forward(call, admission.flow)  # noqa: SLF001 - likewise
                if body is not None:
                    body.stop_keeping()
                by.failure = None
                await self._relay(reply, outcome, admission, marks)
        except CfproxyError as caught:
            error = caught
            if isinstance(caught, UpstreamError):
                by.failure = caught
            await self._refuse(judged_by, request, reply, error, marks)
        except ConnectionError:
            reply.cut()  # the client left
        except asyncio.CancelledError:
            if reply.begun:
                reply.cut()
            raise
        except Exception as fault:  # noqa: BLE001 - whatever it is, it is a fault of ours and the client must hear of it
            self._log.error("request.crashed", request_id=marks.request_id, exc_info=fault)
            error = CfproxyError("an internal fault; the log has it under request.crashed")
            reply.close_after()
            await self._refuse(judged_by, request, reply, error, marks)
        finally:
            for listener in {self, by}:
                listener._note_end(reply)  # noqa: SLF001 - of the same class
            if body is not None:
                body.close()
            if outcome is not None:
                await outcome.answer.aclose()
            seconds = time.perf_counter() - started_at
            path = request.target.partition(b"?")[0].decode("ascii", "backslashreplace")
            times, reached = (Times(), False) if outcome is None else (outcome.times, True)
            settings.record(
                method,
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
                event = self._describe(method, path, reply, outcome, marks)
                by._log_request(  # noqa: SLF001 - of the same class
                    error, reply, outcome, ms=round(seconds * 1000, 1), **event
                )
        return reply.goes_on and not self.draining

    def _note_end(self, reply: Reply) -> None:
        self._replies.discard(reply)
        if self.draining and not self.in_flight:
            self.idle.set()
        for replies, ended in self._earlier:
            replies.discard(reply)
            if not replies:
                ended.set()
        self._earlier = [entry for entry in self._earlier if entry[0]]

    def _mark(self, fields: Fields) -> Marks:
        """Return what the request is known by."""
        if fields.verdict is None:
            fields.verdict = Verdict(_read_marks(fields))
        marks = fields.verdict.marks
        return Marks(self._make_id(), True, marks.trace_id) if marks.made else marks

    def _accept(
        self, settings: ProxySettings, request: Request, reply: Reply, marks: Marks
    ) -> tuple[Admission, Call]:
        """Check the request and build what goes up; no await, so nothing changes in between."""
        if request.error is not None:
            raise request.error
        if self._refusing:
            raise ShuttingDown("cfproxy is shutting down; send the request again in a moment")
        fields = request.fields
        admission: Admission | None = fields.verdict.admission
        if admission is None or admission.judged_by is not settings:
            admission = fields.verdict.admission = self._admit(settings, fields, request.connection)
        method = check_method(request.method)
        settings.rules.check_target(method, request.target, fields.raw)
        if admission.by is not self:
            settings = admission.settings
            settings.rules.check_target(method, request.target, fields.raw)
        target = outgoing_target(request.target, settings.origin.base_path)
        body = None
        if request.body is not None:
            reply.client_waits = admission.expects
            incoming = IncomingBody(request.body, reply)
            body = KeptBody(
                incoming.read,
                memory_bytes=settings.body_memory_bytes,
                max_bytes=settings.body_max_bytes,
                whole=incoming.whole,
                trailers=incoming.trailers,
            )
        head = outgoing_head(request.method, target, admission.lines)
        if marks.made and settings.sends_id:
            head += b"%b: %b\r\n" % (_REQUEST_ID, marks.request_id.encode("ascii"))
        call = Call(
            method,
            head,
            body,
            fields.framing.chunked,
            expects=admission.expects,
            idempotency_key=admission.idempotency_key,
            on_interim=functools.partial(_tell, reply, admission),
        )
        return admission, call

    def _admit(self, settings: ProxySettings, fields: Fields, connection: ClientConnection) -> Admission:
        """Check what does not depend on method and target, and build what follows from it."""
        headers, rules, judged_by = fields.raw, settings.rules, settings
        named = {name.lower(): value for name, value in reversed(headers)}
        host = self._check_caller(rules, headers, connection)
        key = rules.check_key(headers)
        by = self if key is None else self._led_to_by(rules, key)
        settings = by._settings if by is not self else settings  # noqa: SLF001 - of the same class
        check_fields(fields.version, headers, settings.origin.via)
        if fields.verdict.marks.made and settings.sends_id:  # what came instead, if anything, is no id
            headers = tuple(each for each in headers if folded(each[0]) != _FOLDED_REQUEST_ID)
        expects = fields.framing.has_body and waits_to_go_on(fields.version, headers)
        # Who shares one turn in the queue: a program of a caller, not one of its many connections. The
        # program's name is the caller's invention, so that there must be a bound to how many it can be.
        program = hash(named.get(b"user-agent")) % PROGRAMS_MAX
        return Admission(
            judged_by,
            by,
            settings,
            listed_origin(headers, rules.origins) if rules.origins else None,
            lines=outgoing_fields(
                headers, settings.origin, fields.framing, version=fields.version, expects=expects
            ),
            flow=(settings.account, key or connection.remote_address, program),
            caller=f"http://{host}".encode("utf-8", "surrogateescape") if host else b"",
            expects=expects,
            idempotency_key=not IDEMPOTENCY_KEYS.isdisjoint(named),
        )

    def _led_to_by(self, rules: AccessRules, key: Secret) -> ProxyListener:
        account = rules.bound.get(key)
        if account is None:
            return self
        if account not in self._others:
            raise NotAllowed("the account that this access key leads to is not served here")
        return self._others[account]

    def _check_caller(self, rules: AccessRules, headers: RawHeaders, connection: ClientConnection) -> str:
        """Check who may call at all, keys apart; return `Host`."""
        host = next((value for name, value in headers if name.lower() == b"host"), None)
        text = "" if host is None else host.decode("utf-8", "surrogateescape")
        rules.check_host(None if host is None else text, self.port, connection.local_address)
        rules.check_origin(headers, f"http://{text}")
        if rules.uids:
            rules.check_user(connection.uid)
        return text

    def _answer_preflight(self, settings: ProxySettings, request: Request, reply: Reply) -> bool:
        """Answer a browser that asks on behalf of a page of a listed origin; False when this is not that."""
        rules, headers = settings.rules, request.fields.raw
        if not (rules.origins and request.method == b"OPTIONS" and is_preflight("OPTIONS", headers)):
            return False
        self._check_caller(rules, headers, request.connection)
        check_fields(request.fields.version, headers, settings.origin.via)
        origin = listed_origin(headers, rules.origins)
        if origin is None:
            return False
        if self.draining or not request.read_whole:
            reply.close_after()
        reply.begin(204, b"No Content", render_preflight(headers, origin, rules.methods), sized=False)
        reply.end([])
        return True

    async def _relay(self, reply: Reply, outcome: Outcome, admission: Admission, marks: Marks) -> None:
        answer, settings = outcome.answer, admission.settings
        assert isinstance(answer, HttpAnswer)  # noqa: S101 - the one adapter there is
        head = answer.head
        headers = incoming_headers(head.raw_headers, settings.origin, admission.caller, trailers=head.chunked)
        if outcome.too_large:
            headers.append((b"Proxy-Status", _TOO_LARGE))
        # An id of the API's own is the API's answer, and passes like all of it.
        if settings.sends_id and not any(folded(name) == _FOLDED_REQUEST_ID for name, _ in headers):
            headers.append((_REQUEST_ID, marks.request_id.encode("ascii")))
        if settings.server_timing:
            headers.append((b"Server-Timing", _render_times(outcome.times)))
        if admission.judged_by.rules.origins:
            headers = with_cors(headers, admission.origin, admission.judged_by.rules.origins)
        if self.draining:
            reply.close_after()
        reply.begin(head.status, head.reason, headers, answer.take(), sized=head.length is not None)
        await reply.drain()
        while piece := await answer.read():
            await reply.write(piece)
        reply.end(passing_trailers(answer.trailers))
        await answer.finish_upload()

    async def _refuse(
        self, settings: ProxySettings, request: Request, reply: Reply, error: CfproxyError, marks: Marks
    ) -> None:
        """Answer in our own name, or cut an answer that can't be completed."""
        if reply.begun:
            reply.cut()
            return
        row, headers, document = render_problem(error, marks.request_id)
        headers.append((_REQUEST_ID, marks.request_id.encode("ascii")))
        headers.append((b"Content-Length", b"%d" % len(document)))
        if origins := settings.rules.origins:
            headers = with_cors(headers, listed_origin(request.fields.raw, origins), origins)
        if self.draining or isinstance(error, BadTarget | UpgradeNotSupported):
            reply.close_after()  # what follows on this connection may be part of the attack
        with contextlib.suppress(ConnectionError):
            reply.begin(row.status, HTTPStatus(row.status).phrase.encode(), headers, document, sized=True)
            reply.end([])

    @staticmethod
    def _describe(
        method: str, path: str, reply: Reply, outcome: Outcome | None, marks: Marks
    ) -> dict[str, Any]:
        event: dict[str, Any] = {
            "request_id": marks.request_id,
            "method": method,
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


async def _cut(connections: list[ClientConnection]) -> None:
    tasks = [task for connection in connections if (task := connection.cut()) is not None]
    if tasks:
        await asyncio.wait(tasks)


def _read_marks(fields: Fields) -> Marks:
    given = [(name.lower(), value.decode("utf-8", "surrogateescape")) for name, value in fields.raw]
    ids = [value for name, value in given if name == b"x-request-id"]
    trace = next((value for name, value in given if name == b"traceparent"), None)
    return read_marks(ids, trace, str)


def _tell(reply: Reply, admission: Admission, status: int, reason: bytes, headers: RawHeaders) -> None:
    """Pass an interim answer on."""
    with contextlib.suppress(ConnectionError):  # a client that left is noticed elsewhere
        reply.tell(status, reason, incoming_headers(headers, admission.settings.origin, admission.caller))


def _render_times(times: Times) -> bytes:
    """Return the value of `Server-Timing` (W3C Server Timing §3), in milliseconds."""
    parts = (("queue", times.queued_s), ("token", times.token_s), ("upstream", times.upstream_s))
    return ", ".join(f"{name};dur={seconds * 1000:.1f}" for name, seconds in parts).encode()
