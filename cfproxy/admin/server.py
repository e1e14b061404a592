"""The HTTP server of the admin listener: the connections of `cfproxy.server`, with smaller limits."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from http import HTTPStatus

from structlog.typing import FilteringBoundLogger

from cfproxy.admin.messages import SECURITY_HEADERS, AdminRequest, AdminResponse, problem_response
from cfproxy.errors import CfproxyError
from cfproxy.server.connection import ClientConnection
from cfproxy.server.connection_limits import ConnectionLimits, Connections, cancel_all
from cfproxy.server.local_names import LocalNames
from cfproxy.server.request import Limits, Request
from cfproxy.server.response import Response

HEAD_S = 10.0
CONNECTIONS_MAX, UNFINISHED_MAX = 256, 64
UNREAD_S = 30.0  # how long a response may stay unread
CLOSE_S = 0.5  # for responses in progress when the server closes

Respond = Callable[[AdminRequest], Awaitable[AdminResponse]]


class AdminServer:
    """Serves people, probes and scrapers.

    Args:
        respond: handles a request; every exception that it raises is answered with a problem document.
        log: logs crashes and connections that were closed for exceeding a limit.
    """

    def __init__(self, respond: Respond, log: FilteringBoundLogger) -> None:
        self.respond = respond
        self.log = log.bind(listen="admin")
        self.limits = Limits(first_byte_s=HEAD_S, head_s=HEAD_S, idle_s=UNREAD_S)
        self.tasks: set[asyncio.Task[object]] = set()  # of connections with a request in progress
        self.local_names = LocalNames()
        self.handling: set[asyncio.Task[AdminResponse]] = set()  # some of clients that have left
        self._connections = Connections(
            ConnectionLimits(CONNECTIONS_MAX, UNFINISHED_MAX, cuts_busy=True),
            asyncio.get_running_loop(),
            lambda causes: self.log.warning("connections.ended", **causes),
        )

    def build_connection(self) -> ClientConnection:
        """Return the protocol of a new client connection."""
        handle = functools.partial(_Exchange, self)
        return ClientConnection(handle, self._connections, self.limits)

    async def aclose(self) -> None:
        """Close every connection, once the responses in progress are complete or `CLOSE_S` has passed."""
        if unfinished := self.tasks | self.handling:
            await asyncio.wait(unfinished, timeout=CLOSE_S)
        await cancel_all(list(self._connections))
        if handling := set(self.handling):
            for task in handling:
                task.cancel()
            await asyncio.wait(handling)
        self._connections.aclose()


class _Exchange:
    """Handles one request, in a task (see `RequestHandler`)."""

    def __init__(self, server: AdminServer, request: Request) -> None:
        self._server = server
        self._request = request
        self._response = Response(request, server.limits.idle_s)

    def start_now(self) -> bool:
        return False

    def cancel(self) -> None:
        pass  # nothing was started

    async def run(self) -> bool:
        """Handle the request; return whether its connection may serve another one."""
        response, task = self._response, asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)
        try:
            await self._write(await self._handle())
        except ConnectionError:
            response.abort()  # the client left
        except asyncio.CancelledError:
            if response.started:
                response.abort()
            raise
        return response.keep_alive

    async def _handle(self) -> AdminResponse:
        # A client that leaves must not interrupt a reload or a login.
        handling, tasks = asyncio.create_task(self._respond()), self._server.handling
        tasks.add(handling)
        handling.add_done_callback(tasks.discard)
        return await asyncio.shield(handling)

    async def _respond(self) -> AdminResponse:
        error: CfproxyError | None = self._request.error
        if error is None:
            try:
                await self._server.local_names.learn(self._request)
                return await self._server.respond(AdminRequest(self._request, self._response))
            except CfproxyError as caught:
                error = caught
            except ConnectionError:
                raise
            except Exception as fault:  # the client must get a response, whatever went wrong
                self._server.log.exception("request.crashed", exc_info=fault)
                error = CfproxyError("internal error; the log has the details under request.crashed")
        self._response.close_after()
        return problem_response(error)

    async def _write(self, answer: AdminResponse) -> None:
        texts = SECURITY_HEADERS | {"Date": formatdate(usegmt=True)} | answer.headers
        headers = [(name.encode(), value.encode("latin-1")) for name, value in texts.items()]
        reason = HTTPStatus(answer.status).phrase.encode()
        if not self._request.read_whole:
            self._response.close_after()  # no handler reads the rest of the body
        if isinstance(answer.body, bytes):
            headers.append((b"Content-Length", b"%d" % len(answer.body)))
            self._response.start(answer.status, reason, headers, answer.body, sized=True)
            await self._response.drain()
        else:
            async with contextlib.aclosing(answer.body) as parts:
                self._response.start(answer.status, reason, headers, sized=False)
                async for part in parts:
                    await self._response.write(part)
        self._response.finish([])
