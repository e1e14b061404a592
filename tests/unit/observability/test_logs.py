"""What log lines contain, and what they never contain."""

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
from cfproxy.observability.logs import FIELDS, VALUE_MAX, LogOutput, build_logger
from cfproxy.secret import Secret
from tests.support.paths import ROOT

MARKER = "marker-5d1c"


@pytest.fixture(params=["json", "console"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both forms of a line; structlog and the root logger are restored afterwards."""
    root = logging.getLogger()
    before = (structlog.get_config(), root.handlers, root.level)
    yield request.param
    structlog.configure(**before[0])
    root.handlers, root.level = before[1], before[2]


def test_every_field_that_the_program_logs_is_listed() -> None:
    """A new field needs an entry in `FIELDS`, after a decision about what it may contain."""
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


def test_every_field_is_documented() -> None:
    """The table in docs/security.md has exactly the listed fields."""
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    table = page.partition("## Log fields")[2].partition("\n## ")[0]
    cells = re.findall(r"(?m)^\|([^|]*)\|", table)
    assert {name for cell in cells for name in re.findall(r"`([a-z_]+)`", cell)} == FIELDS


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "full"), ValueError("closed")])
def test_a_line_that_cannot_be_written_is_lost_without_an_error(form: str, error: Exception) -> None:
    """A full disk or a closed pipe fails no refresh and no request."""

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


def test_unlisted_fields_do_not_show_their_values(form: str) -> None:
    """A header or a body logged by mistake shows its name only; secrets show in no field."""
    out = io.StringIO()
    log = build_logger("info", form, out)
    log.info("request.forwarded", header=MARKER, body={"a": MARKER}, reason=Secret(MARKER), status=200)
    line = out.getvalue()
    assert MARKER not in line
    assert "header" in line
    assert "200" in line
    assert "[redacted]" in line


def test_control_characters_are_escaped_on_a_terminal(form: str) -> None:
    """In every field, whether a client or a server sent them."""
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


@pytest.mark.parametrize("field", ["path", "method", "request_id", "reason", "message"])
@pytest.mark.parametrize("letter", ["a", "\\xff", "\x1b", "é"])
def test_long_values_are_cut(form: str, field: str, letter: str) -> None:
    """A client may send 32 KiB of a path, and each byte may take several characters."""
    stream = io.StringIO()
    log = build_logger("info", form, stream)
    log.info("request.forwarded", **{field: letter * 32_768, "status": 200})
    line = stream.getvalue()
    assert len(line) < 8 * VALUE_MAX
    assert "[cut]" in line
    assert "200" in line
    log.info("request.forwarded", **{field: letter * (VALUE_MAX // len(letter))})
    assert "[cut]" not in stream.getvalue().splitlines()[-1]


def test_a_long_stack_trace_is_not_cut(form: str) -> None:
    """It has no part that a client could lengthen."""
    stream = io.StringIO()

    def ping(depth: int) -> None:
        pong(depth - 1)

    def pong(depth: int) -> None:
        if not depth:
            raise ValueError
        ping(depth)

    try:
        ping(40)
    except ValueError:
        build_logger("info", form, stream).exception("request.crashed")
    assert len(stream.getvalue()) > VALUE_MAX
    assert "[cut]" not in stream.getvalue()


def test_a_stack_trace_shows_code_and_no_values(form: str) -> None:
    """It contains neither local variables nor the messages of foreign exceptions."""
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


def test_library_messages_come_without_their_arguments(form: str) -> None:
    """Arguments may hold what was sent, so only the first line of the template shows."""
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
    """One event is one line, whatever it contains."""
    out = io.StringIO()
    log = build_logger("info", form, out)
    log.info("request.refused", path="/a\nb", status=400)
    if form == "json":
        (line,) = out.getvalue().splitlines()
        assert json.loads(line)["path"] == "/a\nb"


@pytest.mark.usefixtures("form")
def test_ordinary_request_lines_are_sampled() -> None:
    """All at 1, none at 0, about the share in between; none below the level."""
    for share, least, most in ((1.0, 2000, 2000), (0.0, 0, 0), (0.1, 100, 320)):
        output = LogOutput("info", "json", share, io.StringIO())
        assert least <= sum(output.keeps_request() for _ in range(2000)) <= most
    assert not LogOutput("warning", "json", 1.0, io.StringIO()).keeps_request()


def test_changes_apply_to_bound_loggers(form: str) -> None:
    """Code that bound a logger need not know about reloads."""
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
async def test_a_failed_write_is_not_logged(form: str, fault: Exception) -> None:
    """Such a line would fail, too, and cause another one; later lines may succeed."""
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


def test_the_last_line_before_the_loop_ends_is_written(form: str) -> None:
    """Lines are written at the end of an iteration, also of the last one."""

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
