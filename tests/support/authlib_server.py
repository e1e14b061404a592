"""An independent authorization server: Authlib's, on loopback, with everything in memory.

It tests the client against a server other than our sandbox. It consents to every authorization at once,
requires client authentication in form fields, checks PKCE, rotates refresh tokens, and names itself in the
redirect (RFC 9207).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from authlib.oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import (
    AuthorizationCodeMixin,
    ClientMixin,
    OAuth2Error,
    OAuth2Request,
    TokenMixin,
    grants,
)
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc9207 import IssuerParameter

# Authlib has no type hints, so its subclasses need `type: ignore[misc]`.

FORM_ONLY = ["client_secret_post"]
USER = "a person"
# It logs issued tokens at debug level; this is not our log.
logging.getLogger("authlib").setLevel(logging.WARNING)


@dataclass
class App(ClientMixin):  # type: ignore[misc]  # untyped base
    """A registered app."""

    client_id: str
    client_secret: str
    redirect_uri: str
    grants: tuple[str, ...] = ("authorization_code", "refresh_token", "client_credentials")
    scopes: frozenset[str] = frozenset({"cfgateway", "offline_access"})

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_allowed_scope(self, scope: str) -> str:
        return " ".join(part for part in scope.split() if part in self.scopes)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        return redirect_uri == self.redirect_uri

    def check_client_secret(self, client_secret: str) -> bool:
        return client_secret == self.client_secret

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in FORM_ONLY

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in self.grants


@dataclass
class Code(AuthorizationCodeMixin):  # type: ignore[misc]  # untyped base
    """An authorization code."""

    code: str
    redirect_uri: str
    scope: str
    code_challenge: str | None
    code_challenge_method: str | None

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope


@dataclass
class Issued(TokenMixin):  # type: ignore[misc]  # untyped base
    """An issued pair of tokens."""

    access_token: str
    refresh_token: str | None
    scope: str
    issued_at: float = field(default_factory=time.time)
    refresh_revoked: bool = False
    access_revoked: bool = False

    def check_client(self, client: App) -> bool:
        return True

    def get_scope(self) -> str:
        return self.scope

    def get_expires_in(self) -> int:
        return 3600

    def is_expired(self) -> bool:
        return False

    def is_revoked(self) -> bool:
        return self.refresh_revoked


class Request(OAuth2Request):  # type: ignore[misc]  # untyped base
    """One request; Authlib requires https, so the loopback address is replaced by one."""

    def __init__(self, method: str, path: str, query: dict[str, str], form: dict[str, str]) -> None:
        super().__init__(method, f"https://accounts.example{path}", headers={})
        self._query = query
        self._form = form
        self.payload = BasicOAuth2Payload(query | form)

    @property
    def args(self) -> dict[str, str]:
        return self._query

    @property
    def form(self) -> dict[str, str]:
        return self._form


class CodeGrant(grants.AuthorizationCodeGrant):  # type: ignore[misc]  # untyped base
    """One-time codes."""

    TOKEN_ENDPOINT_AUTH_METHODS = FORM_ONLY

    def save_authorization_code(self, code: str, request: Request) -> None:
        data = request.payload.data
        self.server.codes[code] = Code(
            code,
            data["redirect_uri"],
            request.payload.scope,
            data.get("code_challenge"),
            data.get("code_challenge_method"),
        )

    def query_authorization_code(self, code: str, client: App) -> Code | None:
        found: Code | None = self.server.codes.get(code)
        return found

    def delete_authorization_code(self, authorization_code: Code) -> None:
        del self.server.codes[authorization_code.code]

    def authenticate_user(self, authorization_code: Code) -> str:
        return USER


class RotatingGrant(grants.RefreshTokenGrant):  # type: ignore[misc]  # untyped base
    """One-time refresh tokens."""

    TOKEN_ENDPOINT_AUTH_METHODS = FORM_ONLY
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> Issued | None:
        found: Issued | None = self.server.find(refresh_token)
        return None if found is None or found.is_revoked() else found

    def authenticate_user(self, refresh_token: Issued) -> str:
        return USER

    def revoke_old_credential(self, refresh_token: Issued) -> None:
        refresh_token.refresh_revoked = True


class AppGrant(grants.ClientCredentialsGrant):  # type: ignore[misc]  # untyped base
    """Client credentials."""

    TOKEN_ENDPOINT_AUTH_METHODS = FORM_ONLY


class Revocation(RevocationEndpoint):  # type: ignore[misc]  # untyped base
    """RFC 7009."""

    CLIENT_AUTH_METHODS = FORM_ONLY

    def query_token(self, token_string: str, token_type_hint: str | None) -> Issued | None:
        found: Issued | None = self.server.find(token_string)
        return found

    def revoke_token(self, token: Issued, request: Request) -> None:
        token.access_revoked = True
        token.refresh_revoked |= request.form.get("token_type_hint") == "refresh_token"


class Issuer(IssuerParameter):  # type: ignore[misc]  # untyped base
    """RFC 9207, over aiohttp's responses, which keep their address in a header."""

    def add_issuer_parameter(self, authorization_server: Server, response: web.Response) -> None:
        joint = "&" if "?" in response.headers["Location"] else "?"
        response.headers["Location"] += f"{joint}iss={authorization_server.issuer}"


