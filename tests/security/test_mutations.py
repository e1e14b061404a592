"""Random changes of the corpus' requests; only the invariants are checked."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.security.arena import arena
from tests.security.case import HOST, KEY, Case
from tests.security.corpus import CORPUS
from tests.support.examples import examples

SEEDS = tuple(case for case in CORPUS if len(case.sent) < 1_000)
# Forwarded cases only, because changes of refused cases are usually refused as well.
GOOD_SEEDS = tuple(case for case in SEEDS if case.answers[-1:] == ("ok",))
# Bytes that confuse parsers, and parts of what they look for.
SPICES = (
    *(bytes([code]) for code in range(256)),
    *(b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\n ", b"\r\n\t", b": ", b" :", b"0\r\n\r\n", b"%2e", b"//", b"/../"),
    *(b" HTTP/1.1", b"chunked", b"ffffffff\r\n", b"\xef\xbb\xbf", b"3\r\nabc\r\n", b",", b"_", b"http://"),
)


def fields_of(cases: tuple[Case, ...]) -> tuple[bytes, ...]:
    heads = [case.sent.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:] for case in cases]
    return tuple(sorted({line + b"\r\n" for head in heads for line in head if not line.startswith(HOST)}))


# Header lines that are usually accepted.
GOOD_FIELDS, FIELDS = fields_of(GOOD_SEEDS), fields_of(SEEDS)


@st.composite
def mutants(draw: st.DrawFn) -> Case:
    """Return a case with some bytes and lines inserted, removed, doubled, exchanged or replaced."""
    case = draw(st.sampled_from(GOOD_SEEDS) | st.sampled_from(SEEDS))
    sent = case.sent
    for _ in range(draw(st.integers(1, 4))):
        by_line = draw(st.sampled_from((True, True, True, False)))
        parts = sent.splitlines(keepends=True) if by_line else [bytes([code]) for code in sent]
        if not parts:
            break
        at = draw(st.integers(0, len(parts) - 1))
        what = draw(
            st.sampled_from(("put in", "put in", "put in", "take out", "double", "exchange", "append"))
        )
        if what == "put in" and by_line:
            parts.insert(
                draw(st.integers(1, max(1, len(parts) - 1))),
                draw(st.sampled_from(draw(st.sampled_from((GOOD_FIELDS, GOOD_FIELDS, FIELDS))))),
            )
        elif what == "put in":
            parts.insert(at, draw(st.sampled_from(SPICES)))
        elif what == "take out":
            del parts[at]
        elif what == "double":
            parts.insert(at, parts[at])
        elif what == "exchange":
            other = draw(st.integers(0, len(parts) - 1))
            parts[at], parts[other] = parts[other], parts[at]
        else:
            parts.append(draw(st.sampled_from(SEEDS)).sent)
        sent = b"".join(parts)
    if not case.rules.keys:  # then it is no access key, and passes like any other text
        sent = sent.replace(KEY, b"not-a-key")
    return Case(case.name, sent, (), rules=case.rules, base_path=case.base_path)


@settings(
    max_examples=examples(400),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(case=mutants(), cut=st.integers(0, 400))
async def test_no_mutated_request_breaks_an_invariant(case: Case, cut: int) -> None:
    """Clients and the API receive well-formed messages, and "ok" only for a request that arrived.

    A mutation may move the access key into a target or a body; no header value may be the key.
    """
    async with arena(case.rules, case.base_path, key_in_content=True) as field:
        sent = case.bytes_for(field.port)
        for pieces in ([sent], [sent[:cut], sent[cut:]], [sent[n : n + 1] for n in range(len(sent))]):
            outcome = await field.play(pieces)
            assert outcome.answers.count("ok") <= len(outcome.requests)
