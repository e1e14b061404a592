"""A pytest plugin that fails each test whose output contains a secret.

Secrets are all `Secret` instances, and all values that the sandbox issues or receives. The plugin searches
captured output, logging at every level, structlog events, warnings, output of child processes, errors of
`cfproxy.errors` with their causes, and failure reports.

The watch has no effect on tests: it prolongs no object's life (an error would keep its frames, and with them
sockets and files), and tests see the logging levels that they set.
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

# The URL that `cfproxy login` prints contains the state by design (RFC 6749 §4.1.1).
_STATE = re.compile(r"(?<=[?&]state=)[^&\s]+")


def pytest_configure(config: pytest.Config) -> None:
    """Register the watch; `-p no:leaks-watch` runs without it."""
    config.pluginmanager.register(_Watch(), "leaks-watch")


class _Watch:
    """Collects secrets and texts, and fails tests."""

    def __init__(self) -> None:
        self._patch = pytest.MonkeyPatch()
        self._errors: weakref.WeakSet[CfproxyError] = weakref.WeakSet()
        # By id, because the collector clears weak references before it calls `__del__`.
        self._unread: set[int] = set()
        self._sections = 0
        self._root, self._handler = logging.getLogger(), _LogHandler()
        self._level = self._root.level
        self._lasting = 1  # above zero: secrets created now outlive the current test

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Start before any test module is imported."""
        self._watch_secrets()
        self._watch_errors()
        self._watch_output()
        self._watch_logging()
        # Tests see the same log records as without the watch: pytest's handlers keep the former level.
        own: Any = session.config.pluginmanager.get_plugin("logging-plugin")
        if own is not None and own.log_level is None:
            for handler in (own.caplog_handler, own.report_handler):
                handler.setLevel(self._level)

    def pytest_unconfigure(self) -> None:
        """Undo all patches."""
        self._patch.undo()
        self._root.setLevel(self._level)
        self._root.removeHandler(self._handler)

    # --- each test -----------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """Start each test with an empty ledger, except for secrets created outside of tests."""
        LEDGER.reset()
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
        """Keep the secrets of fixtures that several tests share."""
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
        """Fail the test if one of its texts contains a secret."""
        report = yield
        if call.when == "setup" and report.passed:
            return report
        for name, text in report.sections[self._sections :]:
            LEDGER.add_text(name, text)
        self._sections = len(report.sections)
        for error in list(self._errors):
            _add_error(error)
        if report.failed:
            LEDGER.add_text("the failure report", report.longreprtext)
        if found := LEDGER.findings():
            message = "\n".join(["a secret shows:", *found])
            if report.failed:
                report.sections.append(("Secrets in the open", message))
            else:
                report.outcome = "failed"
                report.longrepr = f"{report.nodeid}: {message}"
                vars(report).pop("wasxfail", None)
        return report

    # --- secrets ----------------------------------------------------------------------

    def _watch_secrets(self) -> None:
        init = Secret.__init__

        def init_and_add(secret: Secret, value: str, *source: Any) -> None:
            init(secret, value, *source)
            LEDGER.add_secret(value, "a Secret", lasting=self._lasting > 0)

        self._patch.setattr(Secret, "__init__", init_and_add)
        self._after(Grants, "issue_code", lambda code, *_: LEDGER.add_secret(code, "an issued code"))
        self._after(
            Grants, "_access_value", lambda token, *_: LEDGER.add_secret(token, "an issued access token")
        )
        self._after(
            Grants,
            "_new_refresh_token",
            lambda token, *_: LEDGER.add_secret(token, "an issued refresh token"),
        )
        self._before(Grants, "token", lambda _, form: _add_form(form))
        self._before(
            Accounts, "_redirect", lambda _, asked, __: LEDGER.add_secret(asked.get("state"), "a state")
        )

    # --- texts -----------------------------------------------------------------------

    def _watch_errors(self) -> None:
        """Read each error when it is deleted, with its causes at that time, or when its test ends."""
        errors, unread = self._errors, self._unread

        def build(kind: type[CfproxyError], *args: object, **_: object) -> CfproxyError:
            error = Exception.__new__(kind, *args)
            errors.add(error)
            unread.add(id(error))
            return error

        def read(error: CfproxyError) -> None:
            if id(error) in unread:
                unread.discard(id(error))
                _add_error(error)

        self._patch.setattr(CfproxyError, "__new__", build)
        self._patch.setattr(CfproxyError, "__del__", read, raising=False)

    def _watch_output(self) -> None:
        self._after(pytest.CaptureFixture, "readouterr", lambda text, _: _add_streams("the test", *text))
        self._after(
            subprocess.Popen,
            "communicate",
            lambda text, process, *_, **__: _add_process(process.args, *text),
        )
        self._before(
            warnings.WarningMessage,
            "__init__",
            lambda _, message, *__, **___: LEDGER.add_text("a warning", f"{message} {message!r}"),
        )
        communicate = asyncio.subprocess.Process.communicate

        async def communicate_and_add(process: asyncio.subprocess.Process, *args: Any) -> tuple[bytes, bytes]:
            text = await communicate(process, *args)
            _add_process(process._transport.get_extra_info("subprocess").args, *text)  # type: ignore[attr-defined] # the only way to the command line
            return text

        self._patch.setattr(asyncio.subprocess.Process, "communicate", communicate_and_add)

    def _watch_logging(self) -> None:
        self._root.setLevel(logging.DEBUG)
        self._root.addHandler(self._handler)
        self._before(
            LogCapture,
            "__call__",
            lambda _, __, ___, event: LEDGER.add_text("a log event", f"{event!r} {event}"),
        )

    def _after(self, owner: type, name: str, observe: Callable[..., object]) -> None:
        """Call `observe` after each call of a method, with its result and arguments."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def call(*args: Any, **options: Any) -> Any:
            result = real(*args, **options)
            observe(result, *args, **options)
            return result

        self._patch.setattr(owner, name, call)

    def _before(self, owner: type, name: str, observe: Callable[..., object]) -> None:
        """Call `observe` before each call of a method, with its arguments."""
        real = getattr(owner, name)

        @functools.wraps(real)
        def call(*args: Any, **options: Any) -> Any:
            observe(*args, **options)
            return real(*args, **options)

        self._patch.setattr(owner, name, call)


class _LogHandler(logging.Handler):
    """Adds everything logged through the standard library, at every level."""

    def emit(self, record: logging.LogRecord) -> None:
        LEDGER.add_text(f"the log of {record.name}", logging.Formatter().format(record))


def _add_form(form: dict[str, str]) -> None:
    for name in ("client_secret", "code_verifier", "code", "refresh_token"):
        LEDGER.add_secret(form.get(name), f"a {name}")


def _add_error(error: CfproxyError) -> None:
    """Add everything that a traceback of the error shows, except lines of code."""
    kind = type(error).__name__
    LEDGER.add_text(f"the repr of {kind}", f"{error!r} {error.args!r}")
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        where = kind if link is error else f"the trace of {kind}"
        LEDGER.add_text(where, "".join(traceback.format_exception_only(link)))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _add_process(words: Any, out: str | bytes | None, err: str | bytes | None) -> None:
    """Add a process's output, except what a command prints by design."""
    listed = [str(word) for word in ([words] if isinstance(words, str | bytes) else words)]
    command = listed[3] if listed[1:3] == ["-m", "cfproxy"] and len(listed) > 3 else ""
    if command == "token":
        out = ""
    elif command == "login":
        out = _STATE.sub("", _text(out))
    _add_streams(f"cfproxy {command}" if command else Path(listed[0]).name, out, err)


def _add_streams(name: str, out: str | bytes | None, err: str | bytes | None) -> None:
    LEDGER.add_text(f"stdout of {name}", _text(out))
    LEDGER.add_text(f"stderr of {name}", _text(err))


def _text(output: str | bytes | None) -> str:
    return output.decode("utf-8", "replace") if isinstance(output, bytes) else output or ""
