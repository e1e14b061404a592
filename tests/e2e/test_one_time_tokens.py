"""One-time refresh tokens survive repetition, other processes and kill -9; a loss is reported."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from cfproxy.auth.token_source import TokenSource
from cfproxy.errors import LoginRequired
from cfproxy.runtime.factory import build_endpoint, build_store, build_token_source
from cfproxy.sandbox import Fault
from tests.e2e.kit import World
from tests.e2e.processes import PATIENCE_S
from tests.support.paths import ROOT

HERE = Path(__file__).parent
STEPS_MAX = 120
Kill = Callable[[int], Awaitable[str | None]]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def open_token_source(world: World) -> TokenSource:
    account = world.account()
    silent = structlog.make_filtering_bound_logger(50)
    log = structlog.wrap_logger(structlog.PrintLogger(), wrapper_class=silent)
    return build_token_source(account, build_store(account), build_endpoint(account), log)


def issued(world: World) -> int:
    """Return the number of refreshes of the server."""
    requests = world.sandbox.token_requests
    return sum(each.grant == "refresh_token" and each.outcome == "issued" for each in requests)


async def test_consecutive_refreshes_use_each_token_once(world: World) -> None:
    """Two hundred refreshes never send a refresh token twice."""
    await world.log_in()
    token_source = open_token_source(world)
    await token_source.start()
    seen = set()
    for _ in range(200):
        seen.add((await token_source.replace(await token_source.get(), None)).value)
    await token_source.aclose()
    assert len(seen) == 200
    assert (issued(world), world.sandbox.reuse_seen) == (200, 0)


async def test_two_processes_share_one_login(world: World) -> None:
    """Two processes that refresh one login a hundred times each never use a token twice."""
    await world.log_in()
    command = [sys.executable, str(HERE / "rival.py"), str(world.config_path), "100"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    rivals = [subprocess.Popen(command, env=environment) for _ in range(2)]
    try:
        codes = [await asyncio.to_thread(rival.wait, PATIENCE_S) for rival in rivals]
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()
    assert codes == [0, 0]
    assert (issued(world), world.sandbox.reuse_seen) == (200, 0)


@asynccontextmanager
async def deadly_children(world: World) -> AsyncIterator[Kill]:
    """Give a function that refreshes in a child, which is killed at the step of that number."""
    command = [sys.executable, str(HERE / "deadly.py"), str(world.config_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(number: int) -> str | None:
        assert driver.stdin is not None
        assert driver.stdout is not None
        driver.stdin.write(b"%d\n" % number)
        driver.stdin.flush()
        step: str | None = json.loads(driver.stdout.readline())
        return step

    try:
        yield lambda number: asyncio.to_thread(ask, number)
    finally:
        driver.kill()
        await asyncio.to_thread(driver.communicate)


@dataclass(frozen=True)
class Killed:
    """The state after a child was killed before `step`."""

    step: str
    consumed: bool
    saved: bool
    works: bool
    reuses: int
    words: str


async def kill_at(world: World, kill: Kill, number: int) -> Killed | None:
    """Log in, refresh in a child that is killed at step `number`, then start again."""
    await world.log_in()
    world.age(7200)
    before, reuses_before = issued(world), world.sandbox.reuse_seen
    step = await kill(number)
    if step is None:
        return None
    consumed = issued(world) > before
    saved = consumed and world.document()["access_token"] == world.sandbox.access_tokens[-1].value
    token_source = open_token_source(world)
    words = ""
    try:
        await token_source.get()
    except LoginRequired as error:
        words = error.message
    await token_source.aclose()
    reuses = world.sandbox.reuse_seen - reuses_before
    return Killed(step, consumed, saved, not words, reuses, words)


@needs_fork
async def test_kill_9_at_any_step_keeps_the_login_unless_its_answer_was_lost(world: World) -> None:
    """Whenever the process is killed, the login keeps working, except in one case that is reported.

    The case: the server used the refresh token up, and its answer was not on disk yet.
    """
    outcomes = []
    async with deadly_children(world) as kill:
        for number in range(1, STEPS_MAX):
            outcome = await kill_at(world, kill, number)
            if outcome is None:
                break
            outcomes.append(outcome)
    assert number < STEPS_MAX - 1
    steps = [outcome.step for outcome in outcomes]
    request = steps.index("before the request")
    for name in ("open", "write", "fsync", "replace"):
        assert name in steps[:request], "the mark is saved before the request"
        assert name in steps[request:], "the token is saved after it"
    assert {"before reading the answer", "after the answer"} <= set(steps[request:])
    for outcome in outcomes:
        lost = outcome.consumed and not outcome.saved
        assert outcome.works is not lost, outcome
        assert ("its answer never arrived" in outcome.words) is lost, outcome
        # A lost answer shows only by a replay, and there is no other replay.
        assert outcome.reuses == lost, outcome
    assert {(each.consumed, each.saved) for each in outcomes} == {(False, False), (True, False), (True, True)}


@needs_fork
async def test_status_reports_a_lost_answer(world: World) -> None:
    """After a kill between request and answer, status says what is known before and after the next try."""
    await world.log_in()
    world.age(7200)
    async with deadly_children(world) as kill:
        number = 1
        while await kill(number) != "before reading the answer":
            number += 1
            await world.log_in()
            world.age(7200)
    open_mark = await world.run("status", "--json")
    assert open_mark.code == 0
    report = json.loads(open_mark.out)["accounts"][0]
    assert report["login"]["refresh_pending_since"] is not None
    assert "its outcome is not recorded" in report["detail"]

    tried = await world.run("token")
    assert (tried.code, tried.out) == (3, "")
    assert "its answer never arrived" in tried.line
    for args in (["status"], ["status", "--json"]):
        told = await world.run(*args)
        assert told.code == 3
        assert "login-required" in told.out
        assert "its answer never arrived" in told.out
        assert "cfproxy login" in told.out
    await world.log_in()
    assert (await world.run("status")).code == 0


async def test_a_lost_answer_is_reported_and_a_login_repairs_it(world: World) -> None:
    """Only a refresh whose answer was lost on the network leads to that message."""
    await world.log_in()
    world.age(7200)
    world.sandbox.inject("token", Fault("lost"))
    first = await world.run("token")
    assert first.code == 5
    second = await world.run("token")
    assert second.code == 3
    assert "its answer never arrived" in second.line
    requests = len(world.sandbox.token_requests)
    assert (await world.run("token")).code == 3
    assert len(world.sandbox.token_requests) == requests, "a refused token is not presented again"
    assert world.sandbox.reuse_seen == 1
    await world.log_in()
    assert (await world.run("token")).code == 0
