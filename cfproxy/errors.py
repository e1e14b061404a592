"""Every error that cfproxy raises on purpose, as one tree.

A class defines everything that is fixed for its kind: the problem document, the exit code of a command, and
the state in status reports. A new kind of error therefore takes one class here. The classes are in
the order configuration, login, store, token endpoint, queue, upstream, client.

Invariant: no message contains a secret. Messages consist of fixed words, names and numbers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, TypeVar

_E = TypeVar("_E", bound=BaseException)


def without_traceback(error: _E) -> _E:
    """Return a copy without traceback, cause and context, for an error that is stored or raised again.

    A traceback keeps every frame that the error passed through alive, and with them whole requests.
    """
    duplicate = copy.copy(error)
    duplicate.__traceback__ = duplicate.__cause__ = duplicate.__context__ = None
    return duplicate


@dataclass(eq=False)
class CfproxyError(Exception):
    """Base of the tree.

    Args:
        message: what happened and what to do next, in one line.

    Class attributes:
        slug: last part of the `type` of a problem document (RFC 9457).
        status: HTTP status of that document.
        title: its title, the same for every occurrence.
        proxy_error: error type of the `Proxy-Status` header (RFC 9209 §2.3).
        exit_code: exit code of a command that ends with this error.
        state: state of an account in `/readyz`, `/status.json` and the metrics.
    """

    message: str

    slug: ClassVar[str] = "misconfigured"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Misconfigured"
    proxy_error: ClassVar[str] = "proxy_internal_error"
    exit_code: ClassVar[int] = 1
    state: ClassVar[str] = "misconfigured"

    def __str__(self) -> str:
        return self.message


def state_of(error: CfproxyError | None) -> str:
    """Return the state that an error puts an account into; `ok` for None."""
    return "ok" if error is None else error.state


def error_kinds() -> list[type[CfproxyError]]:
    """Return every class of the tree, the root first."""
    kinds: list[type[CfproxyError]] = [CfproxyError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return kinds


@dataclass(frozen=True)
class Problem:
    """One problem of the configuration, written as `source: path: text`."""

    source: str
    path: str
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.path, self.text) if part)


@dataclass(eq=False)
class ConfigError(CfproxyError):
    """The configuration can't be used; holds all its problems at once."""

    problems: tuple[Problem, ...] = ()

    proxy_error = "proxy_configuration_error"
    exit_code = 2

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems)) or self.message


class UsageError(CfproxyError):
    """The command line asks for something that does not exist."""

    proxy_error = "proxy_configuration_error"
    exit_code = 2


class ListenError(CfproxyError):
    """A listener can't open its address, or can't read a file that it needs."""


class Misconfigured(CfproxyError):
    """The token endpoint rejects the app's settings (`invalid_client` and the like)."""

    proxy_error = "proxy_configuration_error"
    exit_code = 5


class LoginRequired(CfproxyError):
    """There is no usable login; only a person can log in again."""

    slug = state = "login-required"
    status = 503
    title = "Login required"
    proxy_error = "proxy_configuration_error"
    exit_code = 3


@dataclass(eq=False)
class LoginFailed(CfproxyError):
    """A login attempt failed because of its redirect, its state or its code.

    Args:
        curable: the code was not used up, so pasting another address may still succeed.
    """

    curable: bool = False

    slug = "login-required"
    status = 503
    title = "Login required"
    proxy_error = "proxy_configuration_error"


@dataclass(eq=False)
class StoreUnavailable(CfproxyError):
    """The store can't be used for now: disk full, read-only, locked or unreachable."""

    retry_after_s: float = 5.0

    slug = state = "store-unavailable"
    status = 503
    title = "Token store unavailable"
    exit_code = 4


class StoreUnusable(CfproxyError):
    """The store needs repair: corrupt, unsafe file mode, or written by a newer version."""

    proxy_error = "proxy_configuration_error"
    exit_code = 4
    state = "store-unusable"


@dataclass(eq=False)
class TokenEndpointUnavailable(CfproxyError):
    """The token endpoint sent no usable response; trying again later may help.

    Args:
        sent: whether the request may have reached the server. If not, the code or refresh token that it
            carries is certainly unused.
        retry_after_s: seconds until the next attempt, once the back-off has set it.
        answered: the server responded, and not with a 2xx: it has used nothing up.
    """

    sent: bool = True
    retry_after_s: float = 1.0
    answered: bool = False

    slug = state = "token-endpoint-unavailable"
    status = 503
    title = "Token endpoint unavailable"
    proxy_error = "destination_unavailable"
    exit_code = 5


