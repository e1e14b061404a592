"""The rules of OAuth that need no memory: scopes, PKCE, required fields.

Owns: `Refused` and the checks that end in one.
Must not know: what was issued to whom (`grants.py`); HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping

SCOPES = ("cfgateway", "offline_access")
# RFC 7636 §4.1.
_VERIFIER = re.compile(r"[A-Za-z0-9._~-]{43,128}")


class Refused(Exception):
    """The token endpoint's error answer (RFC 6749 §5.2).

    Args:
        error: the code that the client sees.
        reason: what was wrong, for the journal only: the real server says no more than the code.
    """

    def __init__(self, error: str, reason: str) -> None:
        super().__init__(f"{error}: {reason}")
        self.error = error
        self.reason = reason


def parse_scope(text: str, *, known: str = " ".join(SCOPES)) -> str | None:
    """Return the scopes of `text` in one spelling; None when there is none, or one that is not known."""
    asked = text.split()
    if not asked or not set(asked) <= set(known.split()):
        return None
    return " ".join(dict.fromkeys(asked))


def narrow_scope(asked: str | None, granted: str) -> str:
    """Apply RFC 6749 §6: absent means all that was granted, and nothing beyond it."""
    scope = granted if asked is None else parse_scope(asked, known=granted)
    if scope is None:
        raise Refused("invalid_scope", "asks for more than there is")
    return scope


def proves(verifier: str, challenge: str) -> bool:
    """Check PKCE (RFC 7636 §4.6); a verifier without a challenge is wrong too (RFC 9700 §4.8.2)."""
    if not verifier or not challenge:
        return verifier == challenge
    if not _VERIFIER.fullmatch(verifier):
        return False
    digest = hashlib.sha256(verifier.encode()).digest()
    return hmac.compare_digest(base64.urlsafe_b64encode(digest).rstrip(b"="), challenge.encode())


def need(form: Mapping[str, str], name: str) -> str:
    """Return a field of the form; raise `Refused` when it is absent or empty (RFC 6749 §5.2)."""
    if not form.get(name):
        raise Refused("invalid_request", f"no {name}")
    return form[name]
