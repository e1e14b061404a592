"""Request IDs and W3C trace context."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.proxy.request_headers import parse_request_ids, request_id_factory

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
VALID = re.compile(r"[A-Za-z0-9._~:@+=/-]{1,128}")


def client_id(*ids: str) -> str | None:
    return parse_request_ids([(b"x-Request-ID", one.encode()) for one in ids]).client_id


def trace_id(traceparent: bytes) -> str | None:
    return parse_request_ids([(b"Accept", b"a"), (b"TraceParent", traceparent)]).trace_id


@pytest.mark.parametrize("given_id", ["1", "a-b.c", "x" * 128, "2f1b~7:3@host/1+a=b"])
def test_a_valid_id_of_the_client_is_used(given_id: str) -> None:
    """The caller finds its request in our log under its own ID."""
    assert client_id(given_id) == given_id


@pytest.mark.parametrize(
    "ids", [[], [""], ["a", "b"], ["x" * 129], ["a b"], ["a\x1b[31m"], ["é"], ["-a"], ['a"']]
)
def test_any_other_id_is_ignored(ids: list[str]) -> None:
    """No ID, several, one that is too long, or one with other characters."""
    assert client_id(*ids) is None


def test_generated_ids_are_unique_in_and_across_processes() -> None:
    """A counter within a process, a random prefix across processes."""
    one, other = request_id_factory(), request_id_factory()
    made = [one(), one(), other(), other()]
    assert all(VALID.fullmatch(request_id) for request_id in made)
    assert len(set(made)) == 4
    assert made[0].partition("-")[0] != made[2].partition("-")[0]


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (f"00-{TRACE_ID}-00f067aa0ba902b7-01", TRACE_ID),
        (f"cc-{TRACE_ID}-00f067aa0ba902b7-01-what-comes-later", TRACE_ID),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE_ID.upper()}-00f067aa0ba902b7-01", None),
        (TRACE_ID, None),
    ],
)
def test_the_trace_id_is_parsed_as_the_standard_says(traceparent: str, expected: str | None) -> None:
    """Anything that is not W3C Trace Context has no trace ID."""
    assert trace_id(traceparent.encode()) == expected
    assert parse_request_ids([]).trace_id is None


@given(st.lists(st.text() | st.from_regex(VALID, fullmatch=True), max_size=3), st.binary())
def test_parsed_ids_are_safe_whatever_the_client_sends(ids: list[str], traceparent: bytes) -> None:
    """They are written to log lines, headers and URNs."""
    found = parse_request_ids(
        [
            *((b"X-Request-Id", one.encode("utf-8", "surrogatepass")) for one in ids),
            (b"traceparent", traceparent),
        ]
    )
    assert found.client_id is None or VALID.fullmatch(found.client_id)
    assert found.trace_id is None or re.fullmatch("[0-9a-f]{32}", found.trace_id)
