"""Whatever the upstream sends, the client gets a complete response, one of ours, or a visibly cut one."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.security.garbage import BROKEN_BODIES, GOOD, NO_ANSWERS, SPICES, TOO_LONG, head, sized
from tests.security.strict import Heard, read_answers
from tests.support.examples import examples
from tests.support.origin import Peer, Script
from tests.support.proxied import Proxied, proxied

SLUG = b'"urn:cfproxy:problem:'


def saying(answer: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(answer)

    return script


async def ask(world: Proxied) -> tuple[list[Heard], bytes]:
    """Return the final responses, and the bytes of one that was cut off."""
    client = await world.client()
    await client.send(client.compose(b"GET /a HTTP/1.1", b"Connection: close"))
    data = bytearray()
    try:
        while piece := await client.reader.read(1 << 16):
            data += piece
    except ConnectionError:
        pass  # a cut
    answers, rest = read_answers(bytes(data), heads=False)
    return [answer for answer in answers if answer.status >= 200], rest


def slug(answer: Heard) -> str:
    """Return the slug of one of our responses, or "" for the upstream's."""
    return answer.body.partition(SLUG)[2].partition(b'"')[0].decode()


@pytest.mark.parametrize("garbage", NO_ANSWERS.values(), ids=NO_ANSWERS)
async def test_an_invalid_response_is_a_502(garbage: bytes) -> None:
    """The upstream is named as the cause, and nothing of its response is forwarded."""
    async with proxied(saying(garbage)) as world:
        [answer], rest = await ask(world)
        assert (answer.status, slug(answer), rest) == (502, "upstream-protocol", b"")
        assert not [event for event in world.events if event["event"] == "request.crashed"]


@pytest.mark.parametrize("answer", TOO_LONG.values(), ids=TOO_LONG)
async def test_a_head_beyond_the_limits_is_called_too_long(answer: bytes) -> None:
    """It is well-formed, and the message names the limits."""
    async with proxied(saying(answer)) as world:
        [said], rest = await ask(world)
        assert (said.status, slug(said), rest) == (502, "upstream-protocol", b"")
        assert b"is too long" in said.body
        assert b"256 KiB" in said.body
        assert b"128 KiB" in said.body
        assert b"1000 lines" in said.body


LONG = {
    "a header of 20 KB": sized(b"X-A: " + b"a" * 20_000),
    "a header of 70 KB": sized(b"X-A: " + b"a" * 70_000),
    "cookies of 40 KB": sized(*(b"Set-Cookie: c%d=%b" % (n, b"v" * 4000) for n in range(10))),
    "a policy of 120 KB": sized(b"Content-Security-Policy:" + b" connect-src https://a.example;" * 4000),
    "a redirect of 60 KB": sized(b"Location: /a?" + b"a" * 60_000, start=b"HTTP/1.1 302 Found"),
    "a head of 250 KB": sized(*(b"X-A%d: %b" % (n, b"a" * 50_000) for n in range(5))),
    "999 headers": sized(*(b"X-%d: a" % n for n in range(999))),
    "a reason of 40 KB": sized(start=b"HTTP/1.1 200 " + b"a" * 40_000),
    "a name of 40 KB": sized(b"X" * 40_000 + b": a"),
    "a failure": sized(b"X-Trace: " + b"a" * 70_000, start=b"HTTP/1.1 500 Internal Server Error"),
    "an interim response": head(b"X-Hint: " + b"a" * 70_000, start=b"HTTP/1.1 103 X") + sized(),
}


@pytest.mark.parametrize("piece_bytes", [1 << 20, 1460, 61])
@pytest.mark.parametrize("answer", LONG.values(), ids=LONG)
async def test_a_long_head_is_forwarded(answer: bytes, piece_bytes: int) -> None:
    """However it is split, as long as it is within the limits."""

    async def script(peer: Peer) -> None:
        await peer.take()
        for at in range(0, len(answer), piece_bytes):
            await peer.send(answer[at : at + piece_bytes])

    async with proxied(script) as world:
        [said], rest = await ask(world)
        assert (said.body, rest) == (b"ok", b"")
        expected = answer.rpartition(b"HTTP/1.1 ")[2].split(b"\r\n")
        got = said.raw.split(b"\r\n")
        assert got[0] == b"HTTP/1.1 " + expected[0]
        assert set(expected[1:]) <= set(got)


@pytest.mark.parametrize(
    "lines", [b"HTTP/1.1 200 OK\nX: a\n\n", b"HTTP/1.1 200 OK\r\nX: a\n\nok", b"HTTP/1.1 200\r\n\n"]
)
async def test_a_head_without_a_valid_end_is_refused_at_once(lines: bytes) -> None:
    """A lenient parser would see its empty line; the upstream sends nothing more."""

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(lines)
        await peer.ended()

    async with proxied(script, idle_s=0.5) as world:
        [answer], _ = await ask(world)
        assert (answer.status, slug(answer)) == (502, "upstream-protocol")


@pytest.mark.parametrize("body", BROKEN_BODIES.values(), ids=BROKEN_BODIES)
async def test_a_broken_body_is_never_taken_for_a_complete_one(body: bytes) -> None:
    """The client sees the failure, whether the head was already sent or not."""
    garbage = body if body.startswith(b"HTTP/") else head(b"Transfer-Encoding: chunked") + body
    async with proxied(saying(garbage)) as world:
        answers, rest = await ask(world)
        assert rest or [slug(answer) for answer in answers] == ["upstream-protocol"]


@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"\x00" * 9])
async def test_surplus_bytes_after_a_response_go_to_no_client(extra: bytes) -> None:
    """An unsolicited response is not given to the next request."""

    async def script(peer: Peer) -> None:
        await peer.take()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + extra)
        await peer.ended()

    async with proxied(script) as world:
        for _ in range(3):
            [answer], rest = await ask(world)
            assert (answer.body, rest) == (b"ok", b"") or slug(answer) == "upstream-protocol"
        assert world.origin.connections == 3


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """Return a response with some changes."""
    said = draw(st.sampled_from(GOOD) | st.sampled_from(sorted(NO_ANSWERS.values())))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(said), 300)))
        skip = draw(st.sampled_from((0, 0, 0, 1, 2, 20)))
        said = said[:at] + draw(st.sampled_from(SPICES)) + said[at + skip :]
    return said


@settings(max_examples=examples(250), suppress_health_check=[HealthCheck.too_slow])
@given(said=mutants() | st.binary(max_size=200))
async def test_any_response_of_an_upstream_is_handled(said: bytes) -> None:
    """One response or a visible cut, well-formed as far as it goes, without a crash."""
    async with proxied(saying(said)) as world:
        answers, rest = await ask(world)
        assert len(answers) == 1 or rest
        assert not answers or not rest
        for answer in answers:
            assert not slug(answer) or slug(answer) in {"upstream-protocol", "upstream-unreachable"}
        assert not [event for event in world.events if event["event"] == "request.crashed"]
