"""`cfproxy wait`: waits until a proxy is ready, and may run a command then.

It also serves as a container's health check, which runs often. It therefore imports as little as possible and
uses the standard library's HTTP client without an event loop.
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


@click.command("wait", short_help="Wait until a proxy is ready, then run a command.")
@common_options
@click.option(
    "--for",
    "state",
    type=click.Choice(list(_PATHS)),
    default="ready",
    help="State to wait for; default: ready, all accounts can serve.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=60.0,
    metavar="SECONDS",
    help="Maximum time to wait; default: 60.",
)
@click.option("--url", metavar="URL", help="URL of the admin listener; default: from the configuration.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def wait_command(state: str, timeout_s: float, url: str | None, command: tuple[str, ...]) -> int:
    """Wait until a proxy is ready. With -- COMMAND, then run it, and stop the proxy after it.

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
    """Poll until the response is 200, at least once.

    Raises:
        CfproxyError: it was not ready in time; the message has the reason from the last response.
    """
    last = f"nothing responds at {admin.url}; start it with cfproxy serve"
    give_up_at = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            left_s = max(LOOK_EVERY_S, give_up_at - time.monotonic())
            status, document = admin.request("GET", _PATHS[state], min(left_s, ANSWER_S))
            if status == 200:
                return
            last = _reason(document)
        if time.monotonic() + LOOK_EVERY_S > give_up_at:
            raise CfproxyError(f"the proxy is not {state} after {timeout_s:g} s: {last}")
        time.sleep(LOOK_EVERY_S)


def _reason(document: object) -> str:
    """Return the reason that a health check gives."""
    if not isinstance(document, dict):
        return "its health check gives no reason"
    checks = document.get("checks")
    for check in checks if isinstance(checks, list) else ():
        if isinstance(check, dict) and check.get("detail") and not check.get("ready", check.get("ok")):
            return str(check["detail"])
    return str(document.get("status") or document.get("title") or "its health check gives no reason")


def _run(command: tuple[str, ...]) -> int:
    """Run a command to its end; signals are passed on to it."""
    try:
        process = subprocess.Popen(command)  # noqa: S603 - what the caller asked for
    except OSError as error:
        raise UsageError(f"{command[0]} can't be run: {error.strerror}; the proxy keeps running") from None

    def pass_on(number: int, _frame: object) -> None:
        # Ctrl-C reaches every process of the terminal, so the command has it already.
        if number != signal.SIGINT or not sys.stdin.isatty():
            with contextlib.suppress(ValueError):  # Windows can't send these signals
                process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    code = process.wait()
    # Shells use the same code for a command that a signal ended.
    return 128 - code if code < 0 else code


def _shut_down(admin: AdminClient) -> None:
    """Stop the proxy; it may have ended already.

    Raises:
        CfproxyError: it refuses to stop.
    """
    try:
        status, document = admin.request("POST", "/shutdown")
    except (OSError, http.client.HTTPException):
        return
    if status == 202:
        return
    detail = document.get("detail") if isinstance(document, dict) else None
    raise CfproxyError(f"the proxy keeps running: {detail or f'POST /shutdown was answered {status}'}")
