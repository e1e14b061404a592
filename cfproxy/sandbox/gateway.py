"""The API's front: faults, the rate limit and the bearer token, in this order, then routing.

Paths are matched as they were sent, without decoding or normalisation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiohttp import web

from cfproxy.sandbox.api import Route
from cfproxy.sandbox.behaviour import Behaviour
from cfproxy.sandbox.faults import answer_with, next_fault
from cfproxy.sandbox.grants import Grants
from cfproxy.sandbox.journal import Journal
from cfproxy.sandbox.limiter import Limiter
from cfproxy.sandbox.problem import ApiProblem

# RFC 9112 §3.2.2: a server must accept the absolute form too.
_TARGET = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*://[^/?]*)?/v1([^?]*)(?:\?.*)?", re.DOTALL)


@dataclass
class Gateway:
    """The API server's only handler."""

    behaviour: Behaviour
    grants: Grants
    journal: Journal
    clock: Callable[[], float]
    table: list[Route]
    limiter: Limiter = field(init=False)

    def __post_init__(self) -> None:
        self.limiter = Limiter(self.behaviour)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one API call."""
        at = self.clock()
        self.journal.record_api_request(at)
        fault = next_fault(self.behaviour.api_faults)
        response = await answer_with(fault, request, lambda: self._answer(request, at))
        self.journal.api_statuses[response.status] += 1
        return response

    async def _answer(self, request: web.Request, at: float) -> web.StreamResponse:
        wait_s = self.limiter.admit(request.remote or "", at)
        if wait_s is not None:
            return self._too_many_requests(wait_s)
        try:
            challenge = self._check_bearer(request, at)
            if challenge is not None:
                headers = {"WWW-Authenticate": challenge} if self.behaviour.www_authenticate else {}
                return web.Response(status=401, headers=headers)
            return await self._route(request)
        except ApiProblem as problem:
            return problem.render()

    def _too_many_requests(self, wait_s: float) -> web.Response:
        text = (
            f"API calls quota exceeded! maximum admitted {self.behaviour.limit_rate} "
            f"per {self.behaviour.limit_per_s:g}s."
        )
        headers = {"Retry-After": str(max(1, math.ceil(wait_s)))} if self.behaviour.retry_after else {}
        return web.Response(status=429, text=text, headers=headers)

    def _check_bearer(self, request: web.Request, now: float) -> str | None:
        """Return None for a valid token, else the challenge of RFC 6750 §3.

        Raises:
            ApiProblem: 403 if the token's scope does not include the API's.
        """
        sent = request.headers.getall("Authorization", [])
        scheme, _, value = sent[0].partition(" ") if len(sent) == 1 else ("", "", "")
        if not sent or (len(sent) == 1 and scheme.lower() != "bearer"):
            return "Bearer"
        token = self.grants.find_access_token(value)
        if token is None:
            return 'Bearer error="invalid_token"'
        if now >= token.expires_at:
            at = datetime.fromtimestamp(token.expires_at, UTC).strftime("%m/%d/%Y %H:%M:%S")
            return f'Bearer error="invalid_token", error_description="The token expired at \'{at}\'"'
        if "cfgateway" not in token.scope.split():
            raise ApiProblem(403, "Forbidden")
        return None

    async def _route(self, request: web.Request) -> web.StreamResponse:
        target = _TARGET.fullmatch(request.raw_path)
        found = [
            (route, match)
            for route in self.table
            if target is not None and (match := route.pattern.fullmatch(target[1])) is not None
        ]
        for route, match in found:
            if route.method in (None, request.method):
                return await route.handler(request, *match.groups())
        if found:
            allow = ", ".join(sorted(str(route.method) for route, _ in found))
            raise ApiProblem(405, "Method Not Allowed", headers={"Allow": allow})
        raise ApiProblem(404, "Not Found")
