"""Requests that nobody thought of: the table's, changed at random. Only the invariant is checked."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.arena import arena
from tests.hostile.case import Case
from tests.hostile.corpus import CORPUS

SEEDS = tuple(case for case in CORPUS if len(case.sent) < 1_000)
# What parsers stumble over, and pieces of what they look for.
SPICES = (
    *(bytes([code]) for code in range(256)),
    *(b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\n ", b"\r\n\t", b": ", b" :", b"0\r\n\r\n", b"%2e", b"//", b"/../"),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: evil.example\r\n", b" HTTP/1.1"),
    *(b"Connection: close\r\n", b"Connection: Authorization\r\n", b"Authorization: Bearer evil\r\n"),
    *(
        b"Expect: 100-continue\r\n",
        b"GET /smuggled HTTP/1.1\r\n",
        b"ffffffff\r\n",
        b"chunked",
        b"\xef\xbb\xbf",
    ),
)


@st.composite
def mutants(draw: st.DrawFn) -> Case:
    """Return a case with up to six changes: bytes and lines put in, taken out, doubled or exchanged."""
    case = draw(st.sampled_from(SEEDS))
    sent = case.sent
    for _ in range(draw(st.integers(1, 6))):
        by_line = draw(st.booleans())
        parts = sent.splitlines(keepends=True) if by_line else [bytes([code]) for code in sent]
        if not parts:
            break
        at = draw(st.integers(0, len(parts) - 1))
        what = draw(
            st.sampled_from(("put in", "put in", "take out", "double", "exchange", "replace", "splice"))
        )
        if what == "put in":
            parts.insert(at, draw(st.sampled_from(SPICES)))
        elif what == "take out":
            del parts[at]
        elif what == "double":
            parts.insert(at, parts[at])
        elif what == "exchange":
            other = draw(st.integers(0, len(parts) - 1))
            parts[at], parts[other] = parts[other], parts[at]
        elif what == "replace":
            parts[at] = draw(st.sampled_from(SPICES))
        else:
            parts[at:] = [draw(st.sampled_from(SEEDS)).sent[draw(st.integers(0, 200)) :]]
        sent = b"".join(parts)
    return Case(case.name, sent, (), rules=case.rules, base_path=case.base_path)


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(case=mutants(), cut=st.integers(0, 400))
async def test_whatever_is_sent_what_arrives_is_beyond_doubt(case: Case, cut: int) -> None:
    """Proper answers to the client, proper requests to the API, an "ok" for nothing that did not arrive."""
    async with arena(case.rules, case.base_path) as field:
        sent = case.bytes_for(field.port)
        for pieces in ([sent], [sent[:cut], sent[cut:]], [sent[n : n + 1] for n in range(len(sent))]):
            outcome = await field.play(pieces)
            assert outcome.answers.count("ok") <= len(outcome.requests)
