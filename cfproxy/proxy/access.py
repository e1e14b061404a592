"""The `access` settings: which hosts, web origins, keys, users, methods and paths a listener accepts.

The checks look at the bytes of the request and at the connection. They never trust forwarding headers.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from cfproxy.errors import CrossSite, HostNotAllowed, KeyRequired, NotAllowed
from cfproxy.hosts import is_loopback, split_host
from cfproxy.http1.headers import NameMemo, RawHeaders, normalise
from cfproxy.proxy.paths import PathRules
from cfproxy.secret import Secret

# Header and parameter names from which servers take the method, without punctuation: x-http-method-override
# (Google), x-http-method (OData), _method (Rails, Symfony), _HttpMethod (Salesforce), x-tunneled-method, …
_OVERRIDE = re.compile(
    rb"x?(?:http|rest|request|original|tunnell?ed|override)*(?:method|verb)(?:overrides?)?", re.IGNORECASE
)
# "method" or "verb" where any letter may be percent-encoded; far cheaper than decoding a long query.
_METHOD_WORD = re.compile(
    "|".join(
        "".join(f"(?:{letter}|%{ord(letter):x}|%{ord(letter.upper()):x})" for letter in word)
        for word in ("method", "verb")
    ).encode(),
    re.IGNORECASE,
)
_NAMES_MAX = 100  # parameters that contain such a word; no honest query has more
_PUNCTUATION = re.compile(rb"[^0-9A-Za-z]+")
_PURPOSES = frozenset({b"purpose", b"x-moz", b"x-purpose"})
_AHEAD = re.compile(rb"(?<![\w-])(?:prefetch|prerender|preview)(?![\w-])", re.IGNORECASE)
_PEPPER = secrets.token_bytes(32)


@dataclass(frozen=True)
class AccessRules:
    """The access rules of one listener.

    Args:
        hosts: further accepted values of `Host`, with or without a port.
        origins: web origins (`scheme://host[:port]`) whose pages may call.
        keys: access keys, any of which is accepted; without keys none is required.
        bound: the keys that select another account than the listener's, with that account's name.
        uids: users who may call through a Unix socket; empty for everyone who can open it.
        methods: allowed methods; empty for all.
        paths: patterns (see `PathRules`); empty for all.
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    keys: tuple[Secret, ...] = ()
    bound: Mapping[Secret, str] = field(default_factory=dict)
    uids: frozenset[int] = frozenset()
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    key_digests: tuple[bytes, ...] = field(init=False, repr=False)  # of `keys`, for `carries_key`
    _path_rules: PathRules = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_path_rules", PathRules(self.paths))
        object.__setattr__(self, "key_digests", tuple(map(_digest, self.keys)))

    def check_user(self, uid: int | None) -> None:
        """Refuse users that `uids` does not list.

        Args:
            uid: the user who opened the connection, from the kernel; None if unknown.

        Raises:
            NotAllowed
        """
        if self.uids and uid not in self.uids:
            raise NotAllowed("access.users does not list the user who runs the calling program")

    def check_host(self, host: str | None, port: int | None, own_names: Collection[str]) -> None:
        """Refuse a `Host` that does not name this machine, which defeats DNS rebinding.

        An address and `localhost` can't be rebound, so their port does not matter: it may be a forwarded one.

        Args:
            host: the header's value; None if absent (HTTP/1.0), which no browser sends.
            port: the listener's port; None for a Unix socket, which no web page can reach.
            own_names: of the client's connection.

        Raises:
            HostNotAllowed
        """
        if port is None or host is None:
            return
        name, given_port = split_host(host)
        if is_loopback(name) or (name and name in own_names):
            return
        for allowed in self.hosts:
            allowed_name, allowed_port = split_host(allowed.lower())
            if name and name == allowed_name and (allowed_port is None or allowed_port == given_port):
                return
        raise HostNotAllowed(
            "this Host does not name this machine; call http://localhost with the listener's port, "
            "or add the name to access.hosts"
        )

    def check_origin(self, headers: RawHeaders, own: str) -> None:
        """Refuse web pages of other sites (`Origin`, Fetch Metadata's `Sec-Fetch-Site`), and prefetches.

        Args:
            headers: of the request.
            own: this listener's `scheme://authority`, as the client addressed it.

        Raises:
            CrossSite
        """
        origins = {v.decode("latin-1").strip().lower() for n, v in headers if n.lower() == b"origin"}
        sites = {v.strip().lower() for n, v in headers if n.lower() == b"sec-fetch-site"}
        all_listed = origins and origins.issubset(self.origins)
        cross_site = sites - {b"same-origin", b"none"} and not all_listed
        if cross_site or not origins.issubset((*self.origins, own.lower())):
            raise CrossSite("a web page of another site sent this request; add its origin to access.origins")
        if is_fetched_ahead(headers) and sites != {b"same-origin"} and not all_listed:
            raise CrossSite(
                "a browser fetched this ahead of its user, maybe for a page of another site; open the URL"
            )

    def check_key(self, headers: RawHeaders) -> Secret | None:
        """Return the request's access key; None if no key is required.

        A key is accepted as `X-Cfproxy-Key`, as the password of Basic, or as a Bearer token, so that a
        tool's "API token" field will do.

        Raises:
            KeyRequired: no key, a wrong one, or two different ones.
        """
        if not self.keys:
            return None
        found: set[Secret] = set()
        for candidate in _keys_in(headers):
            digest = _digest(candidate)
            # Compare all keys, by digests of equal length: timing reveals neither the key nor its length.
            matches = [hmac.compare_digest(digest, known) for known in self.key_digests]
            found.update(key for key, same in zip(self.keys, matches, strict=True) if same)
        if not found:
            raise KeyRequired(
                "an access key is required: send it as X-Cfproxy-Key, Basic password or Bearer token"
            )
        if len(found) > 1:
            raise KeyRequired("the request carries two different access keys; send one")
        return found.pop()

    def check_target(self, method: str, target: bytes, headers: RawHeaders = ()) -> None:
        """Refuse methods and paths that the rules don't allow.

        Args:
            method: as it will be sent.
            target: as it will be sent.
            headers: of the request; like the query, some servers let them override the method.

        Raises:
            NotAllowed
            BadTarget: there are path rules, and servers could read the path in two ways.
        """
        if self.methods and method not in self.methods:
            raise NotAllowed("access.methods does not allow this method")
        path, _, query = target.partition(b"?")
        if self.methods and (any(_OVERRIDES[name] for name, _ in headers) or _overrides_in(query)):
            raise NotAllowed("while access.methods has rules, no header or parameter may override the method")
        if self.paths:
            self._path_rules.check(path)


