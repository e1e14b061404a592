"""The cases through `cfproxy serve` as it ships: a process with a login, a queue and a log."""

from __future__ import annotations

from pathlib import Path

import pytest

from cfproxy.sandbox import Fault
from tests.conformance.play import Stage, open_origin
from tests.conformance.suite import GROUPS
from tests.e2e.kit import open_world


@pytest.mark.e2e
async def test_the_shipped_program_passes_all_cases(tmp_path: Path) -> None:
    """One process passes every case that a listener with fakes passes."""
    async with open_origin() as origin, open_world(tmp_path) as world:
        retry = {"unauthorized": False, "too_many_requests": False}
        world.write_config(
            upstream=f"http://{origin.authority.decode()}",
            retry=retry,
            log={"format": "json", "request_id": False},
        )
        await world.log_in()
        # A case's 401 would have the token replaced that the next case expects.
        world.sandbox.inject("token", Fault("status", status=503, times=10_000))
        async with world.serve() as proxy:
            token = world.document()["access_token"].encode()
            stage = Stage(origin, int(proxy.url.rpartition(":")[2]), token)
            for case in [case for group in GROUPS for case in group.cases if not case.fails]:
                await stage.play(case)
        assert not proxy.events("request.crashed")
