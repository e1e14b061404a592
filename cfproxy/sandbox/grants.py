"""The authorization server's rules and memory: codes and tokens, on a given clock, without HTTP.

Implements the server's side of RFC 6749, RFC 7636 (PKCE) and RFC 7009 (revocation).

1. A code is used up by the first request that has it and the right app credentials, whatever else is wrong
   with that request.
2. A one-time refresh token is marked used before its successor is returned.
3. Everything issued stays in memory until `reset`.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cfproxy.sandbox.behaviour import Behaviour
from cfproxy.sandbox.journal import Journal
from cfproxy.sandbox.jwt import encode_jwt
from cfproxy.sandbox.rules import Refused, narrow_scope, require_field, verify_pkce


@dataclass
class Code:
    """An authorization code."""

    value: str
    client_id: str
    redirect_uri: str
    scope: str
    challenge: str
    expires_at: float
    used: bool = False


@dataclass
class Family:
    """One login and everything that was issued from it."""

    client_id: str
    scope: str
    revoked: bool = False


@dataclass
class RefreshToken:
    """A refresh token."""

    value: str
    family: Family
    expires_at: float
    used: bool = False


@dataclass
class AccessToken:
    """An access token."""

    value: str
    scope: str
    expires_at: float
    family: Family
    revoked: bool = False


@dataclass
class Grants:
    """Issues codes and tokens as `behaviour` says.

    Args:
        behaviour: the settings, read at every call.
        clock: seconds since the epoch.
        journal: counts replays of used refresh tokens.
        issuer: the server's own URL, for JWTs.
    """

    behaviour: Behaviour
    clock: Callable[[], float]
    journal: Journal
    issuer: str = ""
    codes: dict[str, Code] = field(default_factory=dict)
    refresh_tokens: dict[str, RefreshToken] = field(default_factory=dict)
    access_tokens: dict[str, AccessToken] = field(default_factory=dict)

    def issue_code(self, redirect_uri: str, scope: str, challenge: str = "") -> str:
        """Return a code, as if a user had just consented; `challenge` is the S256 code challenge of PKCE."""
        code = Code(
            value=secrets.token_urlsafe(24),
            client_id=self.behaviour.client_id,
            redirect_uri=redirect_uri,
            scope=scope,
            challenge=challenge,
            expires_at=self.clock() + self.behaviour.code_lifetime_s,
        )
        self.codes[code.value] = code
        return code.value

    def token(self, form: Mapping[str, str]) -> dict[str, Any]:
        """Return the token response to a request (RFC 6749 §4.1.3, §4.4.2, §6).

        Raises:
            Refused
        """
        self.authenticate(form)
        grant = require_field(form, "grant_type")
        answers = {
            "authorization_code": self._exchange,
            "refresh_token": self._refresh,
            "client_credentials": self._client_credentials,
        }
        if grant not in answers:
            raise Refused("unsupported_grant_type", "no such grant")
        registered = "authorization_code" if grant == "refresh_token" else grant
        if registered not in self.behaviour.grants:
            raise Refused("unauthorized_client", "the app is not registered for this grant")
        return answers[grant](form)

    def authenticate(self, form: Mapping[str, str]) -> None:
        """Check the app's credentials; raise `Refused` if they are wrong."""
        sent = f"{form.get('client_id')}\n{form.get('client_secret')}".encode()
        right = f"{self.behaviour.client_id}\n{self.behaviour.client_secret}".encode()
        if not hmac.compare_digest(sent, right):
            raise Refused("invalid_client", "wrong client_id or client_secret")

    def start_login(self, scope: str) -> dict[str, Any]:
        """Return the token response of a new login with `scope`."""
        family = Family(self.behaviour.client_id, scope)
        if "offline_access" not in scope.split():
            return self._answer(family, scope, None)
        expires_at = self.clock() + self.behaviour.refresh_lifetime_s
        return self._answer(family, scope, self._new_refresh_token(family, expires_at))

    def find_access_token(self, value: str) -> AccessToken | None:
        """Return the token, or None if it is unknown or revoked; the caller checks its expiry."""
        token = self.access_tokens.get(value)
        return None if token is None or token.revoked else token

    def revoke(self, form: Mapping[str, str]) -> None:
        """Revoke a token (RFC 7009 §2.1); a refresh token revokes its whole login.

        Raises:
            Refused
        """
        self.authenticate(form)
        value = require_field(form, "token")
        if form.get("token_type_hint", "refresh_token") not in ("refresh_token", "access_token"):
            raise Refused("unsupported_token_type", "no such type")
        if (access := self.access_tokens.get(value)) is not None:
            access.revoked = True
        if (refresh := self.refresh_tokens.get(value)) is not None:
            refresh.family.revoked = True
            for token in self.access_tokens.values():
                token.revoked |= token.family is refresh.family

    def revoke_access_tokens(self) -> int:
        """Revoke every access token issued so far; return how many were still valid."""
        valid = [token for token in self.access_tokens.values() if not token.revoked]
        for token in valid:
            token.revoked = True
        return len(valid)

    def reset(self) -> None:
        """Forget everything."""
        self.codes.clear()
        self.refresh_tokens.clear()
        self.access_tokens.clear()

    def _exchange(self, form: Mapping[str, str]) -> dict[str, Any]:
        code = self.codes.get(require_field(form, "code"))
        if code is None:
            raise Refused("invalid_grant", "unknown code")
        was_used, code.used = code.used, True
        checks = {
            "code used before": was_used,
            "code expired": self.clock() >= code.expires_at,
            "code of another app": code.client_id != form["client_id"],
            "redirect_uri differs from the login's": form.get("redirect_uri") != code.redirect_uri,
            "wrong code_verifier": not verify_pkce(form.get("code_verifier", ""), code.challenge),
        }
        _refuse_invalid(checks)
        return self.start_login(code.scope)

    def _refresh(self, form: Mapping[str, str]) -> dict[str, Any]:
        old = self.refresh_tokens.get(require_field(form, "refresh_token"))
        if old is None:
            raise Refused("invalid_grant", "unknown refresh token")
        if old.used:
            self.journal.reuse_seen += 1
            old.family.revoked |= self.behaviour.reuse_detection == "revoke"
            raise Refused("invalid_grant", "refresh token used before")
        checks = {
            "login revoked": old.family.revoked,
            "refresh token expired": self.clock() >= old.expires_at,
            "refresh token of another app": old.family.client_id != form["client_id"],
        }
        _refuse_invalid(checks)
        scope = narrow_scope(form.get("scope"), old.family.scope)
        sliding = self.behaviour.refresh_expiry == "sliding"
        expires_at = self.clock() + self.behaviour.refresh_lifetime_s if sliding else old.expires_at
        if self.behaviour.rotation:
            old.used = True
            return self._answer(old.family, scope, self._new_refresh_token(old.family, expires_at))
        old.expires_at = expires_at
        return self._answer(old.family, scope, old.value if self.behaviour.refresh_token_in_reply else None)

    def _client_credentials(self, form: Mapping[str, str]) -> dict[str, Any]:
        scope = narrow_scope(form.get("scope"), "cfgateway")
        return self._answer(Family(form["client_id"], scope), scope, None)

    def _new_refresh_token(self, family: Family, expires_at: float) -> str:
        token = RefreshToken(secrets.token_urlsafe(32), family, expires_at)
        self.refresh_tokens[token.value] = token
        return token.value

    def _answer(self, family: Family, scope: str, refresh_token: str | None) -> dict[str, Any]:
        expires_at = self.clock() + self.behaviour.access_lifetime_s
        token = AccessToken(self._access_value(scope, expires_at), scope, expires_at, family)
        self.access_tokens[token.value] = token
        answer: dict[str, Any] = {
            "access_token": token.value,
            "expires_in": int(self.behaviour.access_lifetime_s),
            "token_type": "Bearer",
            "scope": scope,
        }
        return answer | ({} if refresh_token is None else {"refresh_token": refresh_token})

    def _access_value(self, scope: str, expires_at: float) -> str:
        match self.behaviour.token_format:
            case "opaque":
                return secrets.token_urlsafe(32)
            case "jwt":
                return encode_jwt(self.issuer, self.behaviour.client_id, scope, self.clock(), expires_at)


def _refuse_invalid(checks: Mapping[str, bool]) -> None:
    for reason, failed in checks.items():
        if failed:
            raise Refused("invalid_grant", reason)
