"""Request ids and traces on their way: up, back, into the problem document and the log line."""

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


async def test_an_id_that_is_made_goes_up_and_back_and_into_the_line() -> None:
    """So that the API's operators, the caller and the log speak of the same request."""
    async with proxied(answering(OK), sends_id=True) as world:
        (made,) = (await world.ask(GET)).all(ID)
        assert up(world).all(ID) == [made]
        assert world.events[-1]["request_id"] == made.decode()
        (other,) = (await world.ask(GET)).all(ID)
        assert other != made


async def test_a_callers_id_is_taken_over_as_it_came() -> None:
    """And the trace passes untouched; the line has its id."""
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
async def test_an_id_that_is_none_is_replaced(headers: tuple[bytes, ...]) -> None:
    """Under each of its spellings, so that nobody upstream reads another one than we logged."""
    async with proxied(answering(OK), sends_id=True) as world:
        (made,) = (await world.ask(GET, *headers)).all(ID)
        assert [v for n, v in up(world).headers if n.lower().replace(b"_", b"-") == b"x-request-id"] == [made]


async def test_an_id_of_the_apis_own_passes_unchanged() -> None:
    """What the API answered is what the caller gets."""
    answer = b"HTTP/1.1 200 OK\r\nX-Request-ID: theirs\r\nContent-Length: 0\r\n\r\n"
    async with proxied(answering(answer), sends_id=True) as world:
        assert (await world.ask(GET)).all(ID) == [b"theirs"]
        assert world.events[-1]["request_id"] != "theirs"


async def test_our_own_answers_carry_it_in_header_and_document() -> None:
    """`instance` is the same id that the log line has."""
    rules = AccessRules(methods=("GET",))
    async with proxied(answering(OK), rules=rules, sends_id=True) as world:
        answer = await world.ask(b"DELETE /v1/jobs HTTP/1.1", b"X-Request-Id: callers-8")
        assert answer.all(ID) == [b"callers-8"]
        assert json.loads(answer.body)["instance"] == "urn:cfproxy:request:callers-8"
        assert world.events[-1]["request_id"] == "callers-8"


async def test_ids_can_be_kept_out_of_the_headers() -> None:
    """Then nothing is added in either direction, and a caller's id still is the line's."""
    async with proxied(answering(OK)) as world:
        assert (await world.ask(GET)).all(ID) == []
        assert up(world).all(ID) == []
        await world.ask(GET, b"X-Request-Id: callers-9")
        assert world.events[-1]["request_id"] == "callers-9"


async def test_a_sample_leaves_out_ordinary_lines_only() -> None:
    """Refusals, failures and what the API refused are always written."""
    not_found = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    async with proxied(answering(OK, not_found), keeps_line=lambda: False) as world:
        assert (await world.ask(GET)).status == 200
        assert world.events == []
        assert (await world.ask(GET)).status == 404
        assert (await world.ask(b"TRACE / HTTP/1.1")).status == 403
        assert [event["event"] for event in world.events] == ["request.forwarded", "request.refused"]
        assert len(world.counted) == 3
