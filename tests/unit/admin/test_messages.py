"""Requests to the admin listener: what is read of them."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from cfproxy.admin.messages import FIELDS_MAX, AdminRequest
from cfproxy.errors import BadTarget
from cfproxy.http1.framing import Framing
from cfproxy.http1.parser import RequestFields
from cfproxy.server.request import Request


def build_request(target: bytes, *headers: tuple[bytes, bytes]) -> AdminRequest:
    fields = RequestFields((1, 1), headers, Framing(None, chunked=False), keep_alive=True)
    return AdminRequest(Request(Mock(), b"GET", target, fields), Mock())


def test_a_query_has_a_limited_number_of_fields() -> None:
    """Tens of thousands fit into a target, and would block the event loop."""
    most = build_request(b"/login?account=a" + b"&x=y" * (FIELDS_MAX - 1))
    assert most.query == {"account": "a", "x": "y"}
    for query in (b"a=b&" * FIELDS_MAX, b"&" * 16_000, b"a&" * 16_000):
        with pytest.raises(BadTarget, match="fields"):
            _ = build_request(b"/login?" + query).query


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (b"a=1", "1"),
        (b"b=2; a=1", "1"),
        (b"b=2;a=1 ;c=3", "1"),
        (b"b=2; a=", ""),
        (b"b=a=1", ""),
        (b"ba=1", ""),
        (b"a =1", ""),
        (b"a=1; a=2", "1"),
        (b"a=b=c", "b=c"),
        (b"x;" * 16_000 + b"a=1", "1"),
        (b"", ""),
    ],
)
def test_a_cookie_is_found_among_others(header: bytes, value: str) -> None:
    """The first of its name counts."""
    assert build_request(b"/callback", (b"Cookie", header)).cookie("a") == value
