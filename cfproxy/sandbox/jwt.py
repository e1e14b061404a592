"""Encodes access tokens as JWTs (RFC 9068). They need no verification: the sandbox stores its tokens."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from typing import Any


def encode_jwt(issuer: str, client_id: str, scope: str, issued_at: float, expires_at: float) -> str:
    """Return a token signed with a random key; instants are seconds since the epoch."""
    head = {"alg": "HS256", "typ": "at+jwt"}
    claims = {
        "iss": issuer,
        "aud": "cfgateway",
        "sub": "sandbox-user",
        "client_id": client_id,
        "scope": scope.split(),
        "iat": int(issued_at),
        "exp": int(expires_at),
        "jti": secrets.token_hex(16),
    }
    signed = f"{_part(head)}.{_part(claims)}"
    signature = hmac.new(secrets.token_bytes(32), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{_base64(signature)}"


def _part(document: dict[str, Any]) -> str:
    return _base64(json.dumps(document, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
