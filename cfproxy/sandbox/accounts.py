"""The accounts server's endpoints: authorization, token, revocation and discovery.

1. Nothing is redirected without a known client and an exactly registered redirect URI
   (RFC 6749 §3.1.2.4).
2. No response with a code or a token may be cached.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

from aiohttp import web

from cfproxy.sandbox import pages
from cfproxy.sandbox.behaviour import Behaviour
from cfproxy.sandbox.faults import answer_with, next_fault
from cfproxy.sandbox.grants import Grants
from cfproxy.sandbox.journal import Journal
from cfproxy.sandbox.problem import read_body
from cfproxy.sandbox.rules import SCOPES, Refused, parse_scope

FORM_MAX_BYTES = 65536
_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
# RFC 7636 §4.2: 32 bytes of SHA-256 in base64url.
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass
class Accounts:
    """The accounts server's handlers."""

    behaviour: Behaviour
    grants: Grants
    journal: Journal
    clock: Callable[[], float]

    def routes(self) -> list[web.RouteDef]:
        """Return the routes; other methods get 405 from the router."""
        return [
            web.get("/.well-known/openid-configuration", self._discover, allow_head=False),
            web.get("/connect/authorize", self._authorize, allow_head=False),
            web.post("/connect/authorize", self._authorize),
            web.post("/connect/token", self._token),
            web.post("/connect/revocation", self._revoke),
        ]

    async def _discover(self, _request: web.Request) -> web.Response:
        issuer = self.grants.issuer
        return web.json_response(
            {
                "issuer": issuer,
                "authorization_endpoint": f"{issuer}/connect/authorize",
                "token_endpoint": f"{issuer}/connect/token",
                "revocation_endpoint": f"{issuer}/connect/revocation",
                "response_types_supported": ["code"],
                "grant_types_supported": [*self.behaviour.grants, "refresh_token"],
                "scopes_supported": list(SCOPES),
                "token_endpoint_auth_methods_supported": ["client_secret_post"],
                "code_challenge_methods_supported": ["S256"],
                "authorization_response_iss_parameter_supported": self.behaviour.iss_in_redirect,
            }
        )

    async def _authorize(self, request: web.Request) -> web.Response:
        """Show the consent page, or carry out the decision made on it (RFC 6749 §4.1.1)."""
        pairs = parse_qsl(request.rel_url.raw_query_string, keep_blank_values=True)
        params = dict(pairs)
        redirect_uri = params.get("redirect_uri", "")
        if len(params) != len(pairs):
            return pages.render_refusal("The login address has a parameter twice.")
        if params.get("client_id") != self.behaviour.client_id:
            return pages.render_refusal("The client_id is unknown to the sandbox.")
        if redirect_uri not in (*self.behaviour.redirect_uris, f"{self.grants.issuer}/paste"):
            return pages.render_refusal("The redirect_uri is not exactly one that is registered for the app.")
        if error := self._find_error(params):
            return self._redirect(params, {"error": error})
        if request.method == "GET":
            return pages.render_consent(self.behaviour.app_name, params["scope"].split(), redirect_uri)
        try:
            form = await _read_form(request)
        except Refused as refused:
            return pages.render_refusal(f"The form can't be read: {refused.reason}.")
        match form.get("decision"):
            case "allow":
                scope = parse_scope(params["scope"]) or ""
                code = self.grants.issue_code(redirect_uri, scope, params.get("code_challenge", ""))
                return self._redirect(params, {"code": code, "scope": scope})
            case "deny":
                return self._redirect(params, {"error": "access_denied"})
            case _:
                return pages.render_refusal("The form says neither Yes nor No.")

    def _find_error(self, params: dict[str, str]) -> str:
        """Return the error code for the redirect (RFC 6749 §4.1.2.1); empty if there is none."""
        challenge = params.get("code_challenge", "")
        if params.get("response_type") != "code":
            return "unsupported_response_type"
        if parse_scope(params.get("scope", "")) is None:
            return "invalid_scope"
        if not challenge:
            return "invalid_request" if self.behaviour.require_pkce else ""
        if params.get("code_challenge_method") != "S256" or not _CHALLENGE.fullmatch(challenge):
            return "invalid_request"
        return ""

    def _redirect(self, params: dict[str, str], result: dict[str, str]) -> web.Response:
        result |= {"state": params["state"]} if "state" in params else {}
        result |= {"iss": self.grants.issuer} if self.behaviour.iss_in_redirect else {}
        target = params["redirect_uri"]
        location = f"{target}{'&' if '?' in target else '?'}{urlencode(result)}"
        return web.Response(status=302, headers={**_NO_STORE, "Location": location})

    async def _token(self, request: web.Request) -> web.StreamResponse:
        at = self.clock()
        fault = next_fault(self.behaviour.token_faults)
        if fault is not None and not fault.is_processed:
            self.journal.record_token_request("", f"fault:{fault.kind}", "", at)
        return await answer_with(fault, request, lambda: self._issue(request, at))

    async def _issue(self, request: web.Request, at: float) -> web.Response:
        form: dict[str, str] = {}
        try:
            form = await _read_form(request)
            answer = self.grants.token(form)
        except Refused as refused:
            self.journal.record_token_request(form.get("grant_type", ""), refused.error, refused.reason, at)
            return _refuse(refused)
        except web.HTTPException as error:
            self.journal.record_token_request("", str(error.status), "not a readable form", at)
            raise
        self.journal.record_token_request(form["grant_type"], "issued", "", at)
        return web.json_response(answer, headers=_NO_STORE)

    async def _revoke(self, request: web.Request) -> web.Response:
        """Answer 200 for unknown tokens too (RFC 7009 §2.2)."""
        try:
            self.grants.revoke(await _read_form(request))
        except Refused as refused:
            return _refuse(refused)
        return web.Response(headers=_NO_STORE)


async def _read_form(request: web.Request) -> dict[str, str]:
    """Read a form's fields; raise `Refused` for duplicates (RFC 6749 §3.2) and for invalid UTF-8."""
    if request.content_type != "application/x-www-form-urlencoded":
        raise web.HTTPUnsupportedMediaType
    body = await read_body(request, FORM_MAX_BYTES)
    if body is None:
        raise web.HTTPRequestEntityTooLarge(FORM_MAX_BYTES, FORM_MAX_BYTES + 1)
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise Refused("invalid_request", "not UTF-8") from None
    if len(dict(pairs)) != len(pairs):
        raise Refused("invalid_request", "a field is given twice")
    return dict(pairs)


def _refuse(refused: Refused) -> web.Response:
    return web.json_response({"error": refused.error}, status=400, headers=_NO_STORE)
