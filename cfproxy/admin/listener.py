"""The admin listener of the process: which socket it serves, and when its endpoints are loaded."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from structlog.typing import FilteringBoundLogger

from cfproxy.admin.access import AdminRules
from cfproxy.admin.interfaces import Operations, ServedAccount
from cfproxy.admin.messages import AdminRequest, AdminResponse
from cfproxy.admin.server import AdminServer
from cfproxy.errors import CfproxyError
from cfproxy.observability.metrics import Metrics
from cfproxy.server.listener import ListeningSocket

if TYPE_CHECKING:
    from cfproxy.admin.app import AdminApp

# Importing these takes about a tenth of the start, so the first requests to the API go first.
LEAD_S = 0.5
_APP = "cfproxy.admin.app"


class AdminListener:
    """The admin endpoints of a process; off until `switch` gives it a socket.

    Its endpoints are loaded by the first request, or soon after the start, since an update may later replace
    their files. If that fails, requests get a problem document and the next reload tries again.

    Args:
        accounts: the accounts to report; may change.
        metrics: the metrics to expose.
        operations: what requests can do to the process.
        log: logs changes of the address, and failures.
    """

    def __init__(
        self,
        accounts: Sequence[ServedAccount],
        metrics: Metrics,
        operations: Operations,
        log: FilteringBoundLogger,
    ) -> None:
        self._accounts = accounts
        self._metrics = metrics
        self._operations = operations
        self._log = log
        self._rules: AdminRules | None = None
        self._requested = asyncio.Event()
        self._loading: asyncio.Task[None] | None = None
        self._server: AdminServer | None = None
        self._draining = False
        self.app: AdminApp | None = None  # once it is loaded
        self.url: str | None = None

    def switch(self, listening: ListeningSocket | None, rules: AdminRules | None) -> None:
        """Serve `listening` by `rules` from now on; None turns the listener off."""
        if listening is None or rules is None:
            self.url = None
            return
        self._rules = rules
        if self._server is None:
            self._server = AdminServer(self._respond, self._log)
        if self.app is not None:
            self.app.rules = rules
        elif self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._load())
        listening.serve(self._server.build_connection)
        if self.url != f"http://{listening.address}":
            self.url = f"http://{listening.address}"
            self._log.info("admin.started", listen=str(listening.address))

    async def _load(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAD_S):
                await self._requested.wait()
        try:
            await asyncio.to_thread(import_module, _APP)  # meanwhile the loop serves requests
            from cfproxy.admin.app import AdminApp  # noqa: PLC0415 - imported by now
        except Exception as error:  # noqa: BLE001 - logged; the proxy itself works without these pages
            self._log.error("admin.failed", exc_info=error)
            return
        assert self._rules is not None  # noqa: S101 - `switch` has set them
        self.app = AdminApp(self._accounts, self._metrics, self._operations, self._rules)
        self.app.draining = self._draining

    async def _respond(self, request: AdminRequest) -> AdminResponse:
        self._requested.set()
        if self.app is None and self._loading is not None:
            await asyncio.wait({self._loading})
        if self.app is None:
            raise CfproxyError("the admin pages failed to load; the log has the reason under admin.failed")
        return await self.app.respond(request)

    def drain(self) -> None:
        """Report from now on that the process is shutting down."""
        self._draining = True
        if self.app is not None:
            self.app.draining = True

    async def aclose(self) -> None:
        """Close every connection."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait({self._loading})
        if self.app is not None:
            await self.app.aclose()
        if self._server is not None:
            await self._server.aclose()
