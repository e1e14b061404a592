"""What the admin endpoints use of the running proxy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from cfproxy.auth.interfaces import TokenStore
from cfproxy.auth.login import LoginPlan
from cfproxy.auth.models import App
from cfproxy.auth.token_source import TokenSource
from cfproxy.config import Account
from cfproxy.proxy.account_server import AccountServer
from cfproxy.secret import Secret


class ServedAccount(Protocol):
    """One account of the running proxy."""

    @property
    def settings(self) -> Account:
        """Its configuration."""

    @property
    def app(self) -> App:
        """Its OAuth app."""

    @property
    def store(self) -> TokenStore:
        """Stores its login."""

    @property
    def token_source(self) -> TokenSource:
        """Provides its access token."""

    @property
    def server(self) -> AccountServer:
        """Handles its requests."""

    @property
    def listen(self) -> str:
        """The address of its listener, or `off`."""

    @property
    def url(self) -> str:
        """The URL that clients call."""

    @property
    def redirect_uri(self) -> str | None:
        """Where a login sends the browser; None without a login in a browser."""

    @property
    def login_plan(self) -> LoginPlan:
        """What a login needs."""

    @property
    def access_keys(self) -> tuple[Secret, ...]:
        """The access keys that select this account."""


@dataclass(frozen=True, slots=True)
class Operations:
    """What the admin listener can do to the process.

    Args:
        stop: start an orderly shutdown.
        reload: apply the configuration as it is now; returns the keys that changed. Raises ConfigError,
            ListenError or ShuttingDown if it changed nothing.
        set_log_level: change the log level until the next reload. Raises BadTarget for an unknown level.
    """

    stop: Callable[[], None]
    reload: Callable[[], Awaitable[list[str]]]
    set_log_level: Callable[[str], None]
