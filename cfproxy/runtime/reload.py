"""What a running proxy lets itself be told: to end, to reload, to log more or less.

Owns: that one reload is done at a time and none after the end was asked for, and what is told of it.
Must not know: who asks (a signal, the admin listener), how a change is carried out (`service.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from structlog.typing import FilteringBoundLogger

from cfproxy.config import Settings
from cfproxy.errors import BadTarget, CfproxyError, ConfigError, Problem, ShuttingDown
from cfproxy.observability.logs import LEVELS, LogOutput

_NO_RELOAD = "this proxy was started without a configuration that could be read again; restart it"


class Control:
    """`web.actions.Operations` of one process.

    Args:
        load: reads the configuration again; None where it can't be.
        change: puts settings in use as a whole, or raises and changes nothing; returns the keys that changed.
        logs: the log's output; None where its level is not ours.
        log: where events go.
        tell: called with `reloading`, and `ready` afterwards.
    """

    def __init__(
        self,
        load: Callable[[], Settings] | None,
        change: Callable[[Settings], Awaitable[list[str]]],
        logs: LogOutput | None,
        log: FilteringBoundLogger,
        tell: Callable[[str], None],
    ) -> None:
        self._load = load
        self._change = change
        self._logs = logs
        self._log = log
        self._tell = tell
        self.stopped = asyncio.Event()  # set when the end was asked for
        self.reloading = asyncio.Lock()

    def stop(self) -> None:
        """Ask for the end; whoever waits on `stopped` brings it about."""
        self.stopped.set()

    def set_log_level(self, level: str) -> None:
        """Write lines of `level` and above until the next reload (see `web.actions`)."""
        if level not in LEVELS or level == "silent" or self._logs is None:
            raise BadTarget("there is no such level; take debug, info, warning or error")
        self._logs.set_level(level)
        self._log.warning("log.level_changed", to=level)

    async def reload(self) -> list[str]:
        """Read the configuration again and use it; on any problem the present one stays in use.

        Returns:
            the keys that changed.

        Raises:
            ConfigError, ListenError, ShuttingDown: nothing was changed.
        """
        async with self.reloading:
            if self.stopped.is_set():
                raise ShuttingDown("the proxy is shutting down; start it with the new configuration")
            self._tell("reloading")
            try:
                changed = await self._change(await self._read())
            except CfproxyError as error:
                problems: tuple[object, ...] = error.problems if isinstance(error, ConfigError) else (error,)
                for problem in problems:
                    self._log.error("config.refused", reason=str(problem))
                raise
            except Exception:  # noqa: BLE001 - logged whole; the token in hand does not depend on it
                self._log.exception("config.reload_crashed")
                raise CfproxyError("an internal fault; the log has it under config.reload_crashed") from None
            finally:
                self._tell("ready")
            self._log.info("config.reloaded", changed=changed)
            return changed

    async def _read(self) -> Settings:
        if self._load is None:
            raise ConfigError(_NO_RELOAD, (Problem("", "", _NO_RELOAD),))
        # In a thread: the file of a secret may be on a disk that is slow today.
        return await asyncio.to_thread(self._load)
