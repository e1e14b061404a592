"""The admin endpoints: health, status, metrics, pages, and operations on the process.

Responses come from local state; only finishing a login makes a network request. No token is shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cfproxy.admin.access import CALLBACK, PAGES, AdminRules, FormToken, wants_html
from cfproxy.admin.events import EventStream
from cfproxy.admin.interfaces import Operations, ServedAccount
from cfproxy.admin.login_pages import LoginPages
from cfproxy.admin.messages import AdminRequest, AdminResponse, HttpError, json_response, problem_response
from cfproxy.admin.pages import render_file, render_note, render_status
from cfproxy.admin.view import View, view_account, view_pacing, view_request, view_summary
from cfproxy.errors import BadTarget, CfproxyError
from cfproxy.observability.metrics import Metrics
from cfproxy.observability.prometheus import MetricsCollector
from cfproxy.observability.request_stats import LATEST_MAX
from cfproxy.observability.status import report_checks, report_pacing, report_running

QUEUE_REFUSALS_S = 60.0  # how long a refusal of the queue shows
_STATIC = "/static/"

Handler = Callable[[AdminRequest], Awaitable[AdminResponse]]


class AdminApp:
    """The admin endpoints.

    Args:
        accounts: the accounts to report; the mapping may change.
        metrics: the metrics to expose.
        operations: what requests can do to the process.
        rules: who may call; may be replaced.
    """

    def __init__(
        self,
        accounts: Sequence[ServedAccount],
        metrics: Metrics,
        operations: Operations,
        rules: AdminRules,
    ) -> None:
        self._accounts = accounts
        self._metrics = metrics
        self._collector = MetricsCollector(metrics)
        self._operations = operations
        self._token = FormToken()
        self._logins = LoginPages(accounts, self._describe_account, self._token)
        self._events = EventStream(self._describe, metrics.latest)
        self.rules = rules
        self.draining = False
        self._routes: dict[str, dict[str, Handler]] = {
            "/": _get(self._page),
            "/events": {"GET": self._events.serve},
            "/login": _get(self._logins.show) | {"POST": self._logins.act},
            CALLBACK: {"GET": self._logins.receive},
            "/livez": _get(self._livez),
            # No endpoint responds before the start is complete.
            "/startupz": _get(self._livez),
            "/readyz": _get(self._readyz),
            "/status.json": _get(self._status),
            "/metrics": _get(self._render_metrics),
            _STATIC: _get(self._file),
            "/shutdown": {"POST": self._shutdown},
            "/reload": {"POST": self._reload},
            "/log-level": {"POST": self._set_log_level},
        }

    async def respond(self, request: AdminRequest) -> AdminResponse:
        """Check and handle a request."""
        try:
            self.rules.check(request, self._logins.redirect_hosts)
            handler = self._find_handler(request)
            if request.method not in {"GET", "HEAD"}:
                # Nothing of a body is read before a key was shown, where one is needed.
                if request.path in PAGES:
                    self._logins.check_caller(request)
                else:
                    self.rules.check_action(request)
                await self._token.check(request)
            return await handler(request)
        except CfproxyError as error:
            return _error_response(request, error)
        except HttpError as error:
            return _http_error_response(request, error)

    async def aclose(self) -> None:
        """End the event streams."""
        await self._events.aclose()

    def _find_handler(self, request: AdminRequest) -> Handler:
        handlers = self._routes.get(_STATIC if request.path.startswith(_STATIC) else request.path)
        if handlers is None:
            raise HttpError(404)
        if request.method not in handlers:
            raise HttpError(405, headers={"Allow": ",".join(sorted(handlers))})
        return handlers[request.method]

    # --- for machines ---------------------------------------------------------------------

    async def _livez(self, _request: AdminRequest) -> AdminResponse:
        return json_response({"status": "ok"})

    async def _readyz(self, _request: AdminRequest) -> AdminResponse:
        reports = await self._reports()
        checks = [check for report in reports for check in report_checks(report)]
        # A full queue is reported but does not make us unready: replicas share the API's rate limit, so
        # sending callers to another one would not help.
        checks += [
            {"check": "queue", "upstream": upstream, "state": state, "detail": detail, "ok": state == "ok"}
            for upstream, pacing in self._pacing().items()
            for state, detail in [(pacing["state"], pacing["detail"])]
        ]
        ready = not self.draining and all(report["ready"] for report in reports)
        status = "ok" if ready else "shutting-down" if self.draining else "not-ready"
        lines = ",\n".join(json.dumps(check) for check in checks)
        text = f'{{"status": "{status}", "checks": [\n{lines}\n]}}\n'
        headers = {"Content-Type": "application/json; charset=utf-8"}
        return AdminResponse(text.encode(), 200 if ready else 503, headers)

    async def _status(self, _request: AdminRequest) -> AdminResponse:
        return json_response({"accounts": await self._reports(), "pacing": self._pacing()})

    async def _render_metrics(self, _request: AdminRequest) -> AdminResponse:
        for account in self._accounts:
            await account.token_source.check_store()
        in_flight = {account.app.account: account.server.in_flight for account in self._accounts}
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return AdminResponse(self._collector.render(in_flight), headers=headers)

    async def _shutdown(self, _request: AdminRequest) -> AdminResponse:
        self._operations.stop()
        return json_response({"status": "shutting-down"}, status=202)

    async def _reload(self, _request: AdminRequest) -> AdminResponse:
        changed = await self._operations.reload()
        return json_response({"status": "reloaded", "changed": changed})

    async def _set_log_level(self, request: AdminRequest) -> AdminResponse:
        level = request.query.get("level")
        if level is None:
            raise BadTarget("name the level: POST /log-level?level=debug (or info, warning, error)")
        self._operations.set_log_level(level)
        return json_response({"status": "changed", "level": level})

    # --- for people -----------------------------------------------------------------------

    async def _page(self, _request: AdminRequest) -> AdminResponse:
        state, latest = await self._describe(), self._metrics.latest
        return render_status(
            state["summary"],
            state["accounts"],
            state["pacing"],
            [view_request(finished) for finished in reversed(latest.after(latest.serial - LATEST_MAX))],
            logins=[a.app.account for a in self._accounts if a.app.grant == "authorization_code"],
            try_url=next((f"{a.url}/v1/jobs" for a in self._accounts if a.listen != "off"), ""),
            last_event_id=self._events.last_event_id,
        )

    async def _file(self, request: AdminRequest) -> AdminResponse:
        return render_file(request.path.removeprefix(_STATIC))

    # --- the state that pages and reports show --------------------------------------------

    async def _describe(self) -> dict[str, Any]:
        reports = await self._reports()
        return {
            "summary": view_summary(reports, draining=self.draining),
            "accounts": {report["account"]: view_account(report) for report in reports},
            "pacing": {
                upstream: view_pacing(pacing, *self._metrics.trend(upstream).series())
                for upstream, pacing in self._pacing().items()
            },
        }

    async def _describe_account(self, account: ServedAccount) -> View:
        views: dict[str, View] = (await self._describe())["accounts"]
        return views[account.app.account]

    async def _reports(self) -> list[dict[str, Any]]:
        reports, now = [], time.time()
        for account in self._accounts:
            await account.token_source.check_store()
            app, failure = account.app, account.server.failure
            refused = self._metrics.latest.refused(app.account, now - QUEUE_REFUSALS_S)
            report = report_running(
                app, account.token_source.state(), now, account.store.location, failure, refused
            )
            report["listen"] = account.listen
            report["url"] = account.url
            report["upstream"] = account.settings.upstream
            reports.append(report)
        return reports

    def _pacing(self) -> dict[str, dict[str, Any]]:
        return {upstream: report_pacing(read()) for upstream, read in self._metrics.pacing.items()}


def _get(handler: Handler) -> dict[str, Handler]:
    """Return a route for GET and HEAD."""
    return {"GET": handler, "HEAD": handler}


def _error_response(request: AdminRequest, error: CfproxyError) -> AdminResponse:
    problem = problem_response(error)
    if not (wants_html(request) and request.path in PAGES):
        return problem
    page = render_note(error.title, error.message, tone="bad", status=error.status)
    page.headers = problem.headers | page.headers
    return page


def _http_error_response(request: AdminRequest, error: HttpError) -> AdminResponse:
    if wants_html(request):
        text = "There is no page at this address."
        link = ("/", "Go to the status page")
        response = render_note(error.title, text, tone="bad", link=link, status=error.status)
    else:
        document = {"type": "about:blank", "title": error.title, "status": error.status}
        response = json_response(document, status=error.status, content_type="application/problem+json")
    response.headers |= error.headers
    return response
