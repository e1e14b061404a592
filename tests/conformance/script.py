"""The words in which the cases are written: who sends which bytes, and what must come out at the other end.

Owns: steps, cases, and short ways to write requests and answers.
Must not know: sockets, proxies.

In all bytes `HOST` stands for the proxy's authority, `ORIGIN` for the origin's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tests.conformance.expectations import Got

Who = Literal["client", "origin"]
Act = Literal[
    "sends", "half_closes", "closes", "resets", "gets", "gets_more", "gets_end", "sees_close", "sees_as_told"
]


@dataclass(frozen=True)
class Step:
    """One thing that one side does, or that must come to it."""

    who: Who
    act: Act
    data: bytes = b""
    got: Got = field(default_factory=Got)
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
