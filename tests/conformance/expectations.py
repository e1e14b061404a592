"""What a message must be like at the other end of a proxy, and how it differs from that.

Owns: the comparison of heads, bodies and trailers.
Must not know: sockets, steps, proxies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.conformance.ends import Framing, Message, NotKept, split_line

_OWN = re.compile(rb"(^|[<=])http://localhost:\d+(?=/)")

Fields = list[tuple[bytes, bytes]]


@dataclass(frozen=True, kw_only=True)
class Got:
    """What a message must be like; what is not named here may be anything.

    One thing each, so that a proxy that sorts headers fails in the case of the order and in no other.

    Args:
        start: the request line or status line.
        status: the status code.
        lines: each of these names has the values given here, in this order, byte for byte, and no other ones.
        leads: likewise, and an address may be written with or without the `http://HOST` that it starts with.
        spelt: likewise, and the names come in these bytes.
        ordered: likewise, and of the headers with these names the order is this.
        only: there are these lines and no other ones; `Host`, `Via` and `Authorization` of a request have
            cases of their own.
        lacks: names that must not occur, in any case.
        hides: bytes that no value holds.
        via: the entries of `Via` before the proxy, and last the version in the entry of the proxy.
        framed: how the body is delimited.
        body: the whole body; None leaves it to the steps that follow.
        trailers: the trailer lines, all of them.
        cut: the message must break off, for everybody to see.
        to_head: it answers a HEAD request.
        skip_interim: 1xx answers may come before it.
    """

    start: bytes | None = None
    status: int | None = None
    lines: Sequence[bytes] = ()
    leads: Sequence[bytes] = ()
    spelt: Sequence[bytes] = ()
    ordered: Sequence[bytes] = ()
    only: Sequence[bytes] | None = None
    lacks: Sequence[bytes] = ()
    hides: bytes = b""
    via: Sequence[bytes] | None = None
    framed: Framing | None = None
    body: bytes | None = None
    trailers: Sequence[bytes] = ()
    cut: bool = False
    to_head: bool = False
    skip_interim: bool = False

    def check_head(self, message: Message, of_request: bool) -> None:
        """Compare the head.

        Raises:
            NotKept
        """
        headers = message.headers
        if self.start is not None:
            _compare("request line" if of_request else "status line", self.start, message.start)
        if self.status is not None:
            _compare("status", b"%d" % self.status, message.start[9:12])
        expected = _fields(self.lines)
        _compare("headers", _by_name(expected), _by_name(_named_in(expected, headers)))
        expected = _fields(self.leads)
        got = _named_in(expected, headers)
        own = [_OWN.sub(rb"\1", value) for _, value in expected]
        paths = [_OWN.sub(rb"\1", value) for _, value in got]
        _compare("headers", own, paths)
        expected = _fields(self.spelt)
        _compare("header names", sorted(expected), sorted(_named_in(expected, headers)))
        expected = _fields(self.ordered)
        _compare("header order", _folded(expected), _folded(_named_in(expected, headers)))
        if self.only is not None:
            ours = {b"host", b"via", b"authorization"} if of_request else set()
            others = [field for field in headers if field[0].lower() not in ours]
            _compare("headers", sorted(_folded(_fields(self.only))), sorted(_folded(others)))
        for name in self.lacks:
            _compare("headers", [], [field for field in headers if field[0].lower() == name.lower()])
        if self.hides:
            _compare("headers", [], [field for field in headers if self.hides in field[1]])
        if self.via is not None:
            told = [
                part.strip()
                for name, value in headers
                if name.lower() == b"via"
                for part in value.split(b",")
            ]
            named = [*told[:-1], *(part.split(b" ")[0] for part in told[-1:])]
            _compare("Via", list(self.via), named)
        if self.framed is not None:
            _compare("framing", self.framed, message.framing)

    def check_body(self, message: Message, *, reset: bool) -> None:
        """Compare what came after the head, once no more of it can come.

        Raises:
            NotKept
        """
        complete = message.whole and not (message.framing == "close" and reset)
        if self.cut == complete:
            raise NotKept("end", "is whole" if complete else f"cut after {bytes(message.body[-40:])!r}")
        if not self.cut:
            _compare("body", self.body, bytes(message.body))
            _compare("trailers", _folded(_fields(self.trailers)), _folded(message.trailers))


def _fields(lines: Sequence[bytes]) -> Fields:
    return [split_line(line) for line in lines]


def _folded(fields: Fields) -> Fields:
    return [(name.lower(), value) for name, value in fields]


def _named_in(expected: Fields, fields: Fields) -> Fields:
    """Return those fields whose name is among the expected ones."""
    names = {name.lower() for name, _ in expected}
    return [field for field in fields if field[0].lower() in names]


def _by_name(fields: Fields) -> dict[bytes, list[bytes]]:
    values: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        values.setdefault(name.lower(), []).append(value)
    return values


def _compare(what: str, expected: object, got: object) -> None:
    if expected != got:
        raise NotKept(what, f"expected {_short(expected)}, got {_short(got)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 2000 else f"{text[:1000]} … {text[-900:]}"