@dataclass(eq=False)
class GrantRefused(CfproxyError):
    """The code or refresh token is refused (RFC 6749 §5.2); `code` is the server's `error`."""

    description: str = ""
    code: str = "invalid_grant"

    proxy_error = "proxy_configuration_error"
    exit_code = 5


@dataclass(eq=False)
class QueueRefusal(CfproxyError):
    """The request can't wait for a slot."""

    retry_after_s: float = 1.0

    slug = "queue-full"
    status = 503
    title = "Queue full"
    proxy_error = "connection_limit_reached"


class QueueFull(QueueRefusal):
    """`pacing.queue` requests are waiting already."""


class QueueTimeout(QueueRefusal):
    """The request has waited, or would have to wait, longer than `pacing.max_wait`."""

    slug = "queue-timeout"
    title = "Queue timeout"


@dataclass(eq=False)
class UpstreamError(CfproxyError):
    """The upstream sent no response that can be relayed.

    Args:
        unsent: no part of the request can have reached the upstream, so it may be sent again.

    Class attributes:
        step: what to do next; added to a message that has no next step (after a semicolon) of its own.
    """

    unsent: bool = False

    slug = state = "upstream-unreachable"
    status = 502
    title = "API unreachable"
    proxy_error = "destination_unavailable"
    exit_code = 5
    step: ClassVar[str] = "try again later"

    def __post_init__(self) -> None:
        if "; " not in self.message:
            self.message = f"{self.message}; {self.step}"


class UpstreamUnreachable(UpstreamError):
    """No connection: DNS failure, refused, or reset before a response."""


class UpstreamTls(UpstreamError):
    """The TLS handshake failed; verification can't be switched off."""

    slug = state = "upstream-tls"
    title = "API's TLS not trusted"
    proxy_error = "tls_certificate_error"


class UpstreamProtocol(UpstreamError):
    """The response is not valid HTTP/1.1, or ends too early."""

    slug = state = "upstream-protocol"
    title = "API's answer not usable"
    proxy_error = "http_protocol_error"
    step = "try again; if it persists, check for a proxy or firewall between this machine and the API"


class UpstreamTimeout(UpstreamError):
    """Connecting or waiting took longer than `timeouts` allows."""

    slug = state = "upstream-timeout"
    status = 504
    title = "API timed out"
    proxy_error = "http_response_timeout"
    step = "try again later, or raise timeouts"


class Refusal(CfproxyError):
    """The request is not forwarded."""

    slug = "bad-target"
    status = 400
    title = "Request not forwardable"
    proxy_error = "http_request_error"


class HostNotAllowed(Refusal):
    """`Host` names neither this listener nor one of `access.hosts`."""

    slug = "host-not-allowed"
    status = 421
    title = "Host not allowed"
    proxy_error = "http_request_denied"


class BadTarget(Refusal):
    """The request can't be forwarded unambiguously."""


class CrossSite(Refusal):
    """A web page of another site sent the request."""

    slug = "cross-site"
    status = 403
    title = "Cross-site request"
    proxy_error = "http_request_denied"


class KeyRequired(Refusal):
    """The request has no valid access key."""

    slug = "key-required"
    status = 401
    title = "Access key required"
    proxy_error = "http_request_denied"


class NotAllowed(Refusal):
    """`access.methods` or `access.paths` forbid the request."""

    slug = "not-allowed"
    status = 403
    title = "Not allowed"
    proxy_error = "http_request_denied"


class UpgradeNotSupported(Refusal):
    """The request asks for another protocol on its connection."""

    slug = "upgrade-not-supported"
    status = 501
    title = "Upgrade not supported"
    proxy_error = "http_upgrade_failed"


class LoopDetected(Refusal):
    """The request has passed through this proxy before."""

    slug = "loop"
    status = 508
    title = "Loop detected"
    proxy_error = "proxy_loop_detected"


class ShuttingDown(Refusal):
    """The proxy is draining."""

    slug = "shutting-down"
    status = 503
    title = "Shutting down"
    proxy_error = "destination_unavailable"