class Server(AuthorizationServer):  # type: ignore[misc]  # untyped base
    """Authlib's server for one app, answering with aiohttp's responses."""

    def __init__(self, app: App) -> None:
        super().__init__(scopes_supported=sorted(app.scopes))
        self.app = app
        self.issuer = ""
        self.codes: dict[str, Code] = {}
        self.issued: list[Issued] = []
        random_text = iter(f"{app.client_id}-{number:032}" for number in range(10**6))
        self.register_token_generator(
            "default",
            BearerTokenGenerator(
                lambda **_: f"at-{next(random_text)}",
                lambda **_: f"rt-{next(random_text)}",
                lambda *_: 3600,
            ),
        )
        self.register_grant(CodeGrant, [CodeChallenge(required=False)])
        self.register_grant(RotatingGrant)
        self.register_grant(AppGrant)
        self.register_endpoint(Revocation)
        self.register_extension(Issuer())

    def find(self, token: str) -> Issued | None:
        return next((one for one in self.issued if token in {one.access_token, one.refresh_token}), None)

    def query_client(self, client_id: str) -> App | None:
        return self.app if client_id == self.app.client_id else None

    def save_token(self, token: dict[str, Any], request: Request) -> None:
        self.issued.append(Issued(token["access_token"], token.get("refresh_token"), token.get("scope", "")))

    def send_signal(self, name: str, *args: object, **kwargs: object) -> None:
        """Ignore Authlib's signals."""

    def create_oauth2_request(self, request: Request) -> Request:
        return request

    def handle_response(self, status: int, body: Any, headers: list[tuple[str, str]]) -> web.Response:
        if isinstance(body, dict):
            return web.json_response(body, status=status)
        return web.Response(status=status, text=body, headers=dict(headers))

    def build_app(self) -> web.Application:
        """Return the three endpoints under the paths that Creative Force uses."""
        app = web.Application()
        app.router.add_get("/connect/authorize", self._authorize)
        app.router.add_post("/connect/token", self._token)
        app.router.add_post("/connect/revocation", self._revocation)
        return app

    async def _authorize(self, request: web.Request) -> web.StreamResponse:
        asked = Request("GET", request.path, dict(request.query), {})
        self.issuer = str(request.url.origin())
        try:
            grant = self.get_consent_grant(asked, USER)
        except OAuth2Error:
            return web.Response(status=400, text="<h1>Error</h1>", content_type="text/html")
        response: web.Response = self.create_authorization_response(asked, grant_user=USER, grant=grant)
        return response

    async def _token(self, request: web.Request) -> web.StreamResponse:
        response: web.Response = self.create_token_response(await _read(request))
        return response

    async def _revocation(self, request: web.Request) -> web.StreamResponse:
        response: web.Response = self.create_endpoint_response("revocation", await _read(request))
        return response


async def _read(request: web.Request) -> Request:
    fields = {name: str(value) for name, value in (await request.post()).items()}
    return Request("POST", request.path, dict(request.query), fields)
