"""Standard output and error that never make their writer wait.

Their reader may stop: a parent process that ignores a pipe, Ctrl-S or a selection at a terminal. Other
processes may have the same files, so these can't be made non-blocking. A thread writes instead.

Invariants:
1. Text waits in a bounded buffer. Lines that don't fit are dropped and counted.
2. Order is kept; between dropped lines and the next ones, `on_flow` can write a line of its own.
3. The end of the process waits for the reader, but only for `FLUSH_S`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO, cast

BUFFER_BYTES = 256 * 1024
WRITE_BYTES = 64 * 1024  # at a time, when much waits
GATHER_S = 0.005
START_S = 0.1
FLUSH_S = 1.0


class BackgroundStream(io.TextIOBase):
    """Writes to a stream from a thread.

    Args:
        stream: a text stream over a file, whose own buffer is not used.

    Attributes:
        stream: the stream.
        dropped: lines that were dropped, because the buffer was full or they could not be written.
        error: why the latest of the latter could not.
        on_flow: called in the thread when lines were dropped and there is room again. It must make sure that
            `resume` is called; until then every line is dropped, so that nothing precedes its report.
    """

    def __init__(self, stream: TextIO) -> None:
        stream.flush()
        self.stream = stream
        self._raw: io.RawIOBase = getattr(stream.buffer, "raw", cast("io.RawIOBase", stream.buffer))
        self._parts: list[bytes | threading.Event] = []
        self._lock = threading.RLock()  # a finalizer may write while a write is going on
        self._arrived = threading.Semaphore(0)
        self._is_idle = True
        self._waiting_bytes = 0
        self._unreported = 0
        self._dropping = False
        self.dropped = 0
        self.error: Exception | None = None
        self.on_flow: Callable[[], object] = self.resume
        # A thread that hangs in a system call must not keep the process from ending.
        threading.Thread(target=self._run, name="output", daemon=True).start()

    @property
    def encoding(self) -> str:  # type: ignore[override] # read-only, unlike the base class's
        """The encoding of the stream."""
        return self.stream.encoding

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """The descriptor of the file."""
        return self.stream.fileno()

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Add text to the buffer, or drop it."""
        data = text.replace("\n", os.linesep).encode(self.stream.encoding, "backslashreplace")
        with self._lock:
            self._dropping |= 0 < self._waiting_bytes > BUFFER_BYTES - len(data)
            if self._dropping:
                self._count(data)
            else:
                self._waiting_bytes += len(data)
                self._add(data)
        return len(text)

    def resume(self) -> int:
        """Accept lines again; return how many were dropped since the last call."""
        with self._lock:
            lines, self._unreported, self._dropping = self._unreported, 0, False
        return lines

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything was written; return whether it was."""
        reached = threading.Event()
        with self._lock:
            self._add(reached)
        return reached.wait(timeout_s)

    def _add(self, part: bytes | threading.Event) -> None:
        self._parts.append(part)
        if self._is_idle:
            self._is_idle = False
            self._arrived.release()

    def _count(self, data: bytes) -> None:
        lines = data.count(b"\n")
        self.dropped += lines
        self._unreported += lines

    def _run(self) -> None:
        while True:
            with self._lock:
                parts, self._parts = self._parts, []
                self._is_idle = not parts
            if not parts:
                self._arrived.acquire()
                continue
            for is_text, group in itertools.groupby(parts, lambda part: isinstance(part, bytes)):
                if is_text:
                    self._write_all(b"".join(cast("Iterator[bytes]", group)))
                else:
                    for reached in cast("Iterator[threading.Event]", group):
                        reached.set()
            # The first line after a pause is written at once; those that follow share system calls.
            time.sleep(GATHER_S)

    def _write_all(self, data: bytes) -> None:
        for start in range(0, len(data), WRITE_BYTES):
            chunk = data[start : start + WRITE_BYTES]
            written = self._write(chunk)
            with self._lock:
                if not written:
                    self._count(chunk)
                self._waiting_bytes -= len(chunk)
                flows = written and self._unreported and self._waiting_bytes <= BUFFER_BYTES // 2
            if flows:
                self.on_flow()

    def _write(self, data: bytes) -> bool:
        """Return whether all of it could be written."""
        left = memoryview(data)
        try:
            while left:
                count = self._raw.write(left)
                if count is None:  # another process made the file non-blocking
                    select.select([], [self._raw], [])
                else:
                    left = left[count:]
        except (OSError, ValueError) as error:  # the reader has ended, or the disk is full
            self.error = error
        return not left


def unblock_output() -> None:
    """Replace standard output and error by streams whose writers never wait (see `release_output`)."""
    streams = {}
    with contextlib.suppress(OSError, AttributeError, ValueError):  # not over files, in tests
        is_one = os.name == "posix" and os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
        streams["stderr"] = BackgroundStream(sys.stderr)
        # One thread for one file, so that lines of both keep their order.
        streams["stdout"] = streams["stderr"] if is_one else BackgroundStream(sys.stdout)
    for name, stream in streams.items():
        setattr(sys, name, stream)


def check_output() -> None:
    """Raise what keeps standard output from being written; a reader that doesn't read is not waited for.

    Raises:
        OSError: the disk is full, or the reader has ended.
    """
    if isinstance(sys.stdout, BackgroundStream):
        sys.stdout.drain(START_S)
        if sys.stdout.error is not None:
            raise sys.stdout.error


def release_output() -> None:
    """Wait for what was written, and undo `unblock_output`.

    A stream whose reader doesn't read stays replaced: what is written to it from now on is lost, so that the
    process can end.
    """
    give_up_at = time.monotonic() + FLUSH_S
    for name in ("stderr", "stdout"):
        stream = getattr(sys, name)
        if isinstance(stream, BackgroundStream) and stream.drain(max(0, give_up_at - time.monotonic())):
            setattr(sys, name, stream.stream)
