"""Every hostile request of the corpus, split in any way, has its expected outcome."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from cfproxy.secret import Secret
from tests.security.arena import Outcome, arena
from tests.security.case import IN_DOUBT, KEY, Case, get
from tests.security.corpus import BY_NAME, CORPUS
from tests.security.strict import Heard

# Longer cases are about size and consist of repeated bytes.
EACH_BYTE_MAX = 2_000
OURS = frozenset({b"host", b"via", b"authorization", b"expect"})
CANARY = Case("canary", get(target=b"/canary"), ())

every_case = pytest.mark.parametrize("case", CORPUS, ids=[case.name for case in CORPUS])


def without_ours(request: Heard) -> bytes:
    """Return a request as the corpus has it, with its trailers after its body."""
    lines = request.raw.partition(b"\r\n\r\n")[0].split(b"\r\n")
    lines = [line for line in lines if line.split(b":")[0].lower() not in OURS]
    trailers = b"".join(b"%b: %b\r\n" % trailer for trailer in request.trailers)
    return b"\r\n".join([*lines, b"", b""]) + request.body + trailers


def check(case: Case, outcome: Outcome) -> None:
    """Compare the outcome with the corpus."""
    assert outcome.answers == case.answers
    if case.up is None:
        assert len(outcome.requests) == case.answers.count("ok")
    else:
        assert tuple(without_ours(request) for request in outcome.requests) == case.up
    if case.answers and case.answers[-1] in IN_DOUBT:
        assert outcome.closing or outcome.ended


def pieces_of(sent: bytes, chance: random.Random, cuts: int) -> list[bytes]:
    at = sorted({0, *(chance.randrange(len(sent)) for _ in range(cuts)), len(sent)})
    return [sent[a:b] for a, b in pairwise(at)]


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    """Otherwise a case that was lost by mistake would not be noticed."""
    assert len(BY_NAME) == len(CORPUS) > 780


@pytest.mark.slow
@every_case
async def test_each_case_has_its_expected_outcome(case: Case) -> None:
    """Whole, byte by byte, split at random, or with a key; after a doubtful request nothing is served."""
    chance = random.Random(case.name)
    async with arena(case.rules, case.base_path) as field:
        sent = case.bytes_for(field.port)
        doubtful = case.answers[-1:] and case.answers[-1] in IN_DOUBT
        check(case, await field.play([sent], then=CANARY.bytes_for(field.port) if doubtful else b""))
        check(case, await field.play(pieces_of(sent, chance, 1)))
        check(case, await field.play(pieces_of(sent, chance, 7)))
        if len(sent) <= EACH_BYTE_MAX:
            check(case, await field.play([sent[n : n + 1] for n in range(len(sent))]))
    async with arena(replace(case.rules, keys=(Secret(KEY.decode()),)), case.base_path) as field:
        sent = case.bytes_for(field.port, KEY)
        if sent != case.bytes_for(field.port):
            check(case, await field.play([sent]))


@every_case
async def test_without_the_key_nothing_is_forwarded(case: Case) -> None:
    """If keys are required, no byte reaches the API before one was presented."""
    if case.rules.keys:  # it brings one, or says what comes of none
        return
    async with arena(replace(case.rules, keys=(Secret(KEY.decode()),)), case.base_path) as field:
        outcome = await field.play([case.bytes_for(field.port)])
        assert "ok" not in outcome.answers
        assert field.seen_bytes == 0


@pytest.mark.slow
@every_case
async def test_no_prefix_is_forwarded_if_the_whole_is_refused(case: Case) -> None:
    """A request that is cut off forwards nothing that the rest would have made invalid."""
    chance = random.Random(case.name)
    async with arena(case.rules, case.base_path) as field:
        sent = case.bytes_for(field.port)
        seen = await field.play(pieces_of(sent, chance, 1))
        whole = [(r.start, r.headers, r.body) for r in seen.requests]
        ends = sorted({n + d for n in range(len(sent)) if sent[n] in b"\r\n" for d in (0, 1)})
        cuts = chance.sample(ends, min(8, len(ends))) + [chance.randrange(len(sent)) for _ in range(3)]
        for finish in (False, True):
            parts = await field.play_at_once([sent[:n] for n in cuts], finish=finish)
            assert all((r.start, r.headers, r.body) in whole for r in parts)
