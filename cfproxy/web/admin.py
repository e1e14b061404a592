"""The admin listener: health, status, metrics, shutdown.

Owns: what an operator or an orchestrator asks. Every answer is given from local state; nothing is dialled.
Must not know: tokens' values.
Invariant: guarded against web pages like the proxy listener; whatever changes something is a POST with a
header that no form of another site can send.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web

from cfproxy.access import AccessRules
from cfproxy.broker import BrokerState
from cfproxy.errors import CfproxyError, CrossSite, KeyRequired
from cfproxy.metrics import Metrics
from cfproxy.report import report_pacing, report_running, state_of
from cfproxy.secret import Secret
from cfproxy.token import App
from cfproxy.web.actions import Actions, Operations
from cfproxy.web.problems import render_problem

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class Account(Protocol):
    """What the admin listener sees of an account."""

    @property
    def app(self) -> App:
        """The account's app."""

    @property
    def listen(self) -> str:
        """Where its proxy listens."""

    @property
    def upstream_url(self) -> str:
        """Where its requests go."""

    @property
    def store_location(self) -> str:
        """Where its login is kept."""

    async def look(self) -> BrokerState:
        """Return the broker's state, having looked at the store if that is due."""


@dataclass(frozen=True, slots=True)
class AdminRules:
    """Who may ask, and who may act.

    Args:
        looking: for every request.
        keyed: whether callers of any account need a key; then so do actions.
        keys: those that all accounts share.
    """

    looking: AccessRules
    keyed: bool
    keys: tuple[Secret, ...]

    def check_action(self, request: web.Request) -> None:
        """Refuse a POST of a web page, and one without a key where keys are asked for.

        Raises:
            CrossSite, KeyRequired
        """
        if not _has_custom_header(request):
            raise CrossSite("send this POST with a header of your own, such as 'X-Cfproxy-Admin: 1'")
        if self.keyed:
            if not self.keys:
                raise KeyRequired(
                    "no access key is shared by all accounts; put one into access.keys at the top"
                )
            AccessRules(keys=self.keys).check_key(request.raw_headers)


class Admin:
    """The admin endpoints.

    Args:
        accounts: what to report on.
        metrics: what to expose.
        rules: who may call.
        operations: what the process lets itself be told.
    """

    def __init__(
        self, accounts: Sequence[Account], metrics: Metrics, rules: AdminRules, operations: Operations
    ) -> None:
        self._accounts = accounts
        self._metrics = metrics
        self.rules = rules
        self._actions = Actions(operations)
        self.port: int = 0
        self.started = False
        self.draining = False

    def build_app(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/startupz", self._startupz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/status.json", self._status)
        app.router.add_get("/metrics", self._render_metrics)
        self._actions.add_to(app)
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            host = request.headers.get("Host", "")
            local = None if request.transport is None else request.transport.get_extra_info("sockname")
            looking = self.rules.looking
            looking.check_host(host, self.port, local[0] if isinstance(local, tuple) else None)
            looking.check_origin(request.raw_headers, f"http://{host}")
            looking.check_key(request.raw_headers)
            if request.method not in {"GET", "HEAD"}:
                self.rules.check_action(request)
            response = await handler(request)
        except CfproxyError as error:
            row, headers, document = render_problem(error, "admin")
            response = web.Response(
                status=row.status, body=document, headers={n.decode(): v.decode() for n, v in headers}
            )
        except web.HTTPException as error:
            response = web.json_response(
                {"type": "about:blank", "title": error.reason, "status": error.status},
                status=error.status,
                content_type="application/problem+json",
            )
        response.headers.update(_HEADERS)
        return response

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _startupz(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {"status": "ok" if self.started else "starting"}, status=200 if self.started else 503
        )

    async def _readyz(self, _request: web.Request) -> web.Response:
        checks: list[dict[str, Any]] = []
        for account in self._accounts:
            state = await account.look()
            checks.append(
                {
                    "account": account.app.account,
                    "ready": state.ready,
                    "state": state_of(None if state.ready else state.error),
                    "detail": None if state.error is None else state.error.message,
                    "store": state_of(state.store_error),
                }
            )
        ready = self.started and not self.draining and all(check["ready"] for check in checks)
        word = "ok" if ready else "shutting-down" if self.draining else "not-ready"
        return web.json_response({"status": word, "checks": checks}, status=200 if ready else 503)

    async def _status(self, _request: web.Request) -> web.Response:
        now = time.time()
        reports = []
        for account in self._accounts:
            report = report_running(account.app, await account.look(), now, account.store_location)
            report["listen"] = account.listen
            report["upstream"] = account.upstream_url
            reports.append(report)
        pacing = {upstream: report_pacing(read()) for upstream, read in self._metrics.pacing.items()}
        return web.json_response({"accounts": reports, "pacing": pacing})

    async def _render_metrics(self, _request: web.Request) -> web.Response:
        for account in self._accounts:
            await account.look()
        return web.Response(
            body=self._metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )


def _has_custom_header(request: web.Request) -> bool:
    """Whether a header is there that would have cost a page of another site a CORS preflight."""
    return any(name.lower().startswith("x-") for name in request.headers)
