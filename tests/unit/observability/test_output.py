"""Standard output and error whose reader has stopped: nothing waits for it, and what is lost is counted."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

import pytest
import structlog

from cfproxy.observability.logs import LogOutput
from cfproxy.observability.metrics import Metrics
from cfproxy.observability.output import BUFFER_BYTES, BackgroundStream
from cfproxy.observability.prometheus import MetricsCollector

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and terminals as POSIX has them")
PATIENCE_S = 30.0


@contextmanager
def pipe(*, blocking: bool = True, encoding: str = "utf-8") -> Iterator[tuple[int, TextIO]]:
    """Return the reading end of a pipe, and a stream for the other one."""
    reading, writing = os.pipe()
    os.set_blocking(writing, blocking)
    with os.fdopen(writing, "w", encoding=encoding) as stream:
        try:
            yield reading, stream
        finally:
            os.close(reading)  # so that the thread, if it hangs, ends its write


@contextmanager
def stopped_terminal() -> Iterator[tuple[int, TextIO]]:
    """Return the other side of a terminal whose output was stopped (Ctrl-S), and the terminal."""
    ours, theirs = os.openpty()
    termios.tcflow(theirs, termios.TCOOFF)
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        try:
            yield ours, stream
        finally:
            os.close(ours)


def read_lines(descriptor: int, is_last: Callable[[str], bool]) -> list[str]:
    """Read lines until one is the last."""
    lines: list[str] = []
    with os.fdopen(os.dup(descriptor), encoding="utf-8") as stream:
        for line in stream:
            lines.append(line.rstrip())
            if is_last(lines[-1]):
                break
    return lines


@pytest.fixture
def restored() -> Iterator[None]:
    """Restore structlog and the root logger."""
    root = logging.getLogger()
    before = (structlog.get_config(), root.handlers, root.level)
    yield
    structlog.configure(**before[0])
    root.handlers, root.level = before[1], before[2]


def test_text_arrives_in_order() -> None:
    """Also what was written in parts, as `print` does."""
    with pipe() as (reading, stream):
        out = BackgroundStream(stream)
        for number in range(100):
            print(number, file=out)
        assert out.drain(PATIENCE_S)
        assert read_lines(reading, lambda line: line == "99") == [str(number) for number in range(100)]
        assert out.dropped == 0


def test_what_cannot_be_encoded_is_escaped() -> None:
    """As Python does at standard error itself."""
    with pipe(encoding="cp1252") as (reading, stream):
        out = BackgroundStream(stream)
        out.write("\u0141\u00f3d\u017a \udcff\n")
        assert out.drain(PATIENCE_S)
        assert os.read(reading, 100) == b"\\u0141\xf3d\\u017a \\udcff\n"


@pytest.mark.parametrize("open_stream", [pipe, stopped_terminal])
def test_a_writer_never_waits_for_a_reader(
    open_stream: Callable[[], AbstractContextManager[tuple[int, TextIO]]],
) -> None:
    """What doesn't fit into the buffer is dropped and counted, so memory is bounded."""
    line = "x" * 999 + "\n"
    with open_stream() as (_, stream):
        out = BackgroundStream(stream)
        written = 4 * BUFFER_BYTES // 1000
        for _ in range(written):
            out.write(line)
        assert written // 2 < out.dropped < written
        assert sum(len(part) for part in out._parts if isinstance(part, bytes)) <= BUFFER_BYTES
        assert not out.drain(0)


def test_a_file_that_another_process_made_non_blocking_loses_nothing() -> None:
    """Node does that to the pipes of its children; a direct write would fail when the pipe is full."""
    with pipe(blocking=False) as (reading, stream):
        out = BackgroundStream(stream)
        count = BUFFER_BYTES // 2 // 100
        for number in range(count):
            out.write(f"{number:099}\n")
        lines = read_lines(reading, lambda line: int(line) == count - 1)
    assert [int(line) for line in lines] == list(range(count))
    assert out.dropped == 0


