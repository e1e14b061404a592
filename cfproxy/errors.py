"""Every error that cfproxy raises on purpose, as one tree.

Owns: whose doing a failure is, and the facts that an answer or a message needs.
Must not know: HTTP statuses (`web/problems.py`) and exit codes (`cli.py`): each has one table.
Invariant: no text here holds a secret; whoever raises passes fixed words, names and numbers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, TypeVar

_E = TypeVar("_E", bound=BaseException)


def without_traceback(error: _E) -> _E:
    """Return a copy without traceback or cause, to be kept, or raised from what is kept.

    An exception that is raised remembers all frames on its way, and they what they knew: kept, it would keep
    a whole request, and raised in many tasks all of them.
    """
    twin = copy.copy(error)
    twin.__traceback__ = twin.__cause__ = twin.__context__ = None
    return twin


@dataclass(eq=False)
class CfproxyError(Exception):
    """Base of the tree.

    Args:
        message: what happened and what to do next, in one line, without any secret.
    """

    message: str

    def __str__(self) -> str:
        return self.message


# --- whoever set us up -------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One thing wrong in the configuration: `source: path: text`."""

    source: str
    path: str
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.path, self.text) if part)


@dataclass(eq=False)
class ConfigError(CfproxyError):
    """The configuration cannot be used; all its problems at once."""

    problems: tuple[Problem, ...] = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems)) or self.message


class UsageError(CfproxyError):
    """The command line asks for something that does not exist."""


class ListenError(CfproxyError):
    """A listener's address can't be had, or its files can't be read."""


class Misconfigured(CfproxyError):
    """The token endpoint refuses this app's settings (`invalid_client` and the like)."""


# --- the login ---------------------------------------------------------------------------


class LoginRequired(CfproxyError):
    """There is no usable login; only a person can make one."""


@dataclass(eq=False)
class LoginFailed(CfproxyError):
    """A login attempt did not work out: the redirect, the state or the code is at fault.

    Args:
        curable: nothing was spent, and another paste may be the right one.
    """

    curable: bool = False


# --- the store ---------------------------------------------------------------------------


@dataclass(eq=False)
class StoreUnavailable(CfproxyError):
    """The store cannot be used for now: disk full, read-only, locked, out of reach."""

    retry_after_s: float = 5.0


class StoreUnusable(CfproxyError):
    """The store is there and will not get better by itself: corrupt, unsafe mode, newer version."""


# --- the token endpoint ------------------------------------------------------------------


@dataclass(eq=False)
class TokenEndpointUnavailable(CfproxyError):
    """No usable answer from the token endpoint; worth another try later.

    Args:
        sent: whether the request may have reached the server. While it is false, what was
            presented is certainly still unused.
        answered: whether an answer came, though none with a token in it: nothing was lost on the way.
        retry_after_s: seconds until the next attempt, once the broker has set it.
    """

    sent: bool = True
    retry_after_s: float = 1.0
    answered: bool = False


@dataclass(eq=False)
class GrantRefused(CfproxyError):
    """`invalid_grant`: the code or refresh token is expired, used, revoked or not ours (RFC 6749 §5.2)."""

    description: str = ""


# --- the pacing queue --------------------------------------------------------------------


@dataclass(eq=False)
class QueueRefusal(CfproxyError):
    """The request cannot wait for its turn."""

    retry_after_s: float = 1.0


class QueueFull(QueueRefusal):
    """As many requests wait as may."""


class QueueTimeout(QueueRefusal):
    """The turn would come, or came, later than `pacing.max_wait`."""


# --- the upstream ------------------------------------------------------------------------


@dataclass(eq=False)
class UpstreamError(CfproxyError):
    """The upstream gave no answer that can be passed on.

    Args:
        unsent: nothing of the request can have reached the upstream, so it may go again.

    A message without a next step of its own (after a semicolon) gets that of its kind.
    """

    unsent: bool = False
    step: ClassVar[str] = "try again later"

    def __post_init__(self) -> None:
        if "; " not in self.message:
            self.message = f"{self.message}; {self.step}"


class UpstreamUnreachable(UpstreamError):
    """No connection: DNS, refused, reset before an answer."""


class UpstreamTls(UpstreamError):
    """The TLS handshake failed; verification can't be switched off."""


class UpstreamProtocol(UpstreamError):
    """What came back is not HTTP/1.1, or it stopped in the middle."""

    step = "try again, and if it stays see what stands between this machine and the API"


class UpstreamTimeout(UpstreamError):
    """Connecting or waiting took longer than `timeouts` allows."""

    step = "try again later, or give it more time"


# --- the caller --------------------------------------------------------------------------


class Refusal(CfproxyError):
    """The request is not one that we forward."""


class HostNotAllowed(Refusal):
    """`Host` names neither this listener nor one of `access.hosts`."""


class BadTarget(Refusal):
    """The request cannot be forwarded unambiguously."""


class CrossSite(Refusal):
    """A web page of another site sent it."""


class KeyRequired(Refusal):
    """No valid access key came with it."""


class NotAllowed(Refusal):
    """`access.methods` or `access.paths` forbid it."""


class UpgradeNotSupported(Refusal):
    """It asks for another protocol on this connection."""


class LoopDetected(Refusal):
    """It has been through this proxy before."""


class ShuttingDown(Refusal):
    """The proxy is draining."""
