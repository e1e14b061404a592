"""The stateless rules of OAuth: scopes, PKCE, required fields; each check may raise `Refused`."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass

SCOPES = ("cfgateway", "offline_access")
# RFC 7636 §4.1.
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")


@dataclass(eq=False)
class Refused(Exception):
    """The token endpoint's error response (RFC 6749 §5.2).

    Args:
        error: the error code, which the client sees.
        reason: what was wrong, for the journal only: the real server sends no more than the code.
    """

    error: str
    reason: str


def parse_scope(text: str, *, known: str = " ".join(SCOPES)) -> str | None:
    """Return the scopes in `text`, normalised; None if there is none or an unknown one."""
    requested = text.split()
    if not requested or not set(requested) <= set(known.split()):
        return None
    return " ".join(dict.fromkeys(requested))


def narrow_scope(requested: str | None, granted: str) -> str:
    """Return the scope for a refresh (RFC 6749 §6): by default all that was granted, and never more."""
    scope = granted if requested is None else parse_scope(requested, known=granted)
    if scope is None:
        raise Refused("invalid_scope", "asks for more than was granted")
    return scope


def verify_pkce(verifier: str, challenge: str) -> bool:
    """Check PKCE (RFC 7636 §4.6); a verifier without a challenge fails too (RFC 9700 §4.8.2)."""
    if not verifier or not challenge:
        return verifier == challenge
    if not _VERIFIER.fullmatch(verifier):
        return False
    digest = hashlib.sha256(verifier.encode()).digest()
    return hmac.compare_digest(base64.urlsafe_b64encode(digest).rstrip(b"="), challenge.encode())


def require_field(form: Mapping[str, str], name: str) -> str:
    """Return a field of the form; raise `Refused` if it is missing or empty (RFC 6749 §5.2)."""
    if not form.get(name):
        raise Refused("invalid_request", f"no {name}")
    return form[name]
