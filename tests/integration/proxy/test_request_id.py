"""Request IDs and traces in forwarded requests, responses, problem documents and log lines."""

from __future__ import annotations

import json

import pytest

from cfproxy.proxy.access import AccessRules
from tests.support.origin import OK, Message, answering
from tests.support.proxied import Proxied, proxied

ID = b"X-Request-Id"
TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
GET = b"GET /v1/jobs HTTP/1.1"


def up(world: Proxied) -> Message:
    return world.origin.requests[-1]


async def test_a_generated_id_is_sent_in_both_directions_and_logged() -> None:
    """The API's operators, the caller and the log use the same ID."""
    async with proxied(answering(OK), sends_id=True) as world:
        (made,) = (await world.ask(GET)).all(ID)
        assert up(world).all(ID) == [made]
        assert world.events[-1]["request_id"] == made.decode()
        (other,) = (await world.ask(GET)).all(ID)
        assert other != made


async def test_a_clients_id_is_used() -> None:
    """The trace context passes unchanged, and its ID is logged."""
    async with proxied(answering(OK), sends_id=True) as world:
        answer = await world.ask(GET, b"x-request-id: callers-7", b"traceparent: " + TRACE)
        assert answer.all(ID) == [b"callers-7"]
        assert (b"x-request-id", b"callers-7") in up(world).headers
        assert up(world).all(b"traceparent") == [TRACE]
        assert world.events[-1]["request_id"] == "callers-7"
        assert world.events[-1]["trace_id"] == TRACE[3:35].decode()


@pytest.mark.parametrize(
    "headers",
    [
        (b"X-Request-Id: " + b"x" * 129,),
        (b"X-Request-Id: a b",),
        (b"X-Request-Id: a", b"X-Request-Id: b"),
        (b"X_Request_Id: a", b"X-Request-Id: b c"),
    ],
)
async def test_an_invalid_id_is_replaced(headers: tuple[bytes, ...]) -> None:
    """In every spelling, so that the API sees no other ID than the log."""
    async with proxied(answering(OK), sends_id=True) as world:
        (made,) = (await world.ask(GET, *headers)).all(ID)
        assert [v for n, v in up(world).headers if n.lower().replace(b"_", b"-") == b"x-request-id"] == [made]


async def test_an_id_from_the_api_passes_unchanged() -> None:
    """It is part of the API's response."""
    answer = b"HTTP/1.1 200 OK\r\nX-Request-ID: theirs\r\nContent-Length: 0\r\n\r\n"
    async with proxied(answering(answer), sends_id=True) as world:
        assert (await world.ask(GET)).all(ID) == [b"theirs"]
        assert world.events[-1]["request_id"] != "theirs"


async def test_our_own_responses_carry_the_id_in_header_and_document() -> None:
    """`instance` holds the ID that is logged."""
    rules = AccessRules(methods=("GET",))
    async with proxied(answering(OK), rules=rules, sends_id=True) as world:
        answer = await world.ask(b"DELETE /v1/jobs HTTP/1.1", b"X-Request-Id: callers-8")
        assert answer.all(ID) == [b"callers-8"]
        assert json.loads(answer.body)["instance"] == "urn:cfproxy:request:callers-8"
        assert world.events[-1]["request_id"] == "callers-8"


async def test_ids_can_be_kept_out_of_the_headers() -> None:
    """Then nothing is added in either direction, but a client's ID is still logged."""
    async with proxied(answering(OK)) as world:
        assert (await world.ask(GET)).all(ID) == []
        assert up(world).all(ID) == []
        await world.ask(GET, b"X-Request-Id: callers-9")
        assert world.events[-1]["request_id"] == "callers-9"


async def test_sampling_drops_ordinary_log_lines_only() -> None:
    """Refusals, failures and error responses of the API are always logged."""
    not_found = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    async with proxied(answering(OK, not_found), keeps_line=lambda: False) as world:
        assert (await world.ask(GET)).status == 200
        assert world.events == []
        assert (await world.ask(GET)).status == 404
        assert (await world.ask(b"TRACE / HTTP/1.1")).status == 403
        assert [event["event"] for event in world.events] == ["request.forwarded", "request.refused"]
        assert len(world.counted) == 3
