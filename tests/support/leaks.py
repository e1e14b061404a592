"""A pytest plugin: a test in which a secret shows anywhere has failed.

Owns: where secrets are learned from (every `Secret` made, everything that the sandbox issues or is
shown) and what is read for them: captured output, logging at every level, structlog events, warnings,
output of child processes, errors of `cfproxy.errors` with their causes, and failure reports.
Must not know: how is searched (`ledger.py`), which processes a test runs and what secrets they make
(`e2e/kit.py` tells).
Invariants: nothing lives longer because it is watched (an error that is kept keeps its frames, and
their sockets and files, open); what is watched behaves as ever, logging levels seen by tests included.
"""

from __future__ import annotations

import asyncio.subprocess
import functools
import logging
import re
import subprocess
import traceback
import warnings
import weakref
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import LogCapture

from cfproxy.errors import CfproxyError
from cfproxy.sandbox.accounts import Accounts
from cfproxy.sandbox.grants import Grants
from cfproxy.secret import Secret
from tests.support.secret_ledger import LEDGER

# The address that `cfproxy login` prints carries the state by contract (RFC 6749 §4.1.1).
_STATE = re.compile(r"(?<=[?&]state=)[^&\s]+")


def pytest_configure(config: pytest.Config) -> None:
    """Add the watch; `-p no:leaks-watch` runs without it."""
    config.pluginmanager.register(_Watch(), "leaks-watch")


class _Watch:
    """Learns secrets, hears texts, and judges each test."""

    def __init__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        self._errors: weakref.WeakSet[CfproxyError] = weakref.WeakSet()
        # The collector clears weak references before it lets an object die, so deaths go by id.
        self._unread: set[int] = set()
        self._sections = 0
        self._root, self._ear = logging.getLogger(), _Ear()
        self._level = self._root.level
        self._lasting = 1  # above zero: what is made now outlives the test that happens to run

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Begin, before any test's module is imported."""
        self._learn_secrets()
        self._hear_errors()
        self._hear_output()
        self._hear_logging()
        # The view that tests have of logging stays: pytest's handlers take what they would without us.
        own: Any = session.config.pluginmanager.get_plugin("logging-plugin")
        if own is not None and own.log_level is None:
            for handler in (own.caplog_handler, own.report_handler):
                handler.setLevel(self._level)

    def pytest_unconfigure(self) -> None:
        """Leave everything as it was found."""
        self._patch.undo()
        self._root.setLevel(self._level)
        self._root.removeHandler(self._ear)

    # --- judging -----------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """Give each test a ledger of its own; what is made outside of tests is in all of them."""
        LEDGER.forget()
        self._errors.clear()
        self._unread.clear()
        self._sections = 0
        self._lasting -= 1
        try:
            return (yield)
        finally:
            self._lasting += 1

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        """Keep the secrets of fixtures that serve more than one test."""
        wide = fixturedef.scope != "function"
        self._lasting += wide
        try:
            return (yield)
        finally:
            self._lasting -= wide

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Fail the test in whose texts a secret is found."""
        report = yield
        if call.when == "setup" and report.passed:
            return report
        for name, text in report.sections[self._sections :]:
            LEDGER.hear(name, text)
        self._sections = len(report.sections)
        for error in list(self._errors):
            _hear_error(error)
        if report.failed:
            LEDGER.hear("the failure report", report.longreprtext)
        if found := LEDGER.findings():
            verdict = "\n".join(["a secret shows:", *found])
            if report.failed:
                report.sections.append(("Secrets in the open", verdict))
            else:
                report.outcome = "failed"
                report.longrepr = f"{report.nodeid}: {verdict}"
                vars(report).pop("wasxfail", None)
        return report

    # --- learning ----------------------------------------------------------------------

    def _learn_secrets(self) -> None:
        begin = Secret.__init__

        def begin_and_note(secret: Secret, value: str) -> None:
            begin(secret, value)
            LEDGER.note(value, "a Secret", lasting=self._lasting > 0)

        self._patch.setattr(Secret, "__init__", begin_and_note)
        self._after(Grants, "issue_code", lambda code, *_: LEDGER.note(code, "an issued code"))
        self._after(Grants, "_access_value", lambda token, *_: LEDGER.note(token, "an issued access token"))
        self._after(
            Grants, "_new_refresh_token", lambda token, *_: LEDGER.note(token, "an issued refresh token")
        )
        self._before(Grants, "token", lambda _, form: _note_form(form))
        self._before(Accounts, "_redirect", lambda _, asked, __: LEDGER.note(asked.get("state"), "a state"))

    # --- hearing -----------------------------------------------------------------------

    def _hear_errors(self) -> None:
        """Read each error when it dies, with all that was chained to it by then, or at its test's end."""
        errors, unread = self._errors, self._unread

        def build(kind: type[CfproxyError], *args: object, **_: object) -> CfproxyError:
            error = Exception.__new__(kind, *args)
            errors.add(error)
            unread.add(id(error))
            return error

        def read(error: CfproxyError) -> None:
            if id(error) in unread:
                unread.discard(id(error))
                _hear_error(error)

        self._patch.setattr(CfproxyError, "__new__", build)
        self._patch.setattr(CfproxyError, "__del__", read, raising=False)

    def _hear_output(self) -> None:
        self._after(pytest.CaptureFixture, "readouterr", lambda text, _: _hear_streams("the test", *text))
        self._after(
            subprocess.Popen,
            "communicate",
            lambda text, process, *_, **__: _hear_process(process.args, *text),
        )
        self._before(
            warnings.WarningMessage,
            "__init__",
            lambda _, message, *__, **___: LEDGER.hear("a warning", f"{message} {message!r}"),
        )
        communicate = asyncio.subprocess.Process.communicate

        async def communicate_and_hear(
            process: asyncio.subprocess.Process, *args: Any
        ) -> tuple[bytes, bytes]:
            text = await communicate(process, *args)
            _hear_process(process._transport.get_extra_info("subprocess").args, *text)  # type: ignore[attr-defined] # the only way to the command's words
            return text

        self._patch.setattr(asyncio.subprocess.Process, "communicate", communicate_and_hear)

    def _hear_logging(self) -> None:
        self._root.setLevel(logging.DEBUG)
        self._root.addHandler(self._ear)
        self._before(
            LogCapture, "__call__", lambda _, __, ___, event: LEDGER.hear("a log event", f"{event!r} {event}")
        )

    def _after(self, owner: type, name: str, tell: Callable[..., object]) -> None:
        """Call `tell` with the result of each call of a method, and its arguments."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def call(*args: Any, **options: Any) -> Any:
            result = real(*args, **options)
            tell(result, *args, **options)
            return result

        self._patch.setattr(owner, name, call)

    def _before(self, owner: type, name: str, tell: Callable[..., object]) -> None:
        """Call `tell` with the arguments of each call of a method."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def call(*args: Any, **options: Any) -> Any:
            tell(*args, **options)
            return real(*args, **options)

        self._patch.setattr(owner, name, call)


