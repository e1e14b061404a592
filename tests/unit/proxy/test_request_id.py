"""Request ids and traces: what is taken over, what is made."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfproxy.proxy.request_id import read_request_ids, request_id_factory

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SANE = re.compile(r"[A-Za-z0-9._~:@+=/-]{1,128}")


@pytest.mark.parametrize("given_id", ["1", "a-b_c".replace("_", "."), "x" * 128, "2f1b~7:3@host/1+a=b"])
def test_a_sane_id_is_taken_over(given_id: str) -> None:
    """Whoever called us finds the request under the caller's own id."""
    assert read_request_ids([given_id], None, request_id_factory())[:2] == (given_id, False)


@pytest.mark.parametrize(
    "ids", [[], [""], ["a", "b"], ["x" * 129], ["a b"], ["a\x1b[31m"], ["é"], ["-a"], ['a"']]
)
def test_anything_else_is_replaced(ids: list[str]) -> None:
    """None, several, too long, or of other characters: an id of ours."""
    marks = read_request_ids(ids, None, request_id_factory())
    assert marks.made
    assert SANE.fullmatch(marks.request_id)


def test_made_ids_are_unlike_each_other_and_another_process() -> None:
    """A count within a process, a random prefix between processes."""
    one, other = request_id_factory(), request_id_factory()
    made = [one(), one(), other(), other()]
    assert len(set(made)) == 4
    assert made[0].partition("-")[0] != made[2].partition("-")[0]


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [
        (f"00-{TRACE_ID}-00f067aa0ba902b7-01", TRACE_ID),
        (f"cc-{TRACE_ID}-00f067aa0ba902b7-01-what-comes-later", TRACE_ID),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", None),
        (f"00-{TRACE_ID.upper()}-00f067aa0ba902b7-01", None),
        (TRACE_ID, None),
        (None, None),
    ],
)
def test_the_trace_is_read_as_the_standard_has_it(traceparent: str | None, trace_id: str | None) -> None:
    """W3C Trace Context; what is not one is nobody's trace."""
    assert read_request_ids(["a"], traceparent, request_id_factory()).trace_id == trace_id


@given(st.lists(st.text(), max_size=3), st.none() | st.text())
def test_whatever_comes_what_goes_on_is_safe(ids: list[str], traceparent: str | None) -> None:
    """In a log line, a header and a URN."""
    marks = read_request_ids(ids, traceparent, request_id_factory())
    assert SANE.fullmatch(marks.request_id)
    assert marks.trace_id is None or re.fullmatch("[0-9a-f]{32}", marks.trace_id)
