"""Logging: one structlog configuration for the program.

Owns: format, level, and what never gets into a line.
Invariants: only fields that are listed here show their value, and a `Secret` among those shows as redacted;
a stack trace shows code, never locals; what libraries log through the standard library comes out in the same
form, without the values that they put into their texts.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, FilteringBoundLogger, Processor

# What may stand in a line (docs/security.md says what each holds); anything else shows as `UNLISTED`.
FIELDS = frozenset(
    {
        *("event", "level", "timestamp", "trace", "logger", "message"),
        *("account", "listen", "upstream", "reason", "serial", "expires_at"),
        *("request_id", "method", "path", "status", "problem", "bytes", "ms", "queued_ms", "retried"),
        *("postponed", "cut", "requests", "pause_s", "stepped", "rate"),
        *("attempt", "retry_in_s", "token_left_s", "hold_s"),
        *("exc_info",),  # becomes `trace`
    }
)
MESSAGE_MAX = 200
UNLISTED = "[not shown: not a listed field]"
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "silent": 50}


def build_logger(level: str, form: str, stream: TextIO | None = None) -> FilteringBoundLogger:
    """Configure structlog and the standard library's logging, return the logger.

    Args:
        level: `debug`, `info`, `warning` or `error`; `silent` for commands whose errors are their one line.
        form: `console`, `json`, or `auto`: console on a terminal, JSON lines elsewhere.
        stream: where lines go; standard error when None.
    """
    out = stream if stream is not None else sys.stderr
    console = form == "console" or (form == "auto" and out.isatty())
    colors = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    shared: list[Processor] = [
        _only_listed,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    ]
    if console:
        last: Processor = structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=_plain_trace, sort_keys=False, pad_event_to=20
        )
    else:
        shared.append(_trace_to_text)
        last = structlog.processors.JSONRenderer(default=str)
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    log: FilteringBoundLogger = structlog.get_logger()
    root = logging.getLogger()
    root.handlers = [_Bridge(log)]
    # Libraries below warning talk about themselves; above it, about us.
    root.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    return log


class _Bridge(logging.Handler):
    """Hands the records of libraries to structlog."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(
            record.levelno,
            "library.logged",
            logger=record.name,
            message=_template_of(record),
            **({"exc_info": record.exc_info} if record.exc_info else {}),
        )


def _only_listed(_logger: Any, _name: str, event: EventDict) -> EventDict:
    for name in event.keys() - FIELDS:
        event[name] = UNLISTED
    return event


def _template_of(record: logging.LogRecord) -> str:
    """Return the text without what was to be put in, which may come from a request or an answer."""
    if not isinstance(record.msg, str):
        return type(record.msg).__name__
    return record.msg.partition("\n")[0][:MESSAGE_MAX]


def _plain_trace(out: TextIO, exc_info: ExcInfo) -> None:
    out.write("\n" + _trace_text(exc_info))


def _trace_to_text(_logger: Any, _name: str, event: EventDict) -> EventDict:
    exc_info = event.pop("exc_info", None)
    if exc_info is True:
        exc_info = sys.exc_info()
    elif isinstance(exc_info, BaseException):
        exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
    if exc_info and exc_info[0] is not None:
        event["trace"] = _trace_text(exc_info)
    return event


def _trace_text(
    exc_info: tuple[type[BaseException] | None, BaseException | None, TracebackType | None],
) -> str:
    """Return frames and the exception's type; foreign exceptions' texts may hold what was sent."""
    kind, _, trace = exc_info
    frames = "".join(traceback.format_tb(trace))
    return f"{frames}{kind.__name__ if kind is not None else 'no exception'}"
