"""The admin listener as a part of the process: one application, at whatever address it has now.

Owns: its application from the first start to the end, and the address at which it is reached.
Must not know: what it answers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from cfproxy.accounts import RunningAccount
from cfproxy.doors import Door
from cfproxy.metrics import Metrics
from cfproxy.web.actions import Operations
from cfproxy.web.admin import Admin
from cfproxy.web.connections import Connections
from cfproxy.web.guard import AdminRules
from cfproxy.web.server import build_connection, build_room

CUT_S = 0.5  # for answers under way when everything else has ended


class AdminListener:
    """The admin endpoints of a process; off until it is switched to a door.

    Args:
        accounts: what they tell of; may change.
        metrics: what they expose.
        operations: what the process lets itself be told.
        log: where it goes that the address changed.
    """

    def __init__(
        self,
        accounts: Sequence[RunningAccount],
        metrics: Metrics,
        operations: Operations,
        log: FilteringBoundLogger,
    ) -> None:
        self._parts = (accounts, metrics, operations)
        self._log = log
        self._runner: web.AppRunner | None = None
        self._room: Connections | None = None
        self.admin: Admin | None = None
        self.url: str | None = None

    async def prepare(self, rules: AdminRules) -> None:
        """Build the application, once; the rules in use are not changed."""
        if self._runner is not None:
            return
        accounts, metrics, operations = self._parts
        self.admin = Admin(accounts, metrics, rules, operations)
        self._runner = web.AppRunner(
            self.admin.build_app(), access_log=None, handle_signals=False, shutdown_timeout=CUT_S
        )
        await self._runner.setup()
        self._room = build_room(self._log)

    def switch(self, door: Door | None, rules: AdminRules | None) -> None:
        """Be reached at `door` by whom `rules` say from now on; None: not at all. It is prepared."""
        if door is None or rules is None or self.admin is None or self._runner is None or self._room is None:
            self.url = None
            return
        assert self._runner.server is not None  # noqa: S101 - it is set up
        door.serve(functools.partial(build_connection, self._runner.server, self._room))
        self.admin.rules = rules
        self.admin.port = door.port or 0
        self.admin.started = True
        if self.url != f"http://{door.address}":
            self.url = f"http://{door.address}"
            self._log.info("admin.started", listen=str(door.address))

    def drain(self) -> None:
        """Say that the process is not ready any more."""
        if self.admin is not None:
            self.admin.draining = True

    async def aclose(self) -> None:
        """End every connection."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._room is not None:
            self._room.aclose()