class _Ear(logging.Handler):
    """Hears what is logged through the standard library, at every level."""

    def emit(self, record: logging.LogRecord) -> None:
        LEDGER.hear(f"the log of {record.name}", logging.Formatter().format(record))


def _note_form(form: dict[str, str]) -> None:
    for name in ("client_secret", "code_verifier", "code", "refresh_token"):
        LEDGER.note(form.get(name), f"a {name}")


def _hear_error(error: CfproxyError) -> None:
    """Hear all that a trace of the error would tell, but for lines of code, which are no secret."""
    kind = type(error).__name__
    LEDGER.hear(f"the repr of {kind}", f"{error!r} {error.args!r}")
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        where = kind if link is error else f"the trace of {kind}"
        LEDGER.hear(where, "".join(traceback.format_exception_only(link)))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _hear_process(words: Any, out: str | bytes | None, err: str | bytes | None) -> None:
    """Hear a process; only what a command prints by contract is left out."""
    listed = [str(word) for word in ([words] if isinstance(words, str | bytes) else words)]
    command = listed[3] if listed[1:3] == ["-m", "cfproxy"] and len(listed) > 3 else ""
    if command == "token":
        out = ""
    elif command == "login":
        out = _STATE.sub("", _text(out))
    _hear_streams(f"cfproxy {command}" if command else Path(listed[0]).name, out, err)


def _hear_streams(name: str, out: str | bytes | None, err: str | bytes | None) -> None:
    LEDGER.hear(f"stdout of {name}", _text(out))
    LEDGER.hear(f"stderr of {name}", _text(err))


def _text(output: str | bytes | None) -> str:
    return output.decode("utf-8", "replace") if isinstance(output, bytes) else output or ""
