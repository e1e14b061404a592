"""The control plane under `/_sandbox/`, for tests and developers.

Every client that reaches the port may use it, except web pages of another origin.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from cfproxy.sandbox.behaviour import Behaviour, Fault, InvalidSettings, parse_fault
from cfproxy.sandbox.grants import Grants


@dataclass
class Control:
    """The control plane's handlers.

    Args:
        behaviour: the settings.
        grants: the issued tokens.
        to_document: returns the sandbox's state in JSON types.
        reset: restores the initial state.
    """

    behaviour: Behaviour
    grants: Grants
    to_document: Callable[[], dict[str, object]]
    reset: Callable[[], None]

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.get("/_sandbox/state", self._state, allow_head=False),
            web.patch("/_sandbox/behaviour", self._change),
            web.post("/_sandbox/faults", self._add_fault),
            web.post("/_sandbox/revoke-access-tokens", self._revoke),
            web.post("/_sandbox/reset", self._reset),
        ]

    async def _state(self, request: web.Request) -> web.Response:
        self._check_origin(request)
        return web.json_response(self.to_document())

    async def _change(self, request: web.Request) -> web.Response:
        """Change the given settings, all or none."""
        self._check_origin(request)
        document = await _read(request)
        if not isinstance(document, dict):
            raise _refuse(["the body is not an object of settings"])
        try:
            self.behaviour.update(document)
        except InvalidSettings as error:
            raise _refuse(error.problems) from None
        return web.json_response(self.behaviour.model_dump(mode="json"))

    async def _add_fault(self, request: web.Request) -> web.Response:
        """Queue a fault; `on` names the server, `token` or `api`."""
        self._check_origin(request)
        document = await _read(request)
        if not isinstance(document, dict) or document.get("on") not in ("token", "api"):
            raise _refuse(["on: expected token or api"])
        queue: list[Fault] = getattr(self.behaviour, f"{document.pop('on')}_faults")
        try:
            queue.append(parse_fault(document))
        except InvalidSettings as error:
            raise _refuse(error.problems) from None
        return web.json_response({"queued": len(queue)}, status=201)

    async def _revoke(self, request: web.Request) -> web.Response:
        self._check_origin(request)
        return web.json_response({"revoked": self.grants.revoke_access_tokens()})

    async def _reset(self, request: web.Request) -> web.Response:
        self._check_origin(request)
        self.reset()
        return web.json_response(self.to_document())

    def _check_origin(self, request: web.Request) -> None:
        own = f"http://{request.host}"  # a Host that the sandbox has accepted
        if request.headers.get("Origin", own).lower() != own.lower():
            raise web.HTTPForbidden(text="not for web pages of another origin\n")


async def _read(request: web.Request) -> object:
    try:
        document: object = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise _refuse(["the body is not JSON"]) from None
    return document


def _refuse(problems: list[str]) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=json.dumps({"problems": problems}), content_type="application/json")
