"""`cfproxy sandbox`."""

from __future__ import annotations

import asyncio

import click

from cfproxy.cli.options import debug_option, parse_listen_option, reject_config_option
from cfproxy.cli.run import run_loop, wait_for_signal
from cfproxy.errors import ListenError, UsageError
from cfproxy.observability.output import check_output, unblock_output
from cfproxy.sandbox import Behaviour, Sandbox, parse_setting


@click.command("sandbox")
@debug_option
@click.option(
    "--listen", default="127.0.0.1:9400", metavar="HOST:PORT", help="Address to listen at.", show_default=True
)
@click.option("--set", "changes", metavar="NAME=VALUE", multiple=True, help="Change a setting; repeatable.")
def sandbox_command(listen: str, changes: tuple[str, ...]) -> int:
    """Run a local stand-in for Creative Force's two servers."""
    reject_config_option("the sandbox")
    host, port = parse_listen_option(listen)
    behaviour = Behaviour()
    for change in changes:
        name, separator, value = change.partition("=")
        if not separator:
            raise UsageError(f"--set takes NAME=VALUE, not '{name}'")
        try:
            behaviour.update({name: parse_setting(name, value)})
        except ValueError as error:
            raise UsageError(str(error)) from None
    unblock_output()
    return run_loop(_sandbox(host, port, behaviour))


async def _sandbox(host: str, port: int, behaviour: Behaviour) -> int:
    sandbox = Sandbox(behaviour)
    try:
        await sandbox.start(host, port)
    except OSError as error:
        raise ListenError(
            f"cannot listen on {error.filename}: {error.strerror}; choose another with --listen"
        ) from None
    redirect_uri = behaviour.redirect_uris[0] if behaviour.redirect_uris else f"{sandbox.url}/paste"
    try:
        click.echo(
            f"The sandbox serves both servers' endpoints at {sandbox.url}\n"
            f"  client_id: {behaviour.client_id}\n  client_secret: {behaviour.client_secret}\n"
            f"  redirect_uri: {redirect_uri}\n"
            f"  authorize_url: {sandbox.url}/connect/authorize\n  token_url: {sandbox.url}/connect/token\n"
            f"  revocation_url: {sandbox.url}/connect/revocation\n  upstream: {sandbox.url}"
        )
        check_output()
        return await wait_for_signal(asyncio.Event())
    finally:
        await sandbox.close()
