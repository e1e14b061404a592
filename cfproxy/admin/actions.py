"""What can be done to a running proxy through its admin listener: end it, reload it, change the log's level.

Owns: the three POSTs and their answers.
Must not know: who may (`admin.py` guards them), how anything is done.
"""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from cfproxy.errors import BadTarget


class Operations(Protocol):
    """What the process lets itself be told."""

    def stop(self) -> None:
        """End in good order."""

    async def reload(self) -> list[str]:
        """Use the configuration as it is now; return the keys that changed.

        Raises:
            ConfigError, ListenError, ShuttingDown: nothing was changed.
        """

    def set_log_level(self, level: str) -> None:
        """Write lines of `level` and above from now on.

        Raises:
            BadTarget: there is no such level.
        """


class Actions:
    """The handlers of the POSTs that act on the whole process.

    Args:
        operations: what they do.
    """

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_post("/shutdown", self._shutdown)
        app.router.add_post("/reload", self._reload)
        app.router.add_post("/log-level", self._log_level)

    async def _shutdown(self, _request: web.Request) -> web.Response:
        self._operations.stop()
        return web.json_response({"status": "shutting-down"}, status=202)

    async def _reload(self, _request: web.Request) -> web.Response:
        changed = await self._operations.reload()
        return web.json_response({"status": "reloaded", "changed": changed})

    async def _log_level(self, request: web.Request) -> web.Response:
        if "level" not in request.query:
            raise BadTarget("say which one: POST /log-level?level=debug (or info, warning, error)")
        self._operations.set_log_level(request.query["level"])
        return web.json_response({"status": "changed", "level": request.query["level"]})
