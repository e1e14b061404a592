"""The admin listener as a part of the process: one application, at whatever address it has now.

Owns: when its application is built, that it lasts to the end, and the address at which it is reached.
Must not know: what it answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from cfproxy.admin.access import AdminRules
from cfproxy.observability.metrics import Metrics
from cfproxy.server.connection_limits import Connections
from cfproxy.server.listener import ListeningSocket

if TYPE_CHECKING:
    from aiohttp import web

    from cfproxy.admin.actions import Operations
    from cfproxy.admin.app import Account, Admin

CUT_S = 0.5  # for answers under way when everything else has ended
# What the first requests to the API are ahead of it: importing it takes as long as a tenth of the start.
LEAD_S = 0.5
_IMPORTED_LATE = ("cfproxy.admin.app", "cfproxy.admin.connection", "cfproxy.observability.prometheus")


class AdminListener:
    """The admin endpoints of a process; off until it is switched to a door.

    They are built when somebody asks for them, or soon after the start: who comes before waits at the door.
    If that fails nobody waits any more, and the next reload tries again.

    Args:
        accounts: what they tell of; may change.
        metrics: what they expose.
        operations: what the process lets itself be told.
        log: where it goes that the address changed.
    """

    def __init__(
        self,
        accounts: Sequence[Account],
        metrics: Metrics,
        operations: Operations,
        log: FilteringBoundLogger,
    ) -> None:
        self._parts = (accounts, metrics, operations)
        self._log = log
        self._place: tuple[ListeningSocket, AdminRules] | None = None
        self._building: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None
        self._room: Connections | None = None
        self._draining = False
        self.admin: Admin | None = None
        self.url: str | None = None

    def switch(self, door: ListeningSocket | None, rules: AdminRules | None) -> None:
        """Be reached at `door` by whom `rules` say from now on; None: not at all."""
        if door is None or rules is None:
            self._place = self.url = None
            return
        self._place = (door, rules)
        if self._building is None:
            self._building = asyncio.create_task(self._build(door, rules))
            self._building.add_done_callback(self._tell_failure)
        self._serve()
        if self.url != f"http://{door.address}":
            self.url = f"http://{door.address}"
            self._log.info("admin.started", listen=str(door.address))

    async def _build(self, door: ListeningSocket, rules: AdminRules) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAD_S):
                await door.asked.wait()
        for name in _IMPORTED_LATE:
            await asyncio.to_thread(import_module, name)  # requests go on in the meantime
        from aiohttp import web  # noqa: PLC0415 - they are there now

        from cfproxy.admin.app import Admin  # noqa: PLC0415
        from cfproxy.admin.connection import build_room  # noqa: PLC0415

        accounts, metrics, operations = self._parts
        admin = Admin(accounts, metrics, rules, operations)
        self._runner = web.AppRunner(
            admin.build_app(), access_log=None, handle_signals=False, shutdown_timeout=CUT_S
        )
        await self._runner.setup()
        self._room = build_room(self._log)
        admin.draining = self._draining
        self.admin = admin
        self._serve()

    def _tell_failure(self, building: asyncio.Task[None]) -> None:
        error = None if building.cancelled() else building.exception()
        if error is not None:
            self._log.error("admin.failed", exc_info=error)
            self._building = None
            if self._place is not None:
                self._place[0].turn_away()

    def _serve(self) -> None:
        """Serve the door of the moment, if the application is there."""
        if self._place is None or self.admin is None or self._runner is None or self._room is None:
            return
        from cfproxy.admin.connection import build_connection  # noqa: PLC0415 - see `_build`

        door, self.admin.rules = self._place
        assert self._runner.server is not None  # noqa: S101 - it is set up
        door.serve(functools.partial(build_connection, self._runner.server, self._room))
        self.admin.port = door.port or 0
        self.admin.started = True

    def drain(self) -> None:
        """Say that the process is not ready any more."""
        self._draining = True
        if self.admin is not None:
            self.admin.draining = True

    async def aclose(self) -> None:
        """End every connection."""
        if self._building is not None:
            self._building.cancel()
            await asyncio.wait({self._building})
        if self._runner is not None:
            await self._runner.cleanup()
        if self._room is not None:
            self._room.aclose()
