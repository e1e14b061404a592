"""Invariants of two processes with one login, through any sequence of faults."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import count
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cfproxy.auth.models import Token, login_problem
from cfproxy.auth.token_source import TokenSource
from cfproxy.errors import CfproxyError, Misconfigured, StoreUnavailable, StoreUnusable
from cfproxy.secret import Secret
from tests.support.examples import examples
from tests.support.fakes import LOST, World, down

WHO = st.integers(0, 1)
OUTCOMES: list[Exception | str] = [
    down(),
    down(sent=False),
    down(retry_after_s=40.0),
    LOST,
    Misconfigured("the app is refused"),
    ValueError("a bug"),
]
FAULTS = st.sampled_from([StoreUnavailable("out of reach"), StoreUnusable("damaged")])


class Story(RuleBasedStateMachine):
    """Time, requests, outages, store faults, logins and logouts, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.numbers = count(100)
        self.callers: list[asyncio.Task[None]] = []
        self.wrong: list[str] = []
        self.clock_went_back = False
        # Set once a token may be in one memory only, or its answer was lost: then a login may be lost.
        self.excused = False

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        async def settle() -> None:
            await work
            await self.world.clock.settle()

        self.runner.run(settle())

    @initialize(logged_in=st.booleans())
    def start(self, logged_in: bool) -> None:
        self.world = World()

        async def open_sources() -> None:
            if logged_in:
                await self._log_in()
            self.sources = [await self.world.token_source(), await self.world.token_source()]

        self.run(open_sources())

    # --- events --------------------------------------------------------------------------

    @rule(by_s=st.sampled_from([0.3, 1.0, 5.0, 31.0, 299.0, 900.0, 3300.0, 3601.0]))
    def time_passes(self, by_s: float) -> None:
        self.run(self.world.clock.advance(by_s))

    @rule(by_s=st.sampled_from([-86400.0, -60.0, 60.0, 3600.0, 86400.0]))
    def wall_clock_jumps(self, by_s: float) -> None:
        self.world.clock.jump_wall(by_s)
        self.clock_went_back |= by_s < 0

    @rule(who=WHO, times=st.integers(1, 4))
    def requests_come(self, who: int, times: int) -> None:
        async def ask() -> None:
            for _ in range(times):
                self.callers.append(asyncio.create_task(self._get(self.sources[who])))

        self.run(ask())

    @rule(who=WHO, number=st.integers(1, 6))
    def a_token_is_rejected(self, who: int, number: int) -> None:
        async def ask() -> None:
            login = self.sources[who].state().login
            token = login.token if login and number > 2 else Token(Secret(f"access-{number}"), 0.0, 1.0)
            self.callers.append(asyncio.create_task(self._replace(self.sources[who], token)))

        self.run(ask())

    @precondition(lambda self: any(not caller.done() for caller in self.callers))
    @rule(which=st.integers(0, 20))
    def a_caller_leaves(self, which: int) -> None:
        waiting = [caller for caller in self.callers if not caller.done()]
        waiting[which % len(waiting)].cancel()
        self.run(asyncio.sleep(0))

    @rule(outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=4))
    def the_endpoint_will_fail(self, outcomes: list[Exception | str]) -> None:
        self.world.endpoint.plan += outcomes
        self.excused |= LOST in outcomes

    @rule(outage=st.booleans())
    def the_endpoint_is_down(self, outage: bool) -> None:
        self.world.endpoint.always = down(sent=False) if outage else None

    @rule(stalls=st.booleans())
    def the_endpoint_stalls(self, stalls: bool) -> None:
        if stalls:
            self.world.endpoint.gate.clear()
        else:
            self.world.endpoint.gate.set()
        self.run(asyncio.sleep(0))

    @rule(fault=FAULTS, good_saves=st.integers(0, 2), lands=st.booleans())
    def saving_fails(self, fault: CfproxyError, good_saves: int, lands: bool) -> None:
        store = self.world.store
        store.save_fault, store.good_saves, store.save_lands = fault, good_saves, lands
        self.excused = True

    @rule(fault=FAULTS, lock_too=st.booleans())
    def reading_fails(self, fault: CfproxyError, lock_too: bool) -> None:
        self.world.store.load_fault = fault
        self.world.store.lock_fault = fault if lock_too else None

    @rule()
    def the_store_is_mended(self) -> None:
        self.world.store.mend()

    @rule()
    def a_person_logs_in(self) -> None:
        self.run(self._log_in())

    @rule()
    def a_person_logs_out(self) -> None:
        async def log_out() -> None:
            if self.world.endpoint.in_flight == 0:  # a logout waits for the lock
                await self.world.store.delete("default")

        self.run(log_out())

    @precondition(lambda self: self.world.endpoint.gate.is_set())
    @rule(who=WHO)
    def a_process_restarts(self, who: int) -> None:
        async def restart() -> None:
            await self.sources[who].aclose()
            self.sources[who] = await self.world.token_source()

        self.run(restart())

    # --- invariants ----------------------------------------------------------------------

    @invariant()
    def every_caller_got_a_valid_token_or_an_error(self) -> None:
        assert self.wrong == []

    @invariant()
    def the_endpoint_is_asked_by_one_at_a_time(self) -> None:
        assert self.world.endpoint.most_in_flight <= 1

    @invariant()
    def an_answered_refresh_token_is_never_presented_again(self) -> None:
        calls = self.world.endpoint.calls
        again = [token for token in self.world.endpoint.answered if calls.count(token) > self._tries(token)]
        assert self.excused or again == []

    @invariant()
    def serials_only_grow(self) -> None:
        assert self.world.store.shrunk == []

    @invariant()
    def each_process_has_one_timer_at_most(self) -> None:
        assert self.world.clock.sleeping <= 2

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.runner.run(self._end_well())
        finally:
            self.runner.close()

    async def _end_well(self) -> None:
        """Check that a login that the server still honours works again, and that no task is left."""
        world = self.world
        world.store.mend()
        world.endpoint.plan, world.endpoint.always = [], None
        world.endpoint.gate.set()
        await world.clock.advance(400)
        for token_source in self.sources:
            await token_source.check_store()
            await world.clock.settle()
        stored = await world.store.load("default")
        if stored is not None and login_problem(stored, world.app) is None:
            assert self.excused or stored.refresh_token == Secret(str(world.endpoint.live))
            for token_source in self.sources:
                self._judge(await token_source.get())
                assert not token_source.state().unsaved
        elif stored is not None:
            assert self.excused, "a login was lost"
        await asyncio.gather(*self.callers, return_exceptions=True)
        assert self.wrong == []
        await world.aclose(most_naps=200)

    # --- helpers -------------------------------------------------------------------------

    def _tries(self, token: str) -> int:
        """Return how often a token may have been sent: once, and once for each failure of the endpoint."""
        return self.world.endpoint.failed.count(token) + 1

    async def _log_in(self) -> None:
        world, number = self.world, next(self.numbers)
        if world.endpoint.in_flight:  # a login waits for the lock
            return
        world.endpoint.live = f"refresh-{number}"
        token = Token(Secret(f"access-{number}"), world.clock.time(), 3600.0)
        world.endpoint.dies_at[f"access-{number}"] = world.clock.monotonic() + 3600
        # `login_at` tells logins apart, also where the clock stands still.
        login_at = world.clock.time() + number / 1000
        await world.put(token=token, refresh_token=Secret(f"refresh-{number}"), login_at=login_at)

    async def _get(self, token_source: TokenSource) -> None:
        try:
            token = await token_source.get()
        except CfproxyError:
            return
        self._judge(token)

    async def _replace(self, token_source: TokenSource, rejected: Token) -> None:
        try:
            token = await token_source.replace(rejected, None)
        except CfproxyError:
            return
        if token.value != rejected.value:
            self._judge(token)

    def _judge(self, token: Token) -> None:
        clock = self.world.clock
        name = token.value.reveal()
        if token.remaining_s(clock.time()) <= 0:
            self.wrong.append(f"{name} had expired by the wall clock")
        # A process that starts after the wall clock was set back has only that clock.
        if clock.monotonic() >= self.world.endpoint.dies_at[name] and not self.clock_went_back:
            self.wrong.append(f"{name} had expired by the monotonic clock")


TestStory = Story.TestCase
TestStory.settings = settings(max_examples=examples(80), stateful_step_count=40)
