"""`cfproxy wait`: for whoever must not start before the proxy can serve, and ends it when done.

Invariant: it is a health check, too, that runs for ever: nothing is imported that it could do without, so
it asks with the standard library and has no event loop.
"""

from __future__ import annotations

import contextlib
import http.client
import signal
import subprocess
import sys
import time

import click

from cfproxy.cli.admin_client import ANSWER_S, AdminClient, find_admin
from cfproxy.cli.options import common_options, load_config
from cfproxy.errors import CfproxyError, UsageError

LOOK_EVERY_S = 0.2
_PATHS = {"ready": "/readyz", "live": "/livez", "started": "/startupz"}


@click.command("wait", short_help="Wait until a running proxy is ready; run a command then.")
@common_options
@click.option(
    "--for",
    "state",
    type=click.Choice(list(_PATHS)),
    default="ready",
    help="What to wait for; default: ready, every account can serve.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=60.0,
    metavar="SECONDS",
    help="How long at most; default: 60.",
)
@click.option("--url", metavar="URL", help="The admin listener's address; default: the configuration's.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def wait_command(state: str, timeout_s: float, url: str | None, command: tuple[str, ...]) -> int:
    """Wait until a running proxy is ready; with -- COMMAND, run it then and end the proxy after it.

    Waits 60 s at most, or --timeout. The exit code is COMMAND's.
    """
    key = None
    if url is None:
        url, key = find_admin(load_config())
    admin = AdminClient(url, key)
    _wait(admin, state, timeout_s)
    if not command:
        return 0
    code = _run(command)
    _shut_down(admin)
    return code


def _wait(admin: AdminClient, state: str, timeout_s: float) -> None:
    """Ask until the answer is 200, and at least once.

    Raises:
        CfproxyError: it did not come in time; the text has what the last answer said.
    """
    last = f"nothing answers at {admin.url}; start it with cfproxy serve"
    idle_timeout = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            left_s = max(LOOK_EVERY_S, idle_timeout - time.monotonic())
            status, document = admin.ask("GET", _PATHS[state], min(left_s, ANSWER_S))
            if status == 200:
                return
            last = _reason(document)
        if time.monotonic() + LOOK_EVERY_S > idle_timeout:
            raise CfproxyError(f"the proxy is not {state} after {timeout_s:g} s: {last}")
        time.sleep(LOOK_EVERY_S)


def _reason(document: object) -> str:
    """Return what a health check says of itself."""
    if not isinstance(document, dict):
        return "its health check does not say why"
    checks = document.get("checks")
    for check in checks if isinstance(checks, list) else ():
        if isinstance(check, dict) and check.get("detail") and not check.get("ready", check.get("ok")):
            return str(check["detail"])
    return str(document.get("status") or document.get("title") or "its health check does not say why")


def _run(command: tuple[str, ...]) -> int:
    """Run a command to its end; signals to us are passed on to it, so that it decides."""
    try:
        process = subprocess.Popen(command)  # noqa: S603 - what the caller asked for
    except OSError as error:
        raise UsageError(f"{command[0]} can't be run: {error.strerror}; the proxy goes on") from None

    def pass_on(number: int, _frame: object) -> None:
        # Ctrl-C goes to everybody at the terminal, so the command has it already.
        if number != signal.SIGINT or not sys.stdin.isatty():
            with contextlib.suppress(ValueError):  # Windows knows no such signal to others
                process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    code = process.wait()
    # As a shell has it for a command that a signal ended.
    return 128 - code if code < 0 else code


def _shut_down(admin: AdminClient) -> None:
    """Ask the proxy to end; one that has ended already is as good.

    Raises:
        CfproxyError: it refuses.
    """
    try:
        status, document = admin.ask("POST", "/shutdown")
    except (OSError, http.client.HTTPException):
        return
    if status == 202:
        return
    detail = document.get("detail") if isinstance(document, dict) else None
    raise CfproxyError(f"the proxy goes on: {detail or f'POST /shutdown was answered {status}'}")
