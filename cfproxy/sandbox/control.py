"""The control plane under `/_sandbox/`, for tests and developers.

Owns: its paths, and who may use them: everyone who reaches the port, but no web page of another origin.
Must not know: what a setting does.
"""

from __future__ import annotations

import json
from typing import Protocol

from aiohttp import web

from cfproxy.sandbox.behaviour import Behaviour, InvalidSettings
from cfproxy.sandbox.faults import Fault, parse_fault


class Controlled(Protocol):
    """What the control plane needs of a sandbox."""

    @property
    def url(self) -> str:
        """Its own URL."""

    @property
    def behaviour(self) -> Behaviour:
        """Its settings."""

    def to_document(self) -> dict[str, object]:
        """Return its state in JSON types."""

    def revoke_access_tokens(self) -> int:
        """Make every access token issued so far invalid; return how many were not yet."""

    def reset(self) -> None:
        """Put everything back to the start."""


class Control:
    """The control plane's handlers."""

    def __init__(self, sandbox: Controlled) -> None:
        self._sandbox = sandbox

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
        return web.json_response(self._sandbox.to_document())

    async def _change(self, request: web.Request) -> web.Response:
        """Change the settings that are named, all or none."""
        self._check_origin(request)
        document = await _read(request)
        if not isinstance(document, dict):
            raise _refuse(["the body is not an object of settings"])
        try:
            self._sandbox.behaviour.update(document)
        except InvalidSettings as error:
            raise _refuse(error.problems) from None
        return web.json_response(self._sandbox.behaviour.to_document())

    async def _add_fault(self, request: web.Request) -> web.Response:
        """Queue a fault; `on` says for which server, `token` or `api`."""
        self._check_origin(request)
        document = await _read(request)
        behaviour = self._sandbox.behaviour
        queues: dict[object, list[Fault]] = {"token": behaviour.token_faults, "api": behaviour.api_faults}
        if not isinstance(document, dict) or document.get("on") not in ("token", "api"):
            raise _refuse(["on: expected token or api"])
        queue = queues[document.pop("on")]
        try:
            queue.append(parse_fault(document))
        except ValueError as error:
            raise _refuse([str(error)]) from None
        return web.json_response({"queued": len(queue)}, status=201)

    async def _revoke(self, request: web.Request) -> web.Response:
        self._check_origin(request)
        return web.json_response({"revoked": self._sandbox.revoke_access_tokens()})

    async def _reset(self, request: web.Request) -> web.Response:
        self._check_origin(request)
        self._sandbox.reset()
        return web.json_response(self._sandbox.to_document())

    def _check_origin(self, request: web.Request) -> None:
        if request.headers.get("Origin", self._sandbox.url) != self._sandbox.url:
            raise web.HTTPForbidden(text="not for web pages of another origin\n")


async def _read(request: web.Request) -> object:
    try:
        document: object = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise _refuse(["the body is not JSON"]) from None
    return document


def _refuse(problems: list[str]) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=json.dumps({"problems": problems}), content_type="application/json")
