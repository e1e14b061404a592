"""Who is let in, and what follows from that: decided once for as long as a client repeats its header fields.

Owns: the order of the checks that do not depend on method and target, and what goes up because of them.
Must not know: how a request is forwarded and answered.
Invariant: what is remembered follows from the bytes of the fields, the connection and the settings alone; it
is good on that connection, and only with the settings that it was judged by.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from cfproxy.errors import UpstreamError
from cfproxy.http1.headers import IDEMPOTENCY_KEYS, RawHeaders, normalise
from cfproxy.http1.parser import RequestFields
from cfproxy.proxy.access import AccessRules, carries_key
from cfproxy.proxy.cors import listed_origin
from cfproxy.proxy.request_headers import Origin, build_request_headers, check_fields, waits_to_go_on
from cfproxy.proxy.request_id import HEADER, RequestIds, read_request_ids
from cfproxy.proxy.retry import Forwarder
from cfproxy.secret import Secret
from cfproxy.server.connection import ClientConnection
from cfproxy.server.connection_limits import ConnectionLimits
from cfproxy.server.request import Limits

PROGRAMS_MAX = 128
REQUEST_ID = HEADER.encode()
FOLDED_REQUEST_ID = normalise(REQUEST_ID)


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """What a listener needs to know.

    Args:
        account: whose token it adds.
        origin: the upstream.
        rules: who may call.
        body_memory_bytes, body_max_bytes: bounds of what is kept of a body for a second try.
        idle_s: seconds that a client may leave an answer unread.
        limits: what a client may take up.
        connection_limits: how many clients there may be.
        server_timing: whether answers tell where the time went (`Server-Timing`).
        record: called after every request (see `traffic.RequestStats.record`).
        keeps_line: asked before each ordinary request's log line is built.
        sends_id: whether the upstream and the client are told the request's id.
    """

    account: str
    origin: Origin
    rules: AccessRules
    body_memory_bytes: int
    body_max_bytes: int
    idle_s: float
    limits: Limits
    connection_limits: ConnectionLimits
    server_timing: bool
    record: Callable[..., None]
    keeps_line: Callable[[], bool] = lambda: True
    sends_id: bool = False


class Server(Protocol):
    """Whoever serves the requests of one account: its listener."""

    settings: ProxySettings
    forwarder: Forwarder
    log: FilteringBoundLogger
    port: int | None
    draining: bool
    refusing: bool
    failure: UpstreamError | None
    make_id: Callable[[], str]

    def led_to_by(self, key: Secret) -> Server:
        """Return who serves the account that an access key leads to.

        Raises:
            NotAllowed: nobody here.
        """

    def key_digests(self) -> frozenset[bytes]:
        """Return the digests of all accounts' access keys."""

    def begun(self, exchange: Exchanging) -> None:
        """Take note of a request that is worked at."""

    def ended(self, exchange: Exchanging) -> None:
        """Take note of its end."""


class Exchanging(Protocol):
    """A request that is worked at, and its answer."""

    @property
    def connection(self) -> ClientConnection:
        """Where it came from."""


@dataclass(slots=True)
class Admission:
    """What follows from a request's fields, whatever its method and target.

    Args:
        judged_by: the settings of the listener.
        by: who serves it: the listener, or the account that the caller's key leads to.
        settings: of that account.
        origin: the web origin that may read the answer; None for everybody else.
        lines: the header lines that go up.
        flow: whose turn it takes in the queue.
        caller: `scheme://authority` under which the client knows us; empty when it named none.
        expects: whether the client waits for 100 Continue.
        idempotency_key: whether it brought one.
        carries_key: whether a header's value is an access key, which is never forwarded.
    """

    judged_by: ProxySettings
    by: Server
    settings: ProxySettings
    origin: bytes | None
    lines: bytes = field(repr=False)
    flow: Hashable = field(repr=False)
    caller: bytes
    expects: bool
    idempotency_key: bool
    carries_key: Callable[[bytes], bool] = field(repr=False)


@dataclass(slots=True)
class Verdict:
    """What is remembered of a request's fields while a client repeats them.

    Args:
        marks: what they say of the request's id and trace; `made` where they name no id.
        admission: None until they were let in.
    """

    marks: RequestIds
    admission: Admission | None = None


def verdict_on(fields: RequestFields) -> Verdict:
    """Return what is remembered of `fields`; at first only what they say of the request's id and trace."""
    if fields.verdict is None:
        given = [(name.lower(), value.decode("utf-8", "surrogateescape")) for name, value in fields.raw]
        ids = [value for name, value in given if name == b"x-request-id"]
        trace = next((value for name, value in given if name == b"traceparent"), None)
        fields.verdict = Verdict(read_request_ids(ids, trace, str))
    verdict: Verdict = fields.verdict
    return verdict


def admit(
    server: Server, fields: RequestFields, marks: RequestIds, connection: ClientConnection
) -> Admission:
    """Check what does not depend on method and target, and build what follows from it.

    Args:
        server: whose listener it came to.
        fields: the request's.
        marks: what they say of its id.
        connection: where it came from.

    Raises:
        HostNotAllowed, CrossSite, KeyRequired, NotAllowed, BadTarget, UpgradeNotSupported, LoopDetected
    """
    judged_by = server.settings
    headers, rules = fields.raw, judged_by.rules
    named = {name.lower(): value for name, value in reversed(headers)}
    host = check_caller(server, headers, connection)
    key = rules.check_key(headers)
    by = server if key is None else server.led_to_by(key)
    settings = judged_by if by is server else by.settings
    check_fields(fields.version, headers, settings.origin.via)
    if marks.made and settings.sends_id:  # what came instead, if anything, is no id
        headers = tuple(each for each in headers if normalise(each[0]) != FOLDED_REQUEST_ID)
    is_access_key = functools.partial(carries_key, digests=server.key_digests())
    expects = fields.framing.has_body and waits_to_go_on(fields.version, headers)
    # Who shares one turn in the queue: a program of a caller, not one of its many connections. The
    # program's name is the caller's invention, so that there must be a bound to how many it can be.
    program = hash(named.get(b"user-agent")) % PROGRAMS_MAX
    return Admission(
        judged_by,
        by,
        settings,
        listed_origin(headers, rules.origins) if rules.origins else None,
        lines=build_request_headers(
            headers,
            settings.origin,
            fields.framing,
            version=fields.version,
            expects=expects,
            carries_key=is_access_key,
        ),
        flow=(settings.account, key or connection.remote_address, program),
        caller=f"http://{host}".encode("utf-8", "surrogateescape") if host else b"",
        expects=expects,
        idempotency_key=not IDEMPOTENCY_KEYS.isdisjoint(named),
        carries_key=is_access_key,
    )


def check_caller(server: Server, headers: RawHeaders, connection: ClientConnection) -> str:
    """Check who may call at all, keys apart; return `Host`.

    Raises:
        HostNotAllowed, CrossSite, NotAllowed, BadTarget
    """
    rules = server.settings.rules
    host = next((value for name, value in headers if name.lower() == b"host"), None)
    text = "" if host is None else host.decode("utf-8", "surrogateescape")
    rules.check_host(None if host is None else text, server.port, connection.local_address)
    rules.check_origin(headers, f"http://{text}")
    if rules.uids:
        rules.check_user(connection.uid)
    return text
