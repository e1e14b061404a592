"""What the engine asks of the world, as protocols.

Owns: the shapes; adapters and fakes implement them.
Must not know: any implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from cfproxy.secret import Secret
from cfproxy.token import Login, Token

# RFC 9110 §9.2.2: sending them twice does no more than sending them once.
IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})


class Clock(Protocol):
    """The two clocks and the one way to wait."""

    def time(self) -> float:
        """Return the wall clock, seconds since the epoch."""

    def monotonic(self) -> float:
        """Return seconds on a clock that never jumps."""

    async def sleep(self, delay_s: float) -> None:
        """Return after `delay_s` seconds of the monotonic clock."""


class TokenSource(Protocol):
    """Where a request gets its token."""

    async def get(self) -> Token:
        """Return a token that is valid now.

        Raises:
            LoginRequired, Misconfigured, TokenEndpointUnavailable, StoreUnavailable, StoreUnusable
        """

    def current(self) -> Token | None:
        """Return a token that is valid now if it is at hand; None where `get` has something to do."""

    async def replace(self, rejected: Token) -> Token:
        """Return another token than `rejected`, refreshing only when that one is still the current one.

        Returns `rejected` itself when a new token would be rejected as well, as far as known.

        Raises:
            as `get`
        """

    def distrust(self, rejected: Token) -> None:
        """Tell that `rejected`, fresh from `replace`, was rejected too: the token is not the cause."""


@dataclass(frozen=True, slots=True)
class TokenReply:
    """A successful answer of the token endpoint (RFC 6749 §5.1).

    Args:
        access_token: never empty.
        lifetime_s: `expires_in`; None when absent.
        refresh_token: None when absent: the old one stays good (RFC 6749 §6).
        scope: None when absent: as asked for.
    """

    access_token: Secret
    lifetime_s: float | None
    refresh_token: Secret | None
    scope: str | None


class TokenEndpoint(Protocol):
    """The authorization server's token and revocation endpoints, for one app."""

    async def refresh(self, refresh_token: Secret, may_send: Callable[[], bool] | None = None) -> TokenReply:
        """Spend `refresh_token` (RFC 6749 §6).

        Args:
            refresh_token: what to spend.
            may_send: asked once, when the connection stands and nothing was written yet; None: yes.

        Raises:
            GrantRefused: `invalid_grant`.
            Misconfigured: the app's settings are refused.
            TokenEndpointUnavailable: anything else, a refusal of `may_send` included.
        """

    async def client_credentials(self) -> TokenReply:
        """Ask for a token in the app's own name (RFC 6749 §4.4). Raises as `refresh`."""

    async def exchange(self, code: Secret, redirect_uri: str, verifier: Secret | None) -> TokenReply:
        """Spend an authorization code (RFC 6749 §4.1.3, RFC 7636 §4.5). Raises as `refresh`."""

    async def revoke(self, token: Secret, kind: str) -> bool:
        """Revoke (RFC 7009); `kind` is `refresh_token` or `access_token`. False: the server can't.

        Raises:
            TokenEndpointUnavailable
        """


@dataclass(frozen=True, slots=True)
class Attempt:
    """A login that was begun: what must be known when the browser comes back.

    Args:
        account: whose login.
        state: the value that binds the redirect to this attempt (RFC 6749 §10.12).
        verifier: PKCE's code verifier (RFC 7636 §4.1), None with `pkce: false`.
        redirect_uri: as sent to the authorize endpoint; the token endpoint compares it.
        client_id: the app that asked.
        created_at: wall-clock instant.
    """

    account: str
    state: Secret
    verifier: Secret | None
    redirect_uri: str
    client_id: str
    created_at: float


ATTEMPT_LIFETIME_S = 1800.0


class AttemptGone(Exception):
    """The attempt asked for cannot be taken; `reason` is `unknown`, `used` or `expired`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Lease:
    """A lock that is held; this one for as long as its holder lives."""

    def held(self) -> bool:
        """Return whether it still excludes everybody else for certain; asks no network."""
        return True


class TokenStore(Protocol):
    """One record an account, and the login attempts under way.

    Every method raises `StoreUnavailable` or `StoreUnusable` and nothing else of its own.
    """

    @property
    def shared(self) -> bool:
        """Whether other machines use it too.

        Then a lock that is free does not prove that its last holder is gone: it may have stood still.
        """

    @property
    def location(self) -> str:
        """Where the records are, for people; without credentials."""

    def lock(self, account: str, timeout_s: float) -> AbstractAsyncContextManager[Lease]:
        """Exclude everybody else who refreshes this account, on this machine at least.

        Waits `timeout_s` at most, then raises `StoreUnavailable`. Does not exclude `load`.
        """

    async def load(self, account: str) -> Login | None:
        """Return the newest record, or None when there is none."""

    async def save(self, login: Login) -> None:
        """Replace `login.account`'s record; when this returns, the record survives a power cut."""

    async def delete(self, account: str) -> bool:
        """Forget the record and the account's attempts; False when there was no record."""

    def stamp(self, account: str) -> Hashable:
        """Return a value that differs after the record was changed by anybody.

        Cheap (no network, at most a stat), never raises: it is asked once a second under load.
        """

    async def probe(self, account: str) -> None:
        """Try whether a record could be saved now, leaving nothing behind."""

    async def put_attempt(self, attempt: Attempt) -> None:
        """Remember an attempt for `ATTEMPT_LIFETIME_S`; one that was taken can be put back."""

    async def take_attempt(self, account: str, state: str | None, now: float) -> Attempt:
        """Return an attempt and mark it used, so that nobody takes it again.

        Args:
            account: whose attempt.
            state: the one to take; None takes the newest.
            now: wall clock, seconds.

        Raises:
            AttemptGone
        """

    async def aclose(self) -> None:
        """Let go of connections; nothing is asked of the store afterwards."""