def overrides_method(name: bytes) -> bool:
    """Return whether some servers take the method from a header of this name."""
    return _OVERRIDE.fullmatch(_PUNCTUATION.sub(b"", name)) is not None


_OVERRIDES = NameMemo(overrides_method)


def _overrides_in(query: bytes) -> bool:
    """Return whether some servers take the method from a parameter of this query.

    `method` or `verb` alone is none: it names an operation in many APIs.
    """
    query = query.replace(b";", b"&")
    names: set[bytes] = set()
    at = 0
    while len(names) <= _NAMES_MAX and (word := _METHOD_WORD.search(query, at)) is not None:
        start, end = query.rfind(b"&", at, word.start()) + 1, query.find(b"&", word.end())
        at = end if end >= 0 else len(query)
        names.add(query[start:at].partition(b"=")[0])
    decoded = {unquote_to_bytes(name).lower() for name in names} - {b"method", b"verb"}
    return len(names) > _NAMES_MAX or any(map(overrides_method, decoded))


def is_fetched_ahead(headers: RawHeaders) -> bool:
    """Return whether a browser prefetches or prerenders, which pages can cause and users don't see.

    For the speculation rules of any page Chromium sends `Sec-Fetch-Site: none` and no `Origin`, like for an
    address that its user typed. What differs is `Sec-Purpose` (Fetch standard, "`Sec-Purpose` header"), whose
    name is reserved for browsers, or one of the names that older browsers use.
    """
    for name, value in headers:
        low = normalise(name)
        if low == b"sec-purpose" or (low in _PURPOSES and _AHEAD.search(value)):
            return True
    return False


def carries_key(value: bytes, digests: Collection[bytes]) -> bool:
    """Return whether a header's value is an access key, alone or behind a scheme word (`Bearer KEY`).

    Args:
        value: of any header.
        digests: of the keys (see `AccessRules.key_digests`).
    """
    if not digests:
        return False
    candidates = [value, *value.split(None, 1)[1:]]
    # Digests are keyed with a random pepper, so that a lookup's timing reveals nothing about the keys.
    return any(_digest(_text(one)) in digests for one in candidates) or (
        (password := _basic_password(value)) is not None and _digest(password) in digests
    )


def _digest(key: Secret) -> bytes:
    value = key.reveal().encode("utf-8", "surrogatepass")
    return hashlib.blake2b(value, key=_PEPPER, digest_size=32).digest()


def _keys_in(headers: RawHeaders) -> Iterable[Secret]:
    for name, value in headers:
        low = name.lower()
        if low == b"x-cfproxy-key":
            yield _text(value)
        elif low == b"authorization":
            scheme, _, rest = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                yield _text(rest)
            elif (password := _basic_password(value)) is not None:
                yield password


def _text(value: bytes) -> Secret:
    return Secret(value.decode("utf-8", "surrogateescape").strip())


def _basic_password(value: bytes) -> Secret | None:
    """Return the password of Basic credentials (RFC 7617); None for any other value."""
    scheme, _, rest = value.strip().partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        pair = base64.b64decode(rest.strip(), validate=True).decode("utf-8")
    except ValueError:
        return None
    return Secret(pair.partition(":")[2])
