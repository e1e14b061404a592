"""`cfproxy wait`: for whoever must not start before the proxy can serve, and ends it when done."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys

import aiohttp
import click

from cfproxy import exits
from cfproxy.commands.options import common, load
from cfproxy.config import Settings, TcpAddress
from cfproxy.errors import CfproxyError, UsageError
from cfproxy.hosts import render_authority
from cfproxy.running import run_loop
from cfproxy.secret import Secret

LOOK_EVERY_S = 0.2
ANSWER_S = 5.0
_PATHS = {"ready": "/readyz", "live": "/livez", "started": "/startupz"}
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - recognised here, not listened on


@click.command("wait", short_help="Wait until a running proxy is ready; run a command then.")
@common
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
        url, key = _find(load())
    url = url.rstrip("/")
    run_loop(_wait(url, key, state, timeout_s))
    if not command:
        return exits.DONE
    code = _run(command)
    run_loop(_shut_down(url, key))
    return code


def _find(settings: Settings) -> tuple[str, Secret | None]:
    """Return where the admin listener is, and a key for it."""
    if settings.admin is None:
        raise UsageError("the admin listener tells when the proxy is ready, and it is off; set admin")
    keys = [key.secret for key in next(iter(settings.accounts.values())).access.keys if key.account is None]
    return f"http://{_reachable(settings.admin)}", keys[0] if keys else None


def _reachable(address: TcpAddress) -> str:
    if address.port == 0:
        raise UsageError("admin has port 0, which is another one each time; give it a port")
    return render_authority(_ANYWHERE.get(address.host, address.host), address.port)


async def _wait(url: str, key: Secret | None, state: str, timeout_s: float) -> None:
    """Ask until the answer is 200.

    Raises:
        CfproxyError: it did not come in time; the text has what the last answer said.
    """
    last = f"nothing answers at {url}; start it with cfproxy serve"
    try:
        async with asyncio.timeout(timeout_s), _client(key) as client:
            while True:
                try:
                    async with client.get(url + _PATHS[state]) as answer:
                        if answer.status == 200:
                            return
                        last = _reason(await answer.json(content_type=None))
                except (aiohttp.ClientError, ValueError, TimeoutError):
                    pass
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError:
        raise CfproxyError(f"the proxy is not {state} after {timeout_s:g} s: {last}") from None


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


async def _shut_down(url: str, key: Secret | None) -> None:
    """Ask the proxy to end; one that has ended already is as good.

    Raises:
        CfproxyError: it refuses.
    """
    try:
        async with _client(key) as client, client.post(f"{url}/shutdown") as answer:
            if answer.status == 202:
                return
            document = await answer.json(content_type=None)
    except (aiohttp.ClientError, ValueError, TimeoutError):
        return
    detail = document.get("detail") if isinstance(document, dict) else None
    raise CfproxyError(f"the proxy goes on: {detail or f'POST /shutdown was answered {answer.status}'}")


def _client(key: Secret | None) -> aiohttp.ClientSession:
    # Beyond this machine, looking takes a key as well.
    headers = {"X-Cfproxy-Admin": "1"} | ({} if key is None else {"X-Cfproxy-Key": key.reveal()})
    return aiohttp.ClientSession(
        headers=headers,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=ANSWER_S),
    )
