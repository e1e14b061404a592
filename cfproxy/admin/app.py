"""The admin listener: health, status, metrics, pages.

Owns: its addresses, and what each answers. Every answer is given from local state; only a login that a
person finishes asks a server.
Must not know: tokens' values; HTML (`pages.py`); how one logs in (`logins.py`), acts (`actions.py`);
who may ask (`guard.py`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from aiohttp import web

from cfproxy.admin.access import PAGES, AdminRules, FormToken, wants_html
from cfproxy.admin.actions import Actions, Operations
from cfproxy.admin.events import Feed
from cfproxy.admin.login_pages import LoginAccount, LoginPages
from cfproxy.admin.pages import SECURITY_HEADERS, render_file, render_note, render_status
from cfproxy.admin.plots import view_pacing
from cfproxy.admin.view import View, view_account, view_request, view_summary
from cfproxy.errors import CfproxyError
from cfproxy.observability.metrics import Metrics
from cfproxy.observability.request_stats import LATEST_MAX
from cfproxy.observability.status import report_checks, report_pacing, report_running
from cfproxy.server.problem_details import render_problem

BODY_MAX_BYTES = 64 * 1024
REFUSED_S = 60.0  # for which refusals of the queue are told


class Account(LoginAccount, Protocol):
    """What the admin listener sees of an account."""

    @property
    def listen(self) -> str:
        """Where its proxy listens."""

    @property
    def url(self) -> str:
        """Where clients call."""

    @property
    def upstream_url(self) -> str:
        """Where its requests go."""

    @property
    def failure(self) -> CfproxyError | None:
        """Why the API did not answer the latest request; None if it did."""

    @property
    def in_flight(self) -> int:
        """How many of its requests are being worked at."""


class Admin:
    """The admin endpoints.

    Args:
        accounts: what to report on; may change while it is used.
        metrics: what to expose.
        rules: who may call; may be replaced.
        operations: what the process lets itself be told.
    """

    def __init__(
        self, accounts: Sequence[Account], metrics: Metrics, rules: AdminRules, operations: Operations
    ) -> None:
        self._accounts = accounts
        self._metrics = metrics
        self._actions = Actions(operations)
        self._token = FormToken()
        self._logins = LoginPages(accounts, self._describe_account, self._token)
        self._feed = Feed(self._describe, metrics.activity.latest)
        self.rules = rules
        self.port: int = 0
        self.started = False
        self.draining = False

    def build_app(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(middlewares=[self._guard], client_max_size=BODY_MAX_BYTES)
        get = app.router.add_get
        get("/", self._page)
        get("/events", self._feed.serve, allow_head=False)
        get("/static/{name}", self._file)
        get("/login", self._logins.show)
        app.router.add_post("/login", self._logins.act)
        get("/callback", self._logins.receive, allow_head=False)
        get("/livez", self._livez)
        get("/startupz", self._startupz)
        get("/readyz", self._readyz)
        get("/status.json", self._status)
        get("/metrics", self._render_metrics)
        self._actions.add_to(app)
        app.on_shutdown.append(self._end_feed)
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            self.rules.check(request, self.port, self._logins.redirect_hosts)
            if request.method not in {"GET", "HEAD"}:
                await self._token.check(request)
                if request.path not in PAGES:
                    self.rules.check_action(request)
            response = await handler(request)
        except CfproxyError as error:
            response = _refuse(request, error)
        except web.HTTPSeeOther as found:
            response = web.Response(status=found.status, headers={"Location": str(found.location)})
        except web.HTTPException as error:
            response = _turn_away(request, error)
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    # --- for machines ---------------------------------------------------------------------

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _startupz(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {"status": "ok" if self.started else "starting"}, status=200 if self.started else 503
        )

    async def _readyz(self, _request: web.Request) -> web.Response:
        reports = await self._reports()
        checks = [check for report in reports for check in report_checks(report)]
        # A full queue is told but does not count: replicas behind the same address share the API's limit,
        # so that sending callers to another one would help nobody.
        checks += [
            {
                "check": "queue",
                "upstream": upstream,
                "state": pacing["state"],
                "detail": pacing["detail"],
                "ok": pacing["state"] == "ok",
            }
            for upstream, pacing in self._pacing().items()
        ]
        ready = self.started and not self.draining and all(report["ready"] for report in reports)
        word = "ok" if ready else "shutting-down" if self.draining else "not-ready"
        lines = ",\n".join(json.dumps(check) for check in checks)
        text = f'{{"status": "{word}", "checks": [\n{lines}\n]}}\n'
        return web.Response(text=text, content_type="application/json", status=200 if ready else 503)

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response({"accounts": await self._reports(), "pacing": self._pacing()})

    async def _render_metrics(self, _request: web.Request) -> web.Response:
        for account in self._accounts:
            await account.look()
        in_flight = {account.app.account: account.in_flight for account in self._accounts}
        return web.Response(
            body=self._metrics.render(in_flight),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    # --- for people -----------------------------------------------------------------------

    async def _page(self, _request: web.Request) -> web.Response:
        shown, latest = await self._describe(), self._metrics.activity.latest
        return render_status(
            shown["summary"],
            shown["accounts"],
            shown["pacing"],
            [view_request(finished) for finished in reversed(latest.after(latest.serial - LATEST_MAX))],
            logins=[
                account.app.account for account in self._accounts if account.app.grant == "authorization_code"
            ],
            try_url=next((f"{a.url}/v1/jobs" for a in self._accounts if a.listen != "off"), ""),
            mark=self._feed.mark,
        )

    async def _file(self, request: web.Request) -> web.Response:
        return render_file(request.match_info["name"])

    async def _end_feed(self, _app: web.Application) -> None:
        await self._feed.aclose()

    # --- what there is to say -------------------------------------------------------------

    async def _describe(self) -> dict[str, Any]:
        reports, trends = await self._reports(), self._metrics.activity
        return {
            "summary": view_summary(reports, draining=self.draining),
            "accounts": {report["account"]: view_account(report) for report in reports},
            "pacing": {
                upstream: view_pacing(pacing, *trends.trend(upstream).series())
                for upstream, pacing in self._pacing().items()
            },
        }

    async def _describe_account(self, account: LoginAccount) -> View:
        views: dict[str, View] = (await self._describe())["accounts"]
        return views[account.app.account]

    async def _reports(self) -> list[dict[str, Any]]:
        reports, now = [], time.time()
        for account in self._accounts:
            state = await account.look()
            name, latest = account.app.account, self._metrics.activity.latest
            refused = latest.refused(name, now - REFUSED_S)
            report = report_running(account.app, state, now, account.store_location, account.failure, refused)
            report["listen"] = account.listen
            report["url"] = account.url
            report["upstream"] = account.upstream_url
            reports.append(report)
        return reports

    def _pacing(self) -> dict[str, dict[str, Any]]:
        return {upstream: report_pacing(read()) for upstream, read in self._metrics.pacing.items()}


def _refuse(request: web.Request, error: CfproxyError) -> web.Response:
    raw_headers, document = render_problem(error, "admin")
    headers = {n.decode(): v.decode() for n, v in raw_headers if n.decode() not in SECURITY_HEADERS}
    if wants_html(request) and request.path in PAGES:
        response = render_note(error.title, error.message, tone="bad", status=error.status)
        response.headers.update({name: value for name, value in headers.items() if name != "Content-Type"})
        return response
    return web.Response(status=error.status, body=document, headers=headers)


def _turn_away(request: web.Request, error: web.HTTPException) -> web.Response:
    if wants_html(request):
        text = "Nothing is shown at this address. The status page has what there is."
        link = ("/", "To the status page")
        response = render_note(error.reason, text, tone="bad", link=link, status=error.status)
    else:
        document = {"type": "about:blank", "title": error.reason, "status": error.status}
        response = web.json_response(document, status=error.status, content_type="application/problem+json")
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response
