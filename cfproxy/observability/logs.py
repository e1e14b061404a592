"""Logging: structlog, with one configuration for the program.

Invariants:
1. Only fields listed in `FIELDS` show their values, and a `Secret` among these shows as redacted.
2. A stack trace shows code, never local variables.
3. Libraries' log records have the same form, without the values that were formatted into their messages.
4. A line that can't be written is lost; nothing else fails. How many were lost is logged once there is room.
5. A value has at most `VALUE_MAX` characters.
6. A change of level, format or sample applies to every logger at once, including bound ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import json.encoder
import logging
import os
import random
import sys
import time
import traceback
from types import TracebackType
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, ExcInfo, FilteringBoundLogger, Processor

from cfproxy.observability.output import BackgroundStream

# Fields that may appear in a line (docs/security.md explains each); others show as `UNLISTED`.
FIELDS = frozenset(
    {
        *("event", "level", "timestamp", "trace", "logger", "message"),
        *("account", "listen", "upstream", "reason", "serial", "expires_at"),
        *("request_id", "method", "path", "status", "problem", "bytes", "ms", "queued_ms", "retried"),
        *("postponed", "cut", "requests", "pause_s", "stepped", "rate"),
        *("idle", "unfinished", "refused", "connections"),
        *("attempt", "retry_in_s", "token_left_s", "hold_s"),
        *("changed", "to", "trace_id", "replicas", "stored_serial", "lines"),
        *("exc_info",),  # becomes `trace`
    }
)
MESSAGE_MAX = 200
VALUE_MAX = 1000  # characters of a value, such as a path; beyond them it is cut
UNLISTED = "[not shown: not a listed field]"
Output = TextIO | BackgroundStream
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "silent": 50}


class LogOutput:
    """The destination and filter of log lines; configures structlog and the standard library's logging.

    Args:
        level: `debug`, `info`, `warning` or `error`; `silent` for commands that print their own error.
        form: `console`, `json`, or `auto`: console on a terminal, JSON elsewhere.
        sample: share of ordinary request lines to write (see `keeps_request`).
        stream: None for standard error.
    """

    def __init__(self, level: str, form: str, sample: float = 1.0, stream: Output | None = None) -> None:
        self._stream: Output = stream if stream is not None else sys.stderr
        self._background = self._stream if isinstance(self._stream, BackgroundStream) else None
        self._processors: list[Processor] = []
        self._lines = lines = _BatchedLines(self._stream)
        if self._background is not None:
            self._background.on_flow = functools.partial(self._report_soon, self._background)
        self._min_level = 0
        self._sample = 1.0
        structlog.configure(
            processors=self._processors,  # loggers hold this list itself, and `change` refills it
            wrapper_class=structlog.make_filtering_bound_logger(0),
            logger_factory=lambda *_: lines,
            cache_logger_on_first_use=False,
        )
        self.log: FilteringBoundLogger = structlog.get_logger()
        self.change(level, form, sample)
        logging.getLogger().handlers = [_Bridge(self.log)]

    @property
    def dropped_lines(self) -> int:
        """How many lines were lost, because nothing reads the log or it could not be written."""
        return 0 if self._background is None else self._background.dropped

    @property
    def level(self) -> str:
        """The lowest level that is written."""
        return next(name for name, number in LEVELS.items() if number == self._min_level)

    def set_level(self, level: str) -> None:
        """Write lines of `level` and above from now on."""
        self._min_level = LEVELS[level]
        # Below warning, libraries log their own internals.
        logging.getLogger().setLevel(logging.DEBUG if level == "debug" else logging.WARNING)

    def change(self, level: str, form: str, sample: float) -> None:
        """Change the settings (see the constructor)."""
        self._sample = sample
        self.set_level(level)
        console = form == "console" or (form == "auto" and self._stream.isatty())
        self._processors[:] = [self._filter]
        if console:
            colors = (
                self._stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
            )
            self._processors += [
                structlog.processors.add_log_level,
                _printable,
                structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
                structlog.dev.ConsoleRenderer(
                    colors=colors, exception_formatter=_plain_trace, sort_keys=False, pad_event_to=20
                ),
            ]
        else:
            self._processors += [_JsonLines()]

    def keeps_request(self) -> bool:
        """Return whether to write the line of an ordinary request; call it before building the line."""
        return self._min_level <= LEVELS["info"] and (self._sample >= 1.0 or random.random() < self._sample)  # noqa: S311 - a sample, not a secret

    def _report_soon(self, stream: BackgroundStream) -> None:
        """Report lost lines in the event loop; called in the stream's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            if self._lines.loop is not None:
                self._lines.loop.call_soon_threadsafe(self._report_dropped, stream)
                return
        stream.resume()

    def _report_dropped(self, stream: BackgroundStream) -> None:
        self._lines.flush()  # this iteration's lines, which are lost as well
        if lines := stream.resume():
            self.log.warning(
                "log.lines_dropped", lines=lines, reason="nothing read the log, or it could not be written"
            )

    def _filter(self, _logger: Any, name: str, event: EventDict) -> EventDict:
        """Drop lines below the level, and the values of unlisted fields."""
        if LEVELS.get(name, LEVELS["error"]) < self._min_level:
            raise structlog.DropEvent
        if not FIELDS.issuperset(event):
            for field in event.keys() - FIELDS:
                event[field] = UNLISTED
        return event


