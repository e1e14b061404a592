"""What gets into a log line, and what never does."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import errno
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import structlog

import cfproxy
from cfproxy.observability.logs import FIELDS, LogOutput, build_logger
from cfproxy.secret import Secret
from tests.support.paths import ROOT

MARKER = "marker-5d1c"


@pytest.fixture(params=["json", "console"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both forms of a line; structlog and the root logger are put back afterwards."""
    root = logging.getLogger()
    before = (structlog.get_config(), root.handlers, root.level)
    yield request.param
    structlog.configure(**before[0])
    root.handlers, root.level = before[1], before[2]


def test_every_field_that_the_program_logs_is_listed() -> None:
    """A new field needs a place in `FIELDS`, and by that a thought about what it may hold."""
    used = set()
    for path in Path(cfproxy.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            logs = ast.unparse(node.func.value).rpartition(".")[2] in {"log", "_log"}
            if logs and node.func.attr in {"debug", "info", "warning", "error", "exception", "bind"}:
                used |= {word.arg for word in node.keywords if word.arg is not None}
    assert {"account", "reason", "serial"} <= used
    assert used <= FIELDS, used - FIELDS


def test_every_field_is_explained() -> None:
    """The table in docs/security.md has each listed field, and no other."""
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    table = page.partition("## Log fields")[2].partition("\n## ")[0]
    cells = re.findall(r"(?m)^\|([^|]*)\|", table)
    assert {name for cell in cells for name in re.findall(r"`([a-z_]+)`", cell)} == FIELDS


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "full"), ValueError("closed")])
def test_a_line_that_cannot_be_written_is_lost_and_nothing_else(form: str, error: Exception) -> None:
    """A refresh, or a request, does not fail because its log is on a full disk or has no reader."""

    class Stream(io.StringIO):
        full = True

        def flush(self) -> None:
            if self.full:
                raise error

    out = Stream()
    log = build_logger("info", form, out)
    log.info("token.refreshed", serial=1)
    out.full = False
    log.info("token.refreshed", serial=22)
    assert "22" in out.getvalue()


def test_a_field_that_is_not_listed_does_not_show(form: str) -> None:
    """Whoever logs a header or a body by mistake logs its name only; secrets don't show in any field."""
    out = io.StringIO()
    log = build_logger("info", form, out)
    log.info("request.forwarded", header=MARKER, body={"a": MARKER}, reason=Secret(MARKER), status=200)
    line = out.getvalue()
    assert MARKER not in line
    assert "header" in line
    assert "200" in line
    assert "[redacted]" in line


def test_a_line_cannot_steer_the_terminal(form: str) -> None:
    """Control bytes that a caller or a server put into a text are shown, in whatever field they are."""
    out = io.StringIO()
    log = build_logger("info", form, out)
    log.info(
        "request.refused",
        path="/a\x1b]0;evil\x07\x9b2J\r\n\u202eb",
        method="G\x1b[31mET",
        reason="gr\xfcn ok",
    )
    line = out.getvalue()
    assert line.endswith("\n")
    assert line.removesuffix("\n").isprintable()
    assert line.count("x1b" if form == "console" else "u001b") == 2
    assert ("gr\xfcn ok" if form == "console" else "gr\\u00fcn ok") in line


def test_a_trace_shows_code_and_no_value(form: str) -> None:
    """Neither local variables nor the text of a foreign exception are in a stack trace."""
    out = io.StringIO()
    log = build_logger("info", form, out)

    def crash(token: str) -> None:
        held = {"token": token}
        raise ValueError(f"bad value {held}")

    try:
        crash(MARKER)
    except ValueError as error:
        log.exception("token.refresh_crashed")
        log.error("token.refresh_crashed", exc_info=error)
        logging.getLogger("aiohttp.server").exception("failed")
    text = out.getvalue()
    assert text.count("ValueError") >= 3
    assert text.count("test_logs.py") >= 3
    assert "crash(MARKER)" in text
    assert MARKER not in text


def test_what_libraries_say_comes_without_their_values(form: str) -> None:
    """Texts of aiohttp and asyncio may hold what was sent: the template shows, up to its first line."""
    out = io.StringIO()
    build_logger("info", form, out)
    logging.getLogger("aiohttp.client").warning("Can not load cookies: %s", MARKER)
    text = f"Task exception was never retrieved\nfuture: {MARKER}"
    logging.getLogger("asyncio").error(text)
    logging.getLogger("any").error({"a": MARKER})
    text = out.getvalue()
    assert "Can not load cookies" in text
    assert "Task exception was never retrieved" in text
    assert MARKER not in text
    assert text.count("library.logged") == 3


def test_a_json_line_is_one_object(form: str) -> None:
    """One event is one line, whatever it holds."""
    out = io.StringIO()
    log = build_logger("info", form, out)
    log.info("request.refused", path="/a\nb", status=400)
    if form == "json":
        (line,) = out.getvalue().splitlines()
        assert json.loads(line)["path"] == "/a\nb"


@pytest.mark.usefixtures("form")
def test_ordinary_lines_are_sampled_and_dropped_below_the_level() -> None:
    """All at 1, none at 0, about the share in between; and none where nobody sees them."""
    for share, least, most in ((1.0, 2000, 2000), (0.0, 0, 0), (0.1, 100, 320)):
        output = LogOutput("info", "json", share, io.StringIO())
        assert least <= sum(output.keeps_request() for _ in range(2000)) <= most
    assert not LogOutput("warning", "json", 1.0, io.StringIO()).keeps_request()


def test_the_level_and_form_change_for_loggers_that_are_bound_already(form: str) -> None:
    """Whoever bound a name to a logger need not know of reloads."""
    out = io.StringIO()
    output = LogOutput("info", form, stream=out)
    bound = output.log.bind(account="acme")
    output.set_level("error")
    bound.warning("proxy.removed")
    assert out.getvalue() == ""
    output.set_level("debug")
    bound.debug("proxy.removed")
    assert "proxy.removed" in out.getvalue()
    output.change("info", "json", 1.0)
    out.truncate(0)
    out.seek(0)
    bound.info("proxy.removed")
    assert json.loads(out.getvalue())["account"] == "acme"
    assert output.level == "info"


@pytest.mark.parametrize(
    "fault", [BrokenPipeError(), BlockingIOError(), ValueError("I/O operation on closed file")]
)
async def test_nobody_is_told_that_nobody_reads_the_log(form: str, fault: Exception) -> None:
    """A line about it would fail, too, and bring the next one, turn by turn; later ones may get through."""
    out, heard = io.StringIO(), []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: heard.append(context))
    log = build_logger("info", form, out)
    write, out.write = out.write, Mock(side_effect=fault)  # type: ignore[method-assign]
    log.info("request.forwarded", status=200)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    out.write = write  # type: ignore[method-assign]
    log.info("proxy.removed")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert "proxy.removed" in out.getvalue()
    assert not heard


def test_the_last_line_of_a_loop_is_written(form: str) -> None:
    """Lines wait for the end of a turn, and the last turn is none to be lost: whatever ends the loop."""

    async def work(error: BaseException | None) -> None:
        await asyncio.sleep(0)
        log.info("proxy.removed")
        if error is not None:
            raise error

    for error in (None, RuntimeError(), SystemExit(1), asyncio.CancelledError()):
        out = io.StringIO()
        log = build_logger("info", form, out)
        with contextlib.suppress(RuntimeError, SystemExit, asyncio.CancelledError):
            asyncio.run(work(error))
        assert "proxy.removed" in out.getvalue()
