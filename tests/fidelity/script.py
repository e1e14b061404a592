"""The words in which the cases are written: who sends which bytes, and what must come out at the other end.

Owns: steps, expectations, cases, and short ways to write requests and answers.
Must not know: sockets, proxies.

In all bytes `HOST` stands for the proxy's authority, `ORIGIN` for the origin's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tests.fidelity.ends import Framing, Message, NotKept, split_line

Fields = list[tuple[bytes, bytes]]
Who = Literal["client", "origin"]
Act = Literal[
    "sends", "half_closes", "closes", "resets", "gets", "gets_more", "gets_end", "sees_close", "sees_as_told"
]


@dataclass(frozen=True, kw_only=True)
class Got:
    """What a message must be like; what is not named here may be anything.

    One thing each, so that a proxy that sorts headers fails in the case of the order and in no other.

    Args:
        start: the request line or status line.
        status: the status code.
        lines: each of these names has the values given here, in this order, byte for byte, and no other ones.
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


@dataclass(frozen=True)
class Step:
    """One thing that one side does, or that must come to it."""

    who: Who
    act: Act
    data: bytes = b""
    got: Got = Got()
    lane: str = "a"


@dataclass(frozen=True)
class Side:
    """One side of a conversation; cases with several connections have several lanes."""

    who: Who
    lane: str = "a"

    def sends(self, *data: bytes) -> Step:
        return Step(self.who, "sends", b"".join(data), lane=self.lane)

    def gets(self, **expected: Any) -> Step:
        """The next message comes (see `Got`)."""
        return Step(self.who, "gets", got=Got(**expected), lane=self.lane)

    def gets_more(self, data: bytes) -> Step:
        """Exactly this comes of the body, beyond what came of it before, and now."""
        return Step(self.who, "gets_more", data, lane=self.lane)

    def gets_end(self, **expected: Any) -> Step:
        """The rest of the message comes: `body` is the whole of it."""
        return Step(self.who, "gets_end", got=Got(**expected), lane=self.lane)

    def half_closes(self) -> Step:
        """Ends its own direction and goes on listening."""
        return Step(self.who, "half_closes", lane=self.lane)

    def closes(self) -> Step:
        return Step(self.who, "closes", lane=self.lane)

    def resets(self) -> Step:
        return Step(self.who, "resets", lane=self.lane)

    def sees_close(self) -> Step:
        """The other side ends the connection."""
        return Step(self.who, "sees_close", lane=self.lane)

    def sees_as_told(self) -> Step:
        """The connection ends if the last answer said so, and serves one more GET if it did not."""
        return Step(self.who, "sees_as_told", lane=self.lane)


client, origin = Side("client"), Side("origin")
other_client, other_origin = replace(client, lane="b"), replace(origin, lane="b")


@dataclass(frozen=True)
class Case:
    """One thing that must be kept.

    Args:
        name: what is kept, as the page shows it.
        steps: what happens, in this order.
        fails: why cfproxy does not keep it; empty when it does.
    """

    name: str
    steps: tuple[Step, ...]
    fails: str = ""


@dataclass(frozen=True)
class Group:
    """Cases that belong together."""

    name: str
    cases: tuple[Case, ...]


def case(name: str, *steps: Step, fails: str = "") -> Case:
    return Case(name, steps, fails)


def group(name: str, *cases: Case) -> Group:
    return Group(name, cases)


def ask(line: bytes = b"GET / HTTP/1.1", *lines: bytes, body: bytes = b"") -> bytes:
    """Return a request's bytes, with the right Host; framing headers are the case's own."""
    return b"\r\n".join([line, b"Host: HOST", *lines, b"", b""]) + body


def post(*lines: bytes, body: bytes = b"") -> bytes:
    """Return a POST whose body has a length."""
    return ask(b"POST / HTTP/1.1", *lines, b"Content-Length: %d" % len(body), body=body)


def say(status: bytes = b"200 OK", *lines: bytes, body: bytes = b"") -> bytes:
    """Return an answer's bytes; the body has a length."""
    return b"\r\n".join([b"HTTP/1.1 " + status, *lines, b"Content-Length: %d" % len(body), b"", b""]) + body


def head(status: bytes, *lines: bytes) -> bytes:
    """Return an answer's head without any framing of our own."""
    return b"\r\n".join([b"HTTP/1.1 " + status, *lines, b"", b""])


def chunks(*pieces: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    """Return a body in chunks."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + last


def up(name: str, request: bytes, *, fails: str = "", **expected: Any) -> Case:
    """Return the case that `request` reaches the origin as expected, and an answer comes back."""
    to_head = request.startswith(b"HEAD ")
    answer = client.gets(status=200, body=b"" if to_head else b"ok", to_head=to_head)
    return case(name, client.sends(request), origin.gets(**expected), origin.sends(OK), answer, fails=fails)


def down(name: str, answer: bytes, *, request: bytes | None = None, fails: str = "", **expected: Any) -> Case:
    """Return the case that `answer` reaches the client as expected."""
    return case(
        name,
        client.sends(ask() if request is None else request),
        origin.gets(),
        origin.sends(answer),
        client.gets(**expected),
        fails=fails,
    )


def meanwhile() -> tuple[Step, ...]:
    """Return the steps of another client: after them the proxy has seen whatever the first one did before."""
    return (other_client.sends(ask(b"GET /other HTTP/1.1")), other_origin.gets(start=b"GET /other HTTP/1.1"),
            other_origin.sends(OK), other_client.gets(body=b"ok"))  # fmt: skip


def again() -> tuple[Step, ...]:
    """Return the steps that show a connection to be good for one more request."""
    return (client.sends(ask(b"GET /again HTTP/1.1")), origin.gets(start=b"GET /again HTTP/1.1"),
            origin.sends(OK), client.gets(body=b"ok"))  # fmt: skip


OK = say(body=b"ok")