def build_logger(level: str, form: str, stream: TextIO | None = None) -> FilteringBoundLogger:
    """Return a logger whose settings never change (see `LogOutput`)."""
    return LogOutput(level, form, stream=stream).log


class _BatchedLines:
    """Writes the lines of an event loop iteration with one system call, which costs more than a line.

    Args:
        stream: where to write.
    """

    def __init__(self, stream: Output) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._scheduled_in: asyncio.AbstractEventLoop | None = None
        self.loop: asyncio.AbstractEventLoop | None = None  # the latest

    def msg(self, line: str) -> None:
        """Write a line: at the end of the loop's iteration, or at once if no loop runs."""
        self._lines.append(line + "\n")  # atomic: libraries may log from another thread
        if self._scheduled_in is not None and self._scheduled_in.is_running():
            return
        try:
            self.loop = self._scheduled_in = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        self._scheduled_in.call_soon(self.flush)

    debug = info = warning = error = critical = msg

    def flush(self) -> None:
        """Write the lines so far."""
        self._scheduled_in = None
        lines, self._lines = self._lines, []
        try:
            self._stream.write("".join(lines))
            self._stream.flush()
        except (OSError, ValueError):
            pass  # logging it would fail, too


class _JsonLines:
    """Renders an event as a line of JSON that starts with time, level and event."""

    def __init__(self) -> None:
        self._encode = json.JSONEncoder(default=str).encode
        self._second = 0
        self._prefix = ""

    def __call__(self, _logger: Any, level: str, event: EventDict) -> str:
        if "exc_info" in event:
            _trace_to_text(event)
        now_ns = time.time_ns()
        second, rest_ns = divmod(now_ns, 1_000_000_000)
        if second != self._second:
            self._second, self._prefix = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        stamp = f"{self._prefix}.{rest_ns // 1000:06d}Z"
        first = {"timestamp": stamp, "level": level, "event": event["event"]}
        line = self._encode({**first, **event})
        # Few lines are long, and asking for each value costs more.
        return line if len(line) <= VALUE_MAX else self._encode({**first, **_shorten(event)})


class _Bridge(logging.Handler):
    """Passes the standard library's log records to structlog."""

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


def _shorten(event: EventDict) -> EventDict:
    """Cut long values, which a client may have sent; a stack trace is ours."""
    for name, value in event.items():
        if isinstance(value, str) and len(value) > VALUE_MAX and name != "trace":
            event[name] = f"{value[:VALUE_MAX]}[cut]"
    return event


def _printable(_logger: Any, _name: str, event: EventDict) -> EventDict:
    """Escape control characters, which a client may have sent to steer the terminal."""
    for name, value in _shorten(event).items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = "".join(
                letter if letter.isprintable() else letter.encode("unicode_escape").decode()
                for letter in value
            )
    return event


def _template_of(record: logging.LogRecord) -> str:
    """Return a message without its arguments, which may come from a request or a response."""
    if not isinstance(record.msg, str):
        return type(record.msg).__name__
    return record.msg.partition("\n")[0][:MESSAGE_MAX]


def _plain_trace(out: TextIO, exc_info: ExcInfo) -> None:
    out.write("\n" + _trace_text(exc_info))


def _trace_to_text(event: EventDict) -> None:
    exc_info = event.pop("exc_info", None)
    if exc_info is True:
        exc_info = sys.exc_info()
    elif isinstance(exc_info, BaseException):
        exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
    if exc_info and exc_info[0] is not None:
        event["trace"] = _trace_text(exc_info)


def _trace_text(
    exc_info: tuple[type[BaseException] | None, BaseException | None, TracebackType | None],
) -> str:
    """Return frames and the exception's type, but not its message, which may hold what a client sent."""
    kind, _, trace = exc_info
    frames = "".join(traceback.format_tb(trace))
    return f"{frames}{kind.__name__ if kind is not None else 'no exception'}"