def test_lines_that_cannot_be_written_are_counted() -> None:
    """A full disk, or a reader that has ended."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        out = BackgroundStream(full)
        out.write("a\nb\n")
        assert out.drain(PATIENCE_S)
        assert out.dropped == 2
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        out = BackgroundStream(stream)
        out.write("a\n")
        assert out.drain(PATIENCE_S)
        assert out.dropped == 1


@pytest.mark.usefixtures("restored")
async def test_lost_lines_are_reported_once_the_log_flows_again() -> None:
    """By one line in their place: all lines before it were kept, and so are all lines after it."""
    with pipe() as (reading, stream):
        out = BackgroundStream(stream)
        output = LogOutput("info", "json", stream=out)
        for serial in range(4 * BUFFER_BYTES // 200):
            output.log.info("token.refreshed", serial=serial, reason="x" * 100)
            await asyncio.sleep(0)
        assert output.dropped_lines > 0
        lines = await asyncio.to_thread(read_lines, reading, lambda line: "log.lines_dropped" in line)
        output.log.info("proxy.stopped")
        lines += await asyncio.to_thread(read_lines, reading, lambda line: "proxy.stopped" in line)
    events = [json.loads(line) for line in lines]
    *kept, report, last = events
    assert [event["serial"] for event in kept] == list(range(len(kept)))
    assert (report["level"], report["lines"]) == ("warning", 4 * BUFFER_BYTES // 200 - len(kept))
    assert report["lines"] == output.dropped_lines
    assert last["event"] == "proxy.stopped"
    metrics = Metrics()
    metrics.dropped_lines = lambda: output.dropped_lines
    assert (
        f"cfproxy_log_lines_dropped_total {report['lines']}.0" in MetricsCollector(metrics).render().decode()
    )


@pytest.mark.usefixtures("restored")
async def test_a_stack_trace_does_not_wait_either() -> None:
    """Its lines are lost and counted like others."""
    with pipe() as (_, stream):
        out = BackgroundStream(stream)
        output = LogOutput("info", "console", stream=out)
        for _ in range(2000):
            try:
                raise ValueError
            except ValueError:
                output.log.exception("token.refresh_crashed")
            await asyncio.sleep(0)
        assert output.dropped_lines > 0


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("loop_has_run", [True, False])
def test_without_a_loop_the_output_flows_again_without_a_report(loop_has_run: bool) -> None:
    """Before the first line, and after the end; the thread survives."""
    with pipe() as (reading, stream):
        out = BackgroundStream(stream)
        output = LogOutput("info", "json", stream=out)

        async def log() -> None:
            output.log.info("proxy.started")

        if loop_has_run:
            asyncio.run(log())
        for _ in range(2 * BUFFER_BYTES // 1000):
            out.write("x" * 999 + "\n")
        dropped = out.dropped
        assert dropped > 0
        with ThreadPoolExecutor() as beside:
            lines = beside.submit(read_lines, reading, lambda line: line == "last")
            assert out.drain(PATIENCE_S)
            out.write("last\n")
            assert lines.result(PATIENCE_S)[-1] == "last"
    assert out.dropped == dropped


PROGRAM = """
import sys, warnings
from cfproxy.observability.output import release_output, unblock_output
unblock_output()
for stream in (sys.stdout, sys.stderr):
    for _ in range(1000):
        stream.write("x" * 1000 + "\\n")
warnings.warn("goes to standard error")
release_output()
print("lost", file=sys.stderr)
print("as well")
sys.exit(7)
"""


@pytest.mark.parametrize("shared", [True, False])
def test_a_process_ends_although_nobody_reads(shared: bool) -> None:
    """Whether both streams are one pipe or two."""
    (first, out), (second, err) = os.pipe(), os.pipe()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=out, stderr=out if shared else err)
    try:
        assert process.wait(PATIENCE_S) == 7
    finally:
        process.kill()
        for descriptor in (first, out, second, err):
            os.close(descriptor)


def test_both_streams_of_one_file_keep_their_order() -> None:
    """A terminal, or `2>&1`."""
    program = (
        "import sys\n"
        "from cfproxy.observability.output import release_output, unblock_output\n"
        "unblock_output()\n"
        "for n in range(50): print(2 * n); print(2 * n + 1, file=sys.stderr)\n"
        "release_output()\n"
        "print(100); sys.stdout.flush(); print(101, file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True
    )
    assert ran.stdout.split() == [str(n).encode() for n in range(102)]
