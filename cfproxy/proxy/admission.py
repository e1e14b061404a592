"""Admits requests, and builds the request that is forwarded.

Clients usually repeat their headers, so what follows from the header fields alone is cached with them. It
depends on their bytes, the connection and the settings of all accounts, and is used only with the same three.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from cfproxy.errors import ShuttingDown
from cfproxy.http1.headers import IDEMPOTENCY_KEYS, RawHeaders, normalise
from cfproxy.http1.parser import RequestFields
from cfproxy.http1.stream import BodyStream
from cfproxy.proxy.access import carries_key, overrides_method
from cfproxy.proxy.account_server import AccountServer, ProxySettings
from cfproxy.proxy.cors import PAGE_HEADERS, listed_origin, without_page_headers
from cfproxy.proxy.request_body import ReplayableBody, Trailers
from cfproxy.proxy.request_headers import (
    REQUEST_ID,
    RequestIds,
    build_request_head,
    build_request_headers,
    build_request_target,
    check_fields,
    check_method,
    expects_continue,
    forwardable_trailers,
)
from cfproxy.server.connection import ClientConnection
from cfproxy.server.request import Request

USER_AGENTS_MAX = 128


@dataclass(slots=True)
class Admission:
    """What follows from the header fields of an admitted request, whatever its method and target.

    Args:
        request_ids: that the client sent.
        generation: of the settings (see `AccountServer.accounts_changed`).
        account: the server of the account that the access key selects; by default the listener's own.
        settings: of that account.
        web_origin: the web origin that may read the response; None if no page may.
        header_lines: sent to the upstream.
        flow: the request's flow in the fair queue.
        expects_continue: whether the client waits for 100 Continue.
        idempotency_key: whether the request carries one.
        filter_trailers: returns the request's trailers that are forwarded.
    """

    request_ids: RequestIds
    generation: object
    account: AccountServer
    settings: ProxySettings
    web_origin: bytes | None
    header_lines: bytes = field(repr=False)
    flow: Hashable = field(repr=False)
    expects_continue: bool
    idempotency_key: bool
    filter_trailers: Callable[[Trailers], Trailers] = field(repr=False)

    def build_head(self, request: Request, request_id: str) -> bytes:
        """Return the request head for the upstream, except `Authorization` and the final empty line.

        Args:
            request: with these header fields.
            request_id: added as `X-Request-Id` unless the client sent one.

        Raises:
            BadTarget
        """
        target = build_request_target(request.target, self.settings.origin.base_path)
        head = build_request_head(request.method, target, self.header_lines)
        if self.settings.sends_id and self.request_ids.client_id is None:
            head += b"%b: %b\r\n" % (REQUEST_ID, request_id.encode("ascii"))
        return head

    def build_body(
        self, request: Request, stream: BodyStream, before_read: Callable[[], None]
    ) -> ReplayableBody:
        """Return the body of a request for the upstream (`before_read`: see `ReplayableBody`)."""
        return ReplayableBody(
            stream,
            memory_bytes=self.settings.body_memory_bytes,
            max_bytes=self.settings.replay_limit(request.fields.framing.length),
            copies=self.settings.copies,
            before_read=before_read,
            filter_trailers=self.filter_trailers,
        )


def admit(listener: AccountServer, request: Request, request_ids: RequestIds) -> Admission:
    """Check a request against the rules of the listener and of the account that serves it.

    Args:
        listener: the server whose listener received the request.
        request: the request.
        request_ids: in its header fields.

    Raises:
        Refusal, ShuttingDown
    """
    if request.error is not None:
        raise request.error
    if listener.refusing:
        raise ShuttingDown("cfproxy is shutting down; send the request again in a moment")
    fields = request.fields
    admission: Admission | None = fields.cache
    if admission is None or admission.generation is not listener.generation:
        admission = fields.cache = _admit_fields(listener, fields, request_ids, request.connection)
    method, own, selected = check_method(request.method), listener.settings.rules, admission.settings.rules
    for rules in (own,) if selected is own else (own, selected):
        if rules.methods or rules.paths:
            rules.check_target(method, request.target, fields.raw)
    return admission


def _admit_fields(
    listener: AccountServer, fields: RequestFields, request_ids: RequestIds, connection: ClientConnection
) -> Admission:
    headers, rules = fields.raw, listener.settings.rules
    host = check_caller(listener, headers, connection)
    key = rules.check_key(headers)
    account = listener if key is None else listener.account_for(key)
    settings = account.settings
    check_fields(fields.version, headers, settings.origin.via)
    if settings.sends_id and request_ids.client_id is None:  # an ID of ours replaces invalid ones
        headers = tuple(header for header in headers if normalise(header[0]) != b"x-request-id")
    expects = fields.framing.has_body and expects_continue(fields.version, headers)
    is_access_key = functools.partial(carries_key, digests=listener.key_digests())
    named = {name.lower(): value for name, value in reversed(headers)}
    web_origin = listed_origin(headers, rules.origins) if rules.origins else None
    if not PAGE_HEADERS.isdisjoint(named):
        headers = without_page_headers(headers, host, rules.origins)
    # A flow is one program of a caller, whatever its number of connections. The program is identified by its
    # User-Agent, which the caller may invent, so the number of flows per caller is limited.
    program = hash(named.get(b"user-agent")) % USER_AGENTS_MAX
    return Admission(
        request_ids,
        listener.generation,
        account,
        settings,
        web_origin,
        header_lines=build_request_headers(
            headers,
            settings.origin,
            fields.framing,
            version=fields.version,
            expects=expects,
            carries_key=is_access_key,
        ),
        flow=(settings.account, key or connection.remote_address, program),
        expects_continue=expects,
        idempotency_key=not IDEMPOTENCY_KEYS.isdisjoint(named),
        filter_trailers=functools.partial(
            forwardable_trailers,
            headers=headers,
            carries_key=is_access_key,
            # A trailer that overrides the method comes too late for a refusal.
            drops=overrides_method if rules.methods or settings.rules.methods else None,
        ),
    )


def check_caller(listener: AccountServer, headers: RawHeaders, connection: ClientConnection) -> str:
    """Check everything about the caller except access keys; return the value of `Host`.

    Raises:
        HostNotAllowed, CrossSite, NotAllowed, BadTarget
    """
    rules = listener.settings.rules
    host = next((value for name, value in headers if name.lower() == b"host"), None)
    text = "" if host is None else host.decode("utf-8", "surrogateescape")
    rules.check_host(None if host is None else text, listener.port, connection.own_names)
    rules.check_origin(headers, f"http://{text}")
    if rules.uids:
        rules.check_user(connection.uid)
    return text
