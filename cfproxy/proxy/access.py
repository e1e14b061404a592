"""Who may call, and what for.

Owns: the checks of the `access` settings and of web pages on other sites.
Must not know: sockets, tokens, the upstream.
Invariant: decides on the request's own bytes and on nothing that a client says of itself or of others
(forwarding headers are not read).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, unquote_to_bytes

from cfproxy.errors import BadTarget, CrossSite, HostNotAllowed, KeyRequired, NotAllowed
from cfproxy.hosts import is_loopback
from cfproxy.http1.headers import RawHeaders, normalise
from cfproxy.proxy.request_headers import has_dot_segment
from cfproxy.secret import Secret

METHOD_OVERRIDES = frozenset({b"x-http-method-override", b"x-method-override", b"x-http-method"})
# What servers are known to read in more than one way: an encoded slash or backslash, path parameters,
# a second layer of encoding, control characters, a lone %.
_TWO_READINGS = re.compile(
    rb"%(?:2f|5c|3b|[01][0-9a-f]|7f|25[0-9a-f]{2}|(?![0-9a-f]{2}))|\\|//|;", re.IGNORECASE
)
# Only IPv6 has brackets, and one dot at most ends a name. Other digits than ASCII's are none.
_HOST = re.compile(
    r"(?:\[([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\]|([^:\[\]\s/@]*[^:\[\]\s/@.])\.?)(?::([0-9]{1,5}))?"
)
_PEPPER = secrets.token_bytes(32)


@dataclass(frozen=True)
class AccessRules:
    """What one listener lets through.

    Args:
        hosts: further values of `Host`, with or without port.
        origins: web origins (`scheme://host[:port]`) whose pages may call.
        keys: any one of them opens; none at all means that no key is asked for.
        bound: those of them that lead to another account than the listener's, and its name.
        uids: users who may call a Unix socket; empty: whoever can open it.
        methods: allowed methods; empty for all.
        paths: patterns of whole decoded paths, `*` within a segment, `**` across; a leading `!` denies,
            in upper and lower case and with or without a final slash, since an API may not care.
            Without an allowing pattern everything that is not denied is allowed.
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    keys: tuple[Secret, ...] = ()
    bound: Mapping[Secret, str] = field(default_factory=dict)
    uids: frozenset[int] = frozenset()
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    _allow: tuple[re.Pattern[str], ...] = field(init=False, repr=False)
    _deny: tuple[re.Pattern[str], ...] = field(init=False, repr=False)
    _digests: tuple[bytes, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        allow = tuple(_compiled(p) for p in self.paths if not p.startswith("!"))
        deny = tuple(_compiled(p[1:], denies=True) for p in self.paths if p.startswith("!"))
        object.__setattr__(self, "_allow", allow)
        object.__setattr__(self, "_deny", deny)
        object.__setattr__(self, "_digests", tuple(map(_digest, self.keys)))

    def check_user(self, uid: int | None) -> None:
        """Refuse users whom the settings don't list.

        Args:
            uid: who opened the connection, as the kernel says; None where it does not say.

        Raises:
            NotAllowed
        """
        if self.uids and uid not in self.uids:
            raise NotAllowed("access.users does not list the user who runs the calling program")

    def check_host(self, host: str | None, port: int | None, local_address: str | None) -> None:
        """Refuse a `Host` that does not name this listener: DNS rebinding ends here.

        Args:
            host: the header's value; None when there was none (HTTP/1.0), which no browser sends.
            port: the listener's port; None for a Unix socket, which no web page reaches.
            local_address: the IP address that the connection came in at.

        Raises:
            HostNotAllowed
            BadTarget: it is there, and empty (RFC 9112 §3.2).
        """
        if port is None or host is None:
            return
        if not host.strip():
            raise BadTarget("the Host header is empty; send the one that the URL names")
        name, given_port = split_host(host)
        right_port = given_port == port or (given_port is None and port == 80)
        if right_port and (is_loopback(name) or name == local_address):
            return
        for allowed in self.hosts:
            allowed_name, allowed_port = split_host(allowed.lower())
            if name and name == allowed_name and (allowed_port is None or allowed_port == given_port):
                return
        raise HostNotAllowed(
            "this Host is not one of ours; call http://localhost with the listener's port, "
            "or add the name to access.hosts"
        )

    def check_origin(self, headers: RawHeaders, own: str) -> None:
        """Refuse web pages of other sites (`Origin`, and Fetch Metadata's `Sec-Fetch-Site`).

        Args:
            headers: the request's.
            own: `scheme://authority` as the client named us.

        Raises:
            CrossSite
        """
        for name, value in headers:
            low = name.lower()
            if low == b"origin":
                origin = value.decode("latin-1").strip().lower()
                if origin not in self.origins and origin != own.lower():
                    raise CrossSite("a web page of another site sent this; add its origin to access.origins")
            elif low == b"sec-fetch-site" and value.strip().lower() not in {b"same-origin", b"none"}:
                origins = [v.decode("latin-1").strip().lower() for n, v in headers if n.lower() == b"origin"]
                if not origins or any(origin not in self.origins for origin in origins):
                    raise CrossSite("a web page of another site sent this; add its origin to access.origins")

    def check_key(self, headers: RawHeaders) -> Secret | None:
        """Return the access key that came along, None where no key is asked for.

        Accepted as `X-Cfproxy-Key`, as the password of Basic, or as a Bearer token, so that the
        "API token" field of a legacy tool will do.

        Raises:
            KeyRequired: none, a wrong one, or two different ones.
        """
        if not self.keys:
            return None
        found: set[Secret] = set()
        for candidate in _keys_in(headers):
            digest = _digest(candidate)
            # All of them, and digests of one length: time tells neither which one it was nor how long it is.
            matches = [hmac.compare_digest(digest, known) for known in self._digests]
            found.update(key for key, same in zip(self.keys, matches, strict=True) if same)
        if not found:
            raise KeyRequired(
                "an access key is needed: send it as X-Cfproxy-Key, Basic password or Bearer token"
            )
        if len(found) > 1:
            raise KeyRequired("two different access keys came along; send one")
        return found.pop()

    def check_target(self, method: str, target: bytes, headers: RawHeaders = ()) -> None:
        """Refuse methods and paths that the rules don't allow, judging the bytes that will be sent.

        Args:
            method: as it will be sent.
            target: likewise.
            headers: likewise; some servers take the method from one of them.

        Raises:
            NotAllowed: the rules say no.
            BadTarget: the path could be read in two ways, and there are rules to get round.
        """
        if self.methods and method not in self.methods:
            raise NotAllowed("access.methods does not allow this method")
        if self.methods and any(normalise(name) in METHOD_OVERRIDES for name, _ in headers):
            raise NotAllowed("while access.methods has rules, no header may name another method")
        if not self.paths:
            return
        path = target.partition(b"?")[0]
        if has_dot_segment(path) or _TWO_READINGS.search(path):
            raise BadTarget(
                "while access.paths has rules, a path must have no dot segment, '//', ';', %2F, "
                "control character, second encoding or lone %"
            )
        try:
            text = unquote_to_bytes(path).decode("utf-8")
        except UnicodeDecodeError:
            raise BadTarget("while access.paths has rules, a path must be UTF-8") from None
        if any(rule.fullmatch(text) for rule in self._deny) or (
            self._allow and not any(rule.fullmatch(text) for rule in self._allow)
        ):
            raise NotAllowed("access.paths does not allow this path")


def split_host(host: str) -> tuple[str, int | None]:
    """Return the lower-cased name without brackets and final dot, and the port if there is one."""
    match = _HOST.fullmatch(host)
    if match is None:
        return "", None
    name = (match[1] or match[2]).lower()
    return name, int(match[3]) if match[3] else None


def _digest(key: Secret) -> bytes:
    value = key.reveal().encode("utf-8", "surrogatepass")
    return hashlib.blake2b(value, key=_PEPPER, digest_size=32).digest()


def _keys_in(headers: RawHeaders) -> Iterable[Secret]:
    for name, value in headers:
        low = name.lower()
        if low == b"x-cfproxy-key":
            yield Secret(value.decode("utf-8", "surrogateescape").strip())
        elif low == b"authorization":
            scheme, _, rest = value.decode("utf-8", "surrogateescape").strip().partition(" ")
            if scheme.lower() == "bearer":
                yield Secret(rest.strip())
            elif scheme.lower() == "basic":
                try:
                    pair = base64.b64decode(rest.strip(), validate=True).decode("utf-8")
                except (binascii.Error, ValueError):
                    continue
                yield Secret(pair.partition(":")[2])


def _compiled(pattern: str, *, denies: bool = False) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", pattern)
    kinds = {"**": ".*", "*": "[^/]*"}
    text = "".join(kinds.get(part) or re.escape(unquote(part)) for part in parts)
    if denies:
        return re.compile(text + "/?", re.DOTALL | re.IGNORECASE)
    return re.compile(text, re.DOTALL)
