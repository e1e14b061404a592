"""Logging: one structlog configuration for the program.

Owns: format, level, sampling, and what never gets into a line.
Invariants: only fields that are listed here show their value, and a `Secret` among those shows as redacted;
a stack trace shows code, never locals; what libraries log through the standard library comes out in the same
form, without the values that they put into their texts; a line that can't be written is lost, and nothing
else; what is changed while the program runs holds for every logger at once, those that were bound before
included.
"""

from __future__ import annotations

import asyncio
import json
import json.encoder
import logging
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterable
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
        *("idle", "unfinished", "refused", "connections"),
        *("attempt", "retry_in_s", "token_left_s", "hold_s"),
        *("changed", "to", "trace_id", "replicas", "stored_serial"),
        *("exc_info",),  # becomes `trace`
    }
)
MESSAGE_MAX = 200
UNLISTED = "[not shown: not a listed field]"
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "silent": 50}


class LogOutput:
    """Where lines go and which ones do; configures structlog and the standard library's logging.

    Args:
        level: `debug`, `info`, `warning` or `error`; `silent` for commands whose errors are their one line.
        form: `console`, `json`, or `auto`: console on a terminal, JSON lines elsewhere.
        sample: the share of ordinary request lines that is written (see `keeps_request`).
        stream: standard error when None.
    """

    def __init__(self, level: str, form: str, sample: float = 1.0, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._processors: list[Processor] = []
        lines = _Gathered(self._stream)
        self._least = 0
        self._sample = 1.0
        structlog.configure(
            processors=self._processors,  # this list itself: loggers hold it, and `change` fills it anew
            wrapper_class=structlog.make_filtering_bound_logger(0),
            logger_factory=lambda *_: lines,
            cache_logger_on_first_use=False,
        )
        self.log: FilteringBoundLogger = structlog.get_logger()
        self.change(level, form, sample)
        logging.getLogger().handlers = [_Bridge(self.log)]

    @property
    def level(self) -> str:
        """The least important level that is written."""
        return next(name for name, number in LEVELS.items() if number == self._least)

    def set_level(self, level: str) -> None:
        """Write lines of `level` and above from now on."""
        self._least = LEVELS[level]
        # Libraries below warning talk about themselves; above it, about us.
        logging.getLogger().setLevel(logging.DEBUG if level == "debug" else logging.WARNING)

    def change(self, level: str, form: str, sample: float) -> None:
        """Use these from now on; see the constructor."""
        self._sample = sample
        self.set_level(level)
        console = form == "console" or (form == "auto" and self._stream.isatty())
        self._processors[:] = [self._only_wanted]
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
        """Whether an ordinary request's line is written, this time: asked before the line is built."""
        return self._least <= LEVELS["info"] and (self._sample >= 1.0 or random.random() < self._sample)  # noqa: S311 - a sample, no secret

    def _only_wanted(self, _logger: Any, name: str, event: EventDict) -> EventDict:
        """Drop what is below the level, and the values of fields that are not listed."""
        if LEVELS.get(name, LEVELS["error"]) < self._least:
            raise structlog.DropEvent
        if not FIELDS.issuperset(event):
            for field in event.keys() - FIELDS:
                event[field] = UNLISTED
        return event


def build_logger(level: str, form: str, stream: TextIO | None = None) -> FilteringBoundLogger:
    """Return a logger whose output stays as it is; see `LogOutput`."""
    return LogOutput(level, form, stream=stream).log


class _Gathered:
    """Writes lines, those of one turn of the event loop in one go: a system call for each costs more than
    the line itself.

    Args:
        stream: where they go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: list[str] = []
        self._due_in: asyncio.AbstractEventLoop | None = None

    def msg(self, line: str) -> None:
        """Have a line written: now where no loop runs, else when this turn of it is over."""
        self._lines.append(line + "\n")  # in one: libraries may log from another thread
        if self._due_in is not None and self._due_in.is_running():
            return
        try:
            self._due_in = asyncio.get_running_loop()
        except RuntimeError:
            self._write_out()
            return
        self._due_in.call_soon(self._write_out)

    debug = info = warning = error = critical = msg

    def _write_out(self) -> None:
        self._due_in = None
        lines, self._lines = self._lines, []
        try:
            self._stream.write("".join(lines))
            self._stream.flush()
        except (OSError, ValueError):
            pass  # nobody is left to be told: a line about it would fail like this one, and bring the next


class _JsonLines:
    """Renders an event as a line of JSON: level, time and what happened first."""

    def __init__(self) -> None:
        # One encoder for good: `JSONEncoder` makes one for each line.
        make = json.encoder.c_make_encoder  # type: ignore[attr-defined] # None where it is not compiled
        plain = json.JSONEncoder(default=str)
        words = (plain.key_separator, plain.item_separator, plain.sort_keys, plain.skipkeys)
        self._pieces: Callable[[EventDict, int], Iterable[str]] = (
            make(None, str, json.encoder.encode_basestring_ascii, None, *words, plain.allow_nan)
            if make
            else lambda event, _level: plain.iterencode(event)
        )
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
        return "".join(self._pieces({**first, **event}, 0))


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


def _printable(_logger: Any, _name: str, event: EventDict) -> EventDict:
    """Show what would move a terminal's cursor or colour its text: a caller may have sent it."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = "".join(
                letter if letter.isprintable() else letter.encode("unicode_escape").decode()
                for letter in value
            )
    return event


def _template_of(record: logging.LogRecord) -> str:
    """Return the text without what was to be put in, which may come from a request or an answer."""
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
    """Return frames and the exception's type; foreign exceptions' texts may hold what was sent."""
    kind, _, trace = exc_info
    frames = "".join(traceback.format_tb(trace))
    return f"{frames}{kind.__name__ if kind is not None else 'no exception'}"
