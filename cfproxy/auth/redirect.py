"""The redirect that ends a browser login: parsing and checking it (RFC 6749 §4.1.2, RFC 9207).

A code can be sent once, so what mails, terminals, shells and other programs do to an address is undone first.
Only `state` decides whether a code is ours; no leniency here changes that.

Invariants:
1. No pasted text reaches a message or a repr: people may paste any secret by mistake.
2. `LoginFailed` is the only error raised; its message has the next step.
3. A code without a state is accepted only if the code was pasted alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from cfproxy.errors import LoginFailed
from cfproxy.secret import Secret

REDIRECT_MAX_CHARS = 16384
UNRECOGNISED = "unrecognised"

# RFC 6749 §4.1.2.1 and OpenID Connect Core §3.1.2.6.
_ERRORS = frozenset(
    {
        "access_denied",
        "account_selection_required",
        "consent_required",
        "interaction_required",
        "invalid_request",
        "invalid_scope",
        "login_required",
        "server_error",
        "temporarily_unavailable",
        "unauthorized_client",
        "unsupported_response_type",
    }
)
_VSCHAR = re.compile(r"[ -~]+")  # RFC 6749 appendix A
_BARE_CODE = re.compile(r"[A-Za-z0-9._~+/=%:-]{8,}")
_QUERY_START = re.compile(r"(code|state|scope|error|error_description|iss|session_state)=")
_LABEL = re.compile(r"code\s*[=:]\s*(?=[^&?#]*$)", re.IGNORECASE)
# A delimiter that an address must have is encoded itself: the address was encoded as a whole, or its query.
_ENCODED = re.compile(r"(?:^|[?&#]|%(?:25)*(?:3f|26|23))(?:code|state|error)%(?:25)*3d", re.IGNORECASE)
_ENCODED_HEAD = re.compile(r"https?%(?:25)*3a%(?:25)*2f", re.IGNORECASE)
_PLAIN = re.compile(r"(?:^|[?&#])(?:code|error)=")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_DECODINGS_MAX = 3
# `&` as written by HTML and JSON; `/` by JSON; `? & = #` by shells.
_AMPERSAND = re.compile(r"&(?:(?:amp|#38|#x26);)+|\\u0026", re.IGNORECASE)
_ESCAPED = re.compile(r"[\\^](?=[?&=#/])")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"))
_WRAPPERS = " \t\r\n\u00a0'\"<>()[]{},;*`“”‘’«»"  # noqa: RUF001 - what mails and chats put around a link


@dataclass(frozen=True, slots=True)
class Redirect:
    """What came back from the authorize endpoint.

    Args:
        code: None with an error, and in a URL that has neither.
        state: None only with a bare code or an error.
        error: a known code of RFC 6749 §4.1.2.1, else `UNRECOGNISED`.
        iss: the issuer as the server names it (RFC 9207).
        base: scheme, host, port and path of a whole URL; see `base_of`.
    """

    code: Secret | None = None
    state: str | None = field(default=None, repr=False)
    error: str | None = None
    iss: str | None = field(default=None, repr=False)
    base: str | None = field(default=None, repr=False)


def parse_redirect(text: str) -> Redirect:
    """Parse what a person pasted: the whole URL, its query, or the bare code.

    Raises:
        LoginFailed: not parseable, a parameter twice (RFC 6749 §3.1), a URL with a code but no state, or more
            than `REDIRECT_MAX_CHARS`.
    """
    if len(text) > REDIRECT_MAX_CHARS:
        raise _unusable("this is too long for an address; paste only the address the browser ended up on")
    text = _undo_changes(text)
    if (label := _LABEL.match(text)) is not None:
        return _bare_code(text[label.end() :])
    for _ in range(_DECODINGS_MAX):
        whole = _ENCODED.search(text) and not _PLAIN.search(text)
        if not (whole or _ENCODED_HEAD.match(text)):
            break
        text = unquote(text) if whole else _decode_head(text)
    head, delimiter, query = _partition(text)
    if not delimiter:
        return _bare_code(head)
    values = _parameters(query)
    base = base_of(head) if "://" in head else None
    error = values.get("error")
    if error is not None:
        error = error if error in _ERRORS else UNRECOGNISED
        return Redirect(state=values.get("state"), error=error, iss=values.get("iss"), base=base)
    code = values.get("code")
    if code is None:
        if base is None:
            raise _unusable("it contains no code; paste the whole address the browser ended up on")
        return Redirect(base=base)
    if "state" not in values:
        # Only a person can vouch for a code without a state, by pasting the code alone.
        raise _unusable("the address has a code but no state; paste the whole address, or the code alone")
    return Redirect(code=Secret(code), state=values["state"], iss=values.get("iss"), base=base)


def _undo_changes(text: str) -> str:
    text = text.translate(_INVISIBLE)
    text = "".join(line.strip(_WRAPPERS) for line in text.splitlines()).strip(_WRAPPERS + "&")
    text = _ESCAPED.sub("", _AMPERSAND.sub("&", text))
    # An address has no spaces: they come from where it was wrapped.
    return re.sub(r"\s+", "", text) if "=" in text or "://" in text else text


def _decode_head(text: str) -> str:
    head, delimiter, query = _partition(text)
    return unquote(head) + delimiter + query


def check_redirect(redirect: Redirect, *, redirect_uri: str, authorize_url: str, again: str) -> None:
    """Refuse a redirect that can't belong to our login, before anything is used up.

    Args:
        redirect: what was parsed.
        redirect_uri: where the browser must end up.
        authorize_url: its origin is the expected issuer (RFC 9207), of which only the origin is compared.
        again: how to log in again, for messages.

    Raises:
        LoginFailed: another URL, another issuer, or no code.
    """
    if redirect.base is not None and not _is_same_place(redirect.base, base_of(redirect_uri)):
        raise _unusable(_describe_mismatch(redirect.base, authorize_url, again))
    if redirect.iss is not None and origin_of(redirect.iss) != origin_of(authorize_url):
        raise LoginFailed(
            "the address comes from another server than authorize_url names (iss differs); do not use it, "
            f"check authorize_url, and {again}"
        )
    if redirect.code is None and redirect.error is None:
        raise _unusable(
            f"the address has no code; log in, press 'Yes, Allow', and paste the address after it, or {again}"
        )


def explain_error(error: str, again: str) -> str:
    """Return the message for a redirect that carries `error` instead of a code (RFC 6749 §4.1.2.1)."""
    if error == "access_denied":
        return f"access was denied in the browser; to allow it, {again} and press 'Yes, Allow'"
    if error in {"server_error", "temporarily_unavailable"}:
        return f"the accounts server has a problem ({error}); wait a little, then {again}"
    return (
        f"the accounts server refused the login ({error}); compare client_id, scope, redirect_uri and pkce "
        f"with what is registered for the app, then {again}"
    )


def _unusable(message: str) -> LoginFailed:
    return LoginFailed(message, curable=True)


def _is_same_place(one: str, other: str) -> bool:
    # A web server may have changed the scheme to https or added a slash.
    return one.partition("://")[2].rstrip("/") == other.partition("://")[2].rstrip("/")


def _describe_mismatch(base: str, authorize_url: str, again: str) -> str:
    if base == base_of(authorize_url):
        return "this is the address to log in at; open it in a browser, and paste the one you end up on"
    if origin_of(base) == origin_of(authorize_url):
        return (
            "this is a page of the accounts server, not the redirect; if it shows an error, client_id, "
            f"redirect_uri or scope differ from what is registered for the app: correct them, then {again}"
        )
    return (
        "this address is not at redirect_uri; paste the address you end up on after 'Yes, Allow', "
        f"or set redirect_uri to what is registered for the app and {again}"
    )


def _partition(text: str) -> tuple[str, str, str]:
    """Split into URL, delimiter and query; the delimiter is "" for a bare code."""
    found = re.search(r"[?#]", text)
    if found and found[0] == "#" and "://" not in text and not _PLAIN.search(text[found.start() :]):
        return text[: found.start()], "", ""  # a bare code with the fragment that some pages add
    if found:
        return text[: found.start()], found[0], text[found.end() :].replace("#", "&")
    if _QUERY_START.match(text):
        return "", "?", text
    if "://" in text:
        return text, "?", ""
    first, ampersand, _ = text.partition("&")
    # Copied from after `code=` to the end of the line.
    return ("", "?", f"code={text}") if ampersand and "=" not in first else (text, "", "")


def _bare_code(text: str) -> Redirect:
    code = _decode(text)
    if not _BARE_CODE.fullmatch(text) or not _VSCHAR.fullmatch(code):
        raise _unusable("this is neither an address nor a code; paste the address the browser ended up on")
    return Redirect(code=Secret(code))


def _decode(value: str) -> str:
    """Return `value` without percent-encoding: one that still has any was encoded once more."""
    for _ in range(_DECODINGS_MAX):
        if not _ESCAPE.search(value):
            break
        value = unquote(value)
    return value


def _parameters(query: str) -> dict[str, str]:
    values: dict[str, str] = {}
    try:
        pairs = parse_qsl(query, max_num_fields=100)
    except ValueError:
        raise _unusable("this address has too many parameters; paste the one you ended up on") from None
    for name, given in pairs:
        if name not in {"code", "state", "error", "iss"}:
            continue
        if name in values:
            raise _unusable(f"the address has '{name}' twice and cannot be trusted; log in again")
        # `+` means a space in a query; codes have no spaces, but servers forget to encode their `+`.
        value = _decode(given).replace(" ", "+")
        if not _VSCHAR.fullmatch(value):
            raise _unusable(f"'{name}' in the address is damaged; copy the whole address again")
        values[name] = value
    return values


def base_of(url: str) -> str:
    """Return scheme, host, non-default port and path of `url`, ready to compare; "" when it has none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    host = parts.netloc.rpartition("@")[2].lower()
    default_port = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    if not host or not parts.scheme:
        return ""
    return f"{parts.scheme}://{host.removesuffix(default_port)}{parts.path or '/'}"


def origin_of(url: str) -> str:
    """Return scheme, host and non-default port of `url`, ready to compare; "" when it has none."""
    return "/".join(base_of(url).split("/", 3)[:3])
