"""`cfproxy sandbox` and `cfproxy demo`."""

from __future__ import annotations

import asyncio

import click

from cfproxy.cli.demo import run_demo
from cfproxy.cli.options import debug_option, is_debug, parse_listen_option, reject_config_option
from cfproxy.cli.run import run_loop, wait_for_signal
from cfproxy.errors import ListenError, UsageError
from cfproxy.hosts import is_loopback
from cfproxy.observability.logs import build_logger
from cfproxy.sandbox import Behaviour, Sandbox, parse_setting


@click.command("sandbox")
@debug_option
@click.option(
    "--listen",
    default="127.0.0.1:9400",
    metavar="HOST:PORT",
    help="Where it listens.",
    show_default=True,
)
@click.option("--set", "changes", metavar="NAME=VALUE", multiple=True, help="Change a behaviour; repeatable.")
def sandbox_command(listen: str, changes: tuple[str, ...]) -> int:
    """Run a local stand-in for Creative Force's two servers."""
    reject_config_option("the sandbox")
    host, port = parse_listen_option(listen)
    behaviour = Behaviour()
    for change in changes:
        name, separator, value = change.partition("=")
        if not separator:
            raise UsageError(f"--set wants NAME=VALUE, not '{name}'")
        try:
            behaviour.update({name: parse_setting(name, value)})
        except ValueError as error:
            raise UsageError(str(error)) from None
    return run_loop(_sandbox(host, port, behaviour))


async def _sandbox(host: str, port: int, behaviour: Behaviour) -> int:
    sandbox = Sandbox(behaviour)
    try:
        await sandbox.start(host, port)
    except OSError as error:
        raise ListenError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with --listen"
        ) from None
    redirect_uri = behaviour.redirect_uris[0] if behaviour.redirect_uris else f"{sandbox.url}/paste"
    try:
        click.echo(
            f"The sandbox plays both servers at {sandbox.url}\n"
            f"  client_id: {behaviour.client_id}\n  client_secret: {behaviour.client_secret}\n"
            f"  redirect_uri: {redirect_uri}\n"
            f"  authorize_url: {sandbox.url}/connect/authorize\n  token_url: {sandbox.url}/connect/token\n"
            f"  revocation_url: {sandbox.url}/connect/revocation\n  upstream: {sandbox.url}"
        )
        return await wait_for_signal(asyncio.Event())
    finally:
        await sandbox.close()


@click.command("demo")
@debug_option
@click.option(
    "--listen",
    default="127.0.0.1:8080",
    metavar="HOST:PORT",
    help="Where the proxy listens.",
    show_default=True,
)
def demo_command(listen: str) -> int:
    """Run sandbox, login and proxy in one; print a curl to try."""
    reject_config_option("the demo")
    host, port = parse_listen_option(listen)
    if not is_loopback(host):
        raise UsageError("the demo listens on this machine only: --listen 127.0.0.1:PORT or [::1]:PORT")
    return run_loop(run_demo(host, port, build_logger("debug" if is_debug() else "info", "console")))