class Pacer(Protocol):
    """When a request may leave."""

    def take(self) -> bool:
        """Take a departure if one is free now and nobody waits for it; return whether there was one."""

    async def slot(self, flow: Hashable, waited_s: float = 0.0) -> float:
        """Wait for the next free departure and take it; return the seconds waited.

        Args:
            flow: whoever shares one turn: flows are served in rotation, each in its own order.
            waited_s: seconds that this request has waited before, when an earlier slot was in vain.

        Raises:
            QueueFull, QueueTimeout
        """

    def back_off(self, pause_s: float, *, slower: bool) -> None:
        """Let nobody leave for `pause_s` seconds; `slower`: and fewer for a while after that."""


@dataclass(frozen=True, slots=True)
class Loan:
    """Departures that were lent.

    Args:
        instants: monotonic instants, in order; each is good for one request, at or just after it.
        replicas: how many borrow from this lender, this one included.
        share: of the rate that is in use, 0 to 1.
    """

    instants: list[float]
    replicas: int
    share: float


class Lender(Protocol):
    """Keeps one pace for several replicas. Every method raises `StoreUnavailable` or `StoreUnusable`."""

    async def lend(self, rate: float, per_s: float, count: int, *, fresh: bool = False) -> Loan:
        """Return the next departures that are free.

        Args:
            rate: departures in a window.
            per_s: the window's length, seconds.
            count: how many are wanted; 0 only counts this replica.
            fresh: this replica let requests leave by itself until now: nothing leaves for one window.
        """

    async def back_off(self, rate: float, per_s: float, pause_s: float, *, slower: bool) -> None:
        """Lend nothing that leaves within `pause_s` seconds; `slower`: and less for a while after that."""

    async def aclose(self) -> None:
        """Borrow no more."""


class Answer(Protocol):
    """One response, its body still coming."""

    @property
    def status(self) -> int:
        """The status code; never 1xx."""

    @property
    def raw_headers(self) -> Iterable[tuple[bytes, bytes]]:
        """The header fields as they came, in order."""

    async def read(self) -> bytes:
        """Return the next piece of the body as it came, b"" after the last one.

        Raises:
            UpstreamProtocol, UpstreamTimeout: it stopped in the middle.
        """

    async def aclose(self) -> None:
        """Let go: the connection is kept for reuse if the exchange is complete, cut otherwise.

        A second call does nothing.
        """


class BegunAnswer(Answer, Protocol):
    """The answer to a request without a body that was sent by `Upstream.begin`."""

    def arrived_whole(self) -> bool:
        """Return whether head and body are there, waiting for nothing."""

    def close(self) -> None:
        """Do what `aclose` does."""


class RequestBody(Protocol):
    """A request body that may have to be sent more than once."""

    def restart(self) -> None:
        """Begin again with the first byte; only while `replayable`."""

    @property
    def replayable(self) -> bool:
        """Whether everything that was read so far is still at hand."""

    @property
    def trailers(self) -> list[tuple[bytes, bytes]]:
        """What goes behind a chunked body; known once the body was read to its end."""

    @property
    def arrived(self) -> bool:
        """Whether all of it is here, so that nobody waits for the client to send it."""

    def whole(self) -> bytes | None:
        """Return all of it if it is there already and nothing of it was read; None otherwise."""

    async def read(self) -> bytes:
        """Return the next piece, b"" after the last one.

        Raises:
            BadTarget: the client's body is not well-formed.
        """


@dataclass(slots=True)
class Call:
    """One request as it goes up, but for its token.

    Args:
        method: as the client sent it.
        head: request line and headers, up to where `Authorization` follows.
        body: None when there is none.
        chunked: whether the body goes in chunks; else its length stands in `head`.
        expects: whether the client waits for 100 Continue before it sends the body.
        idempotency_key: whether it names itself, so that the upstream knows it when it comes twice.
        on_interim: called with status, reason and headers of each 1xx that the client should see.
    """

    method: str
    head: bytes
    body: RequestBody | None
    chunked: bool
    expects: bool = False
    idempotency_key: bool = False
    on_interim: Callable[[int, bytes, Iterable[tuple[bytes, bytes]]], None] | None = None

    @property
    def idempotent(self) -> bool:
        """Whether sending it twice does no more than sending it once (RFC 9110 §9.2.2)."""
        return self.idempotency_key or self.method in IDEMPOTENT


class Upstream(Protocol):
    """The API."""

    def begin(
        self, call: Call, token: Token, take: Callable[[], bool], on_arrival: Callable[[], None]
    ) -> BegunAnswer | None:
        """Send a request without a body, if that can be done without waiting.

        Args:
            call: what to send.
            token: see `send`.
            take: asked last; nothing is sent when it says no.
            on_arrival: called once the answer's head is there, or will not come.

        Returns:
            the answer to come, for `send`; None when nothing was sent.
        """

    async def send(self, call: Call, token: Token, begun: BegunAnswer | None = None) -> Answer:
        """Send the request, return the answer as soon as its head is there.

        Args:
            call: what to send.
            token: goes with it.
            begun: what `begin` returned for this request, which is on its way then.

        Raises:
            UpstreamUnreachable, UpstreamTls, UpstreamProtocol, UpstreamTimeout
            BadTarget: from the request body.
        """
