"""What the client sent is what the upstream gets, and the other way round: every case, byte by byte."""

from __future__ import annotations

import pytest

from tests.fidelity.ends import NotKept
from tests.fidelity.play import Stage, open_origin
from tests.fidelity.script import Case
from tests.fidelity.suite import GROUPS
from tests.origin import OK, answering
from tests.proxied import proxied

FAILING_PATIENCE_S = 1.0


def _parameters() -> list[object]:
    return [
        pytest.param(
            case,
            id=f"{group.name}: {case.name}".replace("::", ":"),
            marks=[pytest.mark.xfail(strict=True, raises=NotKept, reason=case.fails)] if case.fails else [],
        )
        for group in GROUPS
        for case in group.cases
    ]


@pytest.mark.parametrize("case", _parameters())
async def test_is_kept(case: Case) -> None:
    """The case goes as it is written, through a listener on loopback."""
    async with (
        open_origin() as origin,
        proxied(answering(OK), upstream_url=f"http://{origin.authority.decode()}", retry=False) as world,
    ):
        stage = Stage(origin, world.port, b"token-1")
        if case.fails:
            stage.patience_s = FAILING_PATIENCE_S
        await stage.play(case)
